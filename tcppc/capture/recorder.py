"""What is kept of a session, and within which bounds: one place for TCP, TLS, personas and nc.

A session's bytes and payloads are bounded by `limits.session_bytes` and `session_payloads`. Memory is the books'; a
session that holds much of it, or whose source does, is stowed in the spill file, so that memory cuts nobody's bytes
while there is room on the disk. What is over a bound is counted, and the record says `truncated`.
"""

from __future__ import annotations

import time
from time import time_ns

from tcppc.capture.books import PAYLOAD_CHARGE, STEP_CHARGE, Books
from tcppc.capture.intake import Intake
from tcppc.capture.shares import SMALL
from tcppc.capture.spill import Entry, Spill
from tcppc.records import Session, Step
from tcppc.spoken import REPLY_CHARGE, Spoken

# How long a session waits for memory before its event line is given up: the client is not read from meanwhile.
ROOM_SECONDS = 5.0
ROOM_PAUSE_SECONDS = 0.05


class Recorder:
    """Keeps one session's bytes; belongs to the session's thread. `most_bytes` and `most_payloads` are its bounds."""

    __slots__ = (
        "_books", "_charge", "_intake", "_most_payloads", "_room", "_spill", "most_bytes", "number", "pinned",
        "session", "steps",
    )  # fmt: skip

    def __init__(
        self,
        session: Session,
        books: Books,
        intake: Intake,
        spill: Spill | None,
        most_bytes: int,
        most_payloads: int,
    ) -> None:
        self.session = session
        self.steps = intake.steps  # are there event lines?
        self.number = 0  # payload lines so far, where there are
        self.pinned = False  # must all payloads stay in memory for now?
        self.most_bytes = most_bytes
        self._room = most_bytes
        self._most_payloads = most_payloads
        self._books = books
        self._intake = intake
        self._spill = spill
        self._charge = PAYLOAD_CHARGE

    @property
    def kept(self) -> int:
        """How many bytes are kept."""
        return self.most_bytes - self._room

    def keep(self, data: bytes, now: int) -> None:
        """Bytes of the session's payload came, at least one, at the instant `now`."""
        session = self.session
        size = len(data)
        session.bytes += size
        if session.truncated:
            return
        if size > self._room:
            self.truncate("session_bytes")
            data = data[: self._room]
            size = len(data)
            if not data:
                return
        elif session.count >= self._most_payloads:
            self.truncate("session_payloads")
            return
        charge = size + self._charge
        small = session.charge + charge <= SMALL
        if not small and not self.pinned and session.charge + charge > self._books.ceiling(session.source):
            self.stow()
        step = self._room_for_step(size) if self.steps else 0
        if step is None or not self._hold(data, now, charge, small):
            if step:
                self._books.give(step, session.source)
            self.truncate(self._books.why_full(session.source, charge))
            return
        self._room -= size
        if step:
            self._intake.put(Step(session, "payload", self.number, now, data, charge=step))
            self.number += 1

    def _hold(self, data: bytes, now: int, charge: int, small: bool) -> bool:
        session = self.session
        if self._books.take(charge, session.source, small):
            session.charge += charge
            session.payloads.append((now, data))
            return True
        return self._stow_payloads([*((when, piece, 0) for when, piece in session.payloads), (now, data, 0)])

    def count(self, size: int) -> None:
        """`size` bytes came that are not kept."""
        self.session.bytes += size

    def _room_for_step(self, size: int) -> int | None:
        """Bytes that are charged for the event line of `size` bytes, which waits for the writer by itself; None where
        there is no room even after a while."""
        charge = size + STEP_CHARGE
        until = time.monotonic() + ROOM_SECONDS
        while not self._books.take(charge, self.session.source):
            if time.monotonic() > until:
                return None
            time.sleep(ROOM_PAUSE_SECONDS)  # who is not read from sends no more: the writer catches up
        return charge

    def stow(self) -> bool:
        """Put what the session has said and was told out of memory; False where nothing of it was."""
        session = self.session
        said = bool(session.payloads) and self._stow_payloads([(when, data, 0) for when, data in session.payloads])
        told = session.spoken is not None and self._stow_replies(session.spoken)
        return said or told

    def _stow_payloads(self, entries: list[Entry]) -> bool:
        session = self.session
        if self._spill is None or self.pinned:
            return False
        piece = self._spill.put(entries, session.stowed, session.source)  # type: ignore[arg-type]
        if piece is None:
            return False
        freed = sum([len(data) + self._charge for _, data in session.payloads])
        session.stowed = piece
        session.payloads.clear()
        self._give(freed)
        return True

    def _stow_replies(self, spoken: Spoken, *more: Entry) -> bool:
        if self._spill is None:
            return False
        replies = spoken.replies[:]
        piece = self._spill.put([*replies, *more], spoken.stowed, self.session.source) if replies or more else None
        if piece is None:
            return False
        spoken.stowed = piece
        del spoken.replies[: len(replies)]  # another session of the same client may have had something said meanwhile
        self._give(sum([len(data) + REPLY_CHARGE for _, data, _ in replies]))
        return True

    def _give(self, size: int) -> None:
        self.session.charge -= size
        self._books.give(size, self.session.source)

    def reply(self, data: bytes) -> bool:
        """Something is about to be said to the client; False where there is no room for it, and it must not be said."""
        session, spoken = self.session, self.session.spoken
        if spoken is None:
            return False
        charge = len(data) + REPLY_CHARGE
        after = session.count - 1
        now = time_ns()
        if session.charge + charge > SMALL and session.charge + charge > self._books.ceiling(session.source):
            self.stow()
        step = self._room_for_step(len(data)) if self.steps else 0
        if step is None:
            return False
        number = spoken.count
        if self._books.take(charge, session.source, session.charge + charge <= SMALL):
            session.charge += charge
            spoken.replies.append((now, data, after))
        elif not self._stow_replies(spoken, (now, data, after)):
            if step:
                self._books.give(step, session.source)
            return False
        if step:
            self._intake.put(Step(session, "reply", number, now, data, self.number - 1, step))
        return True

    def remember(self, size: int) -> bool:
        """May the session's persona remember `size` bytes more? They stay in memory until the session is over."""
        session = self.session
        if session.charge + size > self._books.ceiling(session.source):
            self.stow()
        if not self._books.take(size, session.source, session.charge + size <= SMALL):
            return False
        session.charge += size
        return True

    def truncate(self, bound: str) -> None:
        if not self.session.truncated:
            self.session.truncated = True
            self._books.cut(bound)

    def forget_since(self, payloads: int, received: int, kept: int) -> None:
        """Of the payloads in memory, those from `payloads` on were a TLS handshake, of which `kept` bytes stay
        elsewhere in the record: the session has `received` bytes then."""
        session = self.session
        freed = sum([len(data) + self._charge for _, data in session.payloads[payloads:]]) - kept
        del session.payloads[payloads:]
        self._give(freed)
        session.truncated = False
        session.bytes = received
        self._room = self.most_bytes - received
