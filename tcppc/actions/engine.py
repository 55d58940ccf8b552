"""From what happens to what is done about it: rules asked, jobs queued within bounds, workers that do them."""

from __future__ import annotations

import contextlib
import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from time import time_ns

from tcppc.actions import command, registry
from tcppc.actions.allow import Allowed
from tcppc.actions.blocks import Blocker
from tcppc.actions.event import Event
from tcppc.actions.job import Job
from tcppc.actions.rule import MATCHED_BYTES, Rule
from tcppc.actions.tokens import Values
from tcppc.capture.books import Books
from tcppc.capture.spill import SpillError
from tcppc.capture.supervisor import Supervised
from tcppc.protocols.packet import SYN, address
from tcppc.records import Encoder, Session, most_characters, new_id
from tcppc.sightings import Probe, Scan, name

TICK_SECONDS = 0.5
LOOK_SECONDS = 60.0
STOP_SECONDS = 5.0
# Of limits.memory, the share that records which wait for their action may hold.
MEMORY_SHARE = 4
# A match may begin so many bytes and pieces before the newest one: a word that comes in two packets is found.
OVERLAP_BYTES, OVERLAP_PIECES = 1024, 66
# Events of one digest; more are counted in it.
MOST_DIGEST = 1000


@dataclass
class _Digest:
    """Events gathered since `began` (monotonic seconds); `texts` are at most MOST_DIGEST of `count` records."""

    event: Event
    began: float
    count: int = 0
    texts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Terms:
    """What the engine goes by; a reload makes new ones."""

    rules: tuple[Rule, ...]
    allowed: Allowed
    encoder: Encoder
    sensor: str
    timeout: float
    stamp: Callable[[int], str]


