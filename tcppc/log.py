"""Log lines for people, in tcppc-go's form: `2026/04/16 23:42:32 Start TCP server.`

The log must never hold up the capture: a regular file is written to as it is, but a pipe, terminal or socket
is asked first whether it has room, and lines that it does not take are counted, not waited for. Nothing here
raises. What strangers sent is shown as Go's %q shows it, so no control byte reaches a terminal.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections.abc import Iterable

from tcppc.clock import Zone
from tcppc.text import ESCAPED

# A pipe that poll(2) calls writable takes at least this much without blocking (POSIX PIPE_BUF on Linux).
PIPE_BUF = 4096
# As much of a payload as a log line shows; tcppc-go never read more at once.
SHOWN_BYTES = 4096

_ESCAPES = {number: f"\\x{number:02x}" for number in (*range(32), 127)} | {
    ord(character): escape
    for character, escape in zip(
        '\a\b\f\n\r\t\v"\\', [r"\a", r"\b", r"\f", r"\n", r"\r", r"\t", r"\v", r"\"", r"\\"], strict=True
    )
}


def quote(data: bytes) -> str:
    """Bytes as Go's %q shows them: printable UTF-8 as it is, everything else escaped; cut after SHOWN_BYTES."""
    cut = "" if len(data) <= SHOWN_BYTES else "..."
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

    Raises OSError from the constructor alone. May be called from any thread; each call is one write(2).
    """

    def __init__(self, zone: Zone, path: str = "") -> None:
        self.zone = zone
        self.path = path
        self.lost = 0  # lines that the destination did not take
        self._fd = self._open() if path else 2
        self._lock = threading.Lock()  # a poll object serves one thread at a time
        self._torn = False  # did the last line that a pipe took end in the middle?
        self._look()

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def _look(self) -> None:
        self._poll: select.poll | None = None
        try:
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                return
        except OSError:  # a closed standard error: lines are counted as lost
            return
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def reopen(self) -> None:
        """Follow a log file that was moved away; keep the old one where a new one cannot be made."""
        if not self.path:
            return
        try:
            fd = self._open()
        except OSError as problem:
            self(f"Failed to open log file: {self.path}: {problem.strerror}; going on with the old one.")
            return
        # dup2 and not a new number: other threads may be in the middle of a line.
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        self._look()

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
        if self._poll is None:
            self._put("".join(lines), len(lines))
            return
        chunk: list[str] = []
        room = PIPE_BUF
        for line in lines:
            length = len(line) if line.isascii() else len(line.encode("utf-8", ESCAPED))
            if chunk and length > room:
                self._put_if_room(chunk)
                chunk, room = [], PIPE_BUF
            chunk.append(line)
            room -= length
        if chunk:
            self._put_if_room(chunk)

    def _put_if_room(self, chunk: list[str]) -> None:
        """Lines that fit into PIPE_BUF together, or one longer line, which goes in pieces and may lose its end."""
        data = "".join(chunk).encode("utf-8", ESCAPED)
        with self._lock:
            if self._torn:
                data = b"\n" + data
            for at in range(0, len(data), PIPE_BUF):
                if self._poll is None or not self._poll.poll(0):
                    self._torn = self._torn or at > 0
                    self.lost += len(chunk)
                    return
                self._put_bytes(data[at : at + PIPE_BUF], len(chunk))
            self._torn = False

    def _put(self, text: str, count: int) -> None:
        self._put_bytes(text.encode("utf-8", ESCAPED), count)

    def _put_bytes(self, data: bytes, count: int) -> None:
        try:
            os.write(self._fd, data)
        except OSError:  # a full disk or a reader that went away: there is no other place to say it
            self.lost += count
