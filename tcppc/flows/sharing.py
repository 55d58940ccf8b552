"""Connections shared by two processes: each reads all of the captures, and keeps its own ones alone.

A process of Python has one processor at a time; what a stream costs is its interpreter's and the kernel's time for the
most part. Nothing goes between the two until both are at the end.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import signal
from dataclasses import dataclass
from typing import Any

from tcppc.flows.flow import Key

SHARES = 2
_PDEATHSIG = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_libc = ctypes.CDLL(None)
_FIBONACCI = 40503  # 2**16 divided by the golden ratio: spreads what differs in a few bits


def of_use() -> bool:
    """Is there a second processor?"""
    return len(os.sched_getaffinity(0)) > 1


@dataclass(frozen=True)
class Share:
    """The one with that number, below SHARES. Both directions of a connection are of the same share."""

    number: int

    def has(self, key: Key) -> bool:
        """The same of one connection as `mask` of many."""
        src, sport, dst, dport, *_ = key
        mixed = (int.from_bytes(src[-4:], "big") ^ int.from_bytes(dst[-4:], "big")) + (sport ^ dport)
        return (mixed * _FIBONACCI >> 15) % SHARES == self.number

    def mask(self, src: Any, sport: Any, dst: Any, dport: Any) -> Any:
        """Of columns of int64: which of them are its own."""
        mixed = (src ^ dst) + (sport ^ dport)
        return (mixed * _FIBONACCI >> 15) % SHARES == self.number


class Other:
    """The second process, a copy of this one. In it, `is_it` is true, and `tell` ends it."""

    def __init__(self) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        first = os.getpid()
        self._pid = os.fork()
        self.is_it = self._pid == 0
        if self.is_it:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the first one hears it, and says so
            _libc.prctl(_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != first:
                os._exit(1)
        self._end = writing if self.is_it else reading
        os.close(reading if self.is_it else writing)

    def tell(self, found: Any) -> None:
        """Does not return."""
        with os.fdopen(self._end, "wb") as answer:
            answer.write(pickle.dumps(found))
        os._exit(0)

    def stop(self) -> None:
        """It shall, as by SIGTERM; what it has is written."""
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)

    def give_up(self) -> None:
        """The first one could not begin."""
        if self.is_it:
            os._exit(1)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def result(self) -> Any:
        """What it told; waits for it. OSError where it came to no end."""
        with os.fdopen(self._end, "rb") as answer:
            told = answer.read()
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if status or not told:
            raise OSError(
                errno.EIO, f"the second process ended early (status {status}); half of the streams are lost", ""
            )
        return pickle.loads(told)  # our own process's
