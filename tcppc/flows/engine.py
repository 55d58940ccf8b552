"""Packets in, stream files out: which stream a packet is of, and what becomes of its bytes."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from tcppc.flows import links, network
from tcppc.flows.capture_files import Packet
from tcppc.flows.names import Named, Template
from tcppc.flows.network import Datagram, Fragment, Fragments
from tcppc.flows.stream import MOST_SEEK, Segment, Stream, Verdict
from tcppc.flows.stream_files import StreamFile, StreamFiles

_TCP = 6
_HEADER = struct.Struct("!HHIIBBH").unpack_from
Key = tuple[bytes, int, bytes, int, int]  # source, port, destination, port, VLAN


@dataclass(eq=False, slots=True)
class Flow:
    """One direction of one connection. Instants are ns; `bytes` and `captured` are those of whole frames."""

    named: Named
    stream: Stream
    file: StreamFile
    first: int
    last: int
    packets: int = 0
    bytes: int = 0
    captured: int = 0


class Run(NamedTuple):
    """Segments of one stream, in order: how many, when the first and the last came, their bytes (`size`), all of their
    flags, the first sequence number, and their frames' bytes as sent and as captured."""

    packets: int
    first: int
    last: int
    size: int
    flags: int
    seq: int
    sent: int
    captured: int
    src_mac: bytes
    dst_mac: bytes


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
        # Whole runs of segments may be given where no stream's name or bytes depend on another's moment.
        self.takes_runs = most_bytes < 0 and template.tells_streams_apart
        self._fragments = Fragments()
        self._flows: dict[Key, Flow] = {}
        self._counts: dict[str, int] = {}  # how many streams had a name
        self._pairs = 0

    def packet(self, packet: Packet) -> None:
        self.totals.packets += 1
        frame = links.frame(packet.link, packet.data)
        if frame is None:
            known = packet.link in links.LINKS
            self._pass_over("without IP" if known else f"of link type {packet.link}, which is not known")
            return
        found: Datagram | Fragment | None = network.parse(frame.kind, packet.data[frame.at :])
        if isinstance(found, Fragment):
            found = self._fragments.add(found)
            if found is None:
                return
        if found is None:
            self._pass_over("with broken IP headers")
        elif found.protocol == _TCP:
            self._tcp(packet, frame, found)
        else:
            self._pass_over("of other protocols")

    def _pass_over(self, why: str) -> None:
        self.totals.passed_over[why] += 1

    def _tcp(self, packet: Packet, frame: links.Frame, datagram: Datagram) -> None:
        if len(datagram.data) < 20:
            self._pass_over("with cut TCP headers")
            return
        sport, dport, seq, _, offset, flags, _ = _HEADER(datagram.data)
        header = (offset >> 4) * 4
        if not 20 <= header <= len(datagram.data):
            self._pass_over("with broken TCP headers")
            return
        segment = Segment(seq, flags, datagram.data[header:], datagram.size - header)
        key = (datagram.src, sport, datagram.dst, dport, frame.vlan)
        flow = self._flows.get(key)
        if flow is None:
            if not Stream.begins(segment):
                return
            flow = self._begin(key, packet.instant, frame.src_mac, frame.dst_mac)
        verdict = flow.stream.offer(segment)
        if verdict.what == "compare" and self._files.same(flow.file, verdict.offset, segment.data):
            return
        if verdict.what in ("new", "compare"):
            self._end(self._flows.pop(key))
            if not Stream.begins(segment):
                return
            flow = self._begin(key, packet.instant, frame.src_mac, frame.dst_mac)
            verdict = flow.stream.offer(segment)
        flow.last = packet.instant
        flow.packets += 1
        flow.bytes += packet.size
        flow.captured += len(packet.data)
        self._put(flow, verdict, segment.data)

    def _begin(self, key: Key, instant: int, src_mac: bytes, dst_mac: bytes) -> Flow:
        src, sport, dst, dport, vlan = key
        other = self._flows.get((dst, dport, src, sport, vlan))
        pair = other.named.pair if other else self._pairs
        self._pairs += other is None
        named = Named(src, sport, dst, dport, instant, vlan, self.totals.streams, pair, src_mac, dst_mac)
        self.totals.streams += 1
        made = Flow(named, Stream(self._most_seek), StreamFile(self._most_bytes), instant, instant)
        self._flows[key] = made
        return made

    def expects(self, key: Key) -> int:
        """The sequence number with which an open stream goes on in order; -1 for one that is not so plain, -2 for none
        of that key."""
        flow = self._flows.get(key)
        return flow.stream.expects() if flow else -2

    def run(self, key: Key, run: Run, pieces: list[memoryview]) -> None:
        """Many plain segments of one stream, in order, at once: the same as each of them by `packet`."""
        flow = self._flows.get(key) or self._begin(key, run.first, run.src_mac, run.dst_mac)
        flow.last = run.last
        flow.packets += run.packets
        flow.bytes += run.sent
        flow.captured += run.captured
        offset = flow.stream.advance(run.packets, run.size, run.flags, run.seq)
        if pieces and not self._template.no_files:
            if not flow.file.path:
                self._create(flow)
            self._files.append(flow.file, offset, pieces)

    def _put(self, flow: Flow, verdict: Verdict, data: bytes) -> None:
        if verdict.what not in ("write", "shift") or self._template.no_files:
            return
        if not flow.file.path and data:
            self._create(flow)
        if verdict.what == "shift":
            self._files.shift(flow.file, verdict.offset)
            self._files.write(flow.file, 0, data)
        elif data:
            self._files.write(flow.file, verdict.offset, data)

    def _create(self, flow: Flow) -> None:
        """By the first name of its kind that is free, also in a folder where an earlier run made some."""
        first = self._template.path(flow.named)
        count = self._counts.get(first, 0)
        while not self._files.create(flow.file, self._template.path(flow.named, count)):
            count += 1
        self._counts[first] = count + 1

    def _end(self, flow: Flow) -> None:
        self.totals.bytes += flow.file.size
        self._files.close(flow.file, flow.first)

    def finish(self) -> Totals:
        """All streams that are open still end here."""
        for flow in self._flows.values():
            self._end(flow)
        self._flows.clear()
        return self.totals
