"""One thing that may be acted upon, as it was at its moment."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from tcppc.actions.tokens import Values

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Event:
    """`on` is syn, connect, payload, scan or end; `spoofable` where nothing proves that the source sent it. `record`
    makes the record as a line of JSON, and is called at the event's moment or not at all."""

    on: str
    instant: int
    proto: str
    src: str
    sport: int
    dst: str
    dport: int
    session_id: str
    spoofable: bool
    record: Callable[[], str]
    size: int = 0  # how many characters its record may have, at most; 0 for few
    data: bytes = b""
    before: bytes = b""  # what the session said just before `data`
    ports: tuple[tuple[int, int], ...] = ()  # of a scan: all that were touched

    def values(self, stamp: str, sensor: str, listen_port: int, count: int = 1) -> Values:
        """What its tokens become."""
        return Values(
            {
                "SRC_IP": self.src,
                "SRC_PORT": str(self.sport),
                "DEST_IP": self.dst,
                "DEST_PORT": str(self.dport),
                "LISTEN_PORT": str(listen_port or self.dport),
                "PROTO": self.proto,
                "TIMESTAMP": stamp,
                "SESSION_ID": self.session_id,
                "SENSOR": sensor,
                "COUNT": str(count),
            }
        )


def source_bytes(address: str, wide: bool = False) -> bytes:
    """The same as `source`, quickly and in few bytes, to look up by: of one family all are of one length."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)[: 6 if wide else 8]
    return socket.inet_aton(address)[: 3 if wide else 4]


def source(address: str, wide: bool = False) -> Network:
    """Who counts as one source: an IPv4 address or an IPv6 /64; `wide` a /24 or a /48."""
    found = ip_address(address)
    if isinstance(found, IPv6Address):
        return ip_network((found, 48 if wide else 64), strict=False)
    return ip_network((found, 24 if wide else 32), strict=False)
