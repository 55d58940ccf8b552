"""The ledger: one line a time something became of a data file, so that `tcppc account` can say what was lost.

docs/ledger.md is the contract. Counts in a line are those since the line before; so a line that the disk did not
take is no loss: it waits here, bounded in number, and goes before the next one.
Guarded by a lock: the writer and the keeper both write here. Nothing raises.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tcppc import __version__
from tcppc.capture.books import Books
from tcppc.capture.files import LEDGER, append, end_half_line, fixed_folder
from tcppc.clock import Zone
from tcppc.records import new_id

# How often a line says how things stand while one file stays open: soon after a start, so that a run that is killed
# early has said something, then ever less often: 16 MB a year at most.
FIRST_MARK_SECONDS = 2.0
MARK_SECONDS = 600.0
# Lines that wait for a disk that takes nothing. Over it the oldest go, and are counted as ledger_lines_lost.
MOST_WAITING = 1000
# Who reads the ledger holds its lock for an instant.
LOCK_TRIES = 40
LOCK_PAUSE_SECONDS = 0.025

Counts = dict[str, Any]


class Ledger:
    """The ledger beside the data files of `pattern`; `say` logs."""

    def __init__(self, pattern: str, zone: Zone, sensor: str, books: Books, say: Callable[[str], None]) -> None:
        self.folder = fixed_folder(pattern)
        self.path = self.folder / LEDGER
        self.zone = zone
        self.sensor = sensor
        self.run = new_id(time.time_ns())
        self._books = books
        self._say = say
        self._lock = threading.Lock()
        self._before: Counts = {}
        self._waiting: deque[bytes] = deque()
        self._held: int | None = None  # keeps a lock: who reads the ledger sees that a sensor runs
        self._locked = False
        self._marked = time.monotonic()
        self._pause = FIRST_MARK_SECONDS
        self._failing = False

    def begin(self) -> None:
        """A run begins."""
        self._add({"event": "start", "version": __version__})

    def opened(self, path: str, size: int) -> None:
        """A data file is open, with `size` bytes in it already."""
        self._add({"event": "open", "file": self._name(path), "size": size})

    def closed(self, path: str, size: int, first: int, last: int) -> None:
        """It is closed; `first` and `last` are instants (ns) of what was written to it since it was opened, or 0."""
        self._count("close", path, size, first, last)

    def mark(self, path: str, size: int, first: int, last: int) -> None:
        """It stays open; from time to time, and where something happened, say how things stand."""
        now = time.monotonic()
        if now - self._marked >= self._pause:
            self._marked = now
            if self._books.counts() != self._before:
                self._pause = min(3 * self._pause, MARK_SECONDS)
                self._count("mark", path, size, first, last)

    def _count(self, event: str, path: str, size: int, first: int, last: int) -> None:
        times = {"first": self.zone.stamp(first), "last": self.zone.stamp(last)} if first else {}
        self._add({"event": event, "file": self._name(path), "size": size, **times}, counting=True)

    def removed(self, path: str, size: int, why: str) -> None:
        """A closed file is removed, as files.keep_bytes or files.reserve asks (`why`)."""
        self._add({"event": "remove", "file": self._name(path), "size": size, "why": why})

    def listener(self, kind: str, name: str, alive: bool) -> None:
        """A probe found a listener dead, or alive again."""
        self._add({"event": "listener", "listener": f"{kind.lower()} {name}", "alive": alive})

    def end(self) -> None:
        """The run ends: the last counts."""
        self._add({"event": "stop"}, counting=True)
        with self._lock:
            if self._waiting:
                self._say(f"{len(self._waiting)} lines of the ledger could not be written and are lost.")
            if self._held is not None:
                os.close(self._held)
                self._held = None

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self.folder)

    def _add(self, values: dict[str, Any], counting: bool = False) -> None:
        with self._lock:
            if counting:
                now = self._books.counts()
                values |= _since(self._before, now)
                self._before = now
                self._marked = time.monotonic()
            head = {"timestamp": self.zone.stamp(time.time_ns()), "run": self.run, "sensor": self.sensor}
            self._waiting.append(json.dumps(head | values, separators=(",", ":")).encode("ascii") + b"\n")
            while len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self._books.error("ledger_lines_lost")
            try:
                self._write()
                self._failing = False
            except OSError as problem:
                if not self._failing:
                    self._say(f"Failed to write the ledger: {self.path}: {problem.strerror}; its lines wait.")
                self._failing = True

    def _write(self) -> None:
        """Put all that waits into the file, whole lines, and sync it."""
        self._hold()
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            if self._held is not None and not os.path.sameopenfile(fd, self._held):
                os.close(self._held)  # an editor has put another file in its place
                self._held = None
                self._hold()
            size = end_half_line(fd)
            while self._waiting:
                size += append(fd, size, self._waiting[0], str(self.path))
                self._waiting.popleft()
            os.fsync(fd)
        finally:
            os.close(fd)

    def _hold(self) -> None:
        tries = 1
        if self._held is None:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._held = os.open(self.path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._locked, tries = False, LOCK_TRIES
        while not self._locked and tries:
            tries -= 1
            try:
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._locked = True
            except BlockingIOError:  # somebody reads it at this moment; the next line tries again
                time.sleep(LOCK_PAUSE_SECONDS if tries else 0)
            except OSError:  # a file system without locks: then a running sensor is not seen
                return


def in_use(path: Path) -> bool:
    """Does a sensor that runs hold this ledger? OSError where it cannot be read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not see each other
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _since(before: Counts, now: Counts) -> Counts:
    """What has been added, counts by cause where there are any; `open` as it is now."""
    found: Counts = {}
    for name, value in now.items():
        if isinstance(value, dict):
            old = before.get(name, {})
            if added := {cause: count - old.get(cause, 0) for cause, count in value.items() if count != old.get(cause)}:
                found[name] = added
        else:
            found[name] = value if name == "open" else value - before.get(name, 0)
    return found
