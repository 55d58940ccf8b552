"""IPv4 and IPv6 headers of captures, and the datagrams that came in fragments.

RFC 791, 8200, 5722 (overlapping fragments are an attack, and make no datagram). Every length may lie, and every
fragment may be the only one of a million: both are bounded.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from tcppc.protocols.packet import IPV4

MOST_DATAGRAMS = 4096  # that lack fragments, at once; the oldest go first
MOST_WAITING_BYTES = 64 << 20
MOST_DATAGRAM = 65535 + 40
MOST_EXTENSIONS = 32
PIECE_COST = 200  # bytes of memory that a piece takes beside its own
TIMEOUT_NS = 60 * 10**9  # RFC 8200 §4.5: what has not come by then is of no use
_EXTENSIONS = {0, 43, 60, 135, 139, 140}
_FRAGMENT, _AUTHENTICATION = 44, 51
_IP4 = struct.Struct("!BxHHHxBxx4s4s").unpack_from


_Key = tuple[int, bytes, bytes, int, int]


class Datagram(NamedTuple):
    """`data` is what follows the IP headers, `size` how much was sent of it: more where the capture is cut."""

    src: bytes
    dst: bytes
    protocol: int
    data: bytes
    size: int


class Fragment(NamedTuple):
    """A piece of one, at `offset`, with `more` to come; `key` is what all its pieces share."""

    key: tuple[bytes, bytes, int, int]
    offset: int
    more: bool
    data: bytes


def parse(kind: int, data: bytes) -> Datagram | Fragment | None:
    """What a network header of ether type `kind` begins; None for what is none, or is cut within its headers."""
    try:
        return _parse4(data) if kind == IPV4 else _parse6(data)
    except (struct.error, IndexError):
        return None


def _parse4(data: bytes) -> Datagram | Fragment | None:
    first, total, number, fragment, protocol, src, dst = _IP4(data)
    header = (first & 0x0F) * 4
    if first >> 4 != 4 or header < 20 or len(data) < header:
        return None
    end = total or len(data)  # 0: the card will cut it into packets (segmentation offload)
    if end < header:
        return None
    payload = data[header : min(end, len(data))]
    if fragment & 0x3FFF:
        return _piece(
            (src, dst, protocol, number), (fragment & 0x1FFF) * 8, bool(fragment & 0x2000), payload, end - header
        )
    return _authenticated(src, dst, protocol, payload, end - header)


def _authenticated(src: bytes, dst: bytes, protocol: int, data: bytes, size: int) -> Datagram | None:
    """Behind the header of RFC 4302, where it has one."""
    at = 0
    if protocol == _AUTHENTICATION:
        protocol, at = data[0], 8 + data[1] * 4
        if at > len(data):
            return None
    return Datagram(src, dst, protocol, data[at:], size - at)


def _parse6(data: bytes) -> Datagram | Fragment | None:
    if data[0] >> 4 != 6 or len(data) < 40:
        return None
    length, following = int.from_bytes(data[4:6], "big"), data[6]
    src, dst = data[8:24], data[24:40]
    end = 40 + length if length else len(data)  # 0: a jumbogram, or segmentation offload
    at = 40
    for _ in range(MOST_EXTENSIONS):
        if following in _EXTENSIONS:
            following, at = data[at], at + 8 + data[at + 1] * 8
        elif following == _AUTHENTICATION:
            following, at = data[at], at + 8 + data[at + 1] * 4
        elif following == _FRAGMENT:
            field_, number = struct.unpack_from("!HI", data, at + 2)
            protocol, at = data[at], at + 8
            if not field_ & 0xFFF9:  # whole by itself (RFC 6946)
                following = protocol
                continue
            payload = data[at : min(end, len(data))]
            return _piece((src, dst, protocol, number), field_ & 0xFFF8, bool(field_ & 1), payload, end - at)
        else:
            break
    if at > min(end, len(data)):
        return None
    return Datagram(src, dst, following, data[at : min(end, len(data))], end - at)


def _piece(key: tuple[bytes, bytes, int, int], offset: int, more: bool, data: bytes, size: int) -> Fragment | None:
    """None for one that the capture has cut: what it lacks cannot be put together."""
    if len(data) < size or (more and size % 8) or offset + size > MOST_DATAGRAM:
        return None
    return Fragment(key, offset, more, data)


@dataclass
class _Waiting:
    """A datagram that lacks pieces. `offsets` are in order, `ends` where each piece's bytes end."""

    since: int
    offsets: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0  # bytes that came
    end: int = -1  # of the whole, once the last piece came
    bad: bool = False  # pieces overlapped

    @property
    def cost(self) -> int:
        return self.size + PIECE_COST * len(self.pieces)


