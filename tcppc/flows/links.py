"""From a captured frame to its network header: every link type that `tcppc flows` reads.

Numbers and layouts are those of https://www.tcpdump.org/linktypes.html, IEEE 802.3, 802.1Q and 802.11, RFC 1661 and
2516 (PPP, PPPoE) and RFC 3032 (MPLS). What is cut, or carries neither IPv4 nor IPv6, is None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tcppc.protocols.packet import IPV4, IPV6, VLAN

MOST_HEADERS = 8  # tags and labels before the network header
_PPPOE, _MPLS = 0x8864, (0x8847, 0x8848)
_TAGS = (*VLAN, 0x9100, 0x9200)  # with those that were in use before 802.1ad
_PPP_PROTOCOLS = {0x0021: IPV4, 0x0057: IPV6}
_LLC_IP = b"\x06\x06\x03"
_SNAP = b"\xaa\xaa\x03\x00\x00\x00"
# Of the BSDs' loopback: AF_INET, and AF_INET6 of each of them.
_NONE = 0xFFFF  # an ether type of nothing
_FAMILIES = {2: IPV4, 10: IPV6, 24: IPV6, 28: IPV6, 30: IPV6}


class Frame(NamedTuple):
    """`kind` is IPv4's or IPv6's ether type, `at` where its header begins; `vlan` the outer tag's number, or -1."""

    kind: int
    at: int
    vlan: int = -1
    src_mac: bytes = b""
    dst_mac: bytes = b""


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _behind(data: bytes, kind: int, at: int, src: bytes = b"", dst: bytes = b"") -> Frame | None:
    """The network header behind tags, labels and PPPoE, of which `kind` is the first's ether type."""
    vlan = -1
    for _ in range(MOST_HEADERS):
        if kind in (IPV4, IPV6):
            return Frame(kind, at, vlan, src, dst) if at < len(data) else None
        if kind in _TAGS and len(data) >= at + 4:
            vlan = _number(data, at) & 0x0FFF if vlan < 0 else vlan
            kind, at = _number(data, at + 2), at + 4
        elif kind in _MPLS and len(data) >= at + 4:
            last = data[at + 2] & 1
            at += 4
            if last:  # what follows says itself what it is
                kind = {4: IPV4, 6: IPV6}.get(data[at] >> 4, _NONE) if at < len(data) else _NONE
        elif kind == _PPPOE and len(data) >= at + 8:
            kind, at = _ppp_protocol(data, at + 6)
        elif kind < 0x0600:  # a length (IEEE 802.3): LLC follows
            if data[at : at + 6] == _SNAP:
                kind, at = _number(data, at + 6), at + 8
            elif data[at : at + 3] == _LLC_IP:
                kind, at = IPV4, at + 3
            else:
                return None
        else:
            return None
    return None


def _ethernet(data: bytes) -> Frame | None:
    if len(data) < 14:
        return None
    return _behind(data, _number(data, 12), 14, data[6:12], data[:6])


def _null(data: bytes) -> Frame | None:
    """The host's own byte order, whichever that was."""
    little, big = int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")
    kind = _FAMILIES.get(little) or _FAMILIES.get(big, 0)
    return _behind(data, kind or _NONE, 4)


def _raw(data: bytes) -> Frame | None:
    kind = {4: IPV4, 6: IPV6}.get(data[0] >> 4) if data else None
    return Frame(kind, 0) if kind else None


def _ppp(data: bytes) -> Frame | None:
    at = 2 if data[:2] == b"\xff\x03" else 0  # address and control may be left out
    return _behind(data, *_ppp_protocol(data, at))


def _ppp_protocol(data: bytes, at: int) -> tuple[int, int]:
    """(ether type, where what it is of begins); its first byte may be left out where it is 0 (RFC 1661 §6.5)."""
    if data[at : at + 1] and data[at] & 1:
        return _PPP_PROTOCOLS.get(data[at], _NONE), at + 1
    return _PPP_PROTOCOLS.get(_number(data, at), _NONE), at + 2


def _sll(data: bytes) -> Frame | None:
    """Linux's cooked capture: of an address of eight bytes, as many as it has."""
    if len(data) < 16:
        return None
    size = min(_number(data, 4), 8)
    return _behind(data, _number(data, 14), 16, data[6 : 6 + size])


def _sll2(data: bytes) -> Frame | None:
    if len(data) < 20:
        return None
    size = min(data[11], 8)
    return _behind(data, _number(data, 0), 20, data[12 : 12 + size])


def _wireless(data: bytes, padded: bool = False) -> Frame | None:
    """A data frame that is not encrypted; LLC and SNAP say what it carries. `padded`: its header to four bytes."""
    if len(data) < 24 or data[0] & 0x0C != 0x08 or data[0] & 0x40 or data[1] & 0x40:
        return None
    to_system, from_system = data[1] & 1, data[1] & 2
    at = 24 + (6 if to_system and from_system else 0) + (2 if data[0] & 0x80 else 0)
    if data[0] & 0x80 and data[1] & 0x80:
        at += 4  # HT control
    if padded:
        at += -at % 4
    if data[at : at + 6] != _SNAP:
        return None
    dst = data[16:22] if to_system else data[4:10]
    src = data[10:16] if not from_system else data[24:30] if to_system else data[16:22]
    return _behind(data, _number(data, at + 6), at + 8, src, dst)


def _radiotap(data: bytes) -> Frame | None:
    size = int.from_bytes(data[2:4], "little")
    if len(data) < 8 or size < 8:
        return None
    found = _wireless(data[size:], _padded(data))
    return found._replace(at=found.at + size) if found else None


def _padded(data: bytes) -> bool:
    """What radiotap's flags say, which stand behind its words of presence and a time of eight bytes, where that is."""
    present = int.from_bytes(data[4:8], "little")
    if not present & 2:
        return False
    at = 8
    while data[at - 1] & 0x80:  # another word of presence follows
        at += 4
        if at > len(data):
            return False
    if present & 1:  # aligned to its own size
        at += -at % 8 + 8
    return bool(data[at : at + 1]) and bool(data[at] & 0x20)


# By LINKTYPE_ number, with its name; those of DLT_ that captures have in the field too (12, 14 are raw IP's).
LINKS: dict[int, tuple[str, Callable[[bytes], Frame | None]]] = {
    0: ("null", _null),
    1: ("Ethernet", _ethernet),
    9: ("PPP", _ppp),
    50: ("PPP", _ppp),
    12: ("raw IP", _raw),
    14: ("raw IP", _raw),
    101: ("raw IP", _raw),
    105: ("802.11", _wireless),
    108: ("loop", _null),
    113: ("Linux cooked", _sll),
    127: ("802.11 with radiotap", _radiotap),
    228: ("IPv4", _raw),
    229: ("IPv6", _raw),
    276: ("Linux cooked v2", _sll2),
}


def frame(link: int, data: bytes) -> Frame | None:
    """Where the network header of a captured frame is; None where there is none, or its link type is not known."""
    known = LINKS.get(link)
    return known[1](data) if known else None
