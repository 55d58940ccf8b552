"""Packets in, stream files out: which stream a packet is of, and what becomes of its bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tcppc.flows.capture_files import Packet
from tcppc.flows.flow import Flow, Key, Late, Run
from tcppc.flows.listener import Listener
from tcppc.flows.names import Named, Template
from tcppc.flows.packets import Parser, Reading, Totals
from tcppc.flows.sharing import SHARES, Share
from tcppc.flows.stream import MOST_SEEK, Stream, Verdict
from tcppc.flows.stream_files import Pieces, StreamFile, StreamFiles
from tcppc.protocols.packet import ACK, SYN, UDP

MOST_CLOSED = 1 << 14  # streams that have ended and are remembered: their last packets come again, or late
_COMPARED_BYTES = 1 << 20  # at once
MOST_STREAMS = 1 << 16  # at once; those that were still longest end first
MOST_WAITING_BYTES = 16 << 20  # of packets read one by one, until they are written
UDP_IDLE_NS = 60 * 10**9  # a conversation of datagrams is over after that long without one
SWEEP_NS = 10**9


class Rules(NamedTuple):
    """What the operator wants of streams."""

    most_seek: int = MOST_SEEK  # -m, bytes
    most_bytes: int = -1  # -b: of each file; -1: all
    most_idle: int = 0  # ns without a packet, after which a stream is over; 0: as long as there are packets
    udp_idle: int = UDP_IDLE_NS
    first_wins: bool = False  # of bytes that came twice and differ; else the last


class Apart(Exception):  # noqa: N818 - it is no error
    """These segments cannot be taken as one."""


class Engine:
    """`packet` each of a capture in its order, then `finish`. OSError where the disk does not take something."""

    def __init__(
        self,
        files: StreamFiles,
        template: Template,
        rules: Rules | None = None,
        reading: Reading | None = None,
        listeners: Sequence[Listener] = (),
        totals: Totals | None = None,
        share: Share | None = None,
    ) -> None:
        self.totals = totals or Totals()
        self.share = share  # of the connections that are its own; None: all
        self.begins = True  # are new streams begun? (-R)
        self._files = files
        self._template = template
        self._rules = rules or Rules()
        reading = reading or Reading()
        self._parser = Parser(reading, self.totals)
        self.parse = self._parser.__call__
        self._listeners = listeners
        self._by_packet = [each for each in listeners if each.by_packet]
        self._by_segment = [each for each in listeners if each.by_packet or each.by_run]
        # Runs of segments may be given where nothing depends on one packet's moment.
        one_by_one = self._by_packet or self._rules.most_idle or reading.checksums
        self.takes_runs = template.tells_streams_apart and not one_by_one
        self._flows: dict[Key, Flow] = {}
        self._closed: deque[Flow] = deque()
        self._leaving: list[Flow] = []  # since the last `settle`
        self._pairs = share.number if share else 0
        self._waiting_bytes = 0
        self._swept = 0  # when idle streams were looked for

    @property
    def open_now(self) -> int:
        """Streams that are remembered."""
        return len(self._flows)

    def packet(self, packet: Packet) -> None:
        found = self.parse(packet)
        if found and (self.share is None or self.share.has(found[0])):
            flow = self.arrive(*found)
            if flow:
                for each in self._by_packet:
                    each.packet(flow, packet)
            self._waiting_bytes += len(packet.data)
            if self._waiting_bytes > MOST_WAITING_BYTES:
                self.settle()

    def arrive(self, key: Key, run: Run) -> Flow | None:
        """Segments of one stream, or a datagram; returns whose they are. None: nobody's. Apart: each of the segments is
        to arrive by itself, in its turn; this has done nothing."""
        if key[5] == UDP:
            return self._datagram(key, run)
        flow = self._flows.get(key)
        if flow and self._rules.most_idle and run.first - flow.last > self._rules.most_idle:
            self._retire(flow)
            flow = None
        if run.late and not self._takes_late(flow, run.seq, run.late):
            raise Apart
        if flow is None:
            flow = self._begin(key, run)
            if flow is None:
                return None
        if run.split and (flow.rival or not flow.stream.takes_whole(run.seq, run.flags)):
            raise Apart
        if run.late:
            return self._put_late(flow, run, run.late)
        newest = flow
        if flow.rival:
            flow = _nearer(flow, run)
        verdict = flow.stream.offer(run.seq, run.flags, run.size)
        if verdict.what == "compare" and self._stands(flow, verdict.offset, run):
            return flow
        if verdict.what in ("new", "compare"):
            flow = self._follow(newest, key, run)
            if flow is None:
                return None
            verdict = flow.stream.offer(run.seq, run.flags, run.size)
        flow.count(run)
        for each in self._by_segment:
            each.segment(flow, run, verdict)
        if verdict.what in ("write", "shift"):
            self._put(flow, verdict, run.data)
        if flow.stream.closed and not flow.file.over:
            self._files.close(flow.file)
            self._closed.append(flow)
            if len(self._closed) > MOST_CLOSED:
                self._leave(self._closed.popleft())
        return flow

    def _follow(self, flow: Flow, key: Key, run: Run) -> Flow | None:
        """A stream behind another. One that is open may go on all the same: a SYN is soon forged, and in RFC 9293
        (§3.10.7.4) ends nothing. It stays within reach, and what is nearer to it is its own."""
        following = self._begin(key, run)
        if following is None:
            return None
        known = [each for each in (flow.rival, flow) if each and not each.stream.closed] if run.flags & SYN else []
        # The one with most bytes; of such without any, the first: what it was before somebody meddled.
        following.rival = max(known, key=lambda each: each.stream.seen, default=None)
        if following.rival:
            self._files.flush_one(following.rival.file)  # its name is the first of the two
        for over in (flow.rival, flow):
            if over and over is not following.rival:
                over.rival = None
                self._retire(over)
        flow.rival = None
        return following

    def _datagram(self, key: Key, run: Run) -> Flow | None:
        """A conversation's datagrams stand one behind the other."""
        flow = self._flows.get(key)
        if flow:
            other = flow.partner
            if run.first - max(flow.last, other.last if other else 0) > self._rules.udp_idle:
                self._retire(flow)
                if other:
                    self._retire(other)
                flow = None
        if flow is None:
            flow = self._begin(key, run._replace(flags=SYN))
            if flow is None:
                return None
        flow.count(run)
        size = run.data.size
        verdict = Verdict("write", flow.stream.append(size))
        for each in self._by_segment:
            each.segment(flow, run, verdict)
        if size and not self._template.no_files:
            self._files.put(flow.file, verdict.offset, run.data, size)
        return flow

    def _stands(self, flow: Flow, offset: int, run: Run) -> bool:
        """Did it come before, and is it what is stored at that place, as far as that was stored?"""
        if offset + run.size > flow.stream.size:
            return False
        content = b"".join(run.data.parts())
        return content.startswith(self._files.stored(flow.file, offset, len(content)))

    def _begin(self, key: Key, run: Run) -> Flow | None:
        """None for what begins no stream, and where none are begun."""
        if not self.begins or not Stream.begins(run.flags, run.size):
            return None
        src, sport, dst, dport, vlan, protocol, tunnel = key
        other = self._flows.get((dst, dport, src, sport, vlan, protocol, tunnel))
        # Behind a partner that has one already stands an earlier connection.
        if other and other.partner and run.flags & (SYN | ACK) == SYN:
            other = None
        pair = other.named.pair if other else self._pairs
        if other is None:
            self._pairs += SHARES if self.share else 1
        macs = run.macs
        named = Named(
            src, sport, dst, dport, run.first, vlan, self.totals.streams, pair, macs[:6], macs[6:12], protocol
        )
        self.totals.streams += 1
        made = Flow(
            key, named, Stream(self._rules.most_seek), StreamFile(named, self._rules.most_bytes), run.first, run.last
        )
        made.asks = run.flags & (SYN | ACK) != SYN | ACK and (other is None or not other.asks)
        if other and not other.partner:
            made.partner, other.partner = other, made
        self._flows[key] = made
        count = len(self._flows)
        if count > self.totals.most_open:
            self.totals.most_open = min(count, MOST_STREAMS)
        if count > MOST_STREAMS:
            self._crowded()
        return made

    def _takes_late(self, flow: Flow | None, seq: int, late: Late) -> bool:
        # With the first bytes kept, each segment that comes again is told from those by itself.
        stream = flow.stream if flow else Stream(self._rules.most_seek)
        return not self._rules.first_wins and stream.takes_late(seq, late)

    def _put_late(self, flow: Flow, run: Run, late: Late) -> Flow:
        flow.count(run)
        begin = flow.stream.offer_late(run.seq, late)
        for offset, data in late.parts:
            low = begin + offset
            verdict = Verdict("write", low, flow.stream.came(low, low + data.size))
            for each in self._by_segment:
                each.segment(flow, run._replace(data=data), verdict)
            self._put(flow, verdict, data)
        return flow

    def _put(self, flow: Flow, verdict: Verdict, data: Pieces) -> None:
        if self._template.no_files:
            return
        size = data.size
        if verdict.over:
            flow.conflicts += self._conflicts(flow, verdict, data)
        if verdict.what == "shift":
            self._files.shift(flow.file, verdict.offset)
        at = 0 if verdict.what == "shift" else verdict.offset
        if verdict.over and self._rules.first_wins:
            self._put_new(flow, at, data, verdict)
        else:
            self._files.put(flow.file, at, data, size)

    def _put_new(self, flow: Flow, at: int, data: Pieces, verdict: Verdict) -> None:
        """Those of the bytes alone that did not come before."""
        ends = [0, *(high - at for _, high in verdict.over)]
        begins = [*(low - at for low, _ in verdict.over), data.size]
        fresh = [(low, high) for low, high in zip(ends, begins, strict=True) if high > low]
        for (low, _), content in zip(fresh, data.each(fresh), strict=True):
            pieces = Pieces.of(content)
            self._files.put(flow.file, at + low, pieces, pieces.size)

    def _conflicts(self, flow: Flow, verdict: Verdict, data: Pieces) -> int:
        """Bytes that came before and were others."""
        at, before = (0, verdict.offset) if verdict.what == "shift" else (verdict.offset, 0)
        over = [
            (begin, min(begin + _COMPARED_BYTES, high))
            for low, high in verdict.over
            for begin in range(low, high, _COMPARED_BYTES)
        ]
        found = 0
        for (low, high), again in zip(over, data.each((low - at, high - at) for low, high in over), strict=True):
            stored = self._files.stored(flow.file, low - before, high - low)
            if stored != again:
                found += _different(stored, again)
        return found

    def _leave(self, flow: Flow) -> None:
        """It is remembered no longer; what it has is written first, with the others."""
        self._forget(flow)
        self._leaving.append(flow)

    def _forget(self, flow: Flow) -> None:
        found = self._flows.pop(flow.key, None)
        if found is not None and found is not flow:  # one that came behind it
            self._flows[flow.key] = found

    def _crowded(self) -> None:
        """The longest still leave, those without a byte first: a flood of SYNs costs nobody else's stream."""
        longest = sorted(self._flows.values(), key=lambda flow: (flow.stream.seen > 0, flow.last))
        for flow in longest[: MOST_STREAMS // 8]:
            self._leave(flow)

    def settle(self, later: bool = False) -> None:
        """Writes what waits, and ends streams that have left. With `later`, small streams that go on may wait once
        more."""
        self._waiting_bytes = 0
        self._files.flush(later)
        leaving, self._leaving = self._leaving, []
        for flow in leaving:
            self._end(flow)
        for each in self._listeners:
            each.settle()

    def sweep(self, now: int) -> None:
        """Ends what is over by then (ns) without a packet that says so: for live captures, whose streams would wait for
        the end of all."""
        if now - self._swept < SWEEP_NS:
            return
        self._swept = now
        most = self._rules.most_idle
        for flow in list(self._flows.values()):
            idle = now - flow.last
            bound = self._rules.udp_idle if flow.named.protocol == UDP else most
            over = bool(bound) and idle > bound
            if over or (flow.stream.closed and idle > SWEEP_NS):
                self._retire(flow)
        self.settle()

    def _retire(self, flow: Flow) -> None:
        """It is told, and nothing more is of it."""
        if not flow.retired:
            self._forget(flow)
            self._end(flow)

    def _end(self, flow: Flow) -> None:
        if flow.retired:
            return
        flow.retired = True
        if flow.rival:
            rival, flow.rival = flow.rival, None
            self._retire(rival)
        file = flow.file
        if not file.over or not file.timed:  # looked into again, since it was closed
            self._files.close(file)
        if file.pending:
            self._files.flush_one(file)
        self.totals.bytes += file.size
        for each in self._listeners:
            each.ended(flow)
        other = flow.partner
        if other and other.retired:  # nothing of them is kept by the other
            flow.partner = other.partner = None

    def finish(self, before_last: Callable[[], object] = lambda: None) -> Totals:
        """All streams that are open still end here; then `before_last` is called, and then all who listen are at the
        end."""
        self.settle()
        rest = [each for flow in self._flows.values() for each in (flow.rival, flow) if each]
        for flow in sorted(rest, key=lambda flow: flow.named.number):
            self._retire(flow)
        self._files.flush()
        fragments = self._parser.fragments
        self.totals.lacking, self.totals.overlapping = fragments.left(), fragments.overlapping
        before_last()
        for each in self._listeners:
            each.finish()
        return self.totals


def _different(one: bytes, other: bytes) -> int:
    """How many bytes, as far as both go."""
    size = min(len(one), len(other))
    mixed = int.from_bytes(one[:size], "big") ^ int.from_bytes(other[:size], "big")
    return size - mixed.to_bytes(size, "big").count(0)


def _nearer(flow: Flow, run: Run) -> Flow:
    """Of a stream and the one before it, the one that the segment goes on with."""
    rival, seq, flags = flow.rival, run.seq, run.flags
    if not rival or rival.stream.closed or flags & SYN:
        return flow
    nearer = rival.stream.distance(seq, flags) < min(flow.stream.distance(seq, flags), rival.stream.most_seek)
    return rival if nearer else flow