class Fragments:
    """Datagrams that lack pieces. `overlapping` and `lost` ones are counted."""

    def __init__(self, most: int = MOST_DATAGRAMS, most_bytes: int = MOST_WAITING_BYTES) -> None:
        self.overlapping = 0
        self.lost = 0
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._waiting: OrderedDict[_Key, _Waiting] = OrderedDict()

    def add(self, piece: Fragment, instant: int = 0, vlan: int = -1) -> Datagram | None:
        """The datagram that is whole with this piece, if one is. `instant` (ns) is when it was captured; pieces of
        different VLANs are of different datagrams."""
        if not piece.data:
            return None
        key = (vlan, *piece.key)
        waiting = self._waiting.get(key)
        if waiting and abs(instant - waiting.since) > TIMEOUT_NS:
            self._forget(key)
            waiting = None
        if waiting is None:
            waiting = self._waiting[key] = _Waiting(instant)
        place = bisect_left(waiting.offsets, piece.offset)
        if place < len(waiting.offsets) and waiting.offsets[place] == piece.offset:
            if waiting.pieces[place] == piece.data:
                return None  # the same again
            waiting.bad = True
        if waiting.bad or self._overlaps(waiting, piece, place):
            self._spoil(waiting)
            self._bounded()
            return None
        self._bytes -= waiting.cost
        waiting.offsets.insert(place, piece.offset)
        waiting.pieces.insert(place, piece.data)
        waiting.size += len(piece.data)
        self._bytes += waiting.cost
        if not piece.more:
            waiting.end = piece.offset + len(piece.data)
        if waiting.end < 0 or waiting.size < waiting.end:
            self._bounded()
            return None
        del self._waiting[key]
        self._bytes -= waiting.cost
        src, dst, protocol, _ = piece.key
        return _whole(src, dst, protocol, b"".join(waiting.pieces))

    @staticmethod
    def _overlaps(waiting: _Waiting, piece: Fragment, place: int) -> bool:
        """With those beside its place, or with what is known of the end."""
        offsets, pieces = waiting.offsets, waiting.pieces
        low, high = piece.offset, piece.offset + len(piece.data)
        if waiting.end >= 0 and (high > waiting.end or not piece.more):
            return True
        if not piece.more and offsets and offsets[-1] + len(pieces[-1]) > high:
            return True
        if place and offsets[place - 1] + len(pieces[place - 1]) > low:
            return True
        return place < len(offsets) and offsets[place] < high

    def _spoil(self, waiting: _Waiting) -> None:
        """None of its pieces makes a datagram, nor one that comes yet (RFC 5722)."""
        if waiting.pieces or not waiting.bad:
            self.overlapping += 1
        self._bytes -= waiting.cost
        waiting.bad = True
        waiting.offsets, waiting.pieces, waiting.size, waiting.end = [], [], 0, -1

    def _forget(self, key: _Key) -> None:
        waiting = self._waiting.pop(key)
        self._bytes -= waiting.cost
        self.lost += not waiting.bad

    def _bounded(self) -> None:
        while len(self._waiting) > self._most or self._bytes > self._most_bytes:
            self._forget(next(iter(self._waiting)))

    def left(self) -> int:
        """Datagrams that never came whole."""
        return self.lost + sum(not waiting.bad for waiting in self._waiting.values())


def _whole(src: bytes, dst: bytes, protocol: int, data: bytes) -> Datagram | None:
    """What was put together; of IPv6, extension headers may stand before the payload there too."""
    if len(src) == 4:
        return Datagram(src, dst, protocol, data, len(data))
    at = 0
    try:
        for _ in range(MOST_EXTENSIONS):
            if protocol in _EXTENSIONS:
                protocol, at = data[at], at + 8 + data[at + 1] * 8
            elif protocol == _AUTHENTICATION:
                protocol, at = data[at], at + 8 + data[at + 1] * 4
            else:
                break
    except IndexError:
        return None
    return Datagram(src, dst, protocol, data[at:], len(data) - at) if at <= len(data) else None
