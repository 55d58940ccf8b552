"""Copies of all data files, taken while the sensor writes them.

What files.keep_bytes, an operator's hand or the soak itself removes later is in the copies all the same. Whole lines
alone are copied: what a full disk cut off is taken back by the sensor, and half a line is what a crash leaves.
"""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

PAUSE_SECONDS = 0.2
READ_BYTES = 8 << 20
REMOVED_SECONDS = 10.0
DATA = re.compile(r"soak-.*\.jsonl(\.\d+)?")  # also one that was renamed, not what is compressed


@dataclass
class Copy:
    """One file, open; it stays readable when it is renamed or removed."""

    fd: int
    path: Path
    taken: int = 0


class Follower(threading.Thread):
    def __init__(self, disk: Path, copies: Path) -> None:
        super().__init__(daemon=True)
        self.copies = copies
        self.failure = ""
        self._disk = disk
        self._open: dict[tuple[int, int], Copy] = {}
        self._number = 0
        self._ending = threading.Event()
        self._lock = threading.Lock()
        copies.mkdir()

    def run(self) -> None:
        while not self._ending.wait(PAUSE_SECONDS):
            try:
                self.look()
            except OSError as problem:
                self.failure = f"copying the data files: {problem}"

    def look(self) -> None:
        """Copy what is new."""
        with self._lock:
            self._find()
            for key, copy in list(self._open.items()):
                status = os.fstat(copy.fd)
                self._take(copy)
                # The sensor may go on writing to a file that was removed until it looks again.
                if not status.st_nlink and time.time() - max(status.st_mtime, status.st_ctime) > REMOVED_SECONDS:
                    os.close(copy.fd)
                    del self._open[key]

    def _find(self) -> None:
        for folder in [entry.path for entry in os.scandir(self._disk) if entry.is_dir()]:
            try:
                entries = list(os.scandir(folder))
            except FileNotFoundError:  # renamed just now: the next look finds it
                continue
            for entry in entries:
                if DATA.fullmatch(entry.name):
                    self._enter(entry)

    def _enter(self, entry: os.DirEntry[str]) -> None:
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        status = os.fstat(fd)
        key = status.st_dev, status.st_ino
        if key in self._open:
            os.close(fd)
            return
        self._number += 1
        self._open[key] = Copy(fd, self.copies / f"{self._number:05d}-{entry.name}")

    def _take(self, copy: Copy) -> None:
        while data := os.pread(copy.fd, READ_BYTES, copy.taken):
            whole = data.rfind(b"\n") + 1
            if not whole and len(data) == READ_BYTES:  # a line that is longer: all of it
                data = os.pread(copy.fd, os.fstat(copy.fd).st_size - copy.taken, copy.taken)
                whole = data.rfind(b"\n") + 1
            if not whole:
                return
            with copy.path.open("ab") as file:
                file.write(data[:whole])
            copy.taken += whole

    def copy_of(self, path: Path) -> Path | None:
        """The copy of the file that stands there now."""
        self.look()
        status = path.stat()
        found = self._open.get((status.st_dev, status.st_ino))
        return found.path if found else None

    def close(self) -> None:
        """Copy the rest, and end."""
        self._ending.set()
        self.join()
        self.look()
        for copy in self._open.values():
            os.close(copy.fd)
        self._open.clear()
