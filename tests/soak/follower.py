"""Copies of all data files, taken while the sensor writes them.

What files.keep_bytes, an operator's hand or the soak itself removes later is in the copies all the same. Whole lines
alone are copied: what a full disk cut off is taken back by the sensor, and half a line is what a crash leaves.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PAUSE_SECONDS = 0.05
READ_BYTES = 8 << 20
REMOVED_SECONDS = 10.0
DATA = re.compile(r"(soak-.*\.jsonl(?:\.\d+)?)(\.gz|\.zst)?")  # also one that was renamed


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
        self._names: set[str] = set()
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
                match = DATA.fullmatch(entry.name)
                if match and not match[2]:
                    self._enter(entry)
                elif match and match[1] not in self._names:  # it came and was compressed between two looks
                    self._unpack(Path(entry.path), match[1])

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
        self._open[key] = Copy(fd, self._copy_for(entry.name))

    def _copy_for(self, name: str) -> Path:
        self._names.add(name)
        self._number += 1
        return self.copies / f"{self._number:05d}-{name}"

    def _unpack(self, path: Path, name: str) -> None:
        try:
            with (
                path.open("rb") as source,
                _opened(source, path.suffix) as plain,
                self._copy_for(name).open("wb") as copy,
            ):
                shutil.copyfileobj(plain, copy)
        except FileNotFoundError:  # removed just now, for keep_bytes
            return

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


def _opened(source: IO[bytes], ending: str) -> Any:
    """A compressed file's plain bytes, as a context manager with read()."""
    if ending == ".gz":
        return gzip.GzipFile(fileobj=source, mode="rb")
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(source, closefd=False)
