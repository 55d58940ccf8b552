"""What stands in a file, moved towards its end, with holes left holes."""

from __future__ import annotations

import ctypes
import errno
import os

_COPY_BYTES = 1 << 20
_PUNCH = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)
Extent = tuple[int, int]  # from, to


def up(fd: int, count: int) -> None:
    """All of it by `count` bytes; the file begins with a hole of that size then."""
    old = _extents(fd)
    for low, high in reversed(old):
        at = high
        while at > low:
            size = min(_COPY_BYTES, at - low)
            at -= size
            data = os.pread(fd, size, at)
            write(fd, data, at + count)
    for low, high in _left(old, [(low + count, high + count) for low, high in old]):
        _clear(fd, low, high)


def write(fd: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:] if done else data, offset + done)


def _extents(fd: int) -> list[Extent]:
    """Where there is data; a file system that does not tell has it everywhere."""
    found: list[Extent] = []
    at = 0
    while True:
        try:
            low = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as problem:
            if problem.errno == errno.ENXIO:  # no more
                return found
            raise
        at = os.lseek(fd, low, os.SEEK_HOLE)
        found.append((low, at))


def _left(old: list[Extent], new: list[Extent]) -> list[Extent]:
    """Those parts of the old ones that no new one covers; both are in order, and as many."""
    found = []
    after = 0
    for low, high in old:
        at = low
        while after < len(new) and new[after][1] <= at:
            after += 1
        following = after
        while at < high:
            end = min(high, new[following][0]) if following < len(new) else high
            if end > at:
                found.append((at, end))
            if following >= len(new) or new[following][0] >= high:
                break
            at = new[following][1]
            following += 1
    return found


def _clear(fd: int, low: int, high: int) -> None:
    if _libc.fallocate(fd, _PUNCH, ctypes.c_longlong(low), ctypes.c_longlong(high - low)) == 0:
        return
    while low < high:  # a file system without holes
        size = min(_COPY_BYTES, high - low)
        write(fd, bytes(size), low)
        low += size
