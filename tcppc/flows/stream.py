"""One direction of a TCP connection: where each segment's bytes belong, and when the stream is over.

Rules are those of RFC 9293 and, where several are right, tcpflow's as it is observed: the last packet wins, gaps are
zeros, bytes that come before the first ones are put before them. Nothing is written here: a verdict says what is to be
done with a segment's bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tcppc.protocols.packet import FIN, RST, SYN

if TYPE_CHECKING:
    from tcppc.flows.flow import Late

MOST_SEEK = 16 << 20  # -m: a segment further away than this begins a new stream
MOST_GAPS = 1 << 16  # of one stream, that are remembered
MOST_LATE_SYN = 1 << 16  # bytes that may be captured before the SYN of theirs: packets of one moment, out of order
MOST_SHIFTS = 64  # of one stream: each moves all of its file
MOST_MOVED_BYTES = 256 << 20  # by the shifts of one stream; the first one may be of more
_GAP_COST = 4096  # bytes, that a gap makes of a move
Range = tuple[int, int]  # from, to


class Verdict(NamedTuple):
    """`what` is write (the data at `offset`), shift (move all `offset` bytes up, then write the data at 0), compare (a
    new stream, unless the data stands at `offset` already), new (this stream is over, ask the next one), or ignore.
    `over` are the parts of it that came before."""

    what: str
    offset: int = 0
    over: tuple[Range, ...] = ()


IGNORE, NEW, FIRST = Verdict("ignore"), Verdict("new"), Verdict("write")


@dataclass(slots=True)
class Stream:
    """`offer` it each segment of its direction; it is begun by the first one that `begins` one."""

    most_seek: int = MOST_SEEK
    out_of_order: int = 0  # segments that began before the end of the one before
    violations: int = 0  # segments from before the SYN
    gaps_forgotten: int = 0  # beyond MOST_GAPS
    closed: bool = False
    seen: int = 0  # bytes that came for the first time
    _base: int | None = None  # the sequence number of offset 0
    _next: int = 0  # offset behind the newest bytes
    _syn: bool = False  # was its beginning seen? Then nothing comes before it
    _fin: int = -1  # offset of the end, once somebody told it
    _shifts: int = 0
    _moved: int = 0  # bytes, by them
    _have: list[Range] = field(default_factory=list)  # that came, in order, none touching

    @staticmethod
    def begins(flags: int, size: int) -> bool:
        """Does a stream begin with such a segment? A bare ACK, FIN or RST of an unknown connection is nobody's."""
        return size > 0 or bool(flags & SYN)

    def offer(self, seq: int, flags: int, size: int) -> Verdict:
        """What to do with a segment's bytes, of which `size` were sent."""
        if self._base is None:
            return self._begin(seq, flags, size)
        offset = self._offset(seq, flags)
        if offset == self._next and size and not flags & (SYN | FIN | RST) and not self.closed and self._fin < 0:
            self._next += size  # nearly all are so, hence the short way
            return Verdict("write", offset, self.came(offset, self._next))
        if self._is_another(flags, size, offset):
            return NEW
        verdict = self._place(size, offset) if size or self._is_late_syn(flags, offset) else IGNORE
        self._syn |= bool(flags & SYN)
        if verdict is not NEW and verdict.what != "compare":
            self._end(flags, size, 0 if verdict.what == "shift" else offset)
        return verdict

    def _begin(self, seq: int, flags: int, size: int) -> Verdict:
        self._syn = bool(flags & SYN)
        self._base = seq + self._syn
        self._next = self.seen = size
        if size:
            self._have.append((0, size))
        if flags & (FIN | RST):
            self._end(flags, size, 0)
        return FIRST if size else IGNORE

    def takes_whole(self, seq: int, flags: int) -> bool:
        """Is what several segments are, one behind the other, the same as one that has the bytes of all? Not where the
        stream is over, or may be before the last of them, or where they are from before its first bytes."""
        if self._base is None:
            return True
        return not self.closed and self._fin < 0 and not flags & SYN and self._offset(seq, flags) >= 0

    def takes_late(self, seq: int, late: Late) -> bool:
        """Can segments that came out of order, of which the first has that number, be taken at once?"""
        if late.furthest > self.most_seek:
            return False
        if self._base is None:
            return late.lowest >= 0
        begin = self._offset(seq, 0)
        open_still = not self.closed and self._fin < 0 and len(self._have) + len(late.parts) < MOST_GAPS
        return open_still and begin + late.lowest >= 0 and abs(begin - self._next) <= self.most_seek

    def offer_late(self, seq: int, late: Late) -> int:
        """They came; returns the offset of the first. `came` is to be told of their bytes."""
        if self._base is None:
            self._base = seq
        begin = self._offset(seq, 0)
        self.out_of_order += late.out_of_order + (begin < self._next and self.seen > 0)
        self._next = begin + late.end
        return begin

    def _offset(self, seq: int, flags: int) -> int:
        """Where a segment's bytes are in the stream; a SYN takes a number of its own, and numbers wrap at 32 bits."""
        begin = seq + 1 if flags & SYN else seq
        step = (begin - (self._base or 0) - self._next) & 0xFFFFFFFF
        return self._next + (step - (1 << 32) if step >> 31 else step)

    def distance(self, seq: int, flags: int) -> int:
        """From where it goes on, in bytes."""
        return abs(self._offset(seq, flags) - self._next)

    def _is_late_syn(self, flags: int, offset: int) -> bool:
        """Is it the SYN of these bytes, captured behind some of them?"""
        return bool(flags & SYN) and not self._syn and not self.closed and -MOST_LATE_SYN <= offset < 0

    def _is_another(self, flags: int, size: int, offset: int) -> bool:
        """Is it of a later connection with the same addresses and ports?"""
        if flags & SYN and offset != 0:
            return not self._is_late_syn(flags, offset)
        if self.closed or not size:
            return self.closed and bool(flags & SYN)
        return abs(offset - self._next) > self.most_seek

    def _place(self, size: int, offset: int) -> Verdict:
        if self.closed:
            return Verdict("compare", offset) if offset >= 0 else NEW
        if size == 1 and offset == self._next - 1 and self._next > 0:
            return IGNORE  # a keep-alive (RFC 9293 §3.8.4)
        if offset < 0 and self._syn:
            self.violations += 1
            return IGNORE
        if offset < 0 and (self._shifts >= MOST_SHIFTS or self._moved > MOST_MOVED_BYTES):
            return NEW
        if offset < self._next and self.seen:
            self.out_of_order += 1
        if offset < 0:
            self._shifts += 1
            self._moved += self.seen + len(self._have) * _GAP_COST
            self._base = (self._base or 0) + offset
            self._have = [(low - offset, high - offset) for low, high in self._have]
            self._next -= offset
            self._fin = self._fin - offset if self._fin >= 0 else -1
            return Verdict("shift", -offset, self.came(0, size))
        self._next = offset + size
        if 0 <= self._fin < self._next:
            self._fin = -1  # it was none: here are bytes behind it
        return Verdict("write", offset, self.came(offset, self._next))

    def came(self, low: int, high: int) -> tuple[Range, ...]:
        """These bytes did: returns the parts of them that did before."""
        have, over = self._have, []
        self.seen += high - low
        if not have or low > have[-1][1]:
            have.append((low, high))
        elif low == have[-1][1]:
            have[-1] = (have[-1][0], high)
        else:
            first = after = bisect_left(have, low, key=lambda each: each[1])
            begin, end = low, high
            while after < len(have) and have[after][0] <= high:
                one, other = have[after]
                if min(other, high) > max(one, low):
                    over.append((max(one, low), min(other, high)))
                begin, end = min(begin, one), max(end, other)
                after += 1
            have[first:after] = [(begin, end)]
            self.seen -= sum(other - one for one, other in over)
        if len(have) > MOST_GAPS:  # a capture made so that each packet costs more than the one before
            have[:2] = [(have[0][0], have[1][1])]
            self.gaps_forgotten += 1
        return tuple(over)

    def append(self, size: int) -> int:
        """For what has no sequence numbers: `size` bytes behind all others; returns where that is."""
        at = self._next
        self._next += size
        if size:
            self.came(at, self._next)
        return at

    def _end(self, flags: int, size: int, offset: int) -> None:
        """Does the stream end with it?"""
        if flags & RST:
            self.closed = True
        if flags & FIN and offset + size >= self.size:
            self._fin = offset + size
        if self._fin >= 0 and self.seen >= self._fin:
            self.closed = True

    @property
    def size(self) -> int:
        """Bytes from the first one to behind the last, with the gaps."""
        return self._have[-1][1] if self._have else 0

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """(offset, size) of what never came, before the last byte that did."""
        ends = [0, *(high for _, high in self._have)]
        return [(end, low - end) for end, (low, _) in zip(ends, self._have, strict=False) if low > end]
