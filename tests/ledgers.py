"""A ledger and its data files, made by hand: what a sensor would have written, or what became of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tcppc.clock import NANOSECONDS, Zone
from tcppc.records import new_id
from tests.harness import tcppc

LINE = b'{"x":1}\n'


class Ledger:
    """Lines of one run at a time; `sessions` writes data lines too, so that all sums are right."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "ledger.jsonl"
        self.lines: list[dict[str, Any]] = []
        self.run = ""
        self.ago = 0  # seconds: how old the lines are
        self.begin_run()

    def begin_run(self) -> str:
        self.run = new_id(time.time_ns())
        return self.run

    def add(self, event: str, **keys: Any) -> None:
        now = time.time_ns() - self.ago * NANOSECONDS
        head = {"timestamp": Zone("UTC").stamp(now), "run": self.run, "sensor": "tokyo-1", "event": event}
        self.lines.append(head | keys)
        self.write()

    def write(self, between: bytes = b"\n") -> None:
        self.path.write_bytes(b"".join(json.dumps(line).encode() + between for line in self.lines))

    def file(self, name: str = "data.jsonl") -> Path:
        return self.folder / name

    def size(self, name: str = "data.jsonl") -> int:
        return self.file(name).stat().st_size if self.file(name).exists() else 0

    def start(self, name: str = "data.jsonl") -> None:
        self.add("start", version="1")
        self.open(name)

    def open(self, name: str = "data.jsonl", **keys: Any) -> None:
        self.add("open", file=name, size=self.size(name), **keys)

    def data(self, sessions: int, name: str = "data.jsonl") -> dict[str, int]:
        """So many lines are written; the counts of that."""
        with self.file(name).open("ab") as file:
            file.write(LINE * sessions)
        return counts(sessions) | {"size": self.size(name)}

    def close(self, sessions: int = 0, name: str = "data.jsonl", event: str = "close", **keys: Any) -> None:
        self.add(event, file=name, **(self.data(sessions, name) | keys))

    def stop(self, **keys: Any) -> None:
        self.add("stop", **(counts(0) | keys))

    def whole(self, sessions: int = 3, name: str = "data.jsonl") -> str:
        """A run in which nothing happened but sessions."""
        self.begin_run()
        self.start(name)
        self.close(sessions, name)
        self.stop()
        return self.run

    def killed(self, told: int = 2, untold: int = 1, name: str = "data.jsonl", **keys: Any) -> str:
        """A run that was killed when its last line told of fewer sessions than it had written."""
        self.begin_run()
        self.start(name)
        self.close(told, name, "mark", **keys)
        self.data(untold, name)
        return self.run

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """As a sensor that runs."""
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def account(self, *flags: str) -> tuple[int, str]:
        """The exit code, and what it says."""
        done = tcppc("account", *flags, str(self.folder))
        assert done.stderr == "", done.stderr
        return done.returncode, done.stdout


def counts(sessions: int) -> dict[str, int]:
    return {
        "accepted": sessions, "recorded": sessions, "open": 0, "bytes_in": sessions, "lines": sessions,
        "bytes": sessions * len(LINE),
    }  # fmt: skip
