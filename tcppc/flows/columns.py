"""The plain packets of a capture, all at once: their headers as arrays.

Plain is what nearly all packets are: Ethernet or Linux cooked with one VLAN tag at most, or raw IP; IPv4 whose header
has no options, or IPv6 without extension headers; TCP, whole by itself. All others are left to engine.py, packet by
packet; what stands here for a plain one is what that finds of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tcppc.protocols.packet import IPV4, IPV6, TCP

Numbers = NDArray[Any]
_TAG, _TAG_SIZE = 0x8100, 4  # IEEE 802.1Q
_HEADERS = 40  # bytes of a plain packet's headers that are looked at: IPv4's and TCP's, or IPv6's
_TCP_HEADER = 20

# IPv4 (RFC 791) with TCP (RFC 9293), and IPv6 (RFC 8200), byte by byte.
_TCP_LAYOUT = [
    ("sport", ">u2"), ("dport", ">u2"), ("seq", ">u4"), ("ack", ">u4"), ("offset", "u1"), ("flags", "u1"),
    ("rest", "V6"),
]  # fmt: skip
_TCP = np.dtype(_TCP_LAYOUT)
_IPV4 = np.dtype(
    [
        ("version", "u1"), ("service", "u1"), ("total", ">u2"), ("id", ">u2"), ("fragment", ">u2"), ("ttl", "u1"),
        ("protocol", "u1"), ("checksum", ">u2"), ("src", ">u4"), ("dst", ">u4"), *_TCP_LAYOUT,
    ]
)  # fmt: skip
_IPV6 = np.dtype(
    [
        ("version", ">u4"), ("length", ">u2"), ("protocol", "u1"), ("hops", "u1"), ("src_high", ">u8"),
        ("src", ">u8"), ("dst_high", ">u8"), ("dst", ">u8"),
    ]
)  # fmt: skip


class _Link(NamedTuple):
    """Offsets within a frame: the network header, the ether type (none: what is there says itself what it is), the MAC
    addresses, and bytes that have to have these values."""

    size: int
    kind: int = -1
    src: int = -1
    dst: int = -1
    has: tuple[tuple[int, int], ...] = ()


# By LINKTYPE_ number, as links.py reads them; of Linux cooked, those of interfaces with addresses of six bytes.
LINKS = {
    1: _Link(14, 12, 6, 0),
    113: _Link(16, 14, 6, -1, ((4, 0), (5, 6))),
    276: _Link(20, 0, 12, -1, ((11, 6),)),
    **dict.fromkeys((12, 14, 101, 228, 229), _Link(0)),
}
_NOT_6 = -1  # the upper half of what is an IPv4 address


@dataclass(frozen=True, eq=False, repr=False)
class Columns:
    """One entry a plain packet, in the capture's order. `index` is its number among all packets given, `at` where its
    payload begins in the buffer, `held` how much of it is there and `size` how much was sent. Addresses of IPv4 are
    `src` and `dst`, with -1 in `src_high` and `dst_high`; of IPv6 there are two halves. `vlan` is -1 for none."""

    index: Numbers
    src: Numbers
    sport: Numbers
    dst: Numbers
    dport: Numbers
    seq: Numbers
    flags: Numbers
    at: Numbers
    held: Numbers
    size: Numbers
    src_high: Numbers
    dst_high: Numbers
    vlan: Numbers

    def __len__(self) -> int:
        return len(self.index)

    def only(self, mask: Numbers) -> Columns:
        """Those of them where the mask is true, or with these numbers."""
        which = np.flatnonzero(mask) if mask.dtype == bool else mask  # which is the faster way to many columns
        return Columns(*(column[which] for column in vars(self).values()))


def decode(buffer: Any, at: Numbers, captured: Numbers, link: int) -> Columns:
    """The plain ones among packets that begin at `at` in `buffer`, `captured` bytes each."""
    known = LINKS[link]
    index = np.flatnonzero(captured >= known.size + _HEADERS)
    begin, held = at[index].astype(np.int64), captured[index].astype(np.int64) - known.size
    rows = _rows(np.frombuffer(buffer, np.uint8), begin, known.size + _TAG_SIZE + _HEADERS)
    headers, vlan = rows[:, known.size : known.size + _HEADERS], np.full(len(index), -1, np.int16)
    begin += known.size
    if known.kind < 0:
        kind = np.where(headers[:, 0] >> 4 == 4, IPV4, IPV6)
    else:
        kind = _number(rows, known.kind)
        tagged = (kind == _TAG) & (held >= _TAG_SIZE + _HEADERS)
        if tagged.any():
            headers = headers.copy()
            headers[tagged] = rows[tagged, known.size + _TAG_SIZE :]
            vlan[tagged] = _number(rows[tagged], known.size) & 0x0FFF
            kind[tagged] = _number(rows[tagged], known.size + 2)
            held, begin = held - tagged * _TAG_SIZE, begin + tagged * _TAG_SIZE
    for place, value in known.has:
        kind = np.where(rows[:, place] == value, kind, 0)
    four, six = np.flatnonzero(kind == IPV4), np.flatnonzero(kind == IPV6)
    if len(four) == len(index):
        return _four(headers, begin, held, index, vlan)
    found = _four(headers[four], begin[four], held[four], index[four], vlan[four])
    if not len(six):
        return found
    rows = _rows(np.frombuffer(buffer, np.uint8), begin[six] + _HEADERS, _TCP_HEADER)
    other = _six(headers[six], rows, begin[six], held[six], index[six], vlan[six])
    if not len(other):
        return found
    names = Columns.__dataclass_fields__
    both = Columns(*(np.concatenate((getattr(found, name), getattr(other, name))) for name in names))
    return both.only(np.argsort(both.index))


def macs(buffer: Any, at: Numbers, link: int) -> list[bytes]:
    """Of frames that begin at `at`: the source's address and, where there is one, the destination's."""
    known = LINKS[link]
    places = [place + each for place in (known.src, known.dst) if place >= 0 for each in range(6)]
    if not places:
        return [b""] * len(at)
    rows = np.ascontiguousarray(_rows(np.frombuffer(buffer, np.uint8), at, known.size)[:, places])
    found: list[bytes] = rows.view(f"V{len(places)}")[:, 0].tolist()
    return found


def is_ipv4(packets: Columns) -> Numbers:
    """Which of them are?"""
    four: Numbers = packets.src_high == _NOT_6
    return four


def packed(low: Numbers, high: Numbers) -> list[bytes]:
    """Addresses as they stand in packets."""
    found: list[bytes] = low.astype(">u4").view("V4").tolist()
    six = np.flatnonzero(high != _NOT_6)
    halves = np.ascontiguousarray(np.stack((high[six], low[six]), axis=1).astype(">u8"))
    for number, address in zip(six.tolist(), halves.view("V16")[:, 0].tolist(), strict=True):
        found[number] = address
    return found


def _rows(data: Numbers, begin: Numbers, size: int) -> Numbers:
    """`size` bytes from each of those places on; zeros behind the end. Rows of bytes first, then fields: ten times as
    fast as a gather of each field's bytes."""
    last = len(data) - size
    if last < 0:
        data, last = np.concatenate((data, np.zeros(-last, np.uint8))), 0
    rows: Numbers = np.lib.stride_tricks.sliding_window_view(data, size)[np.minimum(begin, last)]
    for number in np.flatnonzero(begin > last).tolist():
        there = data[begin[number] :]
        rows[number], rows[number, : len(there)] = 0, there
    return rows


