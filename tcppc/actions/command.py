"""Kind `command`: a program or shell line, bounded in time and output."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import shutil
import signal
import threading
import time
from dataclasses import dataclass

from tcppc.actions.job import Job, Outcome
from tcppc.actions.rule import PATH
from tcppc.log import quote

MOST_OUTPUT = 4096  # bytes of it that the log shows; more is read and thrown away
GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL
_PIECE = 65536
_LOOK_SECONDS = 0.05
# Those that run now, so that a stop can end them; guarded by the lock.
_running: set[int] = set()
_lock = threading.Lock()


@dataclass
class _Process:
    """A process group of its own, and our ends of its pipes (-1 once closed)."""

    pid: int
    stdin: int
    stdout: int
    code: int | None = None

    def ended(self) -> bool:
        if self.code is None and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            # What it leaves in the background goes with it, while its number is still its own: else each stranger could
            # have one more process here.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code is not None

    def end(self) -> None:
        """The whole group: asked first, then killed."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            # PermissionError: it has become somebody else's, as by sudo.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
            until = time.monotonic() + GRACE_SECONDS
            while not self.ended() and time.monotonic() < until:
                time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        for name in ("stdin", "stdout"):
            if (fd := getattr(self, name)) >= 0:
                os.close(fd)
                setattr(self, name, -1)


# Those that could not be ended, as one that became another user's: once they end by themselves, they are waited for.
_left: list[_Process] = []
MOST_LEFT = 32  # from then on none is begun: each stranger could have one more of them


def end_all() -> int:
    """A stop: end the process groups of all that still run. Returns how many."""
    with _lock:
        groups = list(_running)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    return len(groups)


def run(job: Job) -> Outcome:
    """Runs it with the record on its standard input; ends its whole process group when its time is up."""
    arguments = job.values.arguments(job.rule.action.command)
    environment = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/", "TZ": os.environ.get("TZ", "")}
    environment = {name: value for name, value in environment.items() if value} | job.values.environment()
    with _lock:
        _left[:] = [each for each in _left if not each.ended()]
        if len(_left) >= MOST_LEFT:
            return Outcome(False, f"{MOST_LEFT} commands that could not be ended still run; not one more is begun")
    try:
        process = _start(arguments, environment)
    except OSError as problem:
        return Outcome(False, f"{arguments[0]}: {problem.strerror}")
    with _lock:
        _running.add(process.pid)
    try:
        output, in_time = _attend(process, job.text.encode("ascii"), time.monotonic() + job.timeout)
    finally:
        with _lock:
            _running.discard(process.pid)
            if process.code is None:
                _left.append(process)
            _left[:] = [each for each in _left if not each.ended()]
        process.close()
    shown = f": {quote(output)}" if output else ""
    if not in_time:
        how = "ended" if process.code is not None else "could not be ended, and goes on,"
        return Outcome(False, f"{how} after {job.timeout:g} s{shown}")
    code = process.code or 0
    words = f"exit code {code}" if code >= 0 else f"ended by signal {-code}"
    return Outcome(code == 0, f"{words}{shown}")


def _start(arguments: list[str], environment: dict[str, str]) -> _Process:
    """posix_spawn(3) and not subprocess: the sensor's threads block the signals that its main thread waits for, and a
    command must not inherit that."""
    program = shutil.which(arguments[0], path=PATH)
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    theirs_in, ours_in = os.pipe()
    try:
        ours_out, theirs_out = os.pipe()
    except OSError:  # no descriptor left: the first pair is not kept
        os.close(theirs_in)
        os.close(ours_in)
        raise
    try:
        pid = os.posix_spawn(
            program,
            arguments,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs_in, 0),
                (os.POSIX_SPAWN_DUP2, theirs_out, 1),
                (os.POSIX_SPAWN_DUP2, theirs_out, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE],
        )
    except BaseException:
        os.close(ours_in)
        os.close(ours_out)
        raise
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    os.set_blocking(ours_in, False)
    os.set_blocking(ours_out, False)
    return _Process(pid, ours_in, ours_out)


def _attend(process: _Process, text: bytes, until: float) -> tuple[bytes, bool]:
    """Feeds and reads it until it has ended; (its output's beginning, did it end in time?)."""
    kept = bytearray()
    waiting = memoryview(text)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while not process.ended() and time.monotonic() < until:
            # What it leaves running in the background may hold the pipe for ever: its own end is what counts.
            for key, _ in selector.select(_LOOK_SECONDS):
                if key.fd == process.stdin:
                    waiting = _feed(process, waiting, selector)
                else:
                    _read(process, kept, selector)
        in_time = process.ended()
        if not in_time:
            process.end()
        if process.stdout in selector.get_map():
            _read(process, kept, selector)
    return bytes(kept), in_time


def _feed(process: _Process, waiting: memoryview, selector: selectors.BaseSelector) -> memoryview:
    try:
        waiting = waiting[os.write(process.stdin, waiting[:_PIECE]) :]
    except BlockingIOError:
        return waiting
    except OSError:  # it does not want to read all of it
        waiting = waiting[len(waiting) :]
    if not waiting:
        selector.unregister(process.stdin)
        os.close(process.stdin)
        process.stdin = -1
    return waiting


def _read(process: _Process, kept: bytearray, selector: selectors.BaseSelector) -> None:
    try:
        data = os.read(process.stdout, _PIECE)
    except BlockingIOError:
        return
    kept += data[: MOST_OUTPUT - len(kept)]
    if not data:
        selector.unregister(process.stdout)
