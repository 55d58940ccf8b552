"""What the SYN watch saw, and its lines: of one probe (syn, probe) and of a scan. docs/record.md is the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from json.encoder import encode_basestring_ascii as quote
from typing import NamedTuple

from tcppc.protocols.packet import SYN, Packet, address, flag_letters, options

# What one of them holds of the books' memory until its line is written: sys.getsizeof of the tuples, the addresses and
# the header bytes of a SYN with all its options makes 520, rounded up.
SYN_CHARGE = 640
MOST_LISTED = 100  # ports, ranges of ports or addresses in one line


class Probe(NamedTuple):
    """One packet that opens something, or tries what is there. `data` is what `packet` was decoded from."""

    instant: int
    packet: Packet
    data: bytes
    vlan: int
    interface: str
    tool: str

    @property
    def event(self) -> str:
        return "syn" if self.packet.flags & SYN else "probe"

    @property
    def charge(self) -> int:
        return SYN_CHARGE


class Scan(NamedTuple):
    """Many ports of one destination (kind ports), or one port of many destinations (kind hosts), from one source.

    `ports` are (low, high), `hosts` packed addresses, both of what was seen so far; of the other kind's there is one.
    `ended` is when the last probe came, 0 while it goes on; `window` the seconds that it was found in.
    """

    instant: int
    kind: str
    proto: str
    src: bytes
    ports: tuple[tuple[int, int], ...]
    hosts: tuple[bytes, ...]
    number: int  # of different ports or hosts
    probes: int
    began: int
    ended: int
    window: float
    slow: bool
    tool: str
    sport: int = 0  # of the probe that it was found by

    @property
    def charge(self) -> int:
        return SYN_CHARGE + 80 * (len(self.ports) + len(self.hosts))


Sighting = Probe | Scan
EVENTS = ("syn", "probe", "scan")


def name(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def said(seen: Probe) -> str:
    """tcpcap's words; those for probes that are no SYN are ours."""
    packet = seen.packet
    what = (
        "New connection"
        if packet.flags & SYN
        else f"New probe ({'fragment' if packet.cut else flag_letters(packet.flags) or 'no flags'})"
    )
    return (
        f"{what}: {name(address(packet.src), packet.sport)} -> {name(address(packet.dst), packet.dport)}"
        f"{f' ({seen.tool})' if seen.tool else ''}"
    )


def ranges(ports: Iterable[tuple[int, int]]) -> str:
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ports)


def scan_said(scan: Scan) -> str:
    """tcpcap's words for what tcpcap finds, `Port scan detected: SRC -> DST on ports 80,81,82`; the like for others."""
    src = address(scan.src)
    kind = {"tcp": "", "udp": "UDP "}[scan.proto]
    what = f"{kind}port scan" if scan.kind == "ports" else f"{kind}sweep"
    what = f"slow {what}" if scan.slow else what
    what = what[0].upper() + what[1:]
    tool = f" ({scan.tool})" if scan.tool else ""
    if scan.ended:
        seconds = (scan.ended - scan.began) / 1e9
        noun = "ports" if scan.kind == "ports" else "hosts"
        target = address(scan.hosts[0]) if scan.kind == "ports" else f"port {ranges(scan.ports)}"
        return f"{what} ended: {src} -> {target}: {scan.number} {noun}, {scan.probes} probes in {seconds:.1f} s{tool}"
    if scan.kind == "ports":
        return f"{what} detected: {src} -> {address(scan.hosts[0])} on ports {ranges(scan.ports)}{tool}"
    return f"{what} detected: {src} -> port {ranges(scan.ports)} on {','.join(map(address, scan.hosts))}{tool}"


class Lines:
    """Sightings as lines; `stamp` and `sensor` (JSON with its comma before, or empty) are the encoder's, as are
    `new_id` and `community_id` of the records."""

    def __init__(
        self,
        stamp: Callable[[int], str],
        sensor: str,
        new_id: Callable[[int], str],
        community_id: Callable[[str, str, int, str, int], str],
    ) -> None:
        self._stamp = stamp
        self._sensor = sensor
        self._new_id = new_id
        self._community_id = community_id

    def line(self, seen: Sighting) -> str:
        """One line of JSON without its line feed; ASCII only."""
        return self._probe(seen) if isinstance(seen, Probe) else self._scan(seen)

    def _probe(self, seen: Probe) -> str:
        packet = seen.packet
        src, dst = address(packet.src), address(packet.dst)
        listed = (
            ",".join([f'"{option}"' for option in options(seen.data, packet.options)]) if not packet.cut else '"cut"'
        )
        whole = "true" if packet.dont_fragment else "false"
        ip_id = f'"ip_id":{packet.ip_id},"df":{whole},' if packet.ip_id >= 0 else ""
        vlan = f',"vlan":{seen.vlan}' if seen.vlan >= 0 else ""
        tool = f',"tool":"{seen.tool}"' if seen.tool else ""
        return (
            f'{{"timestamp":"{self._stamp(seen.instant)}","event":"{seen.event}","flow":{{"proto":"tcp","src":"{src}",'
            f'"sport":{packet.sport},"dst":"{dst}","dport":{packet.dport}}},"id":"{self._new_id(seen.instant)}"'
            f'{self._sensor},"community_id":"{self._community_id("tcp", src, packet.sport, dst, packet.dport)}",'
            f'"syn":{{"flags":"{flag_letters(packet.flags)}","ttl":{packet.ttl},{ip_id}"seq":{packet.seq},'
            f'"window":{packet.window},"options":[{listed}],"interface":{quote(seen.interface)}{vlan}{tool}}}}}'
        )

    def _scan(self, scan: Scan) -> str:
        ended = f',"ended":"{self._stamp(scan.ended)}"' if scan.ended else ""
        slow = ',"slow":true' if scan.slow else ""
        tool = f',"tool":"{scan.tool}"' if scan.tool else ""
        hosts = ",".join([f'"{address(host)}"' for host in scan.hosts])
        return (
            f'{{"timestamp":"{self._stamp(scan.instant)}","event":"scan","id":"{self._new_id(scan.instant)}"'
            f'{self._sensor},"scan":{{"kind":"{scan.kind}","proto":"{scan.proto}","src":"{address(scan.src)}",'
            f'"ports":"{ranges(scan.ports)}","hosts":[{hosts}],"number":{scan.number},"probes":{scan.probes},'
            f'"began":"{self._stamp(scan.began)}"{ended},"window":{scan.window:g}{slow}{tool}}}}}'
        )
