"""One file a stream, in a folder: written at offsets, with few descriptors open at once.

Names come from names.py alone. Nothing that stands in the folder is written over or followed.
"""

from __future__ import annotations

import os
from collections import OrderedDict

MOST_OPEN = 200
_COPY_BYTES = 1 << 20
_MOST_PIECES = 1024  # IOV_MAX of linux/uio.h


class StreamFile:
    """One of them; its path is known once its first byte is there."""

    __slots__ = ("fd", "limit", "path", "size")

    def __init__(self, limit: int = -1) -> None:
        self.path = ""
        self.fd = -1
        self.size = 0  # bytes in the file
        self.limit = limit  # -b: no byte is written from here on; -1: all are


class StreamFiles:
    """All of a folder. OSError where the disk does not take something."""

    def __init__(self, folder: str, most_open: int = MOST_OPEN) -> None:
        self.folder = folder
        self._most_open = max(1, most_open)
        self._open: OrderedDict[StreamFile, None] = OrderedDict()
        self._made: set[str] = set()
        os.makedirs(folder, exist_ok=True)

    def create(self, file: StreamFile, path: str) -> bool:
        """False where there is one of that name."""
        full = os.path.join(self.folder, path)
        parent = os.path.dirname(full)
        if parent not in self._made:
            os.makedirs(parent, exist_ok=True)
            self._made.add(parent)
        try:
            fd = os.open(full, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileExistsError:
            return False
        file.path = full
        self._hold(file, fd)
        return True

    def _hold(self, file: StreamFile, fd: int) -> None:
        file.fd = fd
        self._open[file] = None
        while len(self._open) > self._most_open:
            oldest, _ = self._open.popitem(last=False)
            os.close(oldest.fd)
            oldest.fd = -1

    def _descriptor(self, file: StreamFile) -> int:
        if file.fd < 0:
            self._hold(file, os.open(file.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
        else:
            self._open.move_to_end(file)
        return file.fd

    def write(self, file: StreamFile, offset: int, data: bytes) -> None:
        """A gap before it is zeros, which take no room on the disk."""
        if file.limit >= 0:
            data = data[: max(0, file.limit - offset)]
        fd = self._descriptor(file)
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written
        file.size = max(file.size, offset)

    def append(self, file: StreamFile, offset: int, pieces: list[memoryview]) -> None:
        """All of them, one after the other."""
        fd = self._descriptor(file)
        for at in range(0, len(pieces), _MOST_PIECES):
            some = pieces[at : at + _MOST_PIECES]
            size = sum(map(len, some))
            written = os.pwritev(fd, some, offset)
            if written < size:  # a disk that takes a part of it
                self.write(file, offset + written, b"".join(some)[written:])
            offset += size
        file.size = max(file.size, offset)

    def shift(self, file: StreamFile, count: int) -> None:
        """Move all that is there up by `count` bytes, from its end on."""
        fd, at = self._descriptor(file), file.size
        while at > 0:
            size = min(_COPY_BYTES, at)
            at -= size
            self.write(file, at + count, os.pread(fd, size, at))
        file.size += count if file.size and file.limit < 0 else 0

    def same(self, file: StreamFile, offset: int, data: bytes) -> bool:
        """Does this stand at that place?"""
        return os.pread(self._descriptor(file), len(data), offset) == data

    def close(self, file: StreamFile, instant: int) -> None:
        """Its times become `instant` (ns)."""
        if file.fd >= 0:
            os.utime(file.fd, ns=(instant, instant))
            self._open.pop(file, None)
            os.close(file.fd)
            file.fd = -1
        elif file.path:
            os.utime(file.path, ns=(instant, instant), follow_symlinks=False)
