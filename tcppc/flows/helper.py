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

_TICKET = 2  # bytes; a pipe takes 65,536
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
    """One at a time: `start` it, take what is `left` of the work, and then its `result`."""

    def __init__(self) -> None:
        self._pid = 0
        self._answer = -1
        self._tickets = -1

    def start(self, work: Callable[[int], Any], parts: int) -> None:
        """`work` is done by a copy of this process, for each number below `parts` that is not taken from it by `left`;
        what it returns is carried over, and OSError too."""
        with _undisturbed():
            tickets, issued = os.pipe2(os.O_CLOEXEC)
            # All at once, and no more come: who reads a number has it, and who reads nothing knows that none is left.
            os.write(issued, b"".join(number.to_bytes(_TICKET, "big") for number in range(parts)))
            os.close(issued)
            reading, writing = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
            if not pid:
                _be_the_helper(work, _drawn(tickets), writing)
            os.close(writing)
            self._pid, self._answer, self._tickets = pid, reading, tickets

    def left(self) -> Iterator[int]:
        """Numbers that nobody has begun; each is the caller's to do."""
        return _drawn(self._tickets)

    def result(self) -> dict[int, Any]:
        """Waits for it: what each number's work returned, of those that it did. OSError: the work's own, or that it did
        not come to its end."""
        with _undisturbed():
            os.close(self._tickets)
            with os.fdopen(self._answer, "rb") as answer:
                told = answer.read()
            self._answer = self._tickets = -1
            _, status = os.waitpid(self._pid, 0)
        if status:
            raise OSError(errno.EIO, f"the process that helps to write ended early (status {status})", "output files")
        found = pickle.loads(told)  # our own process's
        if isinstance(found, OSError):
            raise found
        return dict(found)


def _drawn(tickets: int) -> Iterator[int]:
    while ticket := os.read(tickets, _TICKET):
        yield int.from_bytes(ticket, "big")


def _be_the_helper(work: Callable[[int], Any], numbers: Iterator[int], writing: int) -> None:
    """Does not return. Signals stay blocked: the work is bounded, and what was begun is done."""
    code = 1
    try:
        found: Any
        try:
            found = {number: work(number) for number in numbers}
        except OSError as problem:
            found = problem
        with os.fdopen(writing, "wb") as answer:
            answer.write(pickle.dumps(found))
        code = 0
    finally:
        os._exit(code)
