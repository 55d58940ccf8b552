"""Copies of what is recorded (`files.captures`, `files.session_dir`), made by a thread of their own.

A disk that hangs under the copies holds up neither the data file nor the stop: sessions wait here for their copy, and
one that finds no room is not copied, which is counted (`captures_failed`) and told. What waits is charged to nobody; it
is bounded by bytes here, beside `limits.memory`, and by a part of `limits.spill`. A large session stays in the spill
file until it is copied, and is freed by this thread.
The writer's thread puts; `_changed` guards what threads share. Nothing here raises.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tcppc.capture.books import Books
from tcppc.capture.captures import Captures
from tcppc.capture.supervisor import Supervised
from tcppc.log import Seldom
from tcppc.records import Session, Stowed

# What may wait: this part of limits.memory, 32 MiB as it is, and of limits.spill. The next one alone may be larger.
MEMORY_PART = 8
SPILL_PART = 4
# Where half of it is used, the writer waits for copies that get on, so that a flood loses none: no longer than this at
# once, not where a call takes longer than GETTING_ON_SECONDS, and only while less than this
# part of limits.memory is used.
WAIT_SECONDS = 1.0
GETTING_ON_SECONDS = 0.25
WAITING_PART = 4
# A stop waits no longer for a call that does not return.
PATIENCE_SECONDS = 2.0


class _Some(NamedTuple):
    """Sessions that wait, and what they hold in memory and in the spill file."""

    captures: Captures
    sessions: Sequence[Session]
    held: int
    stowed: int


class Copier:
    """Its thread begins with the first session. `say` logs."""

    def __init__(self, books: Books, say: Callable[[str], None]) -> None:
        self.thread = Supervised("copier", self._work, say, books.error)
        self.used = False
        self._books = books
        self._say = say
        self._seldom = Seldom()
        self._changed = threading.Condition()
        self._waiting: deque[_Some] = deque()
        self._in_hand: _Some | None = None
        self._since = 0.0  # since when it is in hand (monotonic seconds)
        self._held = self._stowed = 0  # by what waits or is in hand
        self._hurried = self._ending = False
        self._over = False  # the stop has given up what was left

    def put(self, captures: Captures, sessions: Sequence[Session]) -> int:
        """Have these copied, later. Returns how many of them, from the first on, found room: they are freed here, and
        all others are the caller's still."""
        if not sessions:
            return 0
        self._wait()
        some = self._fitting(captures, sessions)
        count = len(some.sessions)
        if count:
            for session in some.sessions:
                for piece in _pieces(session):
                    piece.disown()
            with self._changed:
                self._waiting.append(some)
                self._held += some.held
                self._stowed += some.stowed
                self._changed.notify_all()
            if not self.used:
                self.used = True
                self.thread.start()
        if count < len(sessions):
            self._failed(len(sessions) - count, "room", "more sessions wait to be copied than there is room for")
        return count

    def _wait(self) -> None:
        """Let the copies come closer, where that costs nobody anything."""
        limits, until = self._books.limits, time.monotonic() + WAIT_SECONDS
        with self._changed:
            while (
                self._held > limits.memory // MEMORY_PART // 2
                and self._books.held < limits.memory // WAITING_PART
                and self.stuck()[0] < GETTING_ON_SECONDS
                and not self._hurried
                and time.monotonic() < until
            ):
                self._changed.wait(0.05)

    def hurry(self) -> None:
        """The stop has begun: the writer waits for no copy any more."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def _fitting(self, captures: Captures, sessions: Sequence[Session]) -> _Some:
        """The first ones, as many as there is room for: one always where none waits."""
        limits = self._books.limits
        with self._changed:
            before, stowed_before = self._held, self._stowed
        count = held = stowed = 0
        for session in sessions:
            charge, size = session.charge, sum(piece.size for piece in _pieces(session))
            if (before or count) and (
                before + held + charge > limits.memory // MEMORY_PART
                or (size and stowed_before + stowed + size > limits.spill // SPILL_PART)
            ):
                break
            count, held, stowed = count + 1, held + charge, stowed + size
        return _Some(captures, sessions[:count], held, stowed)

    def _failed(self, sessions: int, kind: str, why: str) -> None:
        """So many are not copied; told now and then of each kind."""
        seconds, where = self.stuck()
        why = f"writing to captures {where} has not returned for {seconds:.0f} s" if seconds >= 1 else why
        count = self._books.error("captures_failed", sessions)
        if self._seldom.due(kind):
            self._say(
                f"Failed to write captures: {why}: {sessions} sessions are not copied ({count} times so far); "
                "the data file has them."
            )

    def stuck(self) -> tuple[float, str]:
        """(seconds since a call was entered that has not returned, the file it is of); (0, "") where in none."""
        with self._changed:
            if self._in_hand is None:
                return 0.0, ""
            captures = self._in_hand.captures
            return time.monotonic() - max(self._since, captures.since), captures.at

    def waiting(self) -> int:
        """How many sessions wait for their copy, those in hand among them."""
        with self._changed:
            return sum(len(some.sessions) for some in self._all())

    def _all(self) -> list[_Some]:
        return [*([self._in_hand] if self._in_hand else []), *self._waiting]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                if not self._waiting or self._over:
                    return
                some = self._in_hand = self._waiting.popleft()
                self._since = time.monotonic()
            try:
                some.captures.add(some.sessions)
            except Exception as problem:  # a fault of ours
                count = self._books.error("sink_captures")
                if self._seldom.due("sink"):
                    self._say(f"Sink captures: {type(problem).__name__}: {problem} ({count} times so far); going on.")
            finally:
                self._done(some)

    def _done(self, some: _Some) -> None:
        for session in some.sessions:
            if session.stowed or session.spoken:
                session.free()
        with self._changed:
            self._in_hand = None
            self._held -= some.held
            self._stowed -= some.stowed
            self._changed.notify_all()

    def stop(self, timeout: float) -> None:
        """Nothing more comes: copy what waits, within `timeout` seconds, and give up the rest."""
        until = time.monotonic() + timeout
        self.thread.stop()
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        while self.waiting() and self.thread.alive and time.monotonic() < until:
            if self.stuck()[0] >= PATIENCE_SECONDS:
                break
            with self._changed:
                self._changed.wait(0.1)
        if left := self.waiting():
            self._failed(left, "stop", "there was no time for more at the stop")
        with self._changed:
            self._over = True
            self._waiting.clear()


def _pieces(session: Session) -> list[Stowed]:
    """What of it is in the spill file."""
    pieces = (session.stowed, session.spoken.stowed if session.spoken else None)
    return [piece for piece in pieces if piece]
