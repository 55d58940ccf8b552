"""Captured packets to segments and datagrams: which conversation a packet is of, and what it carries."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tcppc.flows import links, network, tunnels
from tcppc.flows.capture_files import Packet
from tcppc.flows.flow import Key, Run
from tcppc.flows.network import Datagram, Fragment, Fragments
from tcppc.flows.stream_files import Pieces
from tcppc.protocols.packet import TCP, UDP

MOST_TUNNELS = 4  # one in the other
_TCP_HEADER = struct.Struct("!HHIIBBH").unpack_from
_UDP_HEADER = struct.Struct("!HHH").unpack_from


class Reading(NamedTuple):
    """Which packets are read, and how. `unhandled` is given IP packets that are of no conversation."""

    udp: bool = False
    tunnels: bool = False
    checksums: bool = False
    unhandled: Callable[[Packet], object] | None = None


@dataclass
class Totals:
    """What a run did, for its summary and its report."""

    packets: int = 0
    streams: int = 0
    bytes: int = 0  # of streams, as written
    most_open: int = 0  # streams at once
    wrong_checksums: int = 0  # packets
    lacking: int = 0  # datagrams of which fragments never came
    overlapping: int = 0  # those whose fragments overlapped
    passed_over: Counter[str] = field(default_factory=Counter)  # packets, by why


class Parser:
    """One packet after the other; what is of no conversation is counted in `totals`."""

    def __init__(self, reading: Reading, totals: Totals) -> None:
        self._reading = reading
        self._totals = totals
        self.fragments = Fragments()

    def __call__(self, packet: Packet) -> tuple[Key, Run] | None:
        """The conversation that a packet is of, and its part in it."""
        self._totals.packets += 1
        frame = links.frame(packet.link, packet.data)
        if frame is None:
            known = packet.link in links.LINKS
            return self._pass_over("without IP" if known else f"of link type {packet.link}, which is not known")
        found: Datagram | Fragment | None = network.parse(frame.kind, packet.data[frame.at :])
        tunnel = b""
        for _ in range(MOST_TUNNELS):
            if isinstance(found, Fragment):
                found = self.fragments.add(found, packet.instant, frame.vlan)
                if found is None:
                    return None
            inner = tunnels.inner(found) if self._reading.tunnels and found else None
            if inner is None:
                break
            kind, data, told, name = inner
            tunnel += name
            frame = told or frame
            found = network.parse(kind, data)
        if found is None or isinstance(found, Fragment):
            return self._pass_over("with broken IP headers", packet)
        if found.protocol == TCP:
            return self._tcp(packet, frame, found, tunnel)
        if found.protocol == UDP and self._reading.udp:
            return self._udp(packet, frame, found, tunnel)
        return self._pass_over("of other protocols", packet)

    def _pass_over(self, why: str, packet: Packet | None = None) -> tuple[Key, Run] | None:
        self._totals.passed_over[why] += 1
        if packet and self._reading.unhandled:
            self._reading.unhandled(packet)
        return None

    def _tcp(self, packet: Packet, frame: links.Frame, datagram: Datagram, tunnel: bytes) -> tuple[Key, Run] | None:
        if len(datagram.data) < 20:
            return self._pass_over("with cut TCP headers", packet)
        sport, dport, seq, _, offset, flags, _ = _TCP_HEADER(datagram.data)
        header = (offset >> 4) * 4
        if not 20 <= header <= len(datagram.data):
            return self._pass_over("with broken TCP headers", packet)
        if self._reading.checksums:
            self._check(datagram)
        return self._run(packet, frame, datagram, tunnel, sport, dport, seq, flags, header)

    def _udp(self, packet: Packet, frame: links.Frame, datagram: Datagram, tunnel: bytes) -> tuple[Key, Run] | None:
        if len(datagram.data) < 8:
            return self._pass_over("with cut UDP headers", packet)
        sport, dport, length = _UDP_HEADER(datagram.data)
        if length and not 8 <= length <= datagram.size:
            return self._pass_over("with broken UDP headers", packet)
        if length:  # 0: a jumbogram's, or segmentation offload
            datagram = datagram._replace(data=datagram.data[:length], size=length)
        if self._reading.checksums and datagram.data[6:8] != b"\0\0":
            self._check(datagram)
        return self._run(packet, frame, datagram, tunnel, sport, dport, 0, 0, 8)

    def _run(
        self, packet: Packet, frame: links.Frame, datagram: Datagram, tunnel: bytes, sport: int, dport: int, seq: int,
        flags: int, header: int,
    ) -> tuple[Key, Run]:  # fmt: skip
        run = Run(
            1, packet.instant, packet.instant, seq, flags, datagram.size - header, Pieces.of(datagram.data[header:]),
            packet.size, len(packet.data), frame.src_mac + frame.dst_mac,
        )  # fmt: skip
        return (datagram.src, sport, datagram.dst, dport, frame.vlan, datagram.protocol, tunnel), run

    def _check(self, datagram: Datagram) -> None:
        """Counts a wrong checksum (RFC 1071) of what is there whole. A sum of the pseudo-header alone is what a host
        gives its network card to complete: it is the capture's own host that sent that."""
        if len(datagram.data) < datagram.size:
            return
        data = datagram.data + b"\0" * (len(datagram.data) % 2)
        pseudo = datagram.src + datagram.dst + struct.pack("!II", datagram.size, datagram.protocol)
        # A number modulo 65535 is the one's complement sum of its 16 bit words.
        if (int.from_bytes(pseudo, "big") + int.from_bytes(data, "big")) % 0xFFFF == 0:
            return
        at = 16 if datagram.protocol == TCP else 6
        partial = int.from_bytes(data[at : at + 2], "big")
        if int.from_bytes(pseudo, "big") % 0xFFFF != partial % 0xFFFF:
            self._totals.wrong_checksums += 1


def shown(packed: bytes) -> str:
    """An address as people write it."""
    if len(packed) == 4:
        return "%d.%d.%d.%d" % tuple(packed)  # noqa: UP031 - thrice as fast as inet_ntop
    return socket.inet_ntop(socket.AF_INET6, packed)
