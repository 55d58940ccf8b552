"""Packets in, stream files out: which stream a packet is of, and what becomes of its bytes."""

from __future__ import annotations

import struct
from collections import Counter, deque
from dataclasses import dataclass, field

from tcppc.flows import links, network
from tcppc.flows.capture_files import Packet
from tcppc.flows.flow import Flow, Key, Run
from tcppc.flows.names import Named, Template
from tcppc.flows.network import Datagram, Fragment, Fragments
from tcppc.flows.stream import MOST_SEEK, Segment, Stream, Verdict
from tcppc.flows.stream_files import Pieces, StreamFile, StreamFiles

MOST_CLOSED = 1 << 14  # streams that have ended and are remembered: their last packets come again, or late
MOST_STREAMS = 1 << 19  # at once; those that were still longest end first
MOST_WAITING_BYTES = 16 << 20  # of packets read one by one, until they are written
_TCP = 6
_HEADER = struct.Struct("!HHIIBBH").unpack_from


@dataclass
class Totals:
    """What a run did, for its summary."""

    packets: int = 0
    streams: int = 0
    bytes: int = 0  # of streams, as written
    passed_over: Counter[str] = field(default_factory=Counter)  # packets, by why


class Engine:
    """`packet` each of a capture in its order, then `finish`. OSError where the disk does not take something."""

    def __init__(
        self, files: StreamFiles, template: Template, most_seek: int = MOST_SEEK, most_bytes: int = -1
    ) -> None:
        self.totals = Totals()
        self._files = files
        self._template = template
        self._most_seek = most_seek
        self._most_bytes = most_bytes
        # Runs of segments may be given where no stream's name depends on another's moment.
        self.takes_runs = template.tells_streams_apart
        self._fragments = Fragments()
        self._flows: dict[Key, Flow] = {}
        self._closed: deque[Flow] = deque()
        self._pairs = 0
        self._waiting_bytes = 0

    def packet(self, packet: Packet) -> None:
        found = self.parse(packet)
        if found:
            self.arrive(*found)
            self._waiting_bytes += len(packet.data)
            if self._waiting_bytes > MOST_WAITING_BYTES:
                self.settle()

    def parse(self, packet: Packet) -> tuple[Key, Run] | None:
        """The stream that a packet is of; None, and counted, for what is of none."""
        self.totals.packets += 1
        frame = links.frame(packet.link, packet.data)
        if frame is None:
            known = packet.link in links.LINKS
            return self._pass_over("without IP" if known else f"of link type {packet.link}, which is not known")
        found: Datagram | Fragment | None = network.parse(frame.kind, packet.data[frame.at :])
        if isinstance(found, Fragment):
            found = self._fragments.add(found)
            if found is None:
                return None
        if found is None:
            return self._pass_over("with broken IP headers")
        if found.protocol == _TCP:
            return self._tcp(packet, frame, found)
        return self._pass_over("of other protocols")

    def _pass_over(self, why: str) -> tuple[Key, Run] | None:
        self.totals.passed_over[why] += 1
        return None

    def _tcp(self, packet: Packet, frame: links.Frame, datagram: Datagram) -> tuple[Key, Run] | None:
        if len(datagram.data) < 20:
            return self._pass_over("with cut TCP headers")
        sport, dport, seq, _, offset, flags, _ = _HEADER(datagram.data)
        header = (offset >> 4) * 4
        if not 20 <= header <= len(datagram.data):
            return self._pass_over("with broken TCP headers")
        pieces = Pieces.of(datagram.data[header:])
        run = Run(
            1, packet.instant, packet.instant, seq, flags, datagram.size - header, pieces, packet.size,
            len(packet.data), frame.dst_mac + frame.src_mac,
        )  # fmt: skip
        return (datagram.src, sport, datagram.dst, dport, frame.vlan), run

    def arrive(self, key: Key, run: Run) -> None:
        """Segments of one stream."""
        segment = Segment(run.seq, run.flags, b"", run.size)
        flow = self._flows.get(key)
        if flow is None:
            if not Stream.begins(segment):
                return
            flow = self._begin(key, run)
        if run.packets > 1 and run.split and not flow.stream.takes_whole(segment):
            for one in run.split():
                self.arrive(key, one)
            return
        verdict = flow.stream.offer(segment)
        if verdict.what == "compare" and self._stands(flow, verdict.offset, run.data):
            return
        if verdict.what in ("new", "compare"):
            self._retire(flow)
            if not Stream.begins(segment):
                return
            flow = self._begin(key, run)
            verdict = flow.stream.offer(segment)
        flow.last = run.last
        flow.packets += run.packets
        flow.sent += run.sent
        flow.captured += run.captured
        if verdict.what in ("write", "shift"):
            self._put(flow, verdict, run.data)
        if flow.stream.closed and not flow.file.over:
            self._files.close(flow.file)
            self._closed.append(flow)

    def _stands(self, flow: Flow, offset: int, data: Pieces) -> bool:
        """Is it what is stored at that place?"""
        content = b"".join(data.parts())
        return self._files.stored(flow.file, offset, len(content)) == content

    def _begin(self, key: Key, run: Run) -> Flow:
        src, sport, dst, dport, vlan = key
        other = self._flows.get((dst, dport, src, sport, vlan))
        pair = other.named.pair if other else self._pairs
        self._pairs += other is None
        macs = run.macs
        named = Named(src, sport, dst, dport, run.first, vlan, self.totals.streams, pair, macs[6:12], macs[:6])
        self.totals.streams += 1
        made = Flow(named, Stream(self._most_seek), StreamFile(named, self._most_bytes), run.first, run.first)
        self._flows[key] = made
        return made

    def _put(self, flow: Flow, verdict: Verdict, data: Pieces) -> None:
        if self._template.no_files:
            return
        size = data.size()
        if verdict.over:
            flow.conflicts += self._conflicts(flow, verdict, data)
        if verdict.what == "shift":
            self._files.shift(flow.file, verdict.offset)
            self._files.put(flow.file, 0, data, size)
        else:
            self._files.put(flow.file, verdict.offset, data, size)

    def _conflicts(self, flow: Flow, verdict: Verdict, data: Pieces) -> int:
        """Bytes that came before and were others."""
        content = b"".join(data.parts())
        at, before = (0, verdict.offset) if verdict.what == "shift" else (verdict.offset, 0)
        found = 0
        for low, high in verdict.over:
            stored = self._files.stored(flow.file, low - before, high - low)
            again = content[low - at : high - at]
            if stored != again:
                found += sum(one != other for one, other in zip(stored, again, strict=False))
        return found

    def settle(self) -> None:
        """Writes what waits, and forgets streams beyond the bounds."""
        self._waiting_bytes = 0
        self._files.settle()
        while len(self._closed) > MOST_CLOSED:
            self._retire(self._closed.popleft())
        if len(self._flows) > MOST_STREAMS:
            longest = sorted(self._flows.values(), key=lambda flow: flow.last)
            for flow in longest[: MOST_STREAMS // 8]:
                self._retire(flow)
        self._files.flush()

    def _retire(self, flow: Flow) -> None:
        """It is told, and nothing more is of it."""
        if flow.retired:
            return
        flow.retired = True
        if self._flows.get(flow.key) is flow:
            del self._flows[flow.key]
        self._files.close(flow.file)
        self._files.flush_one(flow.file)
        self._ended(flow)

    def _ended(self, flow: Flow) -> None:
        self.totals.bytes += flow.file.size

    def finish(self) -> Totals:
        """All streams that are open still end here."""
        self._files.flush()
        for flow in sorted(self._flows.values(), key=lambda flow: flow.named.number):
            self._retire(flow)
        self._files.flush()
        return self.totals
