"""A plain capture file, many packets at once.

A window of the file after the other is walked, decoded as columns and sorted by stream; segments of which each begins
where the one before ended go to the engine as one run. Packets that are not plain go one by one, in the capture's order
with the runs, so that what comes out is the same.
"""

from __future__ import annotations

import ctypes
import gc
import heapq
import mmap
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, NamedTuple

import numpy as np

from tcppc.flows import columns
from tcppc.flows.capture_files import MOST_PACKET, CaptureError, Packet, Reader
from tcppc.flows.columns import Columns, Numbers
from tcppc.flows.engine import Apart, Engine
from tcppc.flows.flow import Key, Run
from tcppc.flows.libpcap import Filter
from tcppc.flows.stream_files import Pieces
from tcppc.protocols.packet import ACK, FIN, RST, SYN, TCP

WINDOW_PACKETS = 1 << 16
WINDOW_BYTES = 64 << 20
_LOOK_PACKETS = 512  # between two looks at how large the window is
STREAM_BYTES = 16 << 20  # of what is being decompressed, at once
_HEADER, _RECORD = 24, 16
_CUT = "ends within a packet"
Numbered = tuple[int, Key, Run]  # the first is the packet's in its window; no two are the same
Hosts = set[tuple[bytes, bytes]]  # source and destination
_ORDERS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000), b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1), b"\xa1\xb2\x3c\x4d": (">", 1),
}  # fmt: skip


def fits(head: bytes) -> bool:
    """Is it a capture file that can be read so: pcap, not compressed, of Ethernet?"""
    if len(head) < _HEADER or head[:4] not in _ORDERS:
        return False
    order, _ = _ORDERS[head[:4]]
    return bool(struct.unpack_from(f"{order}I", head, 20)[0] & 0xFFFF == 1)


