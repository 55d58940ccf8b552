"""The writer: one thread that makes lines of sessions and puts them into the data file and the log.

It owns file rotation and RLIMIT_NOFILE. Its promises:
  - it cannot die: whatever a record holds, and whatever the disk says, is counted and the next one is taken;
  - a session leaves the memory that the books count only when its line is in the file, or is given up and counted;
  - a disk that takes nothing is tried again each RETRY_SECONDS; until then sessions wait, within `limits.memory`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tcppc.capture.books import Books
from tcppc.capture.captures import Captures
from tcppc.capture.files import DataFile
from tcppc.capture.intake import ESTABLISHED, SECURED, Event, Intake, Item, Line
from tcppc.capture.ledger import Ledger
from tcppc.capture.limits import raise_nofile
from tcppc.log import Log, quote
from tcppc.records import Encoder, Session, Step
from tcppc.sightings import Sighting

# A batch is at most this many sessions or bytes of payload, so that memory for its text stays small.
BATCH_SESSIONS = 2000
BATCH_BYTES = 4 << 20
# How long a batch gathers. A long batch holds the interpreter lock while connections wait for it: 64-byte sessions
# cost 37 µs each with 0.003, 41 with 0.01, 43 with 0.03 (medians of 7, one after the other).
GATHER_SECONDS = 0.003
RETRY_SECONDS = 1.0
# The longest sleep, so that a clock that jumped is noticed.
LONGEST_SLEEP = 1.0


@dataclass(slots=True)
class _Batch:
    """Lines that are ready, and what they are of: one line each, in the same order."""

    lines: bytes
    items: list[Line]


class Writer:
    """Owns the data file (None: sessions are logged only). `stop()` ends it after the last session is written."""

    def __init__(
        self,
        intake: Intake,
        books: Books,
        log: Log,
        encoder: Encoder,
        file: DataFile | None,
        descriptors: int = 0,
        ledger: Ledger | None = None,
    ) -> None:
        self.descriptors = raise_nofile(descriptors)
        self.gave_up = 0  # sessions that the end came for before the disk took them
        self.turned = time.monotonic()  # when the last round began; it begins one each LONGEST_SLEEP at least
        self._intake = intake
        self._books = books
        self._log = log
        self._encoder = encoder
        self._file = file
        self._ledger = ledger
        self.captures: Captures | None = None
        self.metered = False  # does anybody want what the metrics tell of each session?
        self._waiting: list[Line] = []
        self._batch: _Batch | None = None
        self._failing = 0.0  # since when the disk takes nothing (monotonic seconds); 0: it does
        self._retry = 0.0
        self._deadline = float("inf")
        self._stopping = False
        self._changes: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        """Open the data file (OSError where that cannot be) and begin."""
        if self._ledger:
            self._ledger.begin()
        try:
            if self._file:
                self._file.turn()
        except OSError:
            if self._ledger:
                self._ledger.end()  # nothing was taken, and nothing is lost
            raise
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Write what there is, sync, and end, all within `timeout` seconds; True where nothing was given up."""
        self._deadline = time.monotonic() + timeout
        self._stopping = True
        self._intake.wake()
        self._thread.join(timeout + 5)
        return not self._thread.is_alive() and not self.gave_up

    def change(self, action: Callable[[], None]) -> None:
        """Have `action` done in the writer's thread between two batches."""
        self._changes.append(action)
        self._intake.wake()

    def set_encoder(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def reopen(self) -> None:
        """Close the data file; the next batch opens what its name is by then."""
        if self._file:
            self._file.reopen()

    def _run(self) -> None:
        while True:
            try:
                if self._round():
                    return
            except Exception as problem:  # the writer cannot die; a round that fails is a bug to be told
                self._books.error("writer_errors")
                self._log(f"Writer: {type(problem).__name__}: {problem}; going on.")
                time.sleep(GATHER_SECONDS)

    def _round(self) -> bool:
        """One turn of the wheel; True when all is done."""
        self.turned = time.monotonic()
        stopping = self._stopping
        if not self._intake and not self._work_ready():
            if stopping and not self._batch and not self._waiting:
                self._finish()
                return True
            self._intake.wait(self._sleep())
        if self._intake and not stopping:
            time.sleep(GATHER_SECONDS)
        while self._changes:
            self._changes.pop(0)()
        self._sort(self._intake.take(BATCH_SESSIONS))
        if time.monotonic() >= self._retry:
            self._write()
        if self._stopping and (self._batch or self._waiting) and time.monotonic() > self._deadline:
            self._give_up()
        return False

    def _work_ready(self) -> bool:
        return not self._failing and bool(self._batch or self._waiting)

    def _sleep(self) -> float:
        """Seconds until the disk is tried again or the file changes."""
        sleep = LONGEST_SLEEP
        if self._failing:
            sleep = min(sleep, self._retry - time.monotonic())
        elif self._file:
            now = time.time()
            boundary = self._file.naming.next_boundary(now)
            sleep = min(sleep, boundary - now) if boundary else sleep
        return max(0.001, sleep)

    def _sort(self, items: list[Item]) -> None:
        """Log lines for what is said, sessions to those that wait."""
        talk: list[str] = []
        say = talk.append if self._intake.talkative else None
        prefix = self._log.prefix() if items and say else ""
        for item in items:
            if isinstance(item, Session):
                if say and not item.closed and item.payloads:
                    data = item.payloads[0][1]
                    say(f"{prefix}UDP: Received: {self._name(item)}: {quote(data)} ({len(data)} bytes)\n")
                self._waiting.append(item)
            elif not isinstance(item, Event):
                self._waiting.append(item)
            elif say:
                say(f"{prefix}{self._event_line(item)}\n")
        if talk:
            self._log.write_text(talk)

    def _name(self, session: Session, count: int = -1, proto: str = "") -> str:
        """A session as tcppc-go names it in its log, with `count` payloads (-1: as many as it has)."""
        src, dst = session.src, session.dst
        if ":" in src:
            src, dst = f"[{src}]", f"[{dst}]"
        return (
            f"Session: {self._log.zone.seconds(session.start)}: Flow: {proto or session.proto} {src}:{session.sport}"
            f" <-> {dst}:{session.dport} ({len(session.payloads) if count < 0 else count} payloads)"
        )

    def _event_line(self, event: Event) -> str:
        session, proto, number, data, open_sessions = event
        if number == ESTABLISHED:
            return f"{proto.upper()}: Established: {self._name(session, 0, proto)} (#Sessions: {open_sessions})"
        if number == SECURED:
            tls = session.tls
            return f"TLS: Handshake: {self._name(session, 0)}: {tls and tls.version} {tls and tls.cipher}"
        return f"{proto.upper()}: Received: {self._name(session, number, proto)}: {quote(data)} ({len(data)} bytes)"

    def _write(self) -> None:
        """Put what waits into the file, as far as it takes it."""
        try:
            if self._file:
                self._file.turn()
                self._file.mark()
            while self._batch or self._waiting:
                self._batch = self._batch or self._encode()
                self._put(self._batch)
                self._batch = None
        except OSError as problem:
            self._hold(problem)
            return
        if self._failing:
            self._log(f"Writing session data again after {time.monotonic() - self._failing:.0f} s.")
            self._failing = self._retry = 0.0
            self._books.scarce = "memory"

    def _put(self, batch: _Batch) -> None:
        while batch.lines:
            written = self._file.write(batch.lines) if self._file else len(batch.lines)
            count = len(batch.items) if written == len(batch.lines) else batch.lines.count(b"\n", 0, written)
            self._settle(batch.items[:count], written)
            batch.lines = batch.lines[written:]
            del batch.items[:count]

    def _encode(self) -> _Batch:
        """As much of what waits as makes a batch; what cannot be encoded is counted and told, not kept."""
        items: list[Line] = []
        lines: list[str] = []
        charge = taken = 0
        line, step, sighting = self._encoder.line, self._encoder.step, self._encoder.sighting
        for item in self._waiting:
            taken += 1
            try:
                if isinstance(item, Session):
                    lines.append(line(item))
                    charge += item.charge
                elif isinstance(item, Step):
                    lines.append(step(item))
                    charge += len(item.data)
                else:
                    lines.append(sighting(item))
                    charge += item.charge
            except Exception as problem:  # a bug of ours; every other session goes on
                self._lose(item, problem)
                continue
            items.append(item)
            if charge >= BATCH_BYTES:
                break
        del self._waiting[:taken]
        lines.append("")
        return _Batch("\n".join(lines).encode("ascii"), items)

    def _lose(self, item: Line, problem: Exception) -> None:
        what = f"Failed to encode data as json: {type(problem).__name__}: {problem}"
        if isinstance(item, Sighting):
            self._books.error("sightings_not_recorded")
            self._books.give_sightings(item.charge)
            self._log(what)
            return
        session = item if isinstance(item, Session) else item.session
        if item is session:
            self._books.drop("error")
            self._books.give(session.charge)
        self._log(f"{what}: {self._name(session)}")

    def _settle(self, items: list[Line], written: int) -> None:
        """These are in the file (or there is none): count them, say it, and give their memory back."""
        sessions = [item for item in items if isinstance(item, Session)]
        count = len(sessions)
        bytes_in = sum([session.bytes for session in sessions])
        charge = sum([session.charge for session in sessions])
        if sightings := sum([item.charge for item in items if isinstance(item, Sighting)]):
            self._books.give_sightings(sightings)
        if self._file:
            self._file.sessions += count
            self._file.holds([item.start if isinstance(item, Session) else item.instant for item in items])
            self._books.settle(count, bytes_in, charge, len(items), written)
        else:
            self._books.settle(count, bytes_in, charge, 0, 0)
        if self.metered:
            self._books.tally(sessions)
        if self.captures:
            self.captures.add(sessions)
        if not self._intake.talkative:
            return
        prefix = self._log.prefix()
        talk: list[str] = []
        for session in sessions:
            name = self._name(session)
            if self._file:
                talk.append(f"{prefix}Wrote data: {name}\n")
            if session.closed == "peer":
                talk.append(f"{prefix}Closed: {name} (#Sessions: {self._books.open})\n")
            elif session.closed:
                talk.append(f"{prefix}Aborted: {name} {session.closed} (#Sessions: {self._books.open})\n")
        self._log.write_text(talk)

    def _hold(self, problem: OSError) -> None:
        """The disk takes nothing: say it once, try again later."""
        now = time.monotonic()
        self._retry = now + RETRY_SECONDS
        if not self._failing:
            self._failing = now
            path = problem.filename or (self._file.path if self._file else "")
            self._log(
                f"Failed to write session data: {path}: {os.strerror(problem.errno or 0)}; "
                "holding it until it can be written."
            )
            self._books.error("disk_failures")
            self._books.scarce = "disk"

    def _give_up(self) -> None:
        """The end came before the disk: count what is lost."""
        items = self._waiting + (self._batch.items if self._batch else [])
        given_up = [item for item in items if isinstance(item, Session)]
        lost = len(given_up)
        self._books.drop("disk", lost)
        if seen := sum(isinstance(item, Sighting) for item in items):
            self._books.error("sightings_not_recorded", seen)
        self._books.give(sum([session.charge for session in given_up]))
        self._books.give_sightings(sum([item.charge for item in items if isinstance(item, Sighting)]))
        self._log(f"Failed to write session data before the end: {lost} sessions are lost.")
        self._waiting, self._batch, self.gave_up = [], None, lost

    def _finish(self) -> None:
        if self._file:
            self._file.close()
        if self._ledger:
            self._ledger.end()
