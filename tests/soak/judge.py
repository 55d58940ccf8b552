"""What was sent against what is recorded: each stranger's note is held against the records; what nothing explains is
listed.

A session that its stranger ended must be there once, with all its bytes. One that the sensor ended must have what had
been acknowledged by then. One that is missing is explained by a stop that it met, by a kill -9 that it was open at or
had ended just before, or by the ledger's counts of what was dropped, and by nothing else.
"""

from __future__ import annotations

from base64 import b64decode
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tests.soak import notes
from tests.soak.evidence import Record
from tests.soak.notes import Note
from tests.soak.sensor import KILLED, STOPPED, Life

SECOND = 1_000_000_000
KILL_SLACK = SECOND  # what the writer may not have written yet
CLOCK_SLACK = SECOND // 50  # between a stranger's look at the clock and what it does
READ_SLACK = SECOND // 20  # between the sensor's last read and its look at the clock
START_SLACK = SECOND  # between the sensor's start and its last part's
ACCEPT_SLACK = 30 * SECOND  # a connection may wait to be accepted while descriptors are out
NEVER = 1 << 63
KILL = "kill -9"
STOP = "met a stop"


@dataclass
class Row:
    """Of one kind of stranger: sessions, or datagrams."""

    sent: int = 0
    bytes: int = 0
    recorded: int = 0
    bytes_recorded: int = 0
    cut: int = 0  # of those recorded: truncated
    ended: int = 0  # of those recorded: ended by the sensor
    stop: int = 0
    kill: int = 0
    missing: int = 0  # neither recorded nor explained by the above: the ledger's counts must
    unexplained: int = 0


@dataclass(order=True, frozen=True)
class Absent:
    """A session or datagram that is in no record, and that no stop or kill explains: when, and which."""

    instant: int
    what: str


@dataclass
class Judgement:
    rows: dict[str, Row] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)  # each is unexplained
    unseen: list[Absent] = field(default_factory=list)  # connections whose SYN the watch has not recorded
    absent: dict[str, list[Absent]] = field(default_factory=lambda: {"tcp": [], "udp": []})
    gone: Counter[str] = field(default_factory=Counter)  # all that are in no record, by tcp and udp, explained or not
    truncated: int = 0
    refused: int = 0
    not_connected: int = 0
    kill_bytes: int = 0  # acknowledged before a kill -9, and not in what `recover` brought back

    def row(self, note: Note) -> Row:
        name = note.kind.split(" ")[0] if note.kind.startswith("dialogue") else note.kind
        return self.rows.setdefault(f"{note.proto}: {name}", Row())

    def find(self, note: Note, what: str) -> None:
        self.row(note).unexplained += 1
        self.findings.append(f"{note.proto} {note.kind} {shown(note)}: {what}")


def shown(note: Note) -> str:
    """A note in a few words."""
    source = f"[{note.src}]" if ":" in note.src else note.src
    begun = note.begun / SECOND
    return (
        f"#{note.number} {source}:{note.sport} -> {note.dport} at {begun:.3f} for "
        f"{(note.ended - note.begun) / SECOND:.3f} s ({note.how}; {note.sent} bytes sent, {note.acked} acknowledged)"
    )


