"""Scans among probes: many ports of one host, or one port of many hosts, from one source, within a window.

There are two windows: the short one is tcpcap's, the long one finds who waits between two probes. Memory is bounded:
`sources` are remembered, who was silent longest is forgotten first, and of each MOST_TARGETS targets. A source is an
IPv4 address or an IPv6 /64. One that knocked at one target only, as all of a spoofed flood do, costs a tuple of two.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tcppc.protocols.packet import Packet
from tcppc.sightings import MOST_LISTED, Scan

MOST_TARGETS = 64  # of a source in which no scan was found yet
MOST_RUNNING = 1024  # scans that go on at once; what was found earliest ends first
MOST_RUNNING_OF_SOURCE = 16  # further ones of a source with so many are not told one by one
MOST_PORTS_IN_SET = 256  # of one scan; from then on they are a map of 8 KiB
MOST_HOSTS = 4096  # different ones counted in one sweep

Target = tuple[str, bytes, int]  # proto, destination, port
_Key = tuple[bytes, str, str, bytes | int]  # source, kind, proto, what all its probes share: the host or the port


class Rules(NamedTuple):
    """How many different ports or hosts within how many seconds make a scan; 0 ports or hosts: never."""

    ports: int = 3
    hosts: int = 10
    window: float = 60.0
    slow_ports: int = 10
    slow_hosts: int = 20
    slow_window: float = 6 * 3600.0
    sources: int = 1 << 18


class _Source:
    """Who knocked at more than one target: when last at each, the latest last."""

    __slots__ = ("last", "running", "seen")

    def __init__(self, last: int, seen: dict[Target, int]) -> None:
        self.last = last
        self.seen = seen
        self.running = 0


@dataclass
class _Running:
    """A scan that goes on. Of `ports` and `hosts` one has only one; many ports are a bit each in `map`."""

    kind: str
    proto: str
    src: bytes
    began: int
    last: int
    slow: bool
    tool: str
    sport: int
    probes: int = 0
    ports: set[int] = field(default_factory=set)
    map: bytearray | None = None
    hosts: set[bytes] = field(default_factory=set)

    def add(self, instant: int, host: bytes, port: int) -> None:
        self.last = instant
        self.probes += 1
        if self.map is not None:
            self.map[port >> 3] |= 1 << (port & 7)
        else:
            self.ports.add(port)
            if len(self.ports) > MOST_PORTS_IN_SET:
                self.map = bytearray(8192)
                for each in self.ports:
                    self.map[each >> 3] |= 1 << (each & 7)
                self.ports = set()
        if len(self.hosts) < MOST_HOSTS:
            self.hosts.add(host)

    def port_ranges(self) -> list[tuple[int, int]]:
        ports: Iterable[int] = sorted(self.ports)
        if self.map is not None:
            ports = (at * 8 + bit for at, byte in enumerate(self.map) if byte for bit in range(8) if byte >> bit & 1)
        found: list[tuple[int, int]] = []
        for port in ports:
            if found and found[-1][1] == port - 1:
                found[-1] = found[-1][0], port
            else:
                found.append((port, port))
        return found

    def told(self, instant: int, window: float, ended: bool) -> Scan:
        ports = self.port_ranges()
        number = sum(high - low + 1 for low, high in ports) if self.kind == "ports" else len(self.hosts)
        if not ended:  # as tcpcap lists them
            ports = [(port, port) for low, high in ports for port in range(low, high + 1)]
        return Scan(
            instant, self.kind, self.proto, self.src, tuple(ports[:MOST_LISTED]),
            tuple(sorted(self.hosts)[:MOST_LISTED]), number, self.probes, self.began, self.last if ended else 0,
            window, self.slow, self.tool, self.sport,
        )  # fmt: skip


def source_key(src: bytes) -> bytes:
    return src if len(src) == 4 else src[:8]


class Detector:
    """Told of each probe; belongs to one thread. `forgotten` sources had to make room for others."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.forgotten = 0
        self._sources: OrderedDict[bytes, tuple[int, Target] | _Source] = OrderedDict()
        self._targets: dict[Target, Target] = {}  # one tuple for all who knock at the same one
        # Those of the short window and of the long one, who was silent longest first.
        self._running: tuple[OrderedDict[_Key, _Running], OrderedDict[_Key, _Running]] = OrderedDict(), OrderedDict()

    def __len__(self) -> int:
        return len(self._sources)

    def probe(self, instant: int, packet: Packet, tool: str) -> list[Scan]:
        """The scans that this probe completes."""
        key = source_key(packet.src)
        target: Target = (packet.proto, packet.dst, packet.dport)
        sources = self._sources
        entry = sources.get(key)
        if entry is None:
            if len(self._targets) > 65536:
                self._targets.clear()
            sources[key] = (instant, self._targets.setdefault(target, target))
            self._forget_old(instant)
            return []
        sources.move_to_end(key)
        if isinstance(entry, tuple):
            if entry[1] == target or instant - entry[0] > self.rules.slow_window * 1e9:
                sources[key] = (instant, target)
                return []
            entry = sources[key] = _Source(instant, {entry[1]: entry[0]})
        entry.last = instant
        if entry.running and self._goes_on(key, instant, target):
            return []
        entry.seen.pop(target, None)
        entry.seen[target] = instant
        if len(entry.seen) > MOST_TARGETS:
            del entry.seen[next(iter(entry.seen))]
        if entry.running >= MOST_RUNNING_OF_SOURCE:
            return []
        return self._look(key, entry, instant, packet, tool)

    def _forget_old(self, instant: int) -> None:
        """Two at most go for each that comes, so that no probe is held up by many."""
        sources = self._sources
        for _ in range(2):
            key, entry = next(iter(sources.items()))
            last = entry[0] if isinstance(entry, tuple) else entry.last
            if len(sources) > self.rules.sources:
                self.forgotten += 1
            elif instant - last <= self.rules.slow_window * 1e9:
                return
            del sources[key]

    def _goes_on(self, key: bytes, instant: int, target: Target) -> bool:
        """Is it one more probe of scans that are known?"""
        proto, host, port = target
        found = False
        for running in self._running:
            for scan_key in ((key, "ports", proto, host), (key, "hosts", proto, port)):
                scan = running.get(scan_key)
                if scan:
                    scan.add(instant, host, port)
                    running.move_to_end(scan_key)
                    found = True
        return found

    def _look(self, key: bytes, entry: _Source, instant: int, packet: Packet, tool: str) -> list[Scan]:
        rules, proto, dst, dport = self.rules, packet.proto, packet.dst, packet.dport
        found: list[Scan] = []
        same = [(target, when) for target, when in entry.seen.items() if target[0] == proto]
        for slow, window, most_ports, most_hosts in (
            (False, rules.window, rules.ports, rules.hosts),
            (True, rules.slow_window, rules.slow_ports, rules.slow_hosts),
        ):
            since = instant - window * 1e9
            ports = {target[2]: when for target, when in same if target[1] == dst and when >= since}
            hosts = {target[1]: when for target, when in same if target[2] == dport and when >= since}
            if most_ports and len(ports) >= most_ports:
                running = _Running("ports", proto, packet.src, min(ports.values()), instant, slow, tool, packet.sport)
                for port, when in ports.items():
                    running.add(when, dst, port)
                found.append(self._begin(key, entry, dst, running, instant, window))
            if most_hosts and len(hosts) >= most_hosts:
                running = _Running("hosts", proto, packet.src, min(hosts.values()), instant, slow, tool, packet.sport)
                for host, when in hosts.items():
                    running.add(when, host, dport)
                found.append(self._begin(key, entry, dport, running, instant, window))
            if found:
                return found
        return found

    def _begin(
        self, key: bytes, entry: _Source, shared: bytes | int, running: _Running, instant: int, window: float
    ) -> Scan:
        running.last = instant
        entry.running += 1
        self._running[running.slow][key, running.kind, running.proto, shared] = running
        return running.told(instant, window, ended=False)

    def ended(self, instant: int) -> list[Scan]:
        """Scans that came to their end before `instant`: silent for a window, or too many others go on."""
        found = []
        for slow, running in enumerate(self._running):
            window = self.rules.slow_window if slow else self.rules.window
            while running:
                key, scan = next(iter(running.items()))
                if instant - scan.last <= window * 1e9 and len(running) <= MOST_RUNNING:
                    break
                del running[key]
                entry = self._sources.get(key[0])
                if isinstance(entry, _Source):
                    entry.running -= 1
                found.append(scan.told(instant, window, ended=True))
        return found

    def all_ended(self, instant: int) -> list[Scan]:
        """The watch ends: so do all."""
        found = []
        for slow, running in enumerate(self._running):
            window = self.rules.slow_window if slow else self.rules.window
            found += [scan.told(instant, window, ended=True) for scan in running.values()]
            running.clear()
        return found