def read(
    file: IO[bytes],
    name: str,
    engine: Engine,
    wanted: Filter | None = None,
    progress: Callable[[int], None] = lambda size: None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """The whole file, or until it is `stopped`. CaptureError where it is damaged, with all before that done."""
    memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    # It goes with the last that looks into it: where something went wrong, that is written behind this.
    memory.madvise(mmap.MADV_SEQUENTIAL)
    order, nanoseconds = _ORDERS[memory[:4]]
    collecting = gc.isenabled()
    gc.disable()  # all that is made here goes by itself; looking for what does not took a fifth of the time
    try:
        _read(memory, name, order, nanoseconds, engine, wanted, progress, stopped)
    finally:
        if collecting:
            gc.enable()


def read_stream(
    file: IO[bytes],
    name: str,
    engine: Engine,
    wanted: Filter | None = None,
    progress: Callable[[], None] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """The same of a capture that is being decompressed, part by part."""
    reader = Reader(file, name)
    order, nanoseconds = _ORDERS[reader.take(_HEADER, "the file's header")[:4]]
    rest, place = b"", _HEADER  # what is not whole yet, and where it begins
    while not stopped():
        fresh, damage = _part(reader)
        buffer, at, problem = rest + fresh, 0, ""
        while at < len(buffer) and not problem:
            offsets, after, problem, whole = _walk(buffer, at, order)
            if wanted:
                offsets = _filtered(buffer, offsets, order, wanted)
            if len(offsets):
                _window(buffer, offsets, order, nanoseconds, engine)
            at = whole if problem else after
        progress()
        over = damage or len(fresh) < STREAM_BYTES
        if damage and problem.startswith(_CUT):
            raise damage
        if problem and (over or not problem.startswith(_CUT)):
            raise CaptureError(f"{name}: at byte {place + after}: {problem}")
        if damage:
            raise damage
        if over:
            return
        rest, place = buffer[at:], place + at


def _part(reader: Reader) -> tuple[bytes, CaptureError | None]:
    """(the next STREAM_BYTES, or what there is before the end; what is wrong behind them)."""
    parts: list[bytes] = []
    left = STREAM_BYTES
    while left:
        try:
            part = reader.some(left)
        except CaptureError as problem:
            return b"".join(parts), problem
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts), None


def _read(
    memory: mmap.mmap, name: str, order: str, nanoseconds: int, engine: Engine, wanted: Filter | None,
    progress: Callable[[int], None], stopped: Callable[[], bool],
) -> None:  # fmt: skip
    at = _HEADER
    while at < len(memory) and not stopped():
        offsets, after, problem, _ = _walk(memory, at, order)
        if wanted:
            offsets = _filtered(memory, offsets, order, wanted)
        if len(offsets):
            _window(memory, offsets, order, nanoseconds, engine)
        if problem:
            raise CaptureError(f"{name}: at byte {after}: {problem}")
        # What is done is given back: else the file's pages would all count as ours.
        memory.madvise(mmap.MADV_DONTNEED, 0, after // mmap.PAGESIZE * mmap.PAGESIZE)
        progress(after - at)
        at = after


class Walk(NamedTuple):
    """Where the records of a window begin, where it ends, what is wrong there, and where its last whole record ends."""

    offsets: Numbers
    after: int
    problem: str
    whole: int


def _walk(memory: mmap.mmap | bytes, at: int, order: str) -> Walk:
    """The next window."""
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
                place += size + _RECORD
    except struct.error:  # there is no more
        pass
    offsets, after = np.array(lengths, np.int64) - 8, place - 8
    if bad:
        problem = f"a packet of {size} bytes, which is none; the rest cannot be read"
        return Walk(offsets, after + _RECORD, problem, after)
    if after <= end:
        left = end - after
        cut = 0 < left < 12  # too little to tell its length
        problem = f"{_CUT}'s header: {left} of 16 bytes" if cut else ""
        return Walk(offsets, end if cut else after, problem, after)
    begin = int(offsets[-1])
    if begin + _RECORD > end:
        return Walk(offsets[:-1], end, f"{_CUT}'s header: {end - begin} of 16 bytes", begin)
    problem = f"{_CUT}: {end - begin - _RECORD} of {after - begin - _RECORD} bytes"
    return Walk(offsets[:-1], end, problem, begin)


def _filtered(memory: mmap.mmap | bytes, offsets: Numbers, order: str, wanted: Filter) -> Numbers:
    sizes = struct.Struct(f"{order}II").unpack_from
    base = np.frombuffer(memory, np.uint8).ctypes.data + _RECORD
    found = []
    for at in offsets.tolist():
        captured, size = sizes(memory, at + 8)
        if wanted.at(1, ctypes.c_void_p(base + at), captured, max(size, captured)):
            found.append(at)
    return np.array(found, np.int64)


def _window(memory: mmap.mmap | bytes, at: Numbers, order: str, nanoseconds: int, engine: Engine) -> None:
    rows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(memory, np.uint8), _RECORD)[at]
    head = rows.view(np.dtype(f"{order}u4")).astype(np.int64)
    instants = head[:, 0] * 1_000_000_000 + head[:, 1] * nanoseconds
    captured, size = head[:, 2], np.maximum(head[:, 3], head[:, 2])
    plain = columns.decode(memory, at + _RECORD, captured, 1)
    view = memoryview(memory)
    single = np.ones(len(at), bool)
    single[plain.index] = False
    others: list[Numbered] = []
    for number in np.flatnonzero(single).tolist():
        begin = int(at[number]) + _RECORD
        data = memory[begin : begin + int(captured[number])]
        found = engine.parse(Packet(int(instants[number]), 1, int(size[number]), data))
        if found and (engine.share is None or engine.share.has(found[0])):
            others.append((number, *found))
    engine.totals.packets += len(plain)
    if engine.share:
        plain = plain.only(engine.share.mask(plain.src, plain.sport, plain.dst, plain.dport))
    hosts = {(key[0], key[2]) for _, key, _ in others}
    if len(plain):
        runs = _runs(view, plain, at + _RECORD, instants, captured, size, hosts)
        _in_turn(runs, others, engine)
    else:
        _in_turn(iter(()), others, engine)
    engine.settle()


def _in_turn(runs: Iterator[Numbered], others: list[Numbered], engine: Engine) -> None:
    """Both to the engine, by the numbers of their first packets; a run that it does not take whole, each packet by its
    own."""
    arrive = engine.arrive
    for number, key, run in runs:
        while others and others[0][0] < number:
            _, other, single = heapq.heappop(others)
            arrive(other, single)
        try:
            arrive(key, run)
        except Apart:
            for place, single in run.split() if run.split else ():
                heapq.heappush(others, (place, key, single))
    while others:
        _, other, single = heapq.heappop(others)
        arrive(other, single)


def _runs(
    view: memoryview,
    plain: Columns,
    frames: Numbers,
    instants: Numbers,
    captured: Numbers,
    size: Numbers,
    hosts: Hosts,
) -> Iterator[Numbered]:
    """(number of its first packet, key, run), by that number."""
    order = np.lexsort((plain.sport << 16 | plain.dport, plain.src << 32 | plain.dst))
    starts = _starts(plain, order, hosts)
    after = np.append(starts[1:], len(order))
    index = plain.index[order]
    lead = order[starts]
    flags = np.bitwise_or.reduceat(plain.flags[order], starts) & ~ACK | plain.flags[lead] & ACK
    summed = (plain.size[order], plain.held[order], size[index], captured[index])
    sums = [np.add.reduceat(column, starts) for column in summed]
    # The pieces with data, and which of them are each run's.
    full = order[np.flatnonzero(plain.held[order] > 0)]
    count = np.concatenate(([0], np.cumsum(plain.held[order] > 0)))
    begins, ends = plain.at[full].tolist(), (plain.at[full] + plain.held[full]).tolist()

    def split(low: int, high: int) -> Iterator[tuple[int, Run]]:
        for place, number in zip(order[low:high].tolist(), index[low:high].tolist(), strict=True):
            begin, held, instant = int(plain.at[place]), int(plain.held[place]), int(instants[number])
            frame = int(frames[number])
            yield number, Run(
                1, instant, instant, int(plain.seq[place]), int(plain.flags[place]), int(plain.size[place]),
                Pieces(view, (begin,), (begin + held,), 0, 1 if held else 0, held),
                int(size[number]), int(captured[number]), bytes(view[frame : frame + 12]),
            )  # fmt: skip

    leading = index[starts]
    turn = np.argsort(leading)
    rows = (
        leading, plain.src[lead], plain.sport[lead], plain.dst[lead], plain.dport[lead], starts, after,
        instants[leading], instants[index[after - 1]], plain.seq[lead], flags, *sums, count[starts], count[after],
        frames[leading],
    )  # fmt: skip
    table = zip(*(row[turn].tolist() for row in rows), strict=True)
    # A run's packets are `low` to `high` of the order, its pieces `one` to `end`, its first frame begins at `at`.
    for no, src, sp, dst, dp, low, high, first, last, seq, flag, sent, held, wire, kept, one, end, at in table:
        data = Pieces(view, begins, ends, one, end, held)
        each = partial(split, low, high) if high - low > 1 else None
        run = Run(high - low, first, last, seq, flag, sent, data, wire, kept, bytes(view[at : at + 12]), each)
        yield no, (src.to_bytes(4, "big"), sp, dst.to_bytes(4, "big"), dp, -1, TCP, b""), run


def _starts(plain: Columns, order: Numbers, hosts: Hosts) -> Numbers:
    """Where in `order` runs begin: at each stream, and where a segment does not go on behind the one before."""
    src, dst, sport, dport = (column[order] for column in (plain.src, plain.dst, plain.sport, plain.dport))
    seq, sent, flags = plain.seq[order], plain.size[order], plain.flags[order] & (SYN | FIN | RST)
    stream = np.ones(len(order), bool)
    stream[1:] = (src[1:] != src[:-1]) | (dst[1:] != dst[:-1]) | (sport[1:] != sport[:-1]) | (dport[1:] != dport[:-1])
    # Bare ACKs go with the run before them: they are counted, and nothing else depends on them.
    said = np.flatnonzero((sent > 0) | (flags != 0))
    seq, sent, flags, cut = seq[said], sent[said], flags[said], (plain.held[order] < plain.size[order])[said]
    syn = flags & SYN != 0
    group = np.cumsum(stream)[said]
    broken = np.ones(len(said), bool)
    broken[1:] = (seq[:-1] + sent[:-1] + syn[:-1] - seq[1:]) & 0xFFFFFFFF != 0
    broken[1:] |= (group[1:] != group[:-1]) | cut[:-1] | (flags[:-1] & (FIN | RST) != 0)
    broken |= syn
    # One byte may be a keep-alive, which is told only where it is alone.
    broken[1:] |= broken[:-1] & (sent[:-1] == 1)
    begins = stream.copy()
    begins[said[broken]] = True
    if hosts:  # Something of theirs goes one by one: so does all
        pairs = {int.from_bytes(one + other, "big") for one, other in hosts if len(one) == 4}
        begins |= np.isin(
            src.astype(np.uint64) << np.uint64(32) | dst.astype(np.uint64), np.array(list(pairs), np.uint64)
        )
    found: Numbers = np.flatnonzero(begins)
    return found
