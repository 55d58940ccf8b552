"""Who is never acted upon: the networks of `allow`, and this host itself, its gateways and its resolvers."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from tcppc.actions.event import Network, source
from tcppc.watch import own

# The answer for one source is kept; beyond so many all are forgotten.
MOST_REMEMBERED = 1 << 16


class Allowed:
    """`look` finds this host's surroundings anew."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks = tuple(networks)
        self._around: tuple[Network, ...] = ()
        self._known: dict[str, str] = {}

    def look(self) -> None:
        """At addresses, routes and name servers, which may change while the sensor runs."""
        packed = own.addresses() | own.gateways() | own.resolvers()
        self._around = tuple(sorted((ip_network(each) for each in packed), key=str))
        self._known = {}

    def why(self, address: str) -> str:
        """Why this source is left alone; empty where it is not."""
        known = self._known
        if address not in known:
            if len(known) >= MOST_REMEMBERED:
                known.clear()
            known[address] = self._why(address)
        return known[address]

    def _why(self, address: str) -> str:
        found = ip_address(address)
        if found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified:
            return "it is no address of the internet"
        block = source(address)
        for network in self._networks:
            if network.version == block.version and network.overlaps(block):
                return f"{network} is in allow"
        for network in self._around:
            if network.version == block.version and network.overlaps(block):
                return f"{network.network_address} is this host's own, its gateway or its resolver"
        return ""
