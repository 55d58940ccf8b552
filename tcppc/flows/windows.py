"""A plain capture in memory, window by window: where its records are, and what they hold, as columns."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from tcppc.flows import columns
from tcppc.flows.capture_files import MOST_PACKET
from tcppc.flows.columns import Columns, Numbers
from tcppc.flows.libpcap import Filter

WINDOW_PACKETS = 1 << 16
WINDOW_BYTES = 64 << 20
HEADER, RECORD = 24, 16
CUT = "ends within a packet"
_LOOK_PACKETS = 512  # between two looks at how large the window is
_ORDERS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000), b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1), b"\xa1\xb2\x3c\x4d": (">", 1),
}  # fmt: skip


def fits(head: bytes) -> bool:
    """Is it a capture file that can be read so: pcap, not compressed, of a link type that columns.py knows?"""
    if len(head) < HEADER or head[:4] not in _ORDERS:
        return False
    order, _ = _ORDERS[head[:4]]
    return struct.unpack_from(f"{order}I", head, 20)[0] & 0xFFFF in columns.LINKS


class Walk(NamedTuple):
    """Where the records of a window begin, where it ends, what is wrong there, and where its last whole record ends."""

    offsets: Numbers
    after: int
    problem: str
    whole: int


class Window(NamedTuple):
    """A window's packets: where the record of each begins, its instant (ns), bytes that were captured and that were
    sent; and those of them that are plain."""

    at: Numbers
    instants: Numbers
    captured: Numbers
    size: Numbers
    plain: Columns


class Windows:
    """Those of a capture of that form (its first bytes) that is, in whole or in part, in `view`. `wanted` leaves out
    packets."""

    def __init__(self, view: memoryview, head: bytes, wanted: Filter | None = None) -> None:
        self.view = view
        self.end = len(view)
        self._order, self._nanoseconds = _ORDERS[head[:4]]
        self.link = struct.unpack_from(f"{self._order}I", head, 20)[0] & 0xFFFF
        self._wanted = wanted

    def walk(self, at: int) -> Walk:
        """The next window; a record begins there."""
        walk = _walk(self.view, at, self._order)
        return walk._replace(offsets=self._filtered(walk.offsets)) if self._wanted else walk

    def decode(self, at: Numbers) -> Window:
        """The packets whose records begin there."""
        rows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(self.view, np.uint8), RECORD)[at]
        head = rows.view(np.dtype(f"{self._order}u4")).astype(np.int64)
        instants = head[:, 0] * 1_000_000_000 + head[:, 1] * self._nanoseconds
        captured, size = head[:, 2], np.maximum(head[:, 3], head[:, 2])
        return Window(at, instants, captured, size, columns.decode(self.view, at + RECORD, captured, self.link))

    def each(self, at: int, stopped: Callable[[], bool]) -> Iterator[tuple[Walk, Window | None]]:
        """All of them from there on, until it is `stopped`; None: without a packet that is wanted."""
        while at < self.end and not stopped():
            walk = self.walk(at)
            yield walk, self.decode(walk.offsets) if len(walk.offsets) else None
            if walk.problem:
                return
            at = walk.after

    def _filtered(self, offsets: Numbers) -> Numbers:
        assert self._wanted
        sizes = struct.Struct(f"{self._order}II").unpack_from
        base = np.frombuffer(self.view, np.uint8).ctypes.data + RECORD
        wants, found = self._wanted.at, []
        for at in offsets.tolist():
            captured, size = sizes(self.view, at + 8)
            if wants(self.link, ctypes.c_void_p(base + at), captured, max(size, captured)):
                found.append(at)
        return np.array(found, np.int64)


def _walk(memory: memoryview, at: int, order: str) -> Walk:
    captured = struct.Struct(f"{order}I").unpack_from
    lengths: list[int] = []  # where each record's captured length stands: eight bytes behind its begin
    add, place, end, bad = lengths.append, at + 8, len(memory), False
    try:
        while len(lengths) < WINDOW_PACKETS and place - at < WINDOW_BYTES and not bad:
            for _ in range(min(_LOOK_PACKETS, WINDOW_PACKETS)):
                (size,) = captured(memory, place)
                if size > MOST_PACKET:
                    bad = True
                    break
                add(place)
                place += size + RECORD
    except struct.error:  # there is no more
        pass
    offsets, after = np.array(lengths, np.int64) - 8, place - 8
    if bad:
        problem = f"a packet of {size} bytes, which is none; the rest cannot be read"
        return Walk(offsets, after + RECORD, problem, after)
    if after <= end:
        left = end - after
        cut = 0 < left < 12  # too little to tell its length
        problem = f"{CUT}'s header: {left} of 16 bytes" if cut else ""
        return Walk(offsets, end if cut else after, problem, after)
    begin = int(offsets[-1])
    if begin + RECORD > end:
        return Walk(offsets[:-1], end, f"{CUT}'s header: {end - begin} of 16 bytes", begin)
    problem = f"{CUT}: {end - begin - RECORD} of {after - begin - RECORD} bytes"
    return Walk(offsets[:-1], end, problem, begin)
