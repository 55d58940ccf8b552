"""Who holds what of the memory bound: one stranger cannot take what all others need.

Of `limits.memory`, bulk data may use BULK, the first kilobytes of a session FIRST, and the bare record of a session all
of it: so a new session always has its place. Of that, one source (an IPv4 address or an IPv6 /64) has at most a quarter
and its network (/24 or /48) half. A session that would hold more is stowed in the spill file first (spill.py).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

# Numerators of sixteenths of the memory bound.
BULK, FIRST = 12, 15
SOURCE_SHARE = 4
NETWORK_SHARE = 2
# No share is smaller: with a bound so low that this is all of it, there is none.
LEAST_SHARE = 256 << 10
# What a session may hold before it is stowed: while there is room, when half of the bound is used, and when three
# quarters are. The first is large, since most sessions never get there; the last is what a new session always gets.
CEILINGS = (256 << 10, 32 << 10, 4 << 10)
SMALL = CEILINGS[-1]


@dataclass(slots=True, eq=False)
class Network:
    """A /24 of IPv4 or a /48 of IPv6: what its sources have together, and how many sources are known."""

    key: str | bytes
    sessions: int = 0
    held: int = 0
    stowed: int = 0
    sources: int = 0


@dataclass(slots=True, eq=False)
class Source:
    """One source: its open sessions, the bytes it holds in memory, and those in the spill file."""

    key: str | bytes
    network: Network
    sessions: int = 0
    held: int = 0
    stowed: int = 0


def source_key(address: str) -> str | bytes:
    """Who counts as one source: an IPv4 address, or the /64 of an IPv6 address."""
    return socket.inet_pton(socket.AF_INET6, address)[:8] if ":" in address else address


def network_key(key: str | bytes) -> str | bytes:
    """The network of a source: the /24 of an IPv4 address, the /48 of an IPv6 one."""
    return key[:6] if isinstance(key, bytes) else key.rpartition(".")[0]


class Shares:
    """The table of sources and networks that hold something or have open sessions. The books' lock guards it."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._sources: dict[str | bytes, Source] = {}
        self._networks: dict[str | bytes, Network] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def source(self, key: str | bytes) -> Source:
        """The entry of a source, made where there is none; `tidy` removes it."""
        found = self._sources.get(key)
        if found is None:
            of = network_key(key)
            network = self._networks.get(of)
            if network is None:
                network = self._networks[of] = Network(of)
            network.sources += 1
            found = self._sources[key] = Source(key, network)
        return found

    def tidy(self, source: Source) -> None:
        """Forget a source that holds nothing and has no open session."""
        if source.sessions or source.held or source.stowed or self._sources.get(source.key) is not source:
            return
        del self._sources[source.key]
        source.network.sources -= 1
        if not source.network.sources:
            del self._networks[source.network.key]

    def full(self, source: Source, size: int) -> bool:
        """Would `size` bytes more be over the share of this source or its network?"""
        of_source, of_network = self._shares()
        return source.held + size > of_source or source.network.held + size > of_network

    def _shares(self) -> tuple[int, int]:
        return max(LEAST_SHARE, self.memory // SOURCE_SHARE), max(LEAST_SHARE, self.memory // NETWORK_SHARE)

    def ceiling(self, held: int, source: Source | None) -> int:
        """How much one session of this source may hold in memory, while `held` bytes are held by all."""
        used = held / self.memory
        if source:
            used = max(
                used, source.held * SOURCE_SHARE / self.memory, source.network.held * NETWORK_SHARE / self.memory
            )
        return CEILINGS[0 if used < 0.5 else 1 if used < 0.75 else 2]
