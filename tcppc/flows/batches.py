"""A capture, many packets at once.

A window of it after the other is sorted by stream; segments of which each begins where the one before ended go to the
engine as one run. Packets that are not plain go one by one, in the capture's order with the runs, so that what comes
out is the same.
"""

from __future__ import annotations

import gc
import heapq
import io
import mmap
import os
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

from tcppc.flows import capture_files, windows
from tcppc.flows.capture_files import HEAD_BYTES, CaptureError, Headed, Packet, Reader
from tcppc.flows.engine import Apart, Engine
from tcppc.flows.forms import Pcapng, windows_of
from tcppc.flows.libpcap import Filter
from tcppc.flows.runs import Numbered, runs
from tcppc.flows.windows import Walk, Window, Windows

STREAM_BYTES = 16 << 20  # of what is being decompressed, at once


def fits(head: bytes) -> bool:
    """Is it of a capture that can be read so? HEAD_BYTES of it."""
    return windows_of(memoryview(head), head) is not None


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
    of_file = _windows(memoryview(memory)[:size], memory[:HEAD_BYTES], name, wanted)
    each = turns.windows(of_file, stopped) if turns else of_file.each(of_file.begin, stopped)
    collecting = gc.isenabled()
    gc.disable()  # all that is made here goes by itself; looking for what does not took a fifth of the time
    try:
        odd = _read(memory, name, of_file, each, engine, progress)
    finally:
        if collecting:
            gc.freeze()  # nor need it be looked through now
            gc.enable()
    if odd:
        memory.seek(odd)
        _one_by_one(of_file, memory, name, odd, engine, wanted, stopped)


def _windows(view: memoryview, head: bytes, name: str, wanted: Filter | None) -> Windows:
    found = windows_of(view, head, wanted)
    if found is None:
        raise CaptureError(f"{name}: was changed while it was read")
    return found


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
    fresh, damage = _part(reader)
    head, rest, place = fresh[:HEAD_BYTES], b"", 0  # what is not whole yet, and where it begins
    at = _windows(memoryview(fresh), head, name, wanted).begin
    while not stopped():
        part, problem, walk = _windows(memoryview(rest + fresh), head, name, wanted), "", None
        while at < part.end and not (walk and walk.last):
            walk = part.walk(at)
            problem = walk.problem
            if len(walk.offsets):
                _window(part, part.decode(walk.offsets), engine)
            at = walk.whole if problem else walk.after
        progress()
        over = damage or len(fresh) < STREAM_BYTES
        if walk and walk.odd:
            left = bytes(part.view[at:])
            source = io.BytesIO(left) if over else io.BufferedReader(Headed(left, file))
            try:
                _one_by_one(part, source, name, place + at, engine, wanted, stopped)
            except CaptureError as wrong:
                raise damage or wrong from None
            if damage:
                raise damage
            return
        if damage and (not problem or problem.startswith(windows.CUT)):
            raise damage
        if walk and problem and (over or not problem.startswith(windows.CUT)):
            raise CaptureError(f"{name}: at byte {place + walk.after}: {problem}")
        if over:
            return
        rest, place, at = bytes(part.view[at:]), place + at, 0
        fresh, damage = _part(reader)


def _one_by_one(
    of: Windows, file: Any, name: str, at: int, engine: Engine, wanted: Filter | None, stopped: Callable[[], bool]
) -> None:
    """From there on."""
    assert isinstance(of, Pcapng)
    for number, packet in enumerate(capture_files.later_blocks(file, name, at, of.order, of.interfaces)):
        if wanted is None or wanted(packet):
            engine.packet(packet)
        if number % windows.LOOK_PACKETS == 0 and stopped():
            return


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
) -> int:  # fmt: skip
    """Returns where what is odd begins; 0: nothing is."""
    at = of_file.begin
    for walk, window in each:
        if window:
            _window(of_file, window, engine)
        if walk.problem:
            raise CaptureError(f"{name}: at byte {walk.after}: {walk.problem}")
        # What is done is given back: else the file's pages would all count as ours.
        memory.madvise(mmap.MADV_DONTNEED, 0, walk.after // mmap.PAGESIZE * mmap.PAGESIZE)
        progress(walk.after - at)
        at = walk.after
        if walk.odd:
            return at
    return 0


def _window(of: Windows, window: Window, engine: Engine) -> None:
    plain = window.plain
    single = np.ones(len(window.at), bool)
    single[plain.index] = False
    others: list[Numbered] = []
    for number in np.flatnonzero(single).tolist():
        begin = int(window.at[number]) + of.record
        data = bytes(of.view[begin : begin + int(window.captured[number])])
        found = engine.parse(Packet(int(window.instants[number]), of.link, int(window.size[number]), data))
        if found and (engine.share is None or engine.share.has(found[0])):
            others.append((number, *found))
    engine.totals.packets += len(plain)
    if engine.share:
        plain = plain.only(engine.share.mask(plain.src, plain.sport, plain.dst, plain.dport))
    hosts = {(key[0], key[2]) for _, key, _ in others}
    _in_turn(runs(of, window, plain, hosts) if len(plain) else iter(()), others, engine)
    engine.settle(later=True)


def _in_turn(many: Iterator[Numbered], others: list[Numbered], engine: Engine) -> None:
    """Both to the engine, by the numbers of their first packets; a run that it does not take whole, each packet by its
    own."""
    arrive = engine.arrive
    for number, key, run in many:
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
