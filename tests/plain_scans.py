"""What a scan is, written as plainly as it can be and without any bound: what the watch finds is held against it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tcppc.protocols.packet import Packet
from tcppc.sightings import MOST_LISTED, Scan
from tcppc.watch.scans import MOST_RUNNING, MOST_RUNNING_OF_SOURCE, MOST_TARGETS, Rules

Target = tuple[str, bytes, int]


def source_of(packet: Packet) -> bytes:
    return packet.src if len(packet.src) == 4 else packet.src[:8]


@dataclass(eq=False)
class GoingOn:
    """A scan that goes on, and all its probes: (instant, host, port)."""

    kind: str
    first: Packet  # that it was found by
    tool: str
    slow: bool
    found: int
    probes: list[tuple[int, bytes, int]] = field(default_factory=list)

    def matches(self, packet: Packet) -> bool:
        same = packet.dst == self.first.dst if self.kind == "ports" else packet.dport == self.first.dport
        return same and packet.proto == self.first.proto and source_of(packet) == source_of(self.first)

    @property
    def last(self) -> int:
        """Of those that came after it was found; one of them may have an earlier instant than another."""
        return self.probes[-1][0]

    def told(self, instant: int, window: float, ended: bool) -> Scan:
        ports = sorted({port for _, _, port in self.probes})
        hosts = sorted({host for _, host, _ in self.probes})
        ranges: list[tuple[int, int]] = []
        for port in ports:
            if ended and ranges and ranges[-1][1] == port - 1:
                ranges[-1] = ranges[-1][0], port
            else:
                ranges.append((port, port))
        return Scan(
            instant, self.kind, self.first.proto, self.first.src, tuple(ranges[:MOST_LISTED]),
            tuple(hosts[:MOST_LISTED]), len(ports if self.kind == "ports" else hosts), len(self.probes), self.found,
            self.last if ended else 0, window, self.slow, self.tool, self.first.sport,
        )  # fmt: skip


class Plain:
    """As Detector."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.seen: dict[bytes, list[tuple[Target, int]]] = {}  # both the latest last
        self.going: list[GoingOn] = []

    def probe(self, instant: int, packet: Packet, tool: str) -> list[Scan]:
        key = source_of(packet)
        target = (packet.proto, packet.dst, packet.dport)
        known = self.seen.pop(key, None)
        if ours := [scan for scan in self.going if scan.matches(packet)]:
            for scan in sorted(ours, key=lambda scan: scan.kind, reverse=True):  # ports, then hosts
                scan.probes.append((instant, packet.dst, packet.dport))
                self.going.remove(scan)
                self.going.append(scan)
            if known:
                self.seen[key] = known
            return []
        before = known or []
        self.seen[key] = ([each for each in before if each[0] != target] + [(target, instant)])[-MOST_TARGETS:]
        while len(self.seen) > self.rules.sources:
            del self.seen[next(iter(self.seen))]
        if len({each for each, _ in before} | {target}) == 1:
            return []
        if len(before) == 1 and instant - before[0][1] > self.rules.slow_window * 1e9:
            self.seen[key] = [(target, instant)]
            return []
        if len([scan for scan in self.going if source_of(scan.first) == key]) >= MOST_RUNNING_OF_SOURCE:
            return []
        return self.found(instant, packet, tool, self.seen[key])

    def found(self, instant: int, packet: Packet, tool: str, seen: list[tuple[Target, int]]) -> list[Scan]:
        rules = self.rules
        for slow, window, most_ports, most_hosts in (
            (False, rules.window, rules.ports, rules.hosts),
            (True, rules.slow_window, rules.slow_ports, rules.slow_hosts),
        ):
            near = [
                (when, host, port)
                for (proto, host, port), when in seen
                if proto == packet.proto and when >= instant - window * 1_000_000_000
            ]
            begun = []
            for kind, most, probes in (
                ("ports", most_ports, [each for each in near if each[1] == packet.dst]),
                ("hosts", most_hosts, [each for each in near if each[2] == packet.dport]),
            ):
                if most and len(probes) >= most:
                    begun.append(GoingOn(kind, packet, tool, slow, min(when for when, _, _ in probes), probes))
            if begun:
                self.going += begun
                return [scan.told(instant, window, ended=False) for scan in begun]
        return []

    def ended(self, instant: int, all_of_them: bool = False) -> list[Scan]:
        over = []
        for slow, window in ((False, self.rules.window), (True, self.rules.slow_window)):
            going = [scan for scan in self.going if scan.slow == slow]
            while going and (all_of_them or instant - going[0].last > window * 1e9 or len(going) > MOST_RUNNING):
                scan = going.pop(0)
                self.going.remove(scan)
                over.append(scan.told(instant, window, ended=True))
        return over
