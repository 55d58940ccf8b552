"""Connections shared by two processes: each reads all of the captures, and keeps its own ones alone.

A process of Python has one processor at a time; what a stream costs is its interpreter's and the kernel's time for the
most part. What goes between the two are the captures' windows (turns.py), and at the end what both have done.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tcppc.flows.flow import Key
from tcppc.problems import Failure

if TYPE_CHECKING:  # it needs numpy
    from tcppc.flows.turns import Turns

SHARES = 2
_PDEATHSIG = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_libc = ctypes.CDLL(None)
_FIBONACCI = 40503  # 2**16 divided by the golden ratio: spreads what differs in a few bits
_ENDED = "the second process ended early; half of the streams are lost"
_MOST_SAID = 1 << 12  # bytes


def of_use() -> bool:
    """Is there a second processor?"""
    return len(os.sched_getaffinity(0)) > 1


@dataclass(frozen=True)
class Share:
    """The one with that number, below SHARES. Both directions of a connection are of the same share. With `turns`,
    captures are read together with the other one."""

    number: int
    turns: Turns | None = None

    def has(self, key: Key) -> bool:
        """The same of one connection as `mask` of many."""
        src, sport, dst, dport, *_ = key
        mixed = (int.from_bytes(src[-4:], "big") ^ int.from_bytes(dst[-4:], "big")) + (sport ^ dport)
        return (mixed * _FIBONACCI >> 15) % SHARES == self.number

    def mask(self, src: Any, sport: Any, dst: Any, dport: Any) -> Any:
        """Of columns of int64: which of them are its own."""
        mixed = ((src ^ dst) & 0xFFFFFFFF) + (sport ^ dport)
        return (mixed * _FIBONACCI >> 15) % SHARES == self.number


class Ended(Failure):
    """The other process is there no longer."""


class Line:
    """What two processes say to each other, in order: small things, one at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def say(self, what: object) -> None:
        try:
            self._end.send(pickle.dumps(what))
        except OSError as problem:
            raise Ended(_ENDED) from problem

    def hear(self) -> Any:
        """Waits for it."""
        try:
            said = self._end.recv(_MOST_SAID)
        except OSError as problem:
            raise Ended(_ENDED) from problem
        if not said:
            raise Ended(_ENDED)
        return pickle.loads(said)  # our own process's

    def hang_up(self) -> None:
        self._end.close()


class Other:
    """The second process, a copy of this one. In it, `is_it` is true, and `tell` ends it. Both see `memory`, of `size`
    bytes. OSError from the constructor where there can be none."""

    def __init__(self, size: int = mmap.PAGESIZE) -> None:
        self.memory = mmap.mmap(-1, size)
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        first = os.getpid()
        try:
            self._pid = os.fork()
        except OSError:
            for descriptor in (reading, writing):
                os.close(descriptor)
            for end in ends:
                end.close()
            raise
        self.is_it = self._pid == 0
        if self.is_it:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the first one hears it, and says so
            _libc.prctl(_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != first:
                os._exit(1)
        self._end = writing if self.is_it else reading
        os.close(reading if self.is_it else writing)
        ends[not self.is_it].close()
        self.line = Line(ends[self.is_it])

    def tell(self, found: Any) -> None:
        """Does not return."""
        self.line.hang_up()
        with os.fdopen(self._end, "wb") as answer:
            answer.write(pickle.dumps(found))
        os._exit(0)

    def stop(self) -> None:
        """It shall, as by SIGTERM; what it has is written."""
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)

    @property
    def given_up(self) -> bool:
        return not self._pid and not self.is_it

    def give_up(self) -> None:
        """The first one cannot go on."""
        if self.is_it:
            os._exit(1)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def result(self) -> Any:
        """What it told; waits for it, and says no more. Ended where it came to no end."""
        self.line.hang_up()
        with os.fdopen(self._end, "rb") as answer:
            told = answer.read()
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if status or not told:
            raise Ended(f"{_ENDED} (status {status})")
        return pickle.loads(told)  # our own process's