class Engine:
    """All actions of a sensor. What it is told of it takes in the caller's thread only as far as the queue."""

    def __init__(
        self,
        terms: Terms,
        books: Books,
        say: Callable[[str], None],
        blocker: Blocker | None,
        port: int,
        most: int,
        workers: int,
    ) -> None:
        self.blocker = blocker
        self._books = books
        self._say = say
        self._port = port
        self._jobs: queue.Queue[Job | None] = queue.Queue(most)
        self._digests: dict[Rule, _Digest] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._looked = 0.0
        self._held = 0  # bytes of records that wait
        self._told_allowed = self._told_full = -LOOK_SECONDS
        self._terms = terms
        self.set_terms(terms)
        self._ticking = Supervised("actions", self._tick, say, books.error)
        self._workers = [Supervised(f"action {number}", self._work, say, books.error) for number in range(workers)]

    def set_terms(self, terms: Terms) -> None:
        """From now on these; their `allowed` has looked around already."""
        on: dict[str, list[Rule]] = {}
        for rule in terms.rules:
            for moment in rule.action.on:
                on.setdefault(moment, []).append(rule)
        self._terms, self._on = terms, on
        self.sessions = any(moment in on for moment in ("connect", "payload", "end"))
        if self.blocker:
            self.blocker.set_allowed(terms.allowed)

    def all_threads(self) -> list[Supervised]:
        """Its own, and the blocker's."""
        return [self._ticking, *self._workers, *([self.blocker.thread] if self.blocker else [])]

    def start(self) -> None:
        for thread in (self._ticking, *self._workers):
            thread.start()

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """What is gathered and queued is done, within `timeout` seconds; what is left then is counted."""
        until = time.monotonic() + timeout
        for thread in (self._ticking, *self._workers):
            thread.stop()
        self._end.set()
        self._ticking.join(timeout)
        self._tell_digests(all_of_them=True)
        for _ in self._workers:
            try:
                self._jobs.put(None, timeout=max(0.0, until - time.monotonic()))
            except queue.Full:  # workers that are held up end with the process
                break
        for thread in self._workers:
            thread.join(max(0.0, until - time.monotonic()))
        if ended := command.end_all():
            self._books.acted("dropped_stop", ended)
            self._say(f"Actions: {ended} commands were still running at the stop, and were ended.")
        if left := sum(1 for job in list(self._jobs.queue) if job):
            self._books.acted("dropped_stop", left)
            self._say(f"Actions: {left} were still waiting at the stop, and were not done.")

    # What may be acted upon.

    def identify(self, session: Session) -> None:
        """Give it the id that its record will have, before anything is told of it."""
        if not session.id:
            session.id = new_id(session.start)

    def session(self, on: str, session: Session, data: bytes = b"") -> None:
        """A TCP session was accepted (connect), said something (payload) or is over (end)."""
        if rules := self._on.get(on):
            try:
                before = b""
                if on == "end":
                    data = _beginning(session)
                elif on == "payload" and len(session.payloads) > 1:
                    before = _just_before(session)
                event = self._event_of(on, session, data, before)
            except Exception as problem:  # out of memory: the session goes on
                self._fault("Actions", problem)
                return
            self._ask(rules, event)

    def datagram(self, session: Session) -> None:
        """One datagram is all three at once."""
        data = session.payloads[0][1]
        self.identify(session)
        for on in ("connect", "payload", "end"):
            if rules := self._on.get(on):
                self._ask(rules, self._event_of(on, session, data))

    def _event_of(self, on: str, session: Session, data: bytes, before: bytes = b"") -> Event:
        told = session
        if on == "payload":  # that piece alone: all of them again with each one would be their square
            told = replace(session, payloads=[(time_ns(), data)], stowed=None)
        return Event(
            on, time_ns(), session.proto, session.src, session.sport, session.dst, session.dport, session.id,
            session.proto == "udp", lambda: self._terms.encoder.whole(told), most_characters(told), data, before,
        )  # fmt: skip

    def sighting(self, seen: Probe | Scan) -> None:
        """The watch saw a SYN, or found a scan."""
        rules = self._on.get("syn" if isinstance(seen, Probe) else "scan")
        if not rules or (isinstance(seen, Probe) and not seen.packet.flags & SYN):
            return
        if isinstance(seen, Probe):
            packet = seen.packet
            on, proto, src, sport, dst, dport = (
                "syn", packet.proto, packet.src, packet.sport, packet.dst, packet.dport,
            )  # fmt: skip
        else:
            on, proto, src, sport, dst, dport = (
                "scan", seen.proto, seen.src, seen.sport, seen.hosts[-1], seen.ports[-1][1],
            )  # fmt: skip
        event = Event(
            on, seen.instant, proto, address(src), sport, address(dst), dport, "", True,
            lambda: self._terms.encoder.sighting(seen), ports=() if isinstance(seen, Probe) else seen.ports,
        )  # fmt: skip
        self._ask(rules, event)

    def _ask(self, rules: Iterable[Rule], event: Event) -> None:
        """Nothing that goes wrong here may cost the session."""
        for rule in rules:
            try:
                if rule.wants(event):
                    self._act(rule, event)
            except Exception as problem:
                self._fault(f"Action {rule.name}", problem)

    def _fault(self, what: str, problem: Exception) -> None:
        """Count it, and say so now and then. Raises nothing."""
        try:
            if self._books.acted("failed") % 1000 == 1:
                self._say(f"{what}: {type(problem).__name__}: {problem}; the sensor goes on.")
        except MemoryError:  # not even to say so: the next one may be
            return

    def _act(self, rule: Rule, event: Event) -> None:
        if self._jobs.full() and not rule.action.block and not rule.action.digest:  # a flood: nothing more is asked
            self._drop("dropped_queue", "the queue is full")
            return
        if why := self._terms.allowed.why(event.src):
            self._books.acted("allowed")
            if time.monotonic() - self._told_allowed > LOOK_SECONDS:
                self._told_allowed = time.monotonic()
                self._say(f"Action {rule.name}: {event.src} is left alone: {why}.")
            return
        if not rule.due(event):
            self._books.acted("suppressed")
            return
        if rule.action.dry_run:
            self._books.acted("dry_run")
            for words in would(rule, event, self._values(event, 1)):
                self._say(f"Action {rule.name}: {_who(event)}: dry run: {words}")
            return
        if rule.may_block(event) and self.blocker:
            if words := self.blocker.block(rule, event):
                self._say(f"Action {rule.name}: {_who(event)}: {words}")
        elif rule.action.block:
            self._books.acted("spoofable_not_blocked")
        if registry.wanted(rule):
            if rule.action.digest:
                self._gather(rule, event)
            elif self._jobs.full():  # before a record is made that nobody takes
                self._drop("dropped_queue", "the queue is full")
            else:
                text = self._record(event)
                if text is not None:
                    self._queue(rule, event, [text], 1)

    def _values(self, event: Event, count: int) -> Values:
        return event.values(self._terms.stamp(event.instant), self._terms.sensor, self._port, count)

    def _record(self, event: Event) -> str | None:
        """The event's record, its memory taken; None where there is none: that is known before the record is made."""
        if not self._take(event.size):
            return None
        try:
            text = event.record()
        except BaseException:
            self._give(event.size)
            raise
        self._give(event.size - len(text))
        return text

    def _take(self, size: int) -> bool:
        """Room for a record that waits? Of the memory bound a share, so that the capture has the rest."""
        with self._lock:
            if self._held + size <= self._books.limits.memory // MEMORY_SHARE:
                self._held += size
                return True
        self._drop("dropped_memory", f"records that wait hold 1/{MEMORY_SHARE} of limits.memory")
        return False

    def _give(self, size: int) -> None:
        with self._lock:
            self._held -= size

    def _drop(self, name: str, why: str) -> None:
        dropped = self._books.acted(name)
        if time.monotonic() - self._told_full > LOOK_SECONDS:
            self._told_full = time.monotonic()
            self._say(f"Actions: {dropped} dropped so far: {why}.")

    def _queue(self, rule: Rule, event: Event, texts: list[str], count: int) -> None:
        """Their memory is taken already."""
        charge = sum(map(len, texts))
        try:
            text = f"[{','.join(texts)}]" if rule.action.digest else texts[0]
            event = _without_session(event)
            timeout = rule.action.timeout or self._terms.timeout
            job = Job(rule, event, self._values(event, count), text, count, timeout, bool(rule.action.digest), charge)
            self._jobs.put_nowait(job)
        except queue.Full:
            self._give(charge)
            self._drop("dropped_queue", "the queue is full")
        except BaseException:
            self._give(charge)
            raise

    def _gather(self, rule: Rule, event: Event) -> None:
        text = self._record(event)
        with self._lock:  # who tells digests must find its text and its memory together
            digest = self._digests.get(rule)
            if digest is None:
                digest = self._digests[rule] = _Digest(_without_session(event), time.monotonic())
            digest.count += 1
            if text is None:
                return
            if len(digest.texts) < MOST_DIGEST:
                digest.texts.append(text)
            else:
                self._held -= len(text)

    def _tell_digests(self, all_of_them: bool = False) -> None:
        now = time.monotonic()
        with self._lock:
            due = [
                rule
                for rule, digest in self._digests.items()
                # Those of rules that a reload took away are told at once.
                if all_of_them or rule not in self._terms.rules or now - digest.began >= rule.action.digest
            ]
        for rule in due:
            try:
                with self._lock:
                    digest = self._digests.pop(rule)
                self._queue(rule, digest.event, digest.texts, digest.count)
            except Exception as problem:  # the others are told all the same
                self._fault(f"Action {rule.name}", problem)

    def _tick(self) -> None:
        while not self._end.wait(TICK_SECONDS):
            try:
                self._tell_digests()
                if time.monotonic() - self._looked > LOOK_SECONDS:
                    self._looked = time.monotonic()
                    self._terms.allowed.look()
            except Exception as problem:  # a bug of ours must not end all digests
                self._fault("Actions", problem)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._do(job)
            except Exception as problem:  # a bug of ours must not cost a worker
                self._fault(f"Action {job.rule.name}", problem)
            finally:
                self._give(job.charge)

    def _do(self, job: Job) -> None:
        for kind in registry.wanted(job.rule).values():
            outcome = kind(job)
            self._books.acted("run" if outcome.well else "failed")
            self._say(f"Action {job.rule.name}: {_who(job.event)}: {outcome.words}")


