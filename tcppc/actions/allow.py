"""Who is never acted upon: the networks of `allow`, and this host itself, its gateways and its resolvers."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from tcppc.actions.event import Network, source
from tcppc.watch import own

# The answer for one source is kept; beyond so many all are forgotten.
MOST_REMEMBERED = 1 << 16
_NOBODY = "it is no address of the internet"


class Allowed:
    """`look` finds this host's surroundings anew. Asked for each event: most addresses are told by a set or two."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks = tuple(networks)
        self._around: dict[bytes, str] = {}  # packed IPv4 addresses and IPv6 /64s
        self._known: dict[str, str] = {}

    def look(self) -> None:
        """At addresses, routes and name servers, which may change while the sensor runs."""
        around = {}
        for packed in own.addresses() | own.gateways() | own.resolvers():
            text = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
            around[packed if len(packed) == 4 else packed[:8]] = text
        self._around, self._known = around, {}

    def why(self, address: str) -> str:
        """Why this source is left alone; empty where it is not."""
        known = self._known
        found = known.get(address)
        if found is None:  # others may ask, and clear, at the same time
            found = self._why(address)
            if len(known) >= MOST_REMEMBERED:
                known.clear()
            known[address] = found
        return found

    def _why(self, address: str) -> str:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        if _is_nobody(packed):
            return _NOBODY
        if near := self._around.get(packed if len(packed) == 4 else packed[:8]):
            return f"{near} is this host's own, its gateway or its resolver"
        if self._networks:
            block = source(address)
            for network in self._networks:
                if network.version == block.version and network.overlaps(block):
                    return f"{network} is in allow"
        return ""


def _is_nobody(packed: bytes) -> bool:
    """Loopback, link-local, multicast, unspecified (RFC 6890)."""
    if len(packed) == 4:
        return packed[0] in (0, 127) or packed[0] >= 224 or packed[:2] == b"\xa9\xfe"
    return packed[:15] == bytes(15) or packed[0] == 0xFF or (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80)
