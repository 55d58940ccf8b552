"""A scan that goes on: what it has touched so far, and what that costs in memory."""

from __future__ import annotations

from collections.abc import Iterable

from tcppc.sightings import MOST_LISTED, Scan

# Of one port scan; more of them are a map of a bit each. A set of 76 costs 4.5 kB, of 77 twice that: its table grows.
MOST_PORTS_IN_SET = 76
MAP_BYTES = 8192
MOST_HOSTS = 4096  # different ones counted in one sweep
# Without its set: the object with its slots and numbers, its keys, the table of its source and its places in all of
# them (tracemalloc on CPython 3.11 says 1,060 where each source has one), rounded up.
CHARGE = 1280
_PORT_BYTES = 32
_HOST_BYTES = {4: 48, 16: 64}  # by the length of an address: a bytes object, as malloc rounds it


class Running:
    """Many ports of the host `same`, or many hosts of the port `same`. `cost` is what it is charged with."""

    __slots__ = (
        "_each", "_many", "_map", "began", "cost", "kind", "last", "probes", "proto", "same", "slow", "sport", "src",
        "tool",
    )  # fmt: skip

    def __init__(
        self,
        kind: str,
        proto: str,
        src: bytes,
        sport: int,
        tool: str,
        slow: bool,
        same: bytes | int,
        found: Iterable[tuple[int, int | bytes]],
        instant: int,
    ) -> None:
        self.kind, self.proto, self.src, self.sport, self.tool, self.slow = kind, proto, src, sport, tool, slow
        self.same = same
        seen = list(found)
        self.began = min([when for when, _ in seen])
        self.last = instant
        self.probes = len(seen)
        self._many: set[int | bytes] = {each for _, each in seen}
        self._map: bytearray | None = None
        self._each = _PORT_BYTES if kind == "ports" else _HOST_BYTES[len(src)]
        self.cost = self.measured()

    def measured(self) -> int:
        """What it costs now."""
        if self._map is not None:
            return CHARGE + MAP_BYTES
        return CHARGE + self._many.__sizeof__() + self._each * len(self._many)

    def add(self, instant: int, one: int | bytes) -> int:
        """One probe more, at this port or host; returns how many bytes more it costs with it. What can fail for want of
        memory comes before what cannot."""
        more = 0
        if self._map is not None:
            assert isinstance(one, int)
            self._map[one >> 3] |= 1 << (one & 7)
        else:
            many = self._many
            number = len(many)
            if number < MOST_HOSTS:
                many.add(one)
                if len(many) != number:
                    if number >= MOST_PORTS_IN_SET and self.kind == "ports":
                        self._to_map()
                    more = self.measured() - self.cost
        self.probes += 1
        self.last = instant
        return more

    def _to_map(self) -> None:
        made = bytearray(MAP_BYTES)
        for port in self._many:
            assert isinstance(port, int)
            made[port >> 3] |= 1 << (port & 7)
        self._map = made
        self._many = set()

    def _ports(self) -> list[tuple[int, int]]:
        """As ranges."""
        ports: Iterable[int] = sorted(port for port in self._many if isinstance(port, int))
        if self._map is not None:
            ports = (at * 8 + bit for at, byte in enumerate(self._map) if byte for bit in range(8) if byte >> bit & 1)
        found: list[tuple[int, int]] = []
        for port in ports:
            if found and found[-1][1] == port - 1:
                found[-1] = found[-1][0], port
            else:
                found.append((port, port))
        return found

    def told(self, instant: int, window: float, ended: bool) -> Scan:
        """As it is now."""
        if isinstance(self.same, int):
            ports, hosts = [(self.same, self.same)], sorted(each for each in self._many if isinstance(each, bytes))
            number = len(hosts)
        else:
            ports, hosts = self._ports(), [self.same]
            number = sum(high - low + 1 for low, high in ports)
        if not ended:  # as tcpcap lists them
            ports = [(port, port) for low, high in ports for port in range(low, high + 1)]
        return Scan(
            instant, self.kind, self.proto, self.src, tuple(ports[:MOST_LISTED]), tuple(hosts[:MOST_LISTED]), number,
            self.probes, self.began, self.last if ended else 0, window, self.slow, self.tool, self.sport,
        )  # fmt: skip
