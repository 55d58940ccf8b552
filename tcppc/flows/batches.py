"""A plain capture file, many packets at once: what is in order is written run by run, all else goes packet by packet.

A window of the file after the other is walked, decoded as columns and sorted by stream. Streams whose packets in it are
all plain and in order are one run each; every other packet is engine.packet's, in the capture's order with the runs, so
that what comes out is the same.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tcppc.flows import columns
from tcppc.flows.capture_files import MOST_PACKET, CaptureError, Packet
from tcppc.flows.columns import Columns, Numbers
from tcppc.flows.engine import Engine, Key, Run
from tcppc.protocols.packet import FIN, RST, SYN

WINDOW_PACKETS = 1 << 18
WINDOW_BYTES = 128 << 20
_HEADER, _RECORD = 24, 16
_ORDERS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000), b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1), b"\xa1\xb2\x3c\x4d": (">", 1),
}  # fmt: skip


def fits(head: bytes) -> bool:
    """Is it a capture file that can be read so: pcap, not compressed, of Ethernet?"""
    if len(head) < _HEADER or head[:4] not in _ORDERS:
        return False
    order, _ = _ORDERS[head[:4]]
    return bool(struct.unpack_from(f"{order}I", head, 20)[0] & 0x0FFFFFFF == 1)


def read(path: str, engine: Engine, progress: Callable[[int], None] = lambda size: None) -> None:
    """The whole file. OSError; CaptureError where it is damaged, with all before that done."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        memory.madvise(mmap.MADV_SEQUENTIAL)
        order, nanoseconds = _ORDERS[memory[:4]]
        at = _HEADER
        while at < len(memory):
            offsets, after, problem = _walk(memory, at, order)
            if offsets:
                _window(memory, np.array(offsets, np.int64), order, nanoseconds, engine)
            if problem:
                raise CaptureError(f"{path}: at byte {after}: {problem}")
            # What is done is given back: else the file's pages would all count as ours.
            memory.madvise(mmap.MADV_DONTNEED, 0, after // mmap.PAGESIZE * mmap.PAGESIZE)
            progress(after - at)
            at = after


def _walk(memory: mmap.mmap, at: int, order: str) -> tuple[list[int], int, str]:
    """(where the records of the next window begin, where it ends, what is wrong there)."""
    captured = struct.Struct(f"{order}I").unpack_from
    offsets: list[int] = []
    add, end, stop = offsets.append, len(memory), at + WINDOW_BYTES
    while at + _RECORD <= end:
        size = captured(memory, at + 8)[0]
        if size > MOST_PACKET:
            return offsets, at + _RECORD, f"a packet of {size} bytes, which is none; the rest cannot be read"
        following = at + _RECORD + size
        if following > end:
            return offsets, end, f"ends within a packet: {end - at - _RECORD} of {size} bytes"
        add(at)
        at = following
        if at > stop or len(offsets) >= WINDOW_PACKETS:
            return offsets, at, ""
    return offsets, end, f"ends within a packet's header: {end - at} of 16 bytes" if at < end else ""


def _window(memory: mmap.mmap, at: Numbers, order: str, nanoseconds: int, engine: Engine) -> None:
    rows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(memory, np.uint8), _RECORD)[at]
    head = rows.view(np.dtype(f"{order}u4")).astype(np.int64)
    instants = head[:, 0] * 1_000_000_000 + head[:, 1] * nanoseconds
    captured, size = head[:, 2], np.maximum(head[:, 3], head[:, 2])
    plain = columns.decode(memory, at + _RECORD, captured, 1)
    single = np.ones(len(at), bool)  # packets that go one by one
    view = memoryview(memory)
    runs: list[tuple[int, Callable[[], None]]] = []
    for key, members in _in_order(plain, engine):
        index = plain.index[members]
        single[index] = False
        pieces = _pieces(view, plain, members)
        run = _run(view, plain, members, at, instants, captured, size)
        runs.append((int(index[0]), _done(engine, key, run, pieces)))
    events = [
        (int(number), _one(memory, engine, at, instants, captured, size, number)) for number in np.flatnonzero(single)
    ]
    engine.totals.packets += int(len(at) - single.sum())
    for _, act in sorted(runs + events, key=lambda event: event[0]):
        act()
    view.release()


