"""One file a stream, in a folder: written at offsets, with few descriptors open at once.

What is to be written is gathered, and `flush` writes it, many pieces a call. Names come from names.py alone. Nothing
that stands in the folder is written over or followed.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import BinaryIO, NamedTuple

from tcppc.flows import moving
from tcppc.flows.helper import Helper
from tcppc.flows.names import Named, Template

MOST_OPEN = 200
# What a file costs beside its bytes, in bytes, and what is worth another process.
FILE_COST, WORTH_COST = 60_000, 32 << 20
WAITED_SECONDS = 0.002
# What is wrong with one file alone: too far for the file system, a name too long or none at all, a folder in its place.
_OF_ONE_FILE = {errno.EFBIG, errno.ENAMETOOLONG, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
_OTHER_DESCRIPTORS = 32
_NO_NAMES = {"", ".", ".."}
_COPY_BYTES = 1 << 20
_MOST_PIECES = 1024  # IOV_MAX of linux/uio.h
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_AGAIN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


def _unseen(path: str, flags: int) -> int:
    """Reading leaves the times as they are."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOATIME)


class Pieces(NamedTuple):
    """Bytes one behind the other: those of `buffer` from `begins[n]` to `ends[n]`, n from `low` to `high`."""

    buffer: memoryview
    begins: Sequence[int] = (0,)
    ends: Sequence[int] = ()
    low: int = 0
    high: int = 1

    @classmethod
    def of(cls, data: bytes) -> Pieces:
        return cls(memoryview(data), (0,), (len(data),), 0, 1 if data else 0)

    def parts(self) -> list[memoryview]:
        buffer = self.buffer
        low, high = self.low, self.high
        return [buffer[begin:end] for begin, end in zip(self.begins[low:high], self.ends[low:high], strict=True)]

    def size(self) -> int:
        low, high = self.low, self.high
        return sum(self.ends[low:high]) - sum(self.begins[low:high])


class StreamFile:
    """One of them; it is made with its first byte. `over`: nothing more will be written."""

    __slots__ = ("count", "fd", "lent", "limit", "named", "over", "pending", "size", "timed")

    def __init__(self, named: Named, limit: int = -1) -> None:
        self.named = named
        self.count = -1  # of its name; -1: it is not made yet
        self.fd = -1
        self.size = 0  # bytes in the file, with those that wait
        self.limit = limit  # -b: no byte is written from here on; -1: all are
        self.pending: list[tuple[int, Pieces]] = []  # (offset, what stands there)
        self.over = False
        self.timed = False  # has it its packets' time?
        self.lent = False  # is the helper at it?


