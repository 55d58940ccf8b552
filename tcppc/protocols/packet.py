"""The headers of one probe: IPv4 or IPv6, then TCP or UDP. Bytes in, values out; what is cut or broken is None.

Layouts: RFC 791, 8200, 9293, 768; ether types are IEEE 802's, VLAN tags 802.1Q's.
"""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from typing import NamedTuple

IPV4, IPV6 = 0x0800, 0x86DD
VLAN = (0x8100, 0x88A8)
TCP, UDP = 6, 17  # IANA's protocol numbers
MOST_TAGS = 3
MOST_EXTENSIONS = 32
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
_LETTERS = "FSRPAUEC"
# Extension headers (RFC 8200 §4) whose length is in units of eight bytes; a fragment's is fixed.
_EXTENSIONS = {0, 43, 60, 135, 139, 140}
_FRAGMENT = 44
_IP4 = struct.Struct("!BxHHHBBxx4s4s").unpack_from
_TCP = struct.Struct("!HHIIBBH").unpack_from
_CUT = struct.Struct("!HHI").unpack_from
_PORTS = struct.Struct("!HH").unpack_from
_OPTIONS = {2: "mss", 3: "ws", 4: "sackok", 5: "sack", 8: "ts", 34: "tfo"}


class Packet(NamedTuple):
    """One probe. `src` and `dst` are packed addresses; `ip_id` is -1 for IPv6; of UDP `flags`, `seq`, `ack`, `window`
    are 0. `options` is where TCP's options are in the bytes that were decoded: (from, to)."""

    proto: str
    src: bytes
    sport: int
    dst: bytes
    dport: int
    flags: int = 0
    ttl: int = 0
    ip_id: int = -1
    seq: int = 0
    ack: int = 0
    window: int = 0
    options: tuple[int, int] = (0, 0)
    dont_fragment: bool = False
    cut: bool = False  # TCP, but its flags are in the next fragment


def decode(data: bytes, kind: int) -> Packet | None:
    """What begins with a header of ether type `kind`, VLAN tags before it or none. None for what is no probe: other
    protocols, later fragments, and what is cut."""
    at = tags = 0
    try:
        while kind in VLAN and tags < MOST_TAGS:
            kind = int.from_bytes(data[at + 2 : at + 4], "big")
            at, tags = at + 4, tags + 1
        if kind in (IPV4, IPV6) and data[at] >> 4 != (4 if kind == IPV4 else 6):
            # Linux from 6.10 on gives a cooked socket the inner ether type where a second tag still stands before it.
            if int.from_bytes(data[at + 2 : at + 4], "big") != kind:
                return None
            at += 4
        if kind == IPV4:
            return _decode4(data, at)
        if kind == IPV6:
            return _decode6(data, at)
    except (struct.error, IndexError):  # cut
        return None
    return None


def _decode4(data: bytes, at: int) -> Packet | None:
    first, size, ip_id, fragment, ttl, protocol, src, dst = _IP4(data, at)
    header = (first & 0x0F) * 4
    if first >> 4 != 4 or header < 20 or fragment & 0x1FFF or size < header:
        return None
    return _inner(data, at + header, protocol, src, dst, ttl, ip_id, bool(fragment & 0x4000), bool(fragment & 0x2000))


def _decode6(data: bytes, at: int) -> Packet | None:
    if data[at] >> 4 != 6:
        return None
    protocol, ttl = data[at + 6], data[at + 7]
    src, dst = data[at + 8 : at + 24], data[at + 24 : at + 40]
    at, more = at + 40, False
    for _ in range(MOST_EXTENSIONS):
        if protocol in _EXTENSIONS:
            protocol, at = data[at], at + 8 + data[at + 1] * 8
        elif protocol == _FRAGMENT:
            if int.from_bytes(data[at + 2 : at + 4], "big") & 0xFFF8:
                return None
            protocol, more, at = data[at], bool(data[at + 3] & 1), at + 8
        else:
            break
    return _inner(data, at, protocol, src, dst, ttl, -1, False, more)


def _inner(
    data: bytes, at: int, protocol: int, src: bytes, dst: bytes, ttl: int, ip_id: int, whole: bool, more: bool
) -> Packet | None:
    if len(dst) != len(src):
        return None
    if protocol == 6 and more and 8 <= len(data) - at < 20:  # a fragment so small that its flags are in the next one
        sport, dport, seq = _CUT(data, at)
        return Packet("tcp", src, sport, dst, dport, 0, ttl, ip_id, seq, dont_fragment=whole, cut=True)
    if protocol == 6:
        sport, dport, seq, ack, offset, flags, window = _TCP(data, at)
        end = at + (offset >> 4) * 4
        options = (at + 20, min(end, len(data)))
        return Packet("tcp", src, sport, dst, dport, flags, ttl, ip_id, seq, ack, window, options, whole)
    if protocol == 17:
        sport, dport = _PORTS(data, at)
        return Packet("udp", src, sport, dst, dport, 0, ttl, ip_id, dont_fragment=whole)
    return None


def options(data: bytes, where: tuple[int, int]) -> list[str]:
    """TCP's options in their order, as mss:1460, sackok, ts, nop, ws:7; what is cut ends the list."""
    at, end = where
    found: list[str] = []
    while at < end:
        kind = data[at]
        if kind == 0:
            return [*found, "eol"]
        if kind == 1:
            found.append("nop")
            at += 1
            continue
        size = data[at + 1] if at + 1 < end else 0
        if size < 2 or at + size > end:
            return [*found, "cut"]
        value = int.from_bytes(data[at + 2 : at + size], "big")
        name = _OPTIONS.get(kind, str(kind))
        found.append(f"{name}:{value}" if kind in (2, 3) else name)
        at += size
    return found


def flag_letters(flags: int) -> str:
    """SYN as S, and so on, as tcpdump has them; empty for none."""
    return "".join(letter for bit, letter in enumerate(_LETTERS) if flags >> bit & 1)


def address(packed: bytes) -> str:
    """A packed address as text, an IPv4-mapped one as IPv4."""
    if len(packed) == 4:
        return "%d.%d.%d.%d" % tuple(packed)  # noqa: UP031 - four times as fast as IPv4Address
    six = IPv6Address(packed)
    return str(six.ipv4_mapped or six)
