"""The data file of now: its name, its rotation, whole lines only.

O_APPEND, and each write(2) is whole lines: what a full disk cut off is taken back, so that no reader meets half
a line, and a half line that a power cut left is ended before new lines follow. A file that was moved or deleted
under us is noticed before the next write and made anew. Nothing here sleeps or retries; OSError means "not now",
and the caller still has the lines.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tcppc.clock import Zone

# Stands beside the data files: see ledger.py.
LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class Naming:
    """Which file at what time: a strftime(3) pattern in a zone, an interval and its offset in seconds, and
    after how many bytes a numbered one follows (0: never)."""

    pattern: str
    interval: int
    offset: int
    zone: Zone
    most_bytes: int = 0

    def period(self, now: float) -> int:
        """The number of the interval that `now` (Unix time) is in; tcppc-go's boundaries, now % interval == offset."""
        return int((now - self.offset) // self.interval) if self.interval else 0

    def next_boundary(self, now: float) -> float | None:
        return (self.period(now) + 1) * self.interval + self.offset if self.interval else None

    def path(self, now: float) -> str:
        return self.zone.format(self.pattern, now)


def numbered(path: str, number: int) -> str:
    """data.jsonl, data.1.jsonl, data.2.jsonl…"""
    if not number:
        return path
    plain = Path(path)
    return str(plain.with_name(f"{plain.stem}.{number}{plain.suffix}"))


def fixed_folder(pattern: str) -> Path:
    """The last folder of a pattern that has no directives in it."""
    folder = Path(pattern).parent
    while "%" in str(folder):
        folder = folder.parent
    return folder


def end_half_line(fd: int) -> int:
    """A crash can leave half a line at a file's end: end it, so that new lines stand alone; returns the size."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        size += os.write(fd, b"\n")
    return size


def append(fd: int, size: int, lines: bytes, path: str) -> int:
    """Append whole lines to a file of `size` bytes; returns how many bytes of them are in it, at least one line.

    OSError where not even one fits: then nothing of them is in the file.
    """
    written = os.write(fd, lines)
    if written == len(lines):
        return written
    whole = lines.rfind(b"\n", 0, written) + 1
    # Only what this very write left behind the last whole line goes: nobody else's bytes follow it.
    if os.fstat(fd).st_size == size + written:
        os.ftruncate(fd, size + whole)
    else:
        os.write(fd, b"\n")
    if not whole:
        # write(2) tells why only when it takes nothing at all; a short write means that room ran out.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    return whole


class FileLedger(Protocol):
    """Who keeps account of the data files: ledger.py, which is built upon this module."""

    def opened(self, path: str, size: int) -> None: ...

    def closed(self, path: str, size: int, first: int, last: int) -> None: ...

    def mark(self, path: str, size: int, first: int, last: int) -> None: ...


class DataFile:
    """The open data file. Belongs to the writer's thread.

    `say(line)` logs; `closed(path)` is told of each file that will not be written to again.
    """

    def __init__(
        self,
        naming: Naming,
        say: Callable[[str], None],
        closed: Callable[[str], None],
        ledger: FileLedger | None = None,
    ) -> None:
        self.naming = naming
        self.path = ""
        self.sessions = 0  # written to the file that is open
        self._say = say
        self._closed = closed
        self._ledger = ledger
        self._fd = -1
        self.turns = -1  # files opened after the first
        self.size = 0  # of the file that is open
        self.first = self.last = 0
        self._period = 0
        self._number = 0
        self._identity = (0, 0)

    def turn(self) -> None:
        """Open the file of now where none is open or another one is due. OSError where it cannot be had."""
        now = time.time()
        period = self.naming.period(now)
        if self._fd >= 0 and period != self._period:
            self._leave()
            self._number = 0
        if self._fd >= 0 and self.naming.most_bytes and self.size >= self.naming.most_bytes:
            self._leave()
            self._number += 1
        if self._fd >= 0 and self._gone():
            self._say(f"Session file was moved or removed: {self.path}")
            self._leave(tell=False)
        if self._fd < 0:
            self._enter(now, period)

    def _gone(self) -> bool:
        try:
            found = os.stat(self.path)
        except OSError:  # not there or not reachable: opening it will tell
            return True
        return (found.st_dev, found.st_ino) != self._identity

    def _enter(self, now: float, period: int) -> None:
        base = self.naming.path(now)
        path = numbered(base, self._number)
        while self.naming.most_bytes and os.path.exists(path) and os.path.getsize(path) >= self.naming.most_bytes:
            self._number += 1
            path = numbered(base, self._number)
        folder = os.path.dirname(path)
        if folder and not os.path.isdir(folder):
            os.makedirs(folder, 0o755, exist_ok=True)
            self._say(f"Create directories: {folder}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            status = os.fstat(fd)
            size = end_half_line(fd)
            if size != status.st_size:
                self._say(f"The last line of {path} is cut off, as a crash leaves it; new lines follow on their own.")
        except OSError:
            os.close(fd)
            raise
        before, self.path = self.path, path
        if before not in ("", path):
            self._closed(before)
        self._fd, self.size, self._period = fd, size, period
        self.turns += 1
        self._identity = (status.st_dev, status.st_ino)
        self.sessions = self.first = self.last = 0
        if self._ledger:
            self._ledger.opened(path, size)
        self._say(f"Created a session file: {path}")

    def write(self, lines: bytes) -> int:
        """Append whole lines; returns how many bytes of them are in the file, at least one line.

        OSError where not even one fits: then nothing of them is in the file.
        """
        try:
            written = append(self._fd, self.size, lines, self.path)
        finally:
            self.size = os.fstat(self._fd).st_size
        return written

    def holds(self, instants: Iterable[int]) -> None:
        """What was written is of these times (ns)."""
        for instant in instants:
            if not self.first or instant < self.first:
                self.first = instant
            if instant > self.last:
                self.last = instant

    def mark(self) -> None:
        """Let the ledger say from time to time how things stand."""
        if self._ledger and self._fd >= 0:
            self._ledger.mark(self.path, self.size, self.first, self.last)

    def _leave(self, tell: bool = True) -> None:
        fd, self._fd = self._fd, -1
        try:
            os.fsync(fd)
        except OSError as problem:
            self._say(f"Failed to sync {self.path}: {problem.strerror}")
        os.close(fd)
        if self._ledger:
            self._ledger.closed(self.path, self.size, self.first, self.last)
        self._say(f"Wrote {self.sessions} session data.")
        if not tell:
            self.path = ""

    def reopen(self) -> None:
        """Close the file; the next `turn` opens what its name now is (after logrotate, a new one)."""
        if self._fd >= 0:
            self._leave()

    def close(self) -> None:
        """Sync and close for good."""
        if self._fd >= 0:
            self._leave()
