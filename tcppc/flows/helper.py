"""A part of the work, done by another process meanwhile: it sees all that is here as it is at its start.

Writing small files is the kernel's time for the most part; a thread would wait for the interpreter's lock at each call.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def of_use() -> bool:
    """Is there a second processor for it?"""
    return len(os.sched_getaffinity(0)) > 1


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Who wants to stop is heard behind it: the work is bounded, and a half of it would be lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Helper:
    """One at a time: `start` it, and later take its `result`."""

    def __init__(self) -> None:
        self._pid = 0
        self._answer = -1

    def start(self, work: Callable[[], Any]) -> None:
        """`work` is done by a copy of this process; what it returns is carried over, and OSError too."""
        with _undisturbed():
            reading, writing = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
            if not pid:
                _be_the_helper(work, writing)
            os.close(writing)
            self._pid, self._answer = pid, reading

    def result(self) -> Any:
        """Waits for it. OSError: the work's own, or that it did not come to its end."""
        with _undisturbed():
            with os.fdopen(self._answer, "rb") as answer:
                told = answer.read()
            self._answer = -1
            _, status = os.waitpid(self._pid, 0)
        if status:
            raise OSError(errno.EIO, f"the process that helps to write ended early (status {status})", "output files")
        found = pickle.loads(told)  # our own process's
        if isinstance(found, OSError):
            raise found
        return found


def _be_the_helper(work: Callable[[], Any], writing: int) -> None:
    """Does not return. Signals stay blocked: the work is bounded, and what was begun is done."""
    code = 1
    try:
        try:
            found = work()
        except OSError as problem:
            found = problem
        with os.fdopen(writing, "wb") as answer:
            answer.write(pickle.dumps(found))
        code = 0
    finally:
        os._exit(code)
