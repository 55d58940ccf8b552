"""thp's own files, beside the data files, for those who have tools for them.

`captures` is a log for people: one line a session, or several. `session_dir` has a file a session with its bytes as
received, named by its SID: when it began, in seconds and microseconds as upper-case hexadecimal numbers, a dot, and who
answered. Both are copies: where they cannot be written the log says so, and the data file has all of it. Both are
bounded: the log here, by `most_bytes`, the folder by session_files.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from tcppc.capture.books import Books
from tcppc.capture.limits import why
from tcppc.capture.regular import is_regular, open_regular
from tcppc.capture.spill import SpillError
from tcppc.clock import Zone
from tcppc.records import Session

LOGTYPES = ("single", "multi")
SAY_AGAIN_SECONDS = 60.0
# Names in use, so that two sessions of one microsecond are told apart: those of the last moments are enough.
MOST_REMEMBERED = 10_000


def before(path: str) -> str:
    """Where the log goes that was full: captures.1."""
    return f"{path}.1"


class Captures:
    """Belongs to the thread of copier.py. Nothing here raises.

    A log that reaches `most_bytes` (0: no bound) becomes `before(path)`, in place of the one before it.
    """

    def __init__(
        self,
        path: str,
        logtype: str,
        folder: str,
        zone: Zone,
        books: Books,
        say: Callable[[str], None],
        most_bytes: int = 0,
    ) -> None:
        self.path = path
        self.logtype = logtype
        self.folder = folder
        self.zone = zone
        self.most_bytes = most_bytes
        self.at = path or folder  # the file that is written, and since when: for who looks whether that hangs
        self.since = 0.0
        self._books = books
        self._say = say
        self._pid = os.getpid()
        self._used: OrderedDict[str, None] = OrderedDict()
        self._said = -SAY_AGAIN_SECONDS

    def add(self, sessions: Sequence[Session]) -> None:
        """These are in the data file."""
        named = [(self._sid(session), session) for session in sessions]
        for sid, session in named if self.folder else ():
            try:
                self._keep(sid, session)
            except OSError as problem:
                self._failed(problem)
            except SpillError as problem:
                self._failed(OSError(errno.EIO, str(problem), os.path.join(self.folder, sid)))
        if self.path and named:
            describe = self._single if self.logtype == "single" else self._multi
            try:
                self._log("".join(describe(sid, session) for sid, session in named).encode("ascii"))
            except OSError as problem:
                self._failed(problem)

    def _failed(self, problem: OSError) -> None:
        count = self._books.error("captures_failed")
        if time.monotonic() - self._said >= SAY_AGAIN_SECONDS:
            self._said = time.monotonic()
            self._say(
                f"Failed to write captures: {problem.filename or self.path}: {why(problem)} "
                f"({count} times so far); the data file has them."
            )

    def _log(self, text: bytes) -> None:
        self.at, self.since = self.path, time.monotonic()
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        fd = self._open_log()
        try:
            size = os.fstat(fd).st_size
            if self.most_bytes and size and size + len(text) > self.most_bytes:
                self._turn()
                os.close(fd)
                fd = self._open_log()
                size = os.fstat(fd).st_size
            self._append(fd, size, text)
        finally:
            os.close(fd)

    def _append(self, fd: int, size: int, text: bytes) -> None:
        """All of it or nothing: no half lines."""
        written = 0
        try:
            while written < len(text):  # write(2) tells why it does not go on only when it takes nothing at all
                written += os.write(fd, text[written:])
        except OSError as problem:
            if os.fstat(fd).st_size == size + written:
                os.ftruncate(fd, size)
            problem.filename = self.path
            raise

    def _open_log(self) -> int:
        return open_regular(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def _turn(self) -> None:
        """The log is full: it makes way for a new one."""
        full = before(self.path)
        if os.path.lexists(full) and not is_regular(full):
            raise OSError(errno.EEXIST, f"no regular file; {self.path} is full and cannot be moved there", full)
        os.rename(self.path, full)

    def _sid(self, session: Session) -> str:
        """Two sessions never have the same one: the later one is a microsecond younger then."""
        persona = session.spoken.persona if session.spoken else "silent"
        persona = re.sub(r"[^A-Za-z0-9-]", "", persona)[:32]
        microseconds = session.start // 1000
        while True:
            seconds, rest = divmod(microseconds, 1_000_000)
            moment = f"{seconds:X}{rest:X}"
            if moment not in self._used:
                break
            microseconds += 1
        self._used[moment] = None
        if len(self._used) > MOST_REMEMBERED:
            self._used.popitem(last=False)
        return f"{moment}.{persona}"

    def _keep(self, sid: str, session: Session) -> None:
        if not session.count or session.proto == "udp":  # thp has no datagrams; a flood of them would be as many files
            return
        path = os.path.join(self.folder, sid)
        self.at, self.since = path, time.monotonic()
        os.makedirs(self.folder, mode=0o755, exist_ok=True)
        # O_EXCL: nothing that stands there is written over or followed.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o644)
        try:
            with open(fd, "wb") as file:
                file.writelines(data for _, data in session.all_payloads())
        except (OSError, SpillError) as problem:
            with contextlib.suppress(OSError):  # half a copy is none; what keeps it there is told just below
                os.unlink(path)
            if isinstance(problem, OSError):
                problem.filename = problem.filename or path
            raise

    def _stamp(self, instant: int) -> str:
        return self.zone.format("%b %e %H:%M:%S", instant / 1e9)

    def _elapsed(self, session: Session) -> tuple[int, str]:
        seconds = max(0, (session.end or session.start) - session.start) // 1_000_000_000
        return seconds, f"{seconds // 3600:02d}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"

    def _single(self, sid: str, session: Session) -> str:
        stamp = self._stamp(session.end or session.start)
        _, elapsed = self._elapsed(session)
        return (
            f"{stamp} SID={sid} PID={self._pid} SRC={session.src} SPT={session.sport} ET={elapsed} "
            f"BYTES={session.bytes}\n"
        )

    def _multi(self, sid: str, session: Session) -> str:
        seconds, elapsed = self._elapsed(session)
        long = f"\t- elapsed time {elapsed}\n" if seconds > 0 else ""
        return (
            f"\n{self._stamp(session.start)} start thp SID {sid}, UNIX pid {self._pid} source {session.src}\n"
            f"{self._stamp(session.end or session.start)} end thp SID {sid}\n{long}\t- total {session.bytes} bytes\n"
        )