class Judge:
    """`add` each record, then `close`. `events`: were event lines written, so that a kill -9 costs next to nothing?"""

    def __init__(
        self, found: Iterable[Note], lives: list[Life], events: bool, duration: float, syns: set[tuple[str, int]]
    ) -> None:
        self.result = Judgement()
        self._lives = lives
        # Each end of a life, and when the next one served.
        self._ends = [
            (life, next((after.ready for after in lives[number:] if after.ready), NEVER))
            for number, life in enumerate(lives, 1)
            if life.told
        ]
        self._events = events
        self._syns = syns
        self._duration = round(duration * 0.9 * SECOND)
        self._tcp: dict[tuple[str, int], Note] = {}
        self._udp: dict[tuple[str, int], Note] = {}
        self._seen: Counter[tuple[str, int]] = Counter()
        self._datagrams: dict[tuple[str, int], Counter[bytes]] = {}
        self._ids: set[str] = set()
        for note in found:
            (self._udp if note.proto == "udp" else self._tcp)[note.src, note.sport] = note

    def add(self, record: Record) -> None:
        key = record.src, record.sport
        if record.id in self._ids:
            self.result.findings.append(f"the record {record.id} of {key} is there twice")
        self._ids.add(record.id)
        note = (self._udp if record.udp else self._tcp).get(key)
        if note is None:
            self.result.findings.append(
                f"a record that nobody sent: {'udp' if record.udp else 'tcp'} {key} closed {record.closed}, "
                f"{record.size} bytes: {record.data[:60]!r}"
            )
        elif record.udp:
            self._datagrams.setdefault(key, Counter())[record.data] += 1
        else:
            self._seen[key] += 1
            if self._seen[key] == 1:
                self._compare(note, record)

    def _compare(self, note: Note, record: Record) -> None:
        result, row = self.result, self.result.row(note)
        row.recorded += 1
        row.bytes_recorded += record.size
        row.cut += record.truncated
        row.ended += record.closed not in ("peer", "reset")
        result.truncated += record.truncated
        result.refused += record.closed == "limit" and record.end - record.start < self._duration
        if note.noise and record.behind and record.data[-record.behind :] in b64decode(note.noise):
            # What TLS took of it, and what it left, is not for the judge to say.
            record = replace(record, data=record.data[: -record.behind], size=record.size - record.behind)
        expected, most = self._expected(note, record)
        if not note.begun - CLOCK_SLACK <= record.start <= note.ended + ACCEPT_SLACK:
            result.find(note, f"the record is of {record.start / SECOND:.3f}")
        if not expected.startswith(record.data):
            same = common(expected, record.data)
            missing = f", {most - record.size} fewer than were sent" if record.size < most else ""
            result.find(note, f"the record has other bytes from {same} on{missing} (closed {record.closed})")
        elif record.size > most:
            result.find(note, f"the record says {record.size} bytes, more than were sent")
        elif not record.truncated and record.size != len(record.data):
            result.find(note, f"the record says {record.size} bytes and has {len(record.data)}")
        elif record.size < (least := min(self._least(note, record), most)):
            result.find(
                note,
                f"the record has {record.size} bytes where {least} were acknowledged by then (closed {record.closed}, "
                f"{(record.end - record.start) / SECOND:.3f} s)",
            )
        elif note.claimed and not record.headless and record.claimed != note.claimed:
            result.find(note, f"the record's flow is of {record.claimed}, the PROXY header said {note.claimed}")

    def _expected(self, note: Note, record: Record) -> tuple[bytes, int]:
        """The bytes that the record must begin with, and how many they are at most."""
        whole = notes.content(note.parts)
        if note.raw and not record.shaken:
            raw = whole[: note.plain] + b64decode(note.raw)
            return raw, len(raw)
        if note.header and record.headless:
            header = b64decode(note.header)
            return header + whole, len(header) + note.sent
        return whole, note.sent

    def _least(self, note: Note, record: Record) -> int:
        """How many bytes the record must have."""
        if note.raw and not record.shaken:
            if record.closed == "peer" and note.fin:
                return len(self._expected(note, record)[0])
            return min(note.plain, self._acknowledged(note, record))
        return self._acknowledged(note, record)

    def _acknowledged(self, note: Note, record: Record) -> int:
        """How many bytes of the parts had been acknowledged when nobody read them any more."""
        if record.closed == "peer" and note.fin:
            return note.sent
        if record.closed in ("peer", "reset"):
            return note.acked
        if record.closed == "limit" and record.end - record.start < self._duration:
            return 0  # refused: the ledger counts it
        until = record.end - READ_SLACK
        if record.closed == "lost":
            life = self._life(note)
            if life is None or life.how == STOPPED:
                return note.sent
            # While a reply waits for a client that does not read, nobody reads what it says: the kernel has that.
            until = life.told - KILL_SLACK if note.kind != "deaf" else 0
            self.result.kill_bytes += max(0, acked_by(note, life.told) - record.size)
        elif record.closed == "shutdown":
            until = next((life.told for life in self._lives if life.told > note.begun), until)
        return acked_by(note, until)

    def _life(self, note: Note) -> Life | None:
        """The one that it began in."""
        return next((life for life in reversed(self._lives) if life.began <= note.begun), None)

    def close(self) -> Judgement:
        for note in self._tcp.values():
            self._account_for(note)
        for note in self._udp.values():
            self._count(note)
        return self.result

    def _account_for(self, note: Note) -> None:
        key = note.src, note.sport
        result, row, count = self.result, self.result.row(note), self._seen[key]
        if note.how == notes.FAILED and not count:
            result.not_connected += 1
            return
        row.sent += 1
        row.bytes += note.sent
        if self._syns and key not in self._syns and not self._lost_by(note.begun, START_SLACK):
            result.unseen.append(Absent(note.begun, f"tcp {note.kind} {shown(note)}: the watch has no SYN of it"))
        if count > 1:
            result.find(note, f"it is recorded {count} times")
        if count:
            return
        result.gone["tcp"] += 1
        why = self._why_missing(note)
        if why == STOP:
            row.stop += 1
        elif why == KILL:
            row.kill += 1
        else:
            row.missing += 1
            result.absent["tcp"].append(Absent(note.begun, f"tcp {note.kind} {shown(note)}: it is in no record"))

    def _why_missing(self, note: Note) -> str:
        for life, ready in self._ends:
            if life.told - CLOCK_SLACK <= note.begun <= ready + CLOCK_SLACK:
                return STOP
            open_then = note.begun < life.told and note.ended > life.told - KILL_SLACK
            # With event lines its start was written, unless it had just begun.
            written = self._events and note.begun <= life.told - KILL_SLACK
            if life.how != STOPPED and open_then and not written:
                return KILL
        return ""

    def _count(self, note: Note) -> None:
        """Datagrams: what is there of each, and when those were sent that are not."""
        result, row = self.result, self.result.row(note)
        found = self._datagrams.get((note.src, note.sport), Counter())
        row.sent += len(note.datagrams)
        row.bytes += note.sent
        # Of like ones, those that a stop or a kill explains are taken for the missing ones.
        for instant, part in sorted(note.datagrams, key=lambda one: bool(self._lost_by(one[0]))):
            data = notes.content([part])
            if found[data]:
                found[data] -= 1
                row.recorded += 1
                row.bytes_recorded += len(data)
                continue
            result.gone["udp"] += 1
            why = self._lost_by(instant)
            if why == STOP:
                row.stop += 1
            elif why == KILL:
                row.kill += 1
            else:
                row.missing += 1
                when = f"{len(data)} bytes of {instant / SECOND:.3f} are in no record"
                result.absent["udp"].append(Absent(instant, f"udp {note.kind} {shown(note)}: {when}"))
        if left := sum(found.values()):
            result.find(note, f"{left} datagrams are recorded that were not sent, or are recorded twice")

    def _lost_by(self, instant: int, slack: int = 0) -> str:
        """Which end of a life explains that what was sent then is in no record; `slack` after the next one's start."""
        for life, ready in self._ends:
            if life.told - CLOCK_SLACK <= instant <= ready + slack:
                return STOP
            if life.how != STOPPED and life.told - KILL_SLACK <= instant < life.told:
                return KILL
        return ""


def common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if one[:middle] == other[:middle] else (least, middle - 1)
    return least


def acked_by(note: Note, until: int) -> int:
    """What had been acknowledged by then."""
    return max((acked for when, acked in note.marks if when <= until), default=0)


def killed(lives: list[Life]) -> int:
    return sum(life.how == KILLED for life in lives)
