"""Where an nc listener's bytes go: standard output and the file of session records; and what got to neither.

A write to standard output never waits where it can be had otherwise (a pipe is opened once more, as one that does not
wait; who shares it with us notices nothing): so the end is not held up by a reader that stalls, and each byte that it
did not take is counted. Threads share both; the lock of `Output` keeps pieces whole, the other one guards the counts.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tcppc import hostname
from tcppc.capture.books import SESSION_CHARGE, Books, source_key
from tcppc.capture.files import DataFile, Naming, is_standard_output
from tcppc.capture.intake import Intake
from tcppc.capture.recorder import Recorder
from tcppc.capture.spill import Spill
from tcppc.capture.writer import Writer
from tcppc.clock import Zone
from tcppc.log import PIPE_BUF, Log
from tcppc.records import Encoder, Session
from tcppc.sections import Limits

# How often a thread whose turn does not come looks whether the end has.
LOOK_SECONDS = 1.0


@dataclass
class Missing:
    """What did not get to a place: so many bytes of so many connections or datagrams."""

    sessions: int = 0
    bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.sessions or self.bytes)

    def counted(self, noun: str) -> str:
        return f"{self.sessions} {noun}{'' if self.sessions == 1 else 's'}"

    def told(self, noun: str) -> str:
        return f"{self.bytes} byte{'' if self.bytes == 1 else 's'} of {self.counted(noun)}"


class Output:
    """Standard output. `gone` is called once nobody takes anything there any more; `problem` says why."""

    def __init__(self, gone: Callable[[], None]) -> None:
        self.problem = ""
        self._gone = gone
        self._turn = threading.Lock()
        self._counts = threading.Lock()
        self._over = False  # nothing is written any more
        self._until = float("inf")  # how long a slow reader is waited for (monotonic seconds)
        self._wake = os.eventfd(0)
        self._rest = 0  # bytes of the piece that is being written
        self._missing = Missing()
        self._lacking: set[tuple[str, int, int]] = set()
        self._fd, self._ask = _opened()

    def put(self, data: bytes, session: Session) -> bool:
        """Write what `session` received, whole; False where nothing is taken any more. What was not is counted."""
        while not self._turn.acquire(timeout=LOOK_SECONDS):
            if time.monotonic() > self._until:
                self._lack(len(data), session)
                return False
        try:
            self._rest = len(data)
            self._write(memoryview(data))
            rest, self._rest = self._rest, 0
        finally:
            self._turn.release()
        if rest:
            self._lack(rest, session)
        return not self._over

    def _write(self, view: memoryview) -> None:
        while view and not self._over:
            try:
                view = view[self._send(view) :]
                self._rest = len(view)
            except BlockingIOError:
                if time.monotonic() > self._until:
                    self._over = True  # what came now would stand behind a gap
                else:
                    self._wait()
            except OSError as problem:
                self.problem = problem.strerror or str(problem)
                self._over = True
                self._gone()

    def _send(self, view: memoryview) -> int:
        if self._ask:  # with room for a byte there is room for so many
            if not self._room().poll(0):
                raise BlockingIOError
            view = view[:PIPE_BUF]
        return os.write(self._fd, view)

    def _room(self) -> select.poll:
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        return room

    def _wait(self) -> None:
        """For room, or for the end."""
        room, until = self._room(), self._until
        if until < float("inf"):
            room.poll(max(1.0, (until - time.monotonic()) * 1000))
        else:
            room.register(self._wake, select.POLLIN)
            room.poll()

    def _lack(self, size: int, session: Session) -> None:
        with self._counts:
            self._missing.bytes += size
            self._lacking.add((session.src, session.sport, session.start))

    def end(self, until: float) -> None:
        """From then on (monotonic seconds) no reader is waited for any more."""
        self._until = until
        os.eventfd_write(self._wake, 1)

    def missing(self) -> Missing:
        """What it did not take, with the piece that a thread is held up with."""
        with self._counts:
            return Missing(len(self._lacking) + bool(self._rest), self._missing.bytes + self._rest)


def _opened() -> tuple[int, bool]:
    """(a descriptor of standard output, must it be asked for room before each write?)"""
    mode = os.fstat(1).st_mode
    if not os.get_blocking(1) or stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return 1, False
    if stat.S_ISCHR(mode) and not os.isatty(1):
        return 1, False
    if not stat.S_ISSOCK(mode):
        with contextlib.suppress(OSError):  # another user's, or no /proc
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open("/proc/self/fd/1", flags), False
    return 1, True


class Records:
    """Session records of what is received, in the file `path`."""

    def __init__(self, path: str, log: Log, zone: Zone) -> None:
        limits = Limits()
        self.cut = Missing()  # what a bound cut from records that are there
        self._counts = threading.Lock()
        self._limits = limits
        self._books = Books(limits)
        self._open: dict[Session, None] = {}  # atomic operations
        self._spill = Spill(None if is_standard_output(path) else Path(path).parent, limits.spill, self._books, log)
        self._intake = Intake(talkative=False)
        file = DataFile(Naming(path.replace("%", "%%"), 0, 0, zone), lambda line: None, lambda closed: None)
        self._writer = Writer(self._intake, self._books, log, Encoder(zone, hostname.name()), file)
        self._writer.start()

    def begin(self, session: Session) -> Recorder:
        """Who keeps what this session says."""
        bound, session.source = self._books.enter(source_key(session.src))
        if bound not in ("memory", "disk"):
            session.charge = SESSION_CHARGE
        self._open[session] = None
        most = self._limits
        return Recorder(session, self._books, self._intake, self._spill, most.session_bytes, most.session_payloads)

    def end(self, recorder: Recorder, closed: str) -> None:
        """The session of `recorder` is over."""
        session = recorder.session
        session.end, session.closed = time.time_ns(), closed
        if session.charge and session.truncated:
            with self._counts:
                self.cut.sessions += 1
                self.cut.bytes += session.bytes - recorder.kept
        self._books.leave(session.source)
        if session.charge:
            self._intake.put(session)
        else:
            self._books.drop("memory", 1, session.bytes)
        self._open.pop(session, None)

    def datagram(self, session: Session) -> None:
        source = self._books.datagram(session.bytes, session.src)
        if source is not False:
            session.charge, session.source = session.bytes + SESSION_CHARGE, source
            self._intake.put(session)

    def stop(self, timeout: float) -> Missing:
        """Write what there is, within `timeout` seconds and two more where a write hangs; returns what is in no
        record."""
        self._writer.stop(timeout)
        size = sum([session.bytes for session in list(self._open)])
        counts = self._books.counts()
        return Missing(counts["accepted"] - counts["recorded"], counts["bytes_dropped"] + size)
