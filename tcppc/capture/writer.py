"""The writer: one thread that makes lines of sessions and puts them into the data file and the log.

It owns file rotation and RLIMIT_NOFILE. Its promises:
  - it cannot die: whatever a record holds, and whatever the disk says, is counted and the next one is taken;
  - a session leaves the memory that the books count only when its line is in the file, or is given up and counted;
  - a disk that takes nothing is tried again each RETRY_SECONDS; until then sessions wait, within `limits.memory`;
  - a write that never returns is seen from outside (`stuck`), and at the stop what waits behind it is counted as lost.
`_lock` is held by the thread while it works, and not while it waits or is within a call to the data file: who holds it
may take away what waits (`stop`).
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tcppc.capture import shorten
from tcppc.capture.batch import BATCH_SESSIONS, MEMORY_TRIES, Batch, Batches, parted, surely
from tcppc.capture.books import Books
from tcppc.capture.files import DataFile
from tcppc.capture.intake import Event, Intake, Line
from tcppc.capture.limits import raise_nofile
from tcppc.capture.spill import SpillError
from tcppc.capture.talk import Talk
from tcppc.log import Log, Seldom
from tcppc.records import Encoder, Session, Step
from tcppc.sightings import Sighting

# How long a batch gathers. A long batch holds the interpreter lock while connections wait for it: 64-byte sessions
# cost 37 µs each with 0.003, 41 with 0.01, 43 with 0.03 (medians of 7, one after the other).
GATHER_SECONDS = 0.003
RETRY_SECONDS = 1.0
# The longest sleep, so that a clock that jumped is noticed.
LONGEST_SLEEP = 1.0
Sink = Callable[[Sequence[Session]], int | None]  # returns how many, from the first on, it frees itself


class _Ended(BaseException):
    """The stop has taken what waited away from a thread that was stuck: it must touch nothing more."""


class Writer:
    """Owns the data file (None: sessions are logged only). `stop()` ends it after the last session is written. `sinks`
    are told, each by its name, of sessions that are recorded."""

    def __init__(
        self,
        intake: Intake,
        books: Books,
        log: Log,
        encoder: Encoder,
        file: DataFile | None,
        descriptors: int = 0,
        sinks: Sequence[tuple[str, Sink]] = (),
    ) -> None:
        self.descriptors = raise_nofile(descriptors)
        self.turned = time.monotonic()  # when it last got on; it does so each LONGEST_SLEEP at least
        self._intake = intake
        self._books = books
        self._log = log
        self._talk = Talk(log)
        self._batches = Batches(books, log, self._talk, encoder)
        self._file = file
        self._sinks = list(sinks)
        self._seldom = Seldom()
        self._starved = 0  # tries of a large session without memory, one after the other
        self._failing = 0.0  # since when the disk takes nothing (monotonic seconds); 0: it does
        self._retry = 0.0
        self._deadline = float("inf")
        self._stopping = False
        self._lost = 0
        self._lock = threading.Lock()
        self._within = 0.0  # since when the thread is within a call that may hang (monotonic seconds); 0: it is not
        self._where = ""  # what that call is about
        self._ended = False
        self._changes: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        """Open the data file (OSError where that cannot be) and begin."""
        if self._file:
            self._file.turn()
        self._thread.start()

    def alive(self) -> bool:
        """Does its thread run? One that has died is started again, with all that waits."""
        if not self._thread.is_alive() and not self._ended:
            self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # tried again at the next look
                return False
            self._books.error("thread_restarts")
            self._log("The writer's thread had ended; it runs again.")
        return True

    def stuck(self) -> tuple[float, str]:
        """(seconds since the thread entered a call that has not returned, what it is about); (0, "") where in none."""
        within = self._within
        return (time.monotonic() - within, self._where) if within else (0.0, "")

    def waiting(self) -> int:
        """About how many lines wait to be written."""
        return len(self._batches) + len(self._intake)

    def stop(self, timeout: float) -> bool:
        """Write what there is, sync, and end, all within `timeout` seconds; True where nothing was given up."""
        self._deadline = time.monotonic() + timeout
        self._stopping = True
        self._intake.wake()
        self._thread.join(timeout + 1.0)
        if self._thread.is_alive() or not self._ended:
            self._abandon()
        return not self._lost

    def _abandon(self) -> None:
        """The thread is held up, or dead: take what waits away from it and count it."""
        seconds, where = self.stuck()
        taken = self._lock.acquire(timeout=1.0)
        self._ended = True
        try:
            self._batches.add(item for item in self._intake.take(len(self._intake)) if not isinstance(item, Event))
            why = f"writing to {where} has not returned for {seconds:.0f} s" if where else "the writer did not end"
            self._give_up("stuck", why)
        finally:
            if taken:
                self._lock.release()

    def change(self, action: Callable[[], None]) -> None:
        """Have `action` done in the writer's thread between two batches."""
        self._changes.append(action)
        self._intake.wake()

    def adopt(self, encoder: Encoder, sinks: Sequence[tuple[str, Sink]]) -> None:
        """From the next batch on, lines are made so, and these are told. In the writer's thread."""
        self._batches.set_encoder(encoder)
        self._sinks = list(sinks)

    def reopen(self) -> None:
        """Close the data file; the next batch opens what its name is by then."""
        if self._file:
            self._file.reopen()

    def _run(self) -> None:
        while True:
            try:
                with self._lock:
                    if self._ended or self._round():
                        return
            except _Ended:
                return
            except BaseException as problem:  # the writer cannot die; a round that fails is a bug to be told
                self._failed(problem)

    def _failed(self, problem: BaseException) -> None:
        try:
            self._books.error("memory_errors" if isinstance(problem, MemoryError) else "writer_errors")
            if self._seldom.due(type(problem).__name__):
                self._log(f"Writer: {type(problem).__name__}: {problem}; going on.")
        except MemoryError:  # so the next round will say it
            pass
        time.sleep(GATHER_SECONDS if not isinstance(problem, MemoryError) else 0.1)

    def _round(self) -> bool:
        """One turn of the wheel; True when all is done."""
        self.turned = time.monotonic()
        stopping = self._stopping
        if not self._intake and not self._work_ready():
            if stopping and not self._batches:
                self._finish()
                return True
            self._apart(self._intake.wait, self._sleep())
        if self._intake and not stopping:
            self._apart(time.sleep, GATHER_SECONDS)
        while self._changes:
            self._changes.pop(0)()
        self._sort()
        if time.monotonic() >= self._retry:
            self._write()
        if self._stopping and self._batches and time.monotonic() > self._deadline:
            self._give_up("disk", "the disk did not take it in time")
        return False

    def _apart(self, wait: Callable[[float], None], seconds: float) -> None:
        """Wait without the lock."""
        self._lock.release()
        try:
            wait(seconds)
        finally:
            self._lock.acquire()
        if self._ended:
            raise _Ended

    def _work_ready(self) -> bool:
        return not self._failing and bool(self._batches)

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

    def _sort(self) -> None:
        """Sessions to those that wait; log lines for what is said."""
        taken = self._intake.take(BATCH_SESSIONS)
        try:
            self._batches.add([item for item in taken if not isinstance(item, Event)])
        except MemoryError:
            self._intake.give_back(taken)
            raise
        if taken and self._intake.talkative:
            self._talk.happened([item for item in taken if isinstance(item, (Event, Session))])

    def _write(self) -> None:
        """Put what waits into the file, as far as it takes it."""
        try:
            if self._file:
                self._call(self._file.turn)
                self._file.mark()
            while self._batches:
                self._put(self._batches.current())
                self._batches.written()
                self.turned = time.monotonic()
                if self._stopping and self.turned > self._deadline:
                    return
        except OSError as problem:
            if not self._roll(problem):
                self._hold(problem)
            return
        if self._failing:
            self._log(f"Writing session data again after {time.monotonic() - self._failing:.0f} s.")
            self._failing = self._retry = 0.0
            self._books.scarce = "memory"

    def _call(self, action: Callable[[], int | None], where: str = "") -> int:
        """A call to the data file, or `where`, which may take long, or never return: without the lock, and seen from
        outside."""
        self._where = where or (self._file.path or self._file.naming.pattern if self._file else "")
        self._within = time.monotonic()
        self._lock.release()
        try:
            return action() or 0
        finally:
            self._lock.acquire()
            self._within = 0.0
            if self._ended:
                raise _Ended

    def _put(self, batch: Batch) -> None:
        if batch.items and not batch.lines:
            self._put_large(batch)
        while batch.lines:
            file, lines = self._file, batch.lines
            written = self._call(partial(file.write, lines)) if file else len(lines)
            count = len(batch.items) if written == len(lines) else lines.count(b"\n", 0, written)
            # First they leave the batch: whatever goes wrong behind this writes no line twice.
            settled, batch.lines = surely(partial(parted, batch.items, count, lines, written))
            del batch.items[:count]
            self._settle(settled, written)

    def _put_large(self, batch: Batch) -> None:
        """A session that is not all in memory, piece by piece."""
        session, file = batch.items[0], self._file
        assert isinstance(session, Session)
        try:
            size = self._call(lambda: file.write_pieces(self._moving(session))) if file else 0
        except OSError:
            raise  # not now
        except Exception as problem:
            if not isinstance(problem, MemoryError):
                batch.items.clear()
                self._batches.lose(session, problem, "disk" if isinstance(problem, SpillError) else "error")
                return
            self._starved += 1
            if self._starved <= MEMORY_TRIES:
                raise
            batch.items.clear()
            self._batches.lose(session, problem, "memory")
            self._starved = 0
            return
        self._starved = 0
        batch.items.clear()
        self._settle([session], size)

    def _moving(self, session: Session) -> Iterator[bytes]:
        """Its pieces; each that is asked for shows that the call gets on, however long all of it takes."""
        for piece in self._batches.pieces(session):
            self._within = self.turned = time.monotonic()
            yield piece

    def _settle(self, items: list[Line], written: int) -> None:
        """These are in the file (or there is none): count them, give their memory back, tell who follows."""
        sessions = surely(lambda: [item for item in items if isinstance(item, Session)])
        if len(sessions) < len(items):
            surely(lambda: self._give_back_lines(items))
        if self._file:
            self._file.sessions += len(sessions)
            surely(partial(self._books.settle, sessions, len(items), written))
            self._file.holds([item.start if isinstance(item, Session) else item.instant for item in items])
        else:
            surely(partial(self._books.settle, sessions, 0, 0))
        kept = 0
        for name, sink in self._sinks:
            try:
                kept = self._call(partial(sink, sessions), name) or kept
            except Exception as problem:  # a follower's fault is its own
                count = self._books.error(f"sink_{name}")
                if self._seldom.due(name):
                    self._log(f"Sink {name}: {type(problem).__name__}: {problem} ({count} times so far); going on.")
        if self._intake.talkative:
            self._talk.ended(sessions, self._file is not None, self._books.open)
        for session in sessions[kept:]:
            if session.stowed or session.spoken:
                session.free()

    def _give_back_lines(self, items: list[Line]) -> None:
        """The memory of event lines, and of what the watch saw."""
        sightings = sum([item.charge for item in items if isinstance(item, Sighting)])
        for item in items:
            if isinstance(item, Step):
                self._books.give(item.charge, item.session.source)
        if sightings:
            self._books.give_sightings(sightings)

    def _roll(self, problem: OSError) -> bool:
        """The file has the largest size that this process may write (RLIMIT_FSIZE): the next one follows it, where that
        is of any use. One record alone that is larger is cut."""
        if problem.errno != errno.EFBIG or not self._file or not self._file.path or self._file.stream:
            return False
        if not self._file.size:
            self._batches.shorten(shorten.most())
            return True
        self._file.follow()
        self._log(
            f"The session file has its full size, RLIMIT_FSIZE (ulimit -f): {self._file.path}; the next one follows."
        )
        return True

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

    def _give_up(self, cause: str, why: str) -> None:
        """The end came before the disk: count what is lost."""
        items = self._batches.take_all()
        given_up = [item for item in items if isinstance(item, Session)]
        size = sum([session.bytes for session in given_up])
        self._lost += len(given_up)
        self._books.lose(cause, given_up)
        if seen := sum(isinstance(item, Sighting) for item in items):
            self._books.error("sightings_not_recorded", seen)
        self._give_back_lines(items)
        self._log(
            f"Failed to write session data before the end: {why}: {len(given_up)} sessions with {size} bytes are lost."
        )

    def _finish(self) -> None:
        self._ended = True
        if self._file:
            self._file.close()
