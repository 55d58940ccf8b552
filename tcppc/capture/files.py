"""The data file of now: its name, its rotation, whole lines only.

O_APPEND, and each write(2) is whole lines: what a full disk cut off is taken back, so that no reader meets half
a line, and a half line that a power cut left is ended before new lines follow. A file that was moved or deleted
under us is noticed before the next write and made anew. Nothing here sleeps or retries; OSError means "not now",
and the caller still has the lines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import stat
import sys
import termios
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tcppc.capture.syncer import Syncer, sync_and_close
from tcppc.clock import Zone

# Stands beside the data files: see ledger.py.
LEDGER = "ledger.jsonl"
# As much as a pipe takes at once (pipe(7)); more in one write(2) would hang in one piece.
STREAM_BYTES = 65536


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


def take_back(fd: int, size: int, written: int) -> None:
    """Take away what this very write put behind `size` bytes; end it as a half line where others' bytes follow."""
    if os.fstat(fd).st_size <= size + written:
        os.ftruncate(fd, size)
    else:
        os.write(fd, b"\n")


def write_all(fd: int, data: bytes, path: str) -> None:
    """Append all of it; OSError where a part of it is all that fits."""
    written = os.write(fd, data)
    while written < len(data):
        more = os.write(fd, data[written:])  # tells why it takes nothing
        if not more:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        written += more


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
        # write(2) tells why only when it takes nothing at all.
        number = errno.EFBIG if _over_limit(size + len(lines)) else errno.ENOSPC
        raise OSError(number, os.strerror(number), path)
    return whole


def _taken(fd: int) -> bool:
    """Is this file ours alone from now on? A stream may have many writers."""
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _unread(fd: int) -> int:
    """Bytes that are in a pipe (FIONREAD); 0 of anything else."""
    try:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            return 0
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:
        return 0


def _over_limit(size: int) -> bool:
    """Is it more than RLIMIT_FSIZE lets a file of this process have?"""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return limit != resource.RLIM_INFINITY and size > limit


class FileLedger(Protocol):
    """Who keeps account of the data files: ledger.py, which is built upon this module."""

    def opened(self, path: str, size: int, stream: bool = False) -> None: ...

    def closed(self, path: str, size: int, first: int, last: int, stream: bool = False) -> None: ...

    def mark(self, path: str, size: int, first: int, last: int, stream: bool = False) -> None: ...


# Names of standard output: records go to that stream, and no file is made.
STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def is_standard_output(path: str) -> bool:
    return path in STANDARD_OUTPUT


def shown(path: str) -> str:
    """As people name it."""
    return "standard output" if path == "-" else path


