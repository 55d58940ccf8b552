"""The forms of captures that are read many packets at once: pcap, and pcapng as most programs write it.

draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng. All else, and what is odd in these, is left to capture_files.py.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from tcppc.flows import capture_files, columns, windows
from tcppc.flows.capture_files import LATEST, MOST_BLOCK, MOST_PACKET, Blocks, Interface
from tcppc.flows.columns import Numbers
from tcppc.flows.libpcap import Filter
from tcppc.flows.windows import CUT, LOOK_PACKETS, Walk, Windows

_HEADER = 24  # of a pcap file
_ORDERS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000), b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1), b"\xa1\xb2\x3c\x4d": (">", 1),
}  # fmt: skip
_LARGE_PACKET = 0xFFFF  # bytes: after each larger one it is looked how large the window is
_UNITS = {10**power: 10 ** (9 - power) for power in range(10)}  # ns, by how many of them a second has


def windows_of(view: memoryview, head: bytes, wanted: Filter | None = None) -> Windows | None:
    """What reads a file that begins with `head` (HEAD_BYTES of it), of which a part is in `view`. None where that is to
    be done packet by packet."""
    if head[:4] in _ORDERS and len(head) >= _HEADER:
        order, unit = _ORDERS[head[:4]]
        link = struct.unpack_from(f"{order}I", head, 20)[0] & 0xFFFF
        return Pcap(view, order, unit, link, wanted) if link in columns.LINKS else None
    section = _section(head)
    return Pcapng(view, section, wanted) if section else None


class Pcap(Windows):
    begin, record = _HEADER, 16

    def __init__(self, view: memoryview, order: str, unit: int, link: int, wanted: Filter | None = None) -> None:
        super().__init__(view, wanted)
        self._order, self._unit, self.link = order, unit, link

    def _heads(self, at: Numbers) -> tuple[Numbers, Numbers, Numbers, Numbers]:
        head = self.words(at, self.record, self._order)
        instants = head[:, 0] * 1_000_000_000 + head[:, 1] * self._unit
        return at, instants, head[:, 2], np.maximum(head[:, 3], head[:, 2])

    def _walk(self, at: int) -> Walk:
        view, record, end, bad = self.view, self.record, self.end, False
        captured = struct.Struct(f"{self._order}I").unpack_from
        lengths: list[int] = []  # where each record's captured length stands: eight bytes behind its begin
        add, place, most = lengths.append, at + 8, windows.WINDOW_PACKETS
        try:
            while len(lengths) < most and place - at < windows.WINDOW_BYTES and not bad:
                for _ in range(min(LOOK_PACKETS, most - len(lengths))):
                    (size,) = captured(view, place)
                    if size > _LARGE_PACKET:
                        bad = size > MOST_PACKET
                        if not bad:
                            add(place)
                            place += size + record
                        break
                    add(place)
                    place += size + record
        except struct.error:  # there is no more
            pass
        offsets, after = np.array(lengths, np.int64) - 8, place - 8
        if bad:
            problem = f"a packet of {size} bytes, which is none; the rest cannot be read"
            return Walk(offsets, after + record, problem, after)
        if after <= end:
            left = end - after
            cut = 0 < left < 12  # too little to tell its length
            problem = f"{CUT}packet's header: {left} of 16 bytes" if cut else ""
            return Walk(offsets, end if cut else after, problem, after)
        begin = int(offsets[-1])
        if begin + record > end:
            return Walk(offsets[:-1], end, f"{CUT}packet's header: {end - begin} of 16 bytes", begin)
        problem = f"{CUT}packet: {end - begin - record} of {after - begin - record} bytes"
        return Walk(offsets[:-1], end, problem, begin)


class _Section(NamedTuple):
    """A section's byte order, its interfaces (all of one link type), and where its first packet's block begins."""

    order: str
    interfaces: list[Interface]
    begin: int


def _section(head: bytes) -> _Section | None:
    """The first one of a pcapng file. None where not all is as it mostly is: interfaces before packets, all of one link
    type that columns.py knows, with times in seconds, or tenths of those down to nanoseconds."""
    order = capture_files.section_order(head[8:12]) if head[:4] == Blocks.SECTION.to_bytes(4, "big") else ""
    if not order:
        return None
    interfaces: list[Interface] = []
    at = 0
    while at + 8 <= len(head):
        kind, size = struct.unpack_from(f"{order}II", head, at)
        if kind == Blocks.PACKET:
            break
        if size % 4 or not 12 <= size <= len(head) - at or kind in (Blocks.OLD_PACKET, Blocks.SIMPLE_PACKET):
            return None
        if kind == Blocks.INTERFACE and size >= 20:
            interfaces.append(capture_files.interface(order, head[at + 8 : at + size - 4]))
        elif kind == Blocks.INTERFACE or (kind == Blocks.SECTION and at):
            return None
        at += size
    sound = all(each.per_second in _UNITS and not each.offset for each in interfaces)
    links = {each.link for each in interfaces}
    return _Section(order, interfaces, at) if sound and len(links) == 1 and links <= columns.LINKS.keys() else None


class Pcapng(Windows):
    """One section, up to a block that changes how others are read: that one is `odd`."""

    record = 28

    def __init__(self, view: memoryview, section: _Section, wanted: Filter | None = None) -> None:
        super().__init__(view, wanted)
        self.order, self.interfaces, self.begin = section
        self.link = self.interfaces[0].link
        self._units = np.array([_UNITS[each.per_second] for each in self.interfaces])

    def _heads(self, at: Numbers) -> tuple[Numbers, Numbers, Numbers, Numbers]:
        head = self.words(at, self.record, self.order)
        good = (head[:, 1] >= self.record + 4) & (head[:, 5] <= head[:, 1] - self.record - 4)
        good &= head[:, 2] < len(self.interfaces)
        at, head = at[good], head[good]
        units = self._units[head[:, 2]]
        ticks = head[:, 3].astype(np.uint64) << np.uint64(32) | head[:, 4].astype(np.uint64)
        instants = np.minimum(ticks, (LATEST // units).astype(np.uint64)).astype(np.int64) * units
        return at, instants, head[:, 5], np.maximum(head[:, 6], head[:, 5])

    def _walk(self, at: int) -> Walk:
        view, place, problem, odd = self.view, at, "", False
        block = struct.Struct(f"{self.order}II").unpack_from
        offsets: list[int] = []
        packet, others, kind = Blocks.PACKET, Blocks.CHANGING, 0
        try:
            while len(offsets) < windows.WINDOW_PACKETS and place - at < windows.WINDOW_BYTES:
                kind, size = block(view, place)
                if kind in others:
                    odd = True
                    break
                if size & 3 or not 12 <= size <= MOST_BLOCK:
                    problem = f"a block of {size} bytes, which is none; the rest cannot be read"
                    break
                if kind == packet:
                    offsets.append(place)
                place += size
        except struct.error:  # there is no more
            pass
        if problem or odd or place == self.end or self.end - place >= 8:
            return Walk(np.array(offsets, np.int64), place + 8 if problem else place, problem, place, odd)
        if place < self.end:
            left = self.end - place
            problem = f"{CUT}block's type" if left < 4 else f"{CUT}block's length: {left - 4} of 4 bytes"
            return Walk(np.array(offsets, np.int64), self.end, problem, place)
        place -= size
        problem = f"{CUT}block: {self.end - place - 8} of {size - 8} bytes"
        return Walk(np.array([each for each in offsets if each < place], np.int64), self.end, problem, place)
