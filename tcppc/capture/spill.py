"""The spill file: what sessions have said, out of memory until their record is written.

One file without a name beside the data files, for all sessions: it takes one descriptor, and a kill leaves nothing
behind. Each piece is a run of entries: a head of 16 bytes (instant in ns as u64, length as u32, the payload that a
reply follows as i32), then the bytes. Pieces begin at multiples of 4096, so that what is freed can be punched out of
the file, and the disk has it back; where the file system cannot do that, once nothing is left in it.
Any thread may write and read; places are given out under a lock. What was freed is used again, so that the file is
no longer than what stands in it at once needs: RLIMIT_FSIZE holds for it too.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from tcppc.capture.books import Books, Source
from tcppc.log import Seldom

_HEAD = struct.Struct("<QIi")
BLOCK = 4096
# Of the file system, the free part that is left alone.
FREE_PART = 0.05
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, linux/falloc.h

# Of the free places, so many are looked at for one that is large enough.
MOST_LOOKED_AT = 64

Entry = tuple[int, bytes, int]


class Places:
    """Which runs of bytes below `end` are free. Never two of them side by side."""

    def __init__(self) -> None:
        self.end = 0
        self._sizes: dict[int, int] = {}  # by where they begin
        self._begins: dict[int, int] = {}  # by where they end

    def take(self, size: int) -> int:
        """The offset of `size` bytes, which are in use from now on."""
        for begin, room in islice(self._sizes.items(), MOST_LOOKED_AT):
            if room >= size:
                self._remove(begin)
                if room > size:
                    self._add(begin + size, room - size)
                return begin
        begin, self.end = self.end, self.end + size
        return begin

    def give(self, begin: int, size: int) -> None:
        """These are free again."""
        if begin + size in self._sizes:
            size += self._remove(begin + size)
        if begin in self._begins:
            before = self._begins[begin]
            size += self._remove(before)
            begin = before
        if begin + size == self.end:
            self.end = begin
        else:
            self._add(begin, size)

    def _add(self, begin: int, size: int) -> None:
        self._sizes[begin] = size
        self._begins[begin + size] = begin

    def _remove(self, begin: int) -> int:
        size = self._sizes.pop(begin)
        del self._begins[begin + size]
        return size


class SpillError(Exception):
    """What was stowed cannot be read back: the disk is at fault."""


class Spill:
    """`folder` is where the file is made, at its first use; `most` bounds its bytes (0: nothing is ever stowed)."""

    def __init__(self, folder: Path | None, most: int, books: Books, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._most = most if folder else 0
        self._books = books
        self._say = say
        self._seldom = Seldom()
        self._lock = threading.Lock()
        self._fd = -1
        self._places = Places()

    def set_most(self, most: int) -> None:
        """From now on the file has so many bytes at most."""
        self._most = most if self._folder else 0

    def put(self, entries: Iterable[Entry], before: Piece | None, source: Source | None) -> Piece | None:
        """Stow these entries behind those of `before`; None where there is no room or no disk, which is counted."""
        parts: list[bytes] = []
        count = 0
        for instant, data, after in entries:
            parts += (_HEAD.pack(instant & 0xFFFFFFFFFFFFFFFF, len(data), after), data)
            count += 1
        size = sum(map(len, parts))
        room = -(-size // BLOCK) * BLOCK
        if self._books.stowed + room > self._most or not self._books.stow(room, source, self._most):
            return None
        offset = -1
        try:
            offset = self._place(room)
            _write(self._fd, parts, offset)
        except (OSError, MemoryError) as problem:
            self._books.unstow(room, source)
            if offset >= 0:
                self._give(offset, room)
            self._books.error("spill_failures")
            if self._seldom.due():
                reason = getattr(problem, "strerror", "") or "out of memory"
                self._say(f"Failed to stow session data beside the data files: {self._folder}: {reason}; it is cut.")
            return None
        piece = before or Piece(self, source)
        piece.extents.append((offset, size, room))
        piece.count += count
        return piece

    def _place(self, room: int) -> int:
        with self._lock:
            if self._fd < 0:
                self._fd = self._open()
            state = os.fstatvfs(self._fd)
            if state.f_bavail * state.f_frsize < room + FREE_PART * state.f_blocks * state.f_frsize:
                raise OSError(errno.ENOSPC, "the disk is nearly full")
            return self._places.take(room)

    def _give(self, offset: int, room: int) -> None:
        _punch(self._fd, offset, room)
        with self._lock:
            self._places.give(offset, room)
            if not self._places.end:
                os.ftruncate(self._fd, 0)

    def _open(self) -> int:
        folder = str(self._folder)
        try:
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:  # a file system without unnamed files
            fd, name = tempfile.mkstemp(prefix=".tcppc-spill-", dir=folder)
            os.unlink(name)
            return fd

    def read(self, offset: int, size: int) -> bytes:
        """The bytes of one extent. SpillError where the disk does not give them."""
        try:
            data = os.pread(self._fd, size, offset)
        except OSError as problem:
            raise SpillError(f"{self._folder}: {problem.strerror}") from None
        if len(data) != size:
            raise SpillError(f"{self._folder}: {len(data)} of {size} bytes could be read")
        return data

    def free(self, extents: Iterable[tuple[int, int, int]], source: Source | None) -> None:
        """These are not needed any more."""
        for offset, _, room in extents:
            self._books.unstow(room, source)
            self._give(offset, room)

    def disown(self, room: int, source: Source | None) -> None:
        """So many bytes are charged to no source any more."""
        self._books.unstow(room, source)
        self._books.stow(room, None, self._most)


class Piece:
    """What one session has stowed, in order."""

    __slots__ = ("_spill", "count", "extents", "source")

    def __init__(self, spill: Spill, source: Source | None) -> None:
        self._spill = spill
        self.source = source
        self.extents: list[tuple[int, int, int]] = []
        self.count = 0

    @property
    def size(self) -> int:
        """Bytes of all entries with their heads."""
        return sum(size for _, size, _ in self.extents)

    def __iter__(self) -> Iterator[Entry]:
        for offset, size, _ in self.extents:
            data = self._spill.read(offset, size)
            at = 0
            while at < size:
                instant, length, after = _HEAD.unpack_from(data, at)
                at += _HEAD.size
                yield instant, data[at : at + length], after
                at += length

    def free(self) -> None:
        extents, self.extents = self.extents, []
        self._spill.free(extents, self.source)

    def disown(self) -> None:
        source, self.source = self.source, None
        self._spill.disown(sum(room for _, _, room in self.extents), source)


def _write(fd: int, parts: list[bytes], offset: int) -> None:
    data = b"".join(parts)
    at = 0
    while at < len(data):
        at += os.pwrite(fd, data[at:], offset + at)


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    import ctypes  # few sensors ever need it

    try:
        call = ctypes.CDLL(None).fallocate64
    except (OSError, AttributeError):  # another C library: the file shrinks when it is empty
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    found: Callable[[int, int, int, int], int] = call
    return found


def _punch(fd: int, offset: int, size: int) -> None:
    """Give the disk its blocks back; where that cannot be done, the file shrinks when it is empty."""
    if call := _fallocate():
        call(fd, _PUNCH_HOLE, offset, size)
