"""The undo log of blocks: a line each time one is made or taken away, by whom and why. The sensor and `tcppc blocks`
append to it; who knows all of its lines knows what is blocked."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from tcppc import clock
from tcppc.actions.event import Network
from tcppc.capture.files import append, end_half_line

NAME = "blocks.jsonl"
MOST_LINE = 4096
MOST_BYTES = 32 << 20  # then it is moved to blocks.jsonl.1, and those that still count begin the next one


@dataclass(frozen=True)
class Entry:
    """One line. Instants are ns; `until` is 0 for what takes a block away."""

    event: str  # block or unblock
    instant: int
    network: Network
    scope: str
    until: int = 0
    by: str = ""
    on: str = ""
    why: str = ""

    def line(self, zone: clock.Zone) -> bytes:
        values: dict[str, Any] = {"timestamp": zone.stamp(self.instant), "event": self.event}
        values |= {"network": str(self.network), "scope": self.scope}
        values |= {"until": zone.stamp(self.until)} if self.until else {}
        values |= {key: getattr(self, key) for key in ("by", "on", "why") if getattr(self, key)}
        return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


def _parse(line: bytes) -> Entry | None:
    """None for a line that is none of ours."""
    try:
        values = json.loads(line)
        if values["event"] not in ("block", "unblock") or values["scope"] not in ("host", "all"):
            return None
        until = clock.parse(values["until"]) if "until" in values else 0
        texts = {key: str(values.get(key, "")) for key in ("by", "on", "why")}
        if "%" in values["network"]:  # ipaddress takes a zone, and nobody else does
            return None
        network = ip_network(values["network"])
        return Entry(values["event"], clock.parse(values["timestamp"]), network, values["scope"], until, **texts)
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return None


class Journal:
    """The file in a folder; made with its first line."""

    def __init__(self, folder: Path, zone: clock.Zone) -> None:
        self.path = folder / NAME
        self.zone = zone
        self._known = (0, 0)  # inode and size up to which `news` has read

    def write(self, entries: Iterable[Entry]) -> None:
        """Whole lines, synced. OSError where the disk does not take them."""
        data = b"".join(entry.line(self.zone) for entry in entries)
        if not data:
            return
        self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            folder = self.path.parent.stat()
            if os.geteuid() == 0 and os.fstat(fd).st_uid != folder.st_uid:  # the sensor may be another user
                os.fchown(fd, folder.st_uid, folder.st_gid)
            fcntl.flock(fd, fcntl.LOCK_EX)
            size = end_half_line(fd)
            while data:
                written = append(fd, size, data, str(self.path))
                size, data = size + written, data[written:]
            os.fsync(fd)
        finally:
            os.close(fd)

    def entries(self) -> Iterator[Entry]:
        """All lines that are sound, the oldest first; none where there is no file. OSError where it cannot be read."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            while line := file.readline(MOST_LINE):
                if (entry := _parse(line)) is not None:
                    yield entry

    def in_force(self, now: int) -> dict[tuple[Network, str], Entry]:
        """What is blocked by these lines at `now` (ns)."""
        found: dict[tuple[Network, str], Entry] = {}
        for entry in self.entries():
            key = entry.network, entry.scope
            if entry.event == "unblock":
                found.pop(key, None)
            elif entry.until > now and (key not in found or entry.until > found[key].until):
                found[key] = entry  # a shorter one does not shorten it
        return found

    def news(self) -> list[Entry]:
        """What was written since the last call, by whomever. OSError where it cannot be read."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            status = os.fstat(file.fileno())
            inode, size = self._known
            if (status.st_ino, status.st_size) == self._known:
                return []
            file.seek(size if inode == status.st_ino and size <= status.st_size else 0)
            data = file.read(MOST_BYTES)
            whole = data[: data.rfind(b"\n") + 1]
            self._known = status.st_ino, file.tell() - len(data) + len(whole)
        return [entry for line in whole.splitlines() if (entry := _parse(line)) is not None]

    def trim(self, now: int) -> None:
        """Begin anew where it has grown large; the old lines stay in a file beside it until the next time."""
        if not self.path.exists() or self.path.stat().st_size < MOST_BYTES:
            return
        kept = self.in_force(now)
        os.replace(self.path, self.path.with_name(f"{NAME}.1"))
        self.write(kept.values())