def would(rule: Rule, event: Event, values: Values) -> list[str]:
    """What would be done, a line each."""
    action = rule.action
    said = []
    if rule.may_block(event):
        said.append(f"block {event.src} for {action.block:g} s ({action.block_scope})")
    elif action.block:
        said.append("no block: anybody can send this in another's name, and the action does not name udp")
    if action.command:
        said.append(f"run {shlex.join(values.arguments(action.command))}")
    return said + [f"{kind} {getattr(action, kind)}" for kind in ("webhook", "syslog") if getattr(action, kind)]


def _told() -> str:
    """The record of an event that has been told."""
    return ""


def _without_session(event: Event) -> Event:
    """The same for what waits: the session itself, and what it said, need not wait."""
    return replace(event, record=_told, data=b"", before=b"")


def _beginning(session: Session) -> bytes:
    """As much of all payloads together as is matched."""
    found = bytearray()
    with contextlib.suppress(SpillError):  # the disk fails: the record's loss is told by the writer
        for _, piece in session.all_payloads():
            found += piece[: MATCHED_BYTES - len(found)]
            if len(found) >= MATCHED_BYTES:
                break
    return bytes(found)


def _just_before(session: Session) -> bytes:
    """The end of what was said before the newest piece."""
    found = b""
    for _, piece in session.payloads[-2:-OVERLAP_PIECES:-1]:
        found = piece + found
        if len(found) >= OVERLAP_BYTES:
            break
    return found[-OVERLAP_BYTES:]


def _who(event: Event) -> str:
    return f"{name(event.src, event.sport)} -> {name(event.dst, event.dport)}"
