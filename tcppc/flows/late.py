"""Streams of a window whose segments came out of order: put in order, so that they too go on as few runs.

A stream is taken so where nothing depends on the order in which its segments came but a count: all of them data, whole,
and none over another, but for one that came again as it was. That is what a network does to a bulk transfer. All others
go on as the packets came.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from tcppc.flows.columns import Columns, Numbers
from tcppc.flows.flow import Late
from tcppc.flows.stream_files import Pieces
from tcppc.protocols.packet import FIN, RST, SYN

WORTH_RUNS = 3  # of a stream in a window; fewer are placed as fast one by one
_MOST_PACKETS = 32  # a run, for which sorting a packet is cheaper than placing a run


class Sorted(NamedTuple):
    """Masks of the packets: does a run begin with it, and has it bytes that are to be written? Those packets are the
    `pieces`, `low` to `high` of the buffer, as they stand in the streams. `late` are streams by the packet that their
    run begins with."""

    begins: Numbers
    full: Numbers
    pieces: Numbers
    low: list[int]
    high: list[int]
    late: dict[int, Late]


class _Segments(NamedTuple):
    """Of all such streams, one behind the other, in the order in which they came: which packet, of which of the streams
    (from 0), where (from the stream's first), how far from the end of the one before."""

    packet: Numbers
    stream: Numbers
    place: Numbers
    size: Numbers
    step: Numbers
    heads: Numbers  # the first of each


def put_in_order(view: memoryview, packets: Columns, first: Numbers, begins: Numbers, barred: Numbers | None) -> Sorted:
    """`packets` are sorted by stream, and in each as they came; `first` of each stream, and `begins` of each run, are
    masks of them. Nothing is done with those that are `barred`."""
    full = packets.held > 0
    streams = np.flatnonzero(first)
    runs, counts = np.add.reduceat(begins.astype(np.int64), streams), np.diff(np.append(streams, len(packets)))
    worth = (runs >= WORTH_RUNS) & (counts < runs * _MOST_PACKETS)
    if not worth.any():
        return _sorted(packets, begins, full, np.flatnonzero(full))
    bad = (packets.flags & (SYN | FIN | RST) != 0) | (packets.held < packets.size)
    if barred is not None:
        bad |= barred
    worth &= ~np.logical_or.reduceat(bad, streams)
    stream = np.cumsum(first) - 1
    found = _segments(packets, stream, np.flatnonzero(worth[stream] & full))
    if not len(found.packet):
        return _sorted(packets, begins, full, np.flatnonzero(full))
    order = np.lexsort((found.place, found.stream))  # which leaves those of one place as they came
    again = _again(view, packets, found, order)
    good = _good(found, order, again)
    order, again = order[good[found.stream[order]]], again[good[found.stream[order]]]
    full[found.packet[order[again]]] = False
    once = order[~again]
    # Their runs begin with the stream, if that begins with a bare ACK, and with the first that has data.
    heads = found.packet[found.heads[good]]
    ours = np.zeros(len(streams), bool)
    ours[stream[heads]] = True
    begins = begins & ~ours[stream]
    begins[streams[ours]] = begins[heads] = True
    pieces = np.flatnonzero(full)
    where = np.flatnonzero(ours[stream[pieces]])
    pieces[where] = found.packet[once]
    made = _sorted(packets, begins, full, pieces)
    made.late.update(_late(found, good, once, where, partial(Pieces, view, made.low, made.high)))
    return made


def _sorted(packets: Columns, begins: Numbers, full: Numbers, pieces: Numbers) -> Sorted:
    at = packets.at[pieces]
    return Sorted(begins, full, pieces, at.tolist(), (at + packets.held[pieces]).tolist(), {})


def _segments(packets: Columns, stream: Numbers, packet: Numbers) -> _Segments:
    seq, size, of = packets.seq[packet], packets.size[packet], stream[packet]
    head = np.ones(len(packet), bool)
    head[1:] = of[1:] != of[:-1]
    heads = np.flatnonzero(head)
    step, place = np.zeros(len(packet), np.int64), np.zeros(len(packet), np.int64)
    # Numbers of 32 bits go round: less than half of them forward is forward, all else is back.
    step[1:] = (seq[1:] - seq[:-1] - size[:-1] + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
    step[heads] = 0
    place[1:] = size[:-1] + step[1:]
    place[heads] = 0
    number = np.cumsum(head) - 1
    place = np.cumsum(place)
    return _Segments(packet, number, place - place[heads][number], size, step, heads)


def _again(view: memoryview, packets: Columns, found: _Segments, order: Numbers) -> Numbers:
    """Which of them, in that order, came before, as they are."""
    stream, place, size = found.stream[order], found.place[order], found.size[order]
    again = np.zeros(len(order), bool)
    again[1:] = (stream[1:] == stream[:-1]) & (place[1:] == place[:-1]) & (size[1:] == size[:-1])
    two = np.flatnonzero(again)
    one, other = packets.at[found.packet[order[two - 1]]], packets.at[found.packet[order[two]]]
    for number, low, begin, length in zip(*(each.tolist() for each in (two, one, other, size[two])), strict=True):
        again[number] = bytes(view[low : low + length]) == bytes(view[begin : begin + length])
    return again


def _good(found: _Segments, order: Numbers, again: Numbers) -> Numbers:
    """Which of the streams can be taken so."""
    good = np.ones(len(found.heads), bool)
    # One byte may be a keep-alive, which is nobody's byte.
    alive = (found.size == 1) & (found.step == -1)
    alive[found.heads] = found.size[found.heads] == 1
    good[found.stream[alive]] = False
    once = order[~again]
    stream, place = found.stream[once], found.place[once]
    over = (stream[1:] == stream[:-1]) & (place[1:] < place[:-1] + found.size[once[:-1]])
    good[stream[1:][over]] = False
    return good


def _late(
    found: _Segments, good: Numbers, once: Numbers, where: Numbers, pieces: Callable[[int, int, int], Pieces]
) -> dict[int, Late]:
    """`once` are the segments in the order of their streams' bytes, `where` which piece each one is."""
    if not len(once):
        return {}
    heads, last = found.heads, np.append(found.heads[1:], len(found.packet)) - 1
    lowest, ends = np.minimum.reduceat(found.place, heads), found.place[last] + found.size[last]
    furthest = np.maximum.reduceat(np.abs(found.step), heads)
    back = np.add.reduceat((found.step < 0).astype(np.int64), heads)
    columns = (np.arange(len(heads)), found.packet[heads], lowest, ends, furthest, back)
    rows = zip(*(each[good].tolist() for each in columns), strict=True)
    parts = _parts(found, once, where, pieces)
    return {packet: Late(low, end, far, count, parts[of]) for of, packet, low, end, far, count in rows}


def _parts(
    found: _Segments, once: Numbers, where: Numbers, pieces: Callable[[int, int, int], Pieces]
) -> dict[int, list[tuple[int, Pieces]]]:
    """By stream: what stands without a gap, in order."""
    stream, place, size = found.stream[once], found.place[once], found.size[once]
    fresh = np.ones(len(once), bool)
    fresh[1:] = (stream[1:] != stream[:-1]) | (place[1:] != place[:-1] + size[:-1])
    begin = np.flatnonzero(fresh)
    end = np.append(begin[1:], len(once)) - 1
    columns = (stream[begin], place[begin], where[begin], where[end] + 1, np.add.reduceat(size, begin))
    parts: dict[int, list[tuple[int, Pieces]]] = {}
    for of, offset, low, high, held in zip(*(each.tolist() for each in columns), strict=True):
        parts.setdefault(of, []).append((offset, pieces(low, high, held)))
    return parts
