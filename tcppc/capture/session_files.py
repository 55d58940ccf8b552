"""The folder with a file a session (`files.session_dir`), held to a bound: the oldest files go.

It belongs to the keeper's thread; the copier's only adds files. What is no file of a session, by its name or its kind,
is neither counted nor removed.
"""

from __future__ import annotations

import heapq
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# The SID of captures.py: seconds and microseconds in hexadecimal numbers, who answered.
_NAME = re.compile(r"[0-9A-F]{8,15}\.[A-Za-z0-9-]{0,32}")
# The names of so many files are held at once: 200 bytes each.
AT_ONCE = 10_000
# Where a bound is reached, a tenth more goes, so that a full folder is not looked through for each session.
SHARE_MORE = 10
_BLOCK_BYTES = 512

Failed = Callable[[OSError], None]
_One = tuple[int, str, int]  # when it was written (ns), its name, what it takes of the disk


@dataclass
class Held:
    """What the folder holds."""

    files: int = 0
    room: int = 0


class SessionFiles:
    """One folder; `failed` is told of what cannot be read or removed."""

    def __init__(self, folder: str, failed: Failed) -> None:
        self.folder = folder
        self._failed = failed
        self._looked = 0  # the folder's time of change at the last look
        self._held = Held()

    def held(self) -> Held:
        """Files, and what they take of the disk; looked through only where something has changed."""
        with self._open() as fd:
            if fd < 0:
                return Held()
            changed = os.fstat(fd).st_mtime_ns
            if changed != self._looked:
                held = Held()
                for _, _, room in self._files(fd):
                    held.files += 1
                    held.room += room
                self._held, self._looked = held, changed
            return self._held

    def device(self) -> int | None:
        """Which disk it is on; None where there is no folder."""
        with self._open() as fd:
            return os.fstat(fd).st_dev if fd >= 0 else None

    def bound(self, most_files: int, most_bytes: int) -> Held:
        """Have no more than this there (0: no bound); returns what went."""
        held = self.held()
        files = held.files - most_files if most_files else 0
        room = held.room - most_bytes if most_bytes else 0
        if files <= 0 and room <= 0:
            return Held()
        return self.remove(
            files + most_files // SHARE_MORE if files > 0 else 0, room + most_bytes // SHARE_MORE if room > 0 else 0
        )

    def remove(self, files: int, room: int) -> Held:
        """The oldest ones: so many files at least, and so many bytes of the disk. Returns what went."""
        gone = Held()
        with self._open() as fd:
            while fd >= 0 and (gone.files < files or gone.room < room):
                oldest = heapq.nsmallest(AT_ONCE, self._files(fd))
                before = gone.files
                for _, name, taken in oldest:
                    if gone.files >= files and gone.room >= room:
                        break
                    if self._unlink(fd, name):
                        gone.files += 1
                        gone.room += taken
                if gone.files == before:  # there are none, or none that can be removed
                    break
        return gone

    def _unlink(self, fd: int, name: str) -> bool:
        try:
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:  # gone meanwhile
            return False
        except OSError as problem:
            problem.filename = os.path.join(self.folder, name)
            self._failed(problem)
            return False
        return True

    @contextmanager
    def _open(self) -> Iterator[int]:
        """The folder's descriptor, so that all names are of one and the same folder; -1 where it cannot be had."""
        try:
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as problem:
            if not isinstance(problem, FileNotFoundError):  # it is made with its first file
                self._failed(problem)
            yield -1
            return
        try:
            yield fd
        finally:
            os.close(fd)

    def _files(self, fd: int) -> Iterator[_One]:
        with os.scandir(fd) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # gone meanwhile
                        continue
                    if stat.S_ISREG(status.st_mode):
                        yield status.st_mtime_ns, entry.name, status.st_blocks * _BLOCK_BYTES