def _done(engine: Engine, key: Key, run: Run, pieces: list[memoryview]) -> Callable[[], None]:
    return lambda: engine.run(key, run, pieces)


def _one(
    memory: mmap.mmap, engine: Engine, at: Numbers, instants: Numbers, captured: Numbers, size: Numbers, number: Any
) -> Callable[[], None]:
    def act() -> None:
        begin = int(at[number]) + _RECORD
        data = memory[begin : begin + int(captured[number])]
        engine.packet(Packet(int(instants[number]), 1, int(size[number]), data))

    return act


def _in_order(plain: Columns, engine: Engine) -> Iterator[tuple[Key, Numbers]]:
    """Streams that go on plainly in this window: (key, their packets' places in `plain`)."""
    if not len(plain):
        return
    order = np.lexsort((np.arange(len(plain)), plain.dport, plain.sport, plain.dst, plain.src))
    src, sport, dst, dport = (getattr(plain, name)[order] for name in ("src", "sport", "dst", "dport"))
    seq, flags, sent = plain.seq[order], plain.flags[order], plain.size[order]
    same = (src[1:] == src[:-1]) & (dst[1:] == dst[:-1]) & (sport[1:] == sport[:-1]) & (dport[1:] == dport[:-1])
    first = np.flatnonzero(np.concatenate(([True], ~same)))
    begins = np.zeros(len(order), bool)
    begins[first] = True
    syn, fin = flags & SYN != 0, flags & FIN != 0
    ends = fin | (flags & RST != 0)
    follows = np.ones(len(order), bool)
    follows[1:] = begins[1:] | ((seq[:-1] + sent[:-1] + syn[:-1] + fin[:-1] - seq[1:]) & 0xFFFFFFFF == 0)
    good = follows & ~(syn & ~begins) & (plain.held[order] == sent)
    place = np.arange(len(order))
    last_data = np.maximum.reduceat(np.where(sent > 0, place, -1), first)
    first_end = np.minimum.reduceat(np.where(ends, place, len(order)), first)
    both = np.add.reduceat(ends.astype(np.int64), first) <= 1
    well = np.logical_and.reduceat(good, first) & (last_data <= first_end) & both
    after = np.append(first[1:], len(order))
    for number in np.flatnonzero(well):
        low, high = int(first[number]), int(after[number])
        key = (
            int(src[low]).to_bytes(4, "big"), int(sport[low]), int(dst[low]).to_bytes(4, "big"), int(dport[low]), -1,
        )  # fmt: skip
        expected = engine.expects(key)
        if expected == -2:
            if not (syn[low] or sent[low] > 0):
                continue
        elif expected != seq[low] or syn[low]:
            continue
        yield key, order[low:high]


def _pieces(view: memoryview, plain: Columns, members: Numbers) -> list[memoryview]:
    full = members[plain.size[members] > 0]
    begins, sizes = plain.at[full].tolist(), plain.size[full].tolist()
    return [view[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]


def _run(
    view: memoryview, plain: Columns, members: Numbers, at: Numbers, instants: Numbers, captured: Numbers, size: Numbers
) -> Run:
    index = plain.index[members]
    begin = int(at[index[0]]) + _RECORD
    return Run(
        len(members),
        int(instants[index[0]]),
        int(instants[index[-1]]),
        int(plain.size[members].sum()),
        int(np.bitwise_or.reduce(plain.flags[members])),
        int(plain.seq[members[0]]),
        int(size[index].sum()),
        int(captured[index].sum()),
        bytes(view[begin + 6 : begin + 12]),
        bytes(view[begin : begin + 6]),
    )
