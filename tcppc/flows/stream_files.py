"""One file a stream, in a folder: written at offsets, with few descriptors open at once.

What is to be written is gathered, and `flush` writes it, many pieces a call. Names come from names.py alone. Nothing
that stands in the folder is written over or followed.
"""

from __future__ import annotations

import errno
import itertools
import os
import resource
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from tcppc.flows import moving
from tcppc.flows.names import Named, Template

MOST_OPEN = 4096
# What is wrong with one file alone: too far for the file system, a name too long or none at all, a folder in its place.
_OF_ONE_FILE = {errno.EFBIG, errno.ENAMETOOLONG, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
_OTHER_DESCRIPTORS = 32
_NO_NAMES = {"", ".", ".."}
_COPY_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16  # that may wait, of a stream
_MOST_LOOKED = 16
_MOST_PIECES = 1024  # IOV_MAX of linux/uio.h
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_AGAIN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


def _descriptors(wanted: int) -> int:
    """How many this process may have; the limit is raised where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def _unseen(path: str, flags: int) -> int:
    """Reading leaves the times as they are."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:  # a file system on which nobody owns what he made
        return os.open(path, flags)


class Pieces(NamedTuple):
    """`size` bytes one behind the other: those of `buffer` from `begins[n]` to `ends[n]`, n from `low` to `high`."""

    buffer: memoryview
    begins: Sequence[int]
    ends: Sequence[int]
    low: int
    high: int
    size: int

    @classmethod
    def of(cls, data: bytes) -> Pieces:
        return cls(memoryview(data), (0,), (len(data),), 0, 1 if data else 0, len(data))

    def parts(self) -> list[memoryview]:
        buffer, low, high = self.buffer, self.low, self.high
        if high - low == 1:
            return [buffer[self.begins[low] : self.ends[low]]]
        return [buffer[begin:end] for begin, end in zip(self.begins[low:high], self.ends[low:high], strict=True)]

    def some(self, at: int, size: int) -> bytes:
        """`size` of the bytes, from `at` on."""
        return next(self.each([(at, at + size)]))

    def each(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of each range (from, to); they are in order, and none is over another."""
        number, place = self.low, 0  # a piece, and where it begins
        for low, high in ranges:
            found = []
            while number < self.high and place < high:
                begin, end = self.begins[number], self.ends[number]
                after = place + end - begin
                if after > low:
                    found.append(bytes(self.buffer[begin + max(0, low - place) : min(end, begin + high - place)]))
                if after > high:
                    break
                number, place = number + 1, after
            yield b"".join(found)


def _offset(pending: tuple[int, Pieces]) -> int:
    return pending[0]


def _told(file: StreamFile) -> tuple[object, ...]:
    """What the names of two streams can tell apart."""
    named = file.named
    return named.src, named.sport, named.dst, named.dport, named.vlan, named.protocol


class StreamFile:
    """One of them; it is made with its first byte. `over`: nothing more will be written."""

    __slots__ = ("count", "fd", "limit", "name", "named", "over", "pending", "size", "timed", "waited")

    def __init__(self, named: Named, limit: int = -1) -> None:
        self.named = named
        self.count = -1  # of its name; -1: it is not made yet
        self.name = ""  # relative to the folder, once it is made
        self.fd = -1
        self.size = 0  # bytes in the file, with those that wait
        self.limit = limit  # -b: no byte is written from here on; -1: all are
        self.pending: list[tuple[int, Pieces]] = []  # (offset, what stands there)
        self.over = False
        self.timed = False  # has it its packets' time?
        self.waited = False  # one flush, before it was made


class StreamFiles:
    """All of a folder. OSError where the disk does not take something."""

    def __init__(self, folder: str, template: Template, most_open: int = MOST_OPEN) -> None:
        self.folder = folder
        self._template = template
        self._most_open = max(1, min(most_open, _descriptors(most_open + _OTHER_DESCRIPTORS) - _OTHER_DESCRIPTORS))
        self._open: OrderedDict[StreamFile, None] = OrderedDict()
        self._made: set[str] = set()
        self._counts: dict[str, int] = {}  # names that are taken, and how often
        self.waiting: list[StreamFile] = []
        self._later: dict[tuple[object, ...], StreamFile] = {}  # what waits for the next flush, by what names tell
        self.failed: dict[StreamFile, str] = {}  # files that lack something, and why
        if not template.no_files:
            os.makedirs(folder, exist_ok=True)

    def put(self, file: StreamFile, offset: int, pieces: Pieces, size: int) -> None:
        """With the next flush. `size` is that of the pieces. A gap before is zeros, which take no room on the disk."""
        if file.limit >= 0 and offset + size > file.limit:
            size = max(0, file.limit - offset)
            pieces = Pieces.of(b"".join(pieces.parts())[:size])
        if not size:
            return
        if not file.pending:
            self.waiting.append(file)
        file.pending.append((offset, pieces))
        if offset + size > file.size:
            file.size = offset + size

    def flush(self, later: bool = False) -> None:
        """All that waits; but `later`, the next time, what is small and goes on: it may be whole then."""
        waiting, self.waiting = [file for file in self.waiting if file.pending], []
        self._later = {}
        if not waiting:  # as where no files are made: then the folder need not be one that we may enter
            return
        # More than can stay open: each is opened, written and closed at once.
        at_once = len(waiting) > self._most_open
        folder = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for file in waiting:
                if later and not file.over and file.count < 0 and not file.waited and file.size <= _SMALL_BYTES:
                    file.waited = True
                    self.waiting.append(file)
                    self._later[_told(file)] = file
                elif file.count >= 0 or not (at_once or file.over) or not self._write_new(file, folder):
                    self.flush_one(file)
        finally:
            os.close(folder)

    def _write_new(self, file: StreamFile, folder: int) -> bool:
        """What nearly all small streams are: in order, and that is the file. False: it is not done so, or not yet.
        `folder` is ours, open: the way to it is not gone for each file."""
        parts: list[memoryview] = []
        size = 0
        for offset, pieces in file.pending:
            if offset != size:
                return False
            parts += pieces.parts()
            size += pieces.size
        if not parts or len(parts) > _MOST_PIECES:
            return False
        self._first_of(file)
        try:
            name = self._name(file)
            if name in self._counts:
                return False
            fd = os.open(name, _CREATE, 0o644, dir_fd=folder)
        except OSError:  # told where it is tried again
            return False
        file.count, file.name = 0, name
        try:
            done = os.write(fd, parts[0]) if len(parts) == 1 else os.writev(fd, parts)
            os.utime(fd, ns=(file.named.start, file.named.start))
        except OSError:
            done = -1
        os.close(fd)
        if done != size:
            return False
        file.pending, file.timed = [], True
        return True

    def _fail(self, file: StreamFile, problem: OSError) -> None:
        """Nothing more of it is written; the others are, where it is its own problem."""
        problem.filename = problem.filename or self.path(file)
        if problem.errno not in _OF_ONE_FILE:
            raise problem
        self.failed.setdefault(file, f"{problem.filename}: {problem.strerror}")
        file.limit, file.pending = 0, []

    def flush_one(self, file: StreamFile) -> None:
        pending, file.pending = file.pending, []
        if not pending:
            return
        try:
            self._write_all(self._descriptor(file), pending)
        except OSError as problem:
            self._fail(file, problem)
        if file.over:
            self.close(file)

    def _write_all(self, fd: int, pending: list[tuple[int, Pieces]]) -> None:
        """Those that stand one behind the other at once; what overlaps, in its order of arrival: the last wins."""
        if len(pending) > 2:
            ordered = sorted(pending, key=_offset)
            ends = [offset + pieces.size for offset, pieces in ordered]
            if all(end <= offset for end, (offset, _) in zip(ends, ordered[1:], strict=False)):
                pending = ordered
        at = 0
        while at < len(pending):
            offset, pieces = pending[at]
            parts, end = pieces.parts(), offset + pieces.size
            at += 1
            while at < len(pending) and pending[at][0] == end:
                pieces = pending[at][1]
                parts += pieces.parts()
                end += pieces.size
                at += 1
            self._write(fd, offset, parts)

    @staticmethod
    def _write(fd: int, offset: int, parts: list[memoryview]) -> None:
        for at in range(0, len(parts), _MOST_PIECES):
            some = parts[at : at + _MOST_PIECES]
            wanted = sum(map(len, some))
            done = os.pwritev(fd, some, offset)
            while done < wanted:  # a disk that takes a part of it
                done += os.pwrite(fd, b"".join(some)[done:], offset + done)
            offset += wanted

    def _descriptor(self, file: StreamFile) -> int:
        if file.fd >= 0:
            self._open.move_to_end(file)
            return file.fd
        while True:
            try:
                file.fd = self._create(file) if file.count < 0 else os.open(self.path(file), _AGAIN)
                break
            except OSError as problem:
                if problem.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                    raise
                self._most_open = max(1, len(self._open) // 2)
                while len(self._open) > self._most_open:
                    self._release(next(iter(self._open)))
        self._open[file] = None
        file.timed = False  # reading changes a file's times too
        if len(self._open) > self._most_open:
            self._release(next(iter(self._open)))
        return file.fd

    def _release(self, file: StreamFile) -> None:
        """Its descriptor; its times become its first packet's."""
        if file.fd < 0:
            return
        os.utime(file.fd, ns=(file.named.start, file.named.start))
        file.timed = True
        self._open.pop(file, None)
        os.close(file.fd)
        file.fd = -1

    def path(self, file: StreamFile) -> str:
        return f"{self.folder}/{self.name(file)}"

    def shown(self, name: str) -> str:
        """With the folder before it, as tcpflow shows names: but for the folder where one is."""
        return name if self.folder == "." else f"{self.folder}/{name}"

    def content(self, file: StreamFile) -> Iterator[bytes]:
        """All that stands in it, in parts."""
        self.flush_one(file)
        if file.count < 0:
            return
        with self.open(file) as stored:
            while part := stored.read(_COPY_BYTES):
                yield part

    def open(self, file: StreamFile) -> BinaryIO:
        """To be read, once it is made; its times stay."""
        self.flush_one(file)
        return open(self.path(file), "rb", buffering=0, opener=_unseen)

    def beside(self, file: StreamFile, suffix: str, ending: str = "") -> tuple[int, str] | None:
        """A file of its own for something of a stream: (descriptor, name), by the first name that is free. None where
        it cannot be had, which is told as a fault of the stream's."""
        for count in itertools.count():
            name = f"{file.name}{suffix}{f'c{count}' if count else ''}{ending}"
            try:
                return os.open(f"{self.folder}/{name}", _CREATE, 0o644), name
            except FileExistsError:
                continue
            except OSError as problem:
                if problem.errno not in _OF_ONE_FILE:
                    raise
                self.failed.setdefault(file, f"{self.folder}/{name}: {problem.strerror}")
                return None
        return None

    def made(self, file: StreamFile) -> str:
        """Its path, before anything is in it."""
        if file.count < 0:
            self._descriptor(file)
        return self.path(file)

    def name(self, file: StreamFile) -> str:
        """Relative to the folder; empty for a file that is not made."""
        return file.name

    def _create(self, file: StreamFile) -> int:
        """By the first name of its kind that is free, also in a folder where an earlier run made some."""
        self._first_of(file)
        first = self._name(file)
        count = self._counts.get(first, 0)
        while True:
            name = self._name(file, count) if count else first
            full = f"{self.folder}/{name}"
            try:
                fd = os.open(full, _CREATE, 0o644)
            except FileExistsError:
                count += 1
            except FileNotFoundError:
                parent = os.path.dirname(full)
                if parent in self._made:
                    raise
                os.makedirs(parent, exist_ok=True)
                self._made.add(parent)
            else:
                self.took(file, count)
                return fd

    def _first_of(self, file: StreamFile) -> None:
        """One of that name whose bytes came before and wait takes it first."""
        if self._later and (before := self._later.pop(_told(file), file)) is not file:
            self.flush_one(before)

    def _name(self, file: StreamFile, count: int = 0) -> str:
        name = self._template.path(file.named, count)
        if not self._template.is_default and not set(name.split("/")).isdisjoint(_NO_NAMES):
            raise OSError(errno.EINVAL, "is no name of a file below the folder", name)
        return name

    def took(self, file: StreamFile, count: int) -> None:
        """It has that name."""
        file.count, file.name = count, self._template.path(file.named, count)
        if count:
            self._counts[self._template.path(file.named)] = count + 1

    def shift(self, file: StreamFile, count: int) -> None:
        """Move all that is there up by `count` bytes, from its end on."""
        self.flush_one(file)
        if not file.size or file.count < 0:
            return
        try:
            fd = self._descriptor(file)
            moving.up(fd, count)
            file.size += count
            if 0 <= file.limit < file.size:
                file.size = file.limit
                os.ftruncate(fd, file.limit)
        except OSError as problem:
            self._fail(file, problem)

    def stored(self, file: StreamFile, offset: int, size: int) -> bytes:
        """What stands at that place."""
        # Often what came of late, which is not written yet; but not more is looked through than writing it costs.
        for begin, pieces in reversed(file.pending[-_MOST_LOOKED:]):
            small = pieces.high - pieces.low <= _MOST_LOOKED
            if small and begin <= offset and offset + size <= begin + pieces.size:
                return pieces.some(offset - begin, size)
            if begin < offset + size and offset < begin + pieces.size:
                break
        self.flush_one(file)
        return os.pread(self._descriptor(file), size, offset) if file.count >= 0 else b""

    def close(self, file: StreamFile) -> None:
        """Nothing more comes: its times become its first packet's."""
        file.over = True
        if file.pending or file.count < 0 or file.timed:
            return  # or that is done when it is written
        if file.fd < 0:
            self._descriptor(file)
        self._release(file)
