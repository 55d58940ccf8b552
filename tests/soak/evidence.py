"""What the sensor left behind: records, ledgers, and what its own commands say of them. Read without its code, so that
a fault in that is not believed."""

from __future__ import annotations

import calendar
import json
import re
import shutil
import subprocess
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tcppc.capture.conversation import NO_MEMORY
from tests.soak.sensor import Life

COMMAND_SECONDS = 1800
_EVENT = re.compile(rb'\{"timestamp":"[^"]*","event":"(\w+)"')


# A fault of the sensor's own, as docs/operations.md says.
_OURS = re.compile(r"^Traceback|^\S+ \S+ (TCP: Failed|Writer: |Failed to encode|Watch \S+ .*; going on)")


@dataclass
class Record:
    """One session, as far as the judge looks at it. `src` and `sport` are the connection's own, `claimed` what the flow
    says where that came through a load balancer."""

    udp: bool
    src: str
    sport: int
    start: int
    end: int
    closed: str
    size: int  # its `bytes`
    data: bytes
    truncated: bool
    shaken: bool  # a TLS handshake was done
    id: str
    claimed: tuple[str, int] | None = None
    headless: bool = False  # a PROXY protocol header should have come and did not, or not whole
    behind: int = 0  # of the data, bytes that came behind TLS, as they were


def instant(stamp: str) -> int:
    """RFC 3339 in UTC with nine digits, as the soak's sensor writes it, to ns since the epoch."""
    if len(stamp) < 30 or stamp[29:] not in ("Z", "+00:00"):
        raise ValueError(f"a time stamp that is not as it should be: {stamp}")
    seconds = calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
    return seconds * 1_000_000_000 + int(stamp[20:29])


def record_of(values: dict[str, Any]) -> Record:
    flow, proxy = values["flow"], values.get("proxy")
    own = proxy or flow
    payloads = [b64decode(payload["data"]) for payload in values["payloads"]]
    behind = payloads[values.get("tls", {}).get("after", len(payloads)) :]
    start = instant(values["timestamp"])
    return Record(
        flow["proto"] == "udp",
        own["src"],
        own["sport"],
        start,
        instant(values["end"]) if "end" in values else start,
        values.get("closed", ""),
        values["bytes"],
        b"".join(payloads),
        values.get("truncated", False),
        bool(values.get("tls", {}).get("version")),
        values["id"],
        (flow["src"], flow["sport"]) if proxy else None,
        bool(proxy and proxy.get("error", NO_MEMORY) != NO_MEMORY),
        sum(map(len, behind)),
    )


@dataclass
class Evidence:
    """What the data files have beside records: `events` by name, `syns` the sources that the watch saw, `garbled` lines
    that are no records."""

    lines: int = 0
    garbled: int = 0
    events: Counter[str] = field(default_factory=Counter)
    syns: set[tuple[str, int]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def read(self, paths: list[Path]) -> None:
        """Count the lines of the copies, and find what the watch saw."""
        for path in paths:
            with path.open("rb") as file:
                for line in file:
                    self.lines += 1
                    if match := _EVENT.match(line):
                        self.events[match[1].decode("ascii")] += 1
                        if match[1] == b"syn":
                            flow = json.loads(line)["flow"]
                            self.syns.add((flow["src"], flow["sport"]))

    def records(self, paths: list[Path]) -> Iterator[Record]:
        for path in paths:
            with path.open("rb") as file:
                for line in file:
                    if _EVENT.match(line):
                        continue
                    try:
                        yield record_of(json.loads(line))
                    except (ValueError, KeyError, TypeError):
                        self.garbled += 1


@dataclass
class Ledger:
    """The sums of all ledger lines."""

    accepted: int = 0
    recorded: int = 0
    lines: int = 0
    open: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    stopped: int = 0


def ledger(path: Path) -> Ledger:
    sums = Ledger()
    for line in path.read_bytes().splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # the end of one that was killed; `account` says so too
            continue
        sums.runs += values["event"] == "start"
        sums.stopped += values["event"] == "stop"
        for name in ("accepted", "recorded", "lines"):
            setattr(sums, name, getattr(sums, name) + values.get(name, 0))
        if values["event"] == "stop":
            sums.open += values["open"]
        for name in ("dropped", "refused", "truncated", "errors"):
            getattr(sums, name).update(values.get(name, {}))
    return sums


def put_together(disk: Path, removed: list[tuple[Path, Path]]) -> None:
    """What an operator would do after the faults: what was written while the data folder was away goes into it, its
    ledger's lines in order of time; files that were removed are put back from their copies."""
    data = disk / "data"
    lines: list[bytes] = []
    for number, folder in enumerate([data, *sorted(disk.glob("data.*"))]):
        if (path := folder / "ledger.jsonl").exists():
            lines += path.read_bytes().splitlines(keepends=True)
            path.unlink()
        if folder == data:
            continue
        for path in sorted(folder.iterdir()):
            target = data / path.name
            if target.exists():
                stem, ending, rest = path.name.partition(".jsonl")
                target = data / f"{stem}{ending}.{900 + number}{rest}"
            shutil.move(path, target)
        folder.rmdir()
    lines.sort(key=_when)
    (data / "ledger.jsonl").write_bytes(b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines))
    for number, (path, copy) in enumerate(removed):
        if copy.exists():
            shutil.copyfile(copy, path.with_name(f"{path.name}.{800 + number}"))


def _when(line: bytes) -> str:
    try:
        return str(json.loads(line)["timestamp"])
    except ValueError:
        return ""


@dataclass
class Said:
    """What a command of the sensor said."""

    code: int
    text: str


def command(words: list[str], *arguments: str) -> Said:
    done = subprocess.run(
        [*words, *arguments], capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS, errors="replace"
    )
    return Said(done.returncode, done.stdout + done.stderr)


def log_problems(path: Path) -> list[str]:
    """Log lines that no fault of the soak's excuses."""
    found: list[str] = []
    with path.open("r", encoding="utf-8", errors="replace") as file:
        for line in file:
            if _OURS.search(line) or (" accepted, 0 open, " in line and " bytes held, " in line):
                found.append(f"the log says: {line.strip()[:400]}")
    return found


def account_problems(said: Said, lives: list[Life]) -> list[str]:
    """Why `tcppc account` says that the sums do not agree, without the runs that the soak itself has killed."""
    found = [line.strip() for line in said.text.splitlines() if line.strip().startswith("PROBLEM")]
    killed = [line for line in found if "never stopped" in line]
    others = [line for line in found if line not in killed]
    expected = sum(life.how == "killed" for life in lives)
    if len(killed) > expected:
        others.append(f"account tells of {len(killed)} runs that never stopped; the soak has killed {expected}")
    if said.code not in (0, 1) or (said.code == 1 and not found):
        others.append(f"account ended with {said.code}: {said.text.strip()[-300:]}")
    return others