class DataFile:
    """The open data file. Belongs to the writer's thread.

    `say(line)` logs; `closed(path)` is told of each file that will not be written to again; `syncer` syncs and closes
    in a thread of its own, where there is one.
    """

    def __init__(
        self,
        naming: Naming,
        say: Callable[[str], None],
        closed: Callable[[str], None],
        ledger: FileLedger | None = None,
        syncer: Syncer | None = None,
    ) -> None:
        self.naming = naming
        self.path = ""
        self.sessions = 0  # written to the file that is open
        self._say = say
        self._closed = closed
        self._ledger = ledger
        self._syncer = syncer
        self._fd = -1
        self.turns = -1  # files opened after the first
        self.size = 0  # of the file that is open; of a stream, what was written to it
        self.first = self.last = 0
        self.stream = False  # is it no regular file, but a pipe, a FIFO, a terminal, or standard output?
        self._torn = False  # did a stream take a part of a line?
        self._period = 0
        self._number = 0
        self._identity = (0, 0)

    def set_naming(self, naming: Naming) -> None:
        """From the next `reopen` on, files have these names."""
        self.naming = naming

    def turn(self) -> None:
        """Open the file of now where none is open or another one is due. OSError where it cannot be had."""
        now = time.time()
        period = self.naming.period(now)
        if self._fd >= 0 and not self.stream:
            if period != self._period:
                self._leave()
                self._number = 0
            elif self.naming.most_bytes and self.size >= self.naming.most_bytes:
                self.follow()
            elif self._gone():
                self._say(f"Session file was moved or removed: {self.path}")
                self._leave(tell=False)
        if self._fd < 0:
            self._enter(now, period)

    def follow(self) -> None:
        """The file has its full size: the next `turn` opens the numbered one that follows it."""
        if self._fd >= 0:
            self._leave()
            self._number += 1

    def _gone(self) -> bool:
        try:
            found = os.stat(self.path)
        except OSError:  # not there or not reachable: opening it will tell
            return True
        return (found.st_dev, found.st_ino) != self._identity

    def _enter(self, now: float, period: int) -> None:
        base = self.naming.path(now)
        standard = is_standard_output(base)
        path = base if standard else numbered(base, self._number)
        while not standard and self._is_full(path):
            self._number += 1
            path = numbered(base, self._number)
        fd = self._open(path)
        try:
            status = os.fstat(fd)
            # Whatever standard output is redirected to, it is not ours to cut, to name or to make anew.
            stream = standard or not stat.S_ISREG(status.st_mode)
            size = 0 if stream else end_half_line(fd)
            if not stream and size != status.st_size:
                self._say(f"The last line of {path} is cut off, as a crash leaves it; new lines follow on their own.")
        except OSError:
            os.close(fd)
            raise
        before, self.path = self.path, path
        if before not in ("", path):
            self._closed(before)
        self._fd, self.size, self._period, self.stream = fd, size, period, stream
        self.turns += 1
        self._identity = (status.st_dev, status.st_ino)
        self.sessions = self.first = self.last = 0
        if self._ledger:
            self._ledger.opened(path, size, stream)
        self._say(f"{'Writing session data to the stream' if stream else 'Created a session file'}: {shown(path)}")

    def _is_full(self, path: str) -> bool:
        """Has an earlier run filled this file, to its bound or to the limit of this process?"""
        try:
            size = os.stat(path).st_size
        except OSError:  # not there or not reachable: opening it will tell
            return False
        return bool(self.naming.most_bytes and size >= self.naming.most_bytes) or _over_limit(size + 1)

    def _open(self, path: str) -> int:
        if is_standard_output(path):
            if fcntl.fcntl(1, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:  # as cli/standard.py leaves a closed one
                raise OSError(errno.EBADF, "standard output is closed or cannot be written to", path)
            return os.dup(1)
        folder = os.path.dirname(path)
        if folder and not os.path.isdir(folder):
            os.makedirs(folder, 0o755, exist_ok=True)
            self._say(f"Create directories: {folder}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if self._ledger and not _taken(fd):
            os.close(fd)
            raise OSError(errno.EBUSY, "another sensor writes to it", path)
        return fd

    def write(self, lines: bytes) -> int:
        """Append whole lines; returns how many bytes of them are in the file, at least one line.

        OSError where not even one fits: then nothing of them is in the file.
        """
        if self.stream:
            return self._write_to_stream(lines)
        try:
            written = append(self._fd, self.size, lines, self.path)
        finally:
            self.size = os.fstat(self._fd).st_size
        return written

    def write_pieces(self, pieces: Iterable[bytes]) -> int:
        """Append one line that comes in pieces, for one too large to be held in memory; returns its bytes.

        OSError where it does not fit: then nothing of it is in the file."""
        begin, total = self.size, 0
        try:
            for piece in pieces:
                if self.stream:
                    self._write_to_stream(piece, within=total > 0)
                total += len(piece)
                if not self.stream:
                    write_all(self._fd, piece, self.path)
        except BaseException:
            if not self.stream:
                take_back(self._fd, begin, total)
            raise
        finally:
            if not self.stream:
                self.size = os.fstat(self._fd).st_size
        return total

    def _write_to_stream(self, data: bytes, within: bool = False) -> int:
        """All of it, however long the reader takes; where the reader goes away, whole lines are what was written.
        OSError where it took not even one. `within` continues a line."""
        before = b"\n" if self._torn and not within else b""
        data = before + data
        at = 0
        try:
            while at < len(data):
                try:
                    at += os.write(self._fd, data[at : at + STREAM_BYTES])
                except BlockingIOError:  # who shares standard output with us has set O_NONBLOCK
                    room = select.poll()
                    room.register(self._fd, select.POLLOUT)
                    room.poll(1000)
        except OSError:
            if not (whole := max(0, data.rfind(b"\n", 0, at) + 1 - len(before))) or within:
                raise
            return whole
        finally:
            self.size += at
            if at:
                self._torn = data[at - 1 : at] != b"\n"
        return len(data) - len(before)

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
            self._ledger.mark(self.path, self.size, self.first, self.last, self.stream)

    def _leave(self, tell: bool = True) -> None:
        fd, self._fd = self._fd, -1
        if self.stream:
            if unread := _unread(fd):
                self._say(f"{shown(self.path)}: {unread} bytes are in the pipe, and nobody has read them yet.")
            os.close(fd)
        elif self._syncer:
            with contextlib.suppress(OSError):  # it may be opened again before it is synced
                fcntl.flock(fd, fcntl.LOCK_UN)
            self._syncer.close(fd, self.path)
        else:
            sync_and_close(fd, self.path, self._say)
        if self._ledger:
            self._ledger.closed(self.path, self.size, self.first, self.last, self.stream)
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
