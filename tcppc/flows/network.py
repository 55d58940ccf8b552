"""IPv4 and IPv6 headers of captures, and the datagrams that came in fragments.

RFC 791, 8200, 5722 (overlapping fragments are an attack, and make no datagram). Every length may lie, and every
fragment may be the only one of a million: both are bounded.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from tcppc.protocols.packet import IPV4

MOST_DATAGRAMS = 4096  # that lack fragments, at once; the oldest go first
MOST_WAITING_BYTES = 64 << 20
MOST_DATAGRAM = 65535 + 40
MOST_EXTENSIONS = 32
_EXTENSIONS = {0, 43, 60, 135, 139, 140}
_FRAGMENT, _AUTHENTICATION = 44, 51
_IP4 = struct.Struct("!BxHHHxBxx4s4s").unpack_from


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
    return Datagram(src, dst, protocol, payload, end - header)


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
    pieces: dict[int, bytes] = field(default_factory=dict)
    size: int = 0  # bytes that came
    end: int = -1  # of the whole, once the last piece came
    bad: bool = False  # pieces overlapped


class Fragments:
    """Datagrams that lack pieces. `overlapping` and `lost` ones are counted."""

    def __init__(self, most: int = MOST_DATAGRAMS, most_bytes: int = MOST_WAITING_BYTES) -> None:
        self.overlapping = 0
        self.lost = 0
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._waiting: OrderedDict[tuple[bytes, bytes, int, int], _Waiting] = OrderedDict()

    def add(self, piece: Fragment) -> Datagram | None:
        """The datagram that is whole with this piece, if one is."""
        waiting = self._waiting.setdefault(piece.key, _Waiting())
        if waiting.pieces.get(piece.offset) == piece.data:
            return None  # the same again
        if waiting.bad or self._overlaps(waiting, piece):
            if not waiting.bad:
                self.overlapping += 1
            self._bytes -= waiting.size
            self._waiting[piece.key] = _Waiting(bad=True)
            self._bounded()
            return None
        waiting.pieces[piece.offset] = piece.data
        waiting.size += len(piece.data)
        self._bytes += len(piece.data)
        if not piece.more:
            waiting.end = piece.offset + len(piece.data)
        if waiting.end < 0 or waiting.size < waiting.end:
            self._bounded()
            return None
        del self._waiting[piece.key]
        self._bytes -= waiting.size
        src, dst, protocol, _ = piece.key
        data = b"".join(waiting.pieces[offset] for offset in sorted(waiting.pieces))
        return Datagram(src, dst, protocol, data, len(data))

    @staticmethod
    def _overlaps(waiting: _Waiting, piece: Fragment) -> bool:
        low, high = piece.offset, piece.offset + len(piece.data)
        if waiting.end >= 0 and (high > waiting.end or not piece.more):
            return True
        if not piece.more and any(offset + len(data) > high for offset, data in waiting.pieces.items()):
            return True
        return any(offset < high and low < offset + len(data) for offset, data in waiting.pieces.items())

    def _bounded(self) -> None:
        while len(self._waiting) > self._most or self._bytes > self._most_bytes:
            _, oldest = self._waiting.popitem(last=False)
            self._bytes -= oldest.size
            self.lost += 1

    def left(self) -> int:
        """Datagrams that never came whole."""
        return self.lost + len(self._waiting)
