"""A capture, many packets at once.

A window of it after the other is sorted by stream; segments of which each begins where the one before ended go to the
engine as one run. Packets that are not plain go one by one, in the capture's order with the runs, so that what comes
out is the same.
"""

from __future__ import annotations

import gc
import heapq
import mmap
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO

import numpy as np

from tcppc.flows import windows
from tcppc.flows.capture_files import CaptureError, Packet, Reader
from tcppc.flows.columns import Columns, Numbers
from tcppc.flows.engine import Apart, Engine
from tcppc.flows.flow import Key, Run
from tcppc.flows.libpcap import Filter
from tcppc.flows.stream_files import Pieces
from tcppc.flows.windows import HEADER, RECORD, Walk, Window, Windows
from tcppc.protocols.packet import ACK, FIN, RST, SYN, TCP

STREAM_BYTES = 16 << 20  # of what is being decompressed, at once
fits = windows.fits
Numbered = tuple[int, Key, Run]  # the first is the packet's in its window; no two are the same
Hosts = set[tuple[bytes, bytes]]  # source and destination


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
    turns = engine.share and engine.share.turns
    size = turns.agreed(name, os.fstat(file.fileno()), len(memory)) if turns else len(memory)
    of_file = Windows(memoryview(memory)[:size], memory[:HEADER], wanted)
    each = turns.windows(of_file, stopped) if turns else of_file.each(HEADER, stopped)
    collecting = gc.isenabled()
    gc.disable()  # all that is made here goes by itself; looking for what does not took a fifth of the time
    try:
        _read(memory, name, of_file, each, engine, progress)
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
    head = reader.take(HEADER, "the file's header")
    rest, place = b"", HEADER  # what is not whole yet, and where it begins
    while not stopped():
        fresh, damage = _part(reader)
        part, at, problem = Windows(memoryview(rest + fresh), head, wanted), 0, ""
        while at < part.end and not problem:
            walk = part.walk(at)
            problem = walk.problem
            if len(walk.offsets):
                _window(part.view, part.decode(walk.offsets), engine)
            at = walk.whole if problem else walk.after
        progress()
        over = damage or len(fresh) < STREAM_BYTES
        if damage and problem.startswith(windows.CUT):
            raise damage
        if problem and (over or not problem.startswith(windows.CUT)):
            raise CaptureError(f"{name}: at byte {place + walk.after}: {problem}")
        if damage:
            raise damage
        if over:
            return
        rest, place = bytes(part.view[at:]), place + at


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
    memory: mmap.mmap, name: str, of_file: Windows, each: Iterator[tuple[Walk, Window | None]], engine: Engine,
    progress: Callable[[int], None],
) -> None:  # fmt: skip
    at = HEADER
    for walk, window in each:
        if window:
            _window(of_file.view, window, engine)
        if walk.problem:
            raise CaptureError(f"{name}: at byte {walk.after}: {walk.problem}")
        # What is done is given back: else the file's pages would all count as ours.
        memory.madvise(mmap.MADV_DONTNEED, 0, walk.after // mmap.PAGESIZE * mmap.PAGESIZE)
        progress(walk.after - at)
        at = walk.after


def _window(view: memoryview, window: Window, engine: Engine) -> None:
    plain = window.plain
    single = np.ones(len(window.at), bool)
    single[plain.index] = False
    others: list[Numbered] = []
    for number in np.flatnonzero(single).tolist():
        begin = int(window.at[number]) + RECORD
        data = bytes(view[begin : begin + int(window.captured[number])])
        found = engine.parse(Packet(int(window.instants[number]), 1, int(window.size[number]), data))
        if found and (engine.share is None or engine.share.has(found[0])):
            others.append((number, *found))
    engine.totals.packets += len(plain)
    if engine.share:
        plain = plain.only(engine.share.mask(plain.src, plain.sport, plain.dst, plain.dport))
    hosts = {(key[0], key[2]) for _, key, _ in others}
    _in_turn(_runs(view, window, plain, hosts) if len(plain) else iter(()), others, engine)
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


def _runs(view: memoryview, window: Window, plain: Columns, hosts: Hosts) -> Iterator[Numbered]:
    """(number of its first packet, key, run), by that number."""
    _, instants, captured, size, _ = window
    frames = window.at + RECORD
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
    macs = np.lib.stride_tricks.sliding_window_view(np.frombuffer(view, np.uint8), 12)[frames[leading]].view("V12")
    rows = (
        leading, _packed(plain.src[lead]), plain.sport[lead], _packed(plain.dst[lead]), plain.dport[lead], starts,
        after, instants[leading], instants[index[after - 1]], plain.seq[lead], flags, *sums, count[starts],
        count[after], macs[:, 0],
    )  # fmt: skip
    table = zip(*(row[turn].tolist() for row in rows), strict=True)
    # A run's packets are `low` to `high` of the order, its pieces `one` to `end`.
    for no, src, sp, dst, dp, low, high, first, last, seq, flag, sent, held, wire, kept, one, end, mac in table:
        data = Pieces(view, begins, ends, one, end, held)
        each = partial(split, low, high) if high - low > 1 else None
        run = Run(high - low, first, last, seq, flag, sent, data, wire, kept, mac, each)
        yield no, (src, sp, dst, dp, -1, TCP, b""), run


def _packed(addresses: Numbers) -> Numbers:
    """Each as four bytes."""
    return addresses.astype(">u4").view("V4")


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