class StreamFiles:
    """All of a folder. OSError where the disk does not take something."""

    def __init__(self, folder: str, template: Template, most_open: int = MOST_OPEN, helped: bool = False) -> None:
        """`helped`: by a second process."""
        self.folder = folder
        self._template = template
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_open = max(1, min(most_open, soft - _OTHER_DESCRIPTORS))
        self._open: OrderedDict[StreamFile, None] = OrderedDict()
        self._made: set[str] = set()
        self._counts: dict[str, int] = {}  # names that are taken, and how often
        self.waiting: list[StreamFile] = []
        self.failed: dict[StreamFile, str] = {}  # files that lack something, and why
        # Two processes would each find the same name free.
        self._helper = Helper() if helped and template.tells_streams_apart else None
        self._lent: list[StreamFile] = []
        self._own_share = 0.35
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
        file.size = max(file.size, offset + size)

    def flush(self) -> None:
        """All that waits; with a helper, a part of it is written while other work goes on."""
        self.settle()
        waiting, self.waiting = [file for file in self.waiting if file.pending], []
        for file in waiting[self._lend(waiting) :]:
            self.flush_one(file)

    def _lend(self, waiting: list[StreamFile]) -> int:
        """How many of them, from the first on, the helper writes."""
        if not self._helper:
            return 0
        cost = list(accumulate(FILE_COST + sum(pieces.size() for _, pieces in file.pending) for file in waiting))
        if not cost or cost[-1] < WORTH_COST:
            return 0
        count = bisect_left(cost, cost[-1] * (1 - self._own_share)) + 1
        lent = waiting[:count]
        self._helper.start(lambda: [self._written(file) for file in lent])
        self._lent = lent
        for file in lent:
            file.lent, file.pending = True, []
            if file.fd >= 0:  # it has its own, and sets the times when it has written
                del self._open[file]
                os.close(file.fd)
                file.fd = -1
        return count

    def _written(self, file: StreamFile) -> tuple[int, str]:
        """In the helper: (what its name counts, what was wrong with it)."""
        self.flush_one(file)
        self._release(file)
        return file.count, self.failed.get(file, "")

    def _fail(self, file: StreamFile, problem: str) -> None:
        """Nothing more of it is written; the others are."""
        self.failed.setdefault(file, problem)
        file.limit, file.pending = 0, []

    def settle(self) -> None:
        """What the helper has is written after this."""
        if not self._lent:
            return
        lent, self._lent = self._lent, []
        begun = time.monotonic()
        for file, (count, problem) in zip(lent, self._helper.result() if self._helper else (), strict=True):
            file.lent = False
            if problem:
                self._fail(file, problem)
            if file.count < 0:
                self.took(file, count)
            file.timed = True
            if file.over:
                self.close(file)
        waited = time.monotonic() - begun > WAITED_SECONDS
        self._own_share = min(0.5, max(0.05, self._own_share + (0.05 if waited else -0.05)))

    def flush_one(self, file: StreamFile) -> None:
        if file.lent:
            self.settle()
        pending, file.pending = file.pending, []
        if not pending:
            return
        try:
            self._write_all(self._descriptor(file), pending)
        except OSError as problem:
            problem.filename = problem.filename or self.path(file)
            if problem.errno not in _OF_ONE_FILE:
                raise
            self._fail(file, f"{problem.filename}: {problem.strerror}")
        if file.over:
            self.close(file)

    def _write_all(self, fd: int, pending: list[tuple[int, Pieces]]) -> None:
        at = 0
        while at < len(pending):
            offset, pieces = pending[at]
            parts = pieces.parts()
            end = offset + sum(map(len, parts))
            at += 1
            while at < len(pending) and pending[at][0] == end:
                more = pending[at][1].parts()
                end += sum(map(len, more))
                parts += more
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
        if file.lent:
            self.settle()
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

    def made(self, file: StreamFile) -> str:
        """Its path, before anything is in it."""
        if file.count < 0:
            self._descriptor(file)
        return self.path(file)

    def name(self, file: StreamFile) -> str:
        """Relative to the folder; empty for a file that is not made."""
        if file.lent:
            self.settle()
        return self._template.path(file.named, file.count) if file.count >= 0 else ""

    def _create(self, file: StreamFile) -> int:
        """By the first name of its kind that is free, also in a folder where an earlier run made some."""
        first = self._template.path(file.named)
        count = self._counts.get(first, 0)
        while True:
            name = self._template.path(file.named, count) if count else first
            if not set(name.split("/")).isdisjoint(_NO_NAMES):
                raise OSError(errno.EINVAL, "is no name of a file below the folder", name)
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

    def took(self, file: StreamFile, count: int) -> None:
        """It has that name."""
        file.count = count
        if count:
            self._counts[self._template.path(file.named)] = count + 1

    def shift(self, file: StreamFile, count: int) -> None:
        """Move all that is there up by `count` bytes, from its end on."""
        self.flush_one(file)
        if not file.size:
            return
        fd = self._descriptor(file)
        moving.up(fd, count)
        file.size += count
        if 0 <= file.limit < file.size:
            file.size = file.limit
            os.ftruncate(fd, file.limit)

    def stored(self, file: StreamFile, offset: int, size: int) -> bytes:
        """What stands at that place."""
        self.flush_one(file)
        return os.pread(self._descriptor(file), size, offset) if file.count >= 0 else b""

    def close(self, file: StreamFile) -> None:
        """Nothing more comes: its times become its first packet's."""
        file.over = True
        if file.lent or file.pending or file.count < 0 or file.timed:
            return  # or that is done when it is written
        if file.fd < 0:
            self._descriptor(file)
        self._release(file)
