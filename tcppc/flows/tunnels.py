"""Packets within packets: IP in IP, GRE and VXLAN, one step at a time.

RFC 2003 and 4213 (IP in IP), 2784 and 2890 (GRE), 7348 (VXLAN). What is not a tunnel, or not one of IP, is None.
"""

from __future__ import annotations

from tcppc.flows import links
from tcppc.flows.network import Datagram
from tcppc.protocols.packet import IPV4, IPV6, UDP

_IP_IN_IP = {4: IPV4, 41: IPV6}
_GRE = 47
_VXLAN_PORT = 4789
_BRIDGED = 0x6558  # GRE's protocol for Ethernet frames


# Ether type, what follows, the frame around it where it has one of its own, and what tells this tunnel from others.
Inner = tuple[int, bytes, links.Frame | None, bytes]


def inner(datagram: Datagram) -> Inner | None:
    """What a tunnel's packet carries. Addresses may be used again in another tunnel: they are told apart by the hosts
    at its ends and the number it has."""
    found: tuple[int, bytes, links.Frame | None] | None = None
    number = b""
    if kind := _IP_IN_IP.get(datagram.protocol):
        found = kind, datagram.data, None
    elif datagram.protocol == _GRE:
        found, number = _gre(datagram.data), _gre_key(datagram.data)
    elif datagram.protocol == UDP and int.from_bytes(datagram.data[2:4], "big") == _VXLAN_PORT:
        found, number = _vxlan(datagram.data[8:]), datagram.data[12:15]
    if found is None:
        return None
    ends = sorted((datagram.src, datagram.dst))
    return (*found, b"".join([*ends, bytes([datagram.protocol]), number]))


def _gre_key(data: bytes) -> bytes:
    at = 8 if data[:1] and data[0] & 0x80 else 4
    return data[at : at + 4] if data[:1] and data[0] & 0x20 else b""


def _gre(data: bytes) -> tuple[int, bytes, links.Frame | None] | None:
    if len(data) < 4 or data[1] & 7:  # version 1 carries PPP for PPTP
        return None
    flags, kind = data[0], int.from_bytes(data[2:4], "big")
    at = 4 + 4 * sum(flags & bit != 0 for bit in (0x80, 0x20, 0x10))  # checksum, key, sequence number
    if kind in (IPV4, IPV6):
        return kind, data[at:], None
    return _frame(data[at:]) if kind == _BRIDGED else None


def _vxlan(data: bytes) -> tuple[int, bytes, links.Frame | None] | None:
    return _frame(data[8:]) if len(data) >= 8 and data[0] & 0x08 else None


def _frame(data: bytes) -> tuple[int, bytes, links.Frame | None] | None:
    found = links.frame(1, data)
    return (found.kind, data[found.at :], found) if found else None
