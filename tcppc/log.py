"""Log lines for people, in tcppc-go's form: `2026/04/16 23:42:32 Start TCP server.`

The log never holds up the capture: lines go into a queue that is bounded in characters, and a thread of the log's own
writes them. A terminal whose reader stopped, a hung disk or a FIFO that nobody reads stalls that thread alone; lines
over the bound are counted as lost, not waited for. Nothing here raises. What strangers sent is shown as Go's %q shows
it, so no control byte reaches a terminal.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from tcppc.clock import Zone
from tcppc.text import ESCAPED

# write(2) of so much to a pipe is never mixed with another process's lines (POSIX PIPE_BUF on Linux).
PIPE_BUF = 4096
# Characters of lines that wait for a destination that takes none: some seconds of a busy sensor's lines.
MOST_WAITING = 4 << 20
BLOCK_CHARACTERS = 1 << 16
# As much of a payload as a log line shows; tcppc-go never read more at once.
SHOWN_BYTES = 4096

_ESCAPES = {number: f"\\x{number:02x}" for number in (*range(32), 127)} | {
    ord(character): escape
    for character, escape in zip(
        '\a\b\f\n\r\t\v"\\', [r"\a", r"\b", r"\f", r"\n", r"\r", r"\t", r"\v", r"\"", r"\\"], strict=True
    )
}


def quote(data: bytes, size: int = 0) -> str:
    """Bytes as Go's %q shows them: printable UTF-8 as it is, everything else escaped; cut after SHOWN_BYTES. Where
    they are the beginning of more, `size` is how many."""
    cut = "..." if max(len(data), size) > len(data[:SHOWN_BYTES]) else ""
    data = data[:SHOWN_BYTES]
    if data.isascii():
        return f'"{data.decode("ascii").translate(_ESCAPES)}"{cut}'
    return f'"{"".join(map(_escape, data.decode("utf-8", "surrogateescape")))}"{cut}'


def _escape(character: str) -> str:
    number = ord(character)
    if number in _ESCAPES:
        return _ESCAPES[number]
    if character.isprintable():
        return character
    if 0xDC80 <= number <= 0xDCFF:  # surrogateescape: a byte that is no UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


class Log:
    """Where log lines go: standard error, or the file `path` that is appended to and made anew by `reopen`.

    Until `start` each line is written at once; from then on by the log's own thread. `count` is told of lines that are
    lost. Raises OSError from the constructor alone. May be called from any thread.
    """

    def __init__(self, zone: Zone, path: str = "", count: Callable[[int], object] = lambda lines: None) -> None:
        self.zone = zone
        self.path = path
        self.lost = 0  # lines that the destination did not take
        self._count = count
        self._fd = self._open() if path else 2
        self._regular = _is_regular(self._fd)
        self._torn = False  # did the last line that was written end in the middle?
        self._lines: deque[str | Callable[[], None]] = deque()
        self._waiting = 0  # characters of them
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ending = False

    def start(self) -> None:
        """Begin to write in a thread; RuntimeError where none can be started."""
        thread = threading.Thread(target=self._run, name="log", daemon=True)
        thread.start()
        self._thread = thread

    def set_zone(self, zone: Zone) -> None:
        """For lines from now on."""
        self.zone = zone

    def _open(self) -> int:
        """Neither waits for a FIFO's reader nor ends where it goes away: opened for both, it has one."""
        flags = os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        with contextlib.suppress(OSError):  # not there yet
            if stat.S_ISFIFO(os.stat(self.path).st_mode):
                fd = os.open(self.path, os.O_RDWR | flags)
                os.set_blocking(fd, True)
                return fd
        fd = os.open(self.path, os.O_WRONLY | flags, 0o640)
        os.set_blocking(fd, True)
        return fd

    def reopen(self) -> None:
        """Follow a log file that was moved away; keep the old one where a new one cannot be made."""
        if not self.path:
            return
        if self._thread:
            with self._changed:
                self._lines.append(self._reopen)
                self._changed.notify_all()
        else:
            self._reopen()

    def _reopen(self) -> None:
        try:
            fd = self._open()
        except OSError as problem:
            self(f"Failed to open log file: {self.path}: {problem.strerror}; going on with the old one.")
            return
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        self._regular = _is_regular(self._fd)

    def __call__(self, line: str) -> None:
        """One line, with the time of now."""
        self.write([line])

    def write(self, lines: Iterable[str], instant: int = 0) -> None:
        """Several lines with one time (ns since the epoch; 0 is now)."""
        prefix = self.prefix(instant)
        self.write_text([f"{prefix}{line}\n" for line in lines])

    def prefix(self, instant: int = 0) -> str:
        second = instant / 1e9 if instant else time.time()
        return self.zone.format("%Y/%m/%d %H:%M:%S ", second)

    def write_text(self, lines: list[str]) -> None:
        """Lines that have their time and line feed already."""
        if not lines:
            return
        text = "".join(lines)
        if self._thread is None:
            self._put(text)
            return
        with self._changed:
            if self._waiting + len(text) <= MOST_WAITING:
                self._waiting += len(text)
                self._lines.append(text)
                self._changed.notify_all()
                return
        self._lose(len(lines))

    def waiting(self) -> int:
        """How many lines are not written yet."""
        with self._changed:
            return sum(item.count("\n") for item in self._lines if isinstance(item, str))

    def drain(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for all lines to be written; returns how many are not."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines or not self._thread, timeout)
        return self.waiting()

    def stop(self, timeout: float) -> None:
        """Write what waits, for `timeout` seconds at most; a thread that is held up is left behind."""
        thread = self._thread
        if thread is None:
            return
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        thread.join(timeout)

    def _run(self) -> None:
        while True:
            try:
                if self._turn():
                    return
            except MemoryError:  # not even to wait, or to look what there is: later there may be some
                time.sleep(0.1)

    def _turn(self) -> bool:
        """Write what waits next; True at the end."""
        with self._changed:
            # What is being written stays in the queue until it is: so `drain` waits for it.
            self._changed.wait_for(lambda: self._lines or self._ending)
            if not self._lines:
                return True
            batch = self._block()
        try:
            for item in batch:
                if isinstance(item, str):
                    self._put(item)
                else:
                    item()
        except Exception:  # no memory, or a fault of ours: there is no other place to say it
            self._lose(len(batch))
        with self._changed:
            for item in batch:
                self._lines.popleft()
                self._waiting -= len(item) if isinstance(item, str) else 0
            self._changed.notify_all()
        return False

    def _block(self) -> list[str | Callable[[], None]]:
        """What is written next: as much as one write(2) should have."""
        batch: list[str | Callable[[], None]] = []
        size = 0
        for item in self._lines:
            batch.append(item)
            size += len(item) if isinstance(item, str) else 0
            if size >= BLOCK_CHARACTERS:
                break
        return batch

    def _put(self, text: str) -> None:
        """All of it, however long the destination takes; what it refuses is lost."""
        data = text.encode("utf-8", ESCAPED)
        if self._torn:
            data, self._torn = b"\n" + data, False
        at = 0
        while at < len(data):
            # To a pipe, whole lines at once, so that those of other processes stand between and not within them.
            end = len(data) if self._regular else data.rfind(b"\n", at, at + PIPE_BUF) + 1 or at + PIPE_BUF
            try:
                written = self._write(data[at:end])
            except OSError:  # a full disk or a reader that went away: there is no other place to say it
                self._torn = at > 0 and data[at - 1 : at] != b"\n"
                self._lose(data.count(b"\n", at))
                return
            at += written

    def _write(self, data: bytes) -> int:
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:  # somebody who shares standard error with us has set O_NONBLOCK
                room = select.poll()
                room.register(self._fd, select.POLLOUT)
                room.poll(1000)
                if self._thread is None or self._ending:
                    raise

    def _lose(self, lines: int) -> None:
        self.lost += lines
        self._count(lines)


def _is_regular(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:  # a closed standard error: lines are counted as lost
        return True


class Seldom:
    """Says at most once in `seconds` of each kind of thing that the log is to hear of it."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._told: dict[str, float] = {}

    def due(self, kind: str = "") -> bool:
        """Is it time to say this again? Kinds are few and fixed: error names, not strangers' words."""
        now = time.monotonic()
        if now - self._told.get(kind, -self._seconds) < self._seconds:
            return False
        self._told[kind] = now
        return True