def _number(rows: Numbers, at: int) -> Numbers:
    return rows[:, at].astype(np.int32) << 8 | rows[:, at + 1]


def _four(headers: Numbers, begin: Numbers, there: Numbers, index: Numbers, vlan: Numbers) -> Columns:
    head = headers.view(_IPV4)[:, 0]
    total = head["total"].astype(np.int64)
    # An IP length of 0 is the card's that cuts it later: what was captured is what there is.
    end = np.where(total == 0, there, total) - 20
    plain = (head["version"] == 0x45) & (head["protocol"] == TCP) & (head["fragment"] & 0x3FFF == 0)
    none = np.full(len(index), _NOT_6, np.int8)
    return _columns(head, head, begin + 20, end, np.minimum(end, there - 20), plain, index, vlan, (none, none))


def _six(headers: Numbers, rows: Numbers, begin: Numbers, there: Numbers, index: Numbers, vlan: Numbers) -> Columns:
    head = headers.view(_IPV6)[:, 0]
    length, there = head["length"].astype(np.int64), there - 40
    end = np.where(length == 0, there, length)
    high = (head["src_high"].astype(np.int64), head["dst_high"].astype(np.int64))
    plain = (head["version"] >> 28 == 6) & (head["protocol"] == TCP) & (there >= _TCP_HEADER)
    plain &= (high[0] != _NOT_6) & (high[1] != _NOT_6)
    return _columns(head, rows.view(_TCP)[:, 0], begin + 40, end, np.minimum(end, there), plain, index, vlan, high)


def _columns(
    ip: Numbers, tcp: Numbers, begin: Numbers, size: Numbers, held: Numbers, plain: Numbers, index: Numbers,
    vlan: Numbers, high: tuple[Numbers, Numbers],
) -> Columns:  # fmt: skip
    """Those that are `plain`, with whole TCP headers, of which `size` bytes from `begin` on were sent, and are there as
    many as are `held`."""
    header = (tcp["offset"].astype(np.int64) >> 4) * 4
    found = Columns(
        index, _int64(ip["src"]), _int64(tcp["sport"]), _int64(ip["dst"]), _int64(tcp["dport"]), _int64(tcp["seq"]),
        _int64(tcp["flags"]), begin + header, held - header, size - header, *high, vlan,
    )  # fmt: skip
    return found.only(plain & (header >= _TCP_HEADER) & (found.held >= 0))


def _int64(numbers: Numbers) -> Numbers:
    return numbers.astype(np.int64)
