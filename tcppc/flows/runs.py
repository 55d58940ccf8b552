"""The plain packets of a window, as runs: segments of one stream, each of which begins where the one before ended."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from tcppc.flows import late
from tcppc.flows.columns import Columns, Numbers, is_ipv4, macs, packed
from tcppc.flows.flow import Key, Run
from tcppc.flows.stream_files import Pieces
from tcppc.flows.windows import Window, Windows
from tcppc.protocols.packet import ACK, FIN, RST, SYN, TCP

Numbered = tuple[int, Key, Run]  # the first is the packet's in its window; no two are the same
Hosts = set[tuple[bytes, bytes]]  # source and destination


def runs(of: Windows, window: Window, plain: Columns, hosts: Hosts) -> Iterator[Numbered]:
    """(number of its first packet, key, run), by that number. Packets between those hosts each are a run."""
    view = of.view
    it = plain.only(_by_stream(plain))
    first = _first(it)
    barred = _between(it, hosts) if hosts else None
    order = late.put_in_order(view, it, first, _begins(it, first, barred), barred)
    starts = np.flatnonzero(order.begins)
    after = np.append(starts[1:], len(it))
    instants, captured, size = (column[it.index] for column in (window.instants, window.captured, window.size))
    frames = window.at[it.index] + of.record
    flags = np.bitwise_or.reduceat(it.flags, starts) & ~ACK | it.flags[starts] & ACK
    sums = [np.add.reduceat(column, starts) for column in (it.size, it.held, size, captured)]
    pieces = np.concatenate(([0], np.cumsum(order.full)))  # before each packet
    turn = np.argsort(it.index[starts])
    begins = starts[turn]
    rows = (
        it.index[begins], it.sport[begins], it.dport[begins], it.vlan[begins], begins, after[turn], instants[begins],
        instants[after[turn] - 1], it.seq[begins], *(each[turn] for each in (flags, *sums)), pieces[begins],
        pieces[after[turn]],
    )  # fmt: skip
    ends = (packed(it.src[begins], it.src_high[begins]), packed(it.dst[begins], it.dst_high[begins]))

    def split(low: int, high: int) -> Iterator[tuple[int, Run]]:
        columns = (it.index, it.at, it.held, instants, it.seq, it.flags, it.size, size, captured)
        lists = (each[low:high].tolist() for each in columns)
        for no, begin, held, instant, seq, flag, sent, wire, kept, mac in zip(
            *lists, macs(view, frames[low:high], of.link), strict=True
        ):
            data = Pieces(view, (begin,), (begin + held,), 0, 1 if held else 0, held)
            yield no, Run(1, instant, instant, seq, flag, sent, data, wire, kept, mac)

    def times(data: Pieces) -> list[int]:
        found: list[int] = instants[order.pieces[data.low : data.high]].tolist()
        return found

    table = zip(*ends, macs(view, frames[begins], of.link), *(row.tolist() for row in rows), strict=True)
    # A run's packets are `low` to `high`, its pieces `one` to `end`.
    for src, dst, mac, no, sp, dp, vlan, low, high, begun, last, seq, flag, sent, held, wire, kept, one, end in table:
        data = Pieces(view, order.low, order.high, one, end, held)
        each, of_late = (partial(split, low, high), order.late.get(low)) if high - low > 1 else (None, None)
        run = Run(high - low, begun, last, seq, flag, sent, data, wire, kept, mac, each, of_late, times)
        yield no, (src, sp, dst, dp, vlan, TCP, b""), run


def _by_stream(plain: Columns) -> Numbers:
    """Their order by stream, and in each as they came."""
    ports = plain.sport << 16 | plain.dport
    if (plain.vlan >= 0).any():
        ports |= (plain.vlan.astype(np.int64) + 1) << 32
    if is_ipv4(plain).all():
        return np.lexsort((ports, plain.src << 32 | plain.dst))
    return np.lexsort((ports, plain.dst, plain.src, plain.dst_high, plain.src_high))


def _between(it: Columns, hosts: Hosts) -> Numbers:
    """Which of them are between two of those hosts."""
    pairs = [int.from_bytes(one + other, "big") for one, other in hosts if len(one) == 4]
    both = it.src.astype(np.uint64) << np.uint64(32) | it.dst.astype(np.uint64) & np.uint64(0xFFFFFFFF)
    between: Numbers = np.isin(both, np.array(pairs, np.uint64)) & is_ipv4(it)
    if len(pairs) < len(hosts):
        six = np.flatnonzero(~is_ipv4(it))
        ends = zip(
            *(packed(low[six], high[six]) for low, high in ((it.src, it.src_high), (it.dst, it.dst_high))), strict=True
        )
        between[six] = [pair in hosts for pair in ends]
    return between


def _first(it: Columns) -> Numbers:
    """Which of them are the first of their stream."""
    first = np.ones(len(it), bool)
    first[1:] = (it.src[1:] != it.src[:-1]) | (it.dst[1:] != it.dst[:-1])
    first[1:] |= (it.sport[1:] != it.sport[:-1]) | (it.dport[1:] != it.dport[:-1])
    first[1:] |= (it.src_high[1:] != it.src_high[:-1]) | (it.dst_high[1:] != it.dst_high[:-1])
    first[1:] |= it.vlan[1:] != it.vlan[:-1]
    return first


def _begins(it: Columns, first: Numbers, barred: Numbers | None) -> Numbers:
    """With which of them runs begin: each stream's first, and segments that do not go on behind the one before."""
    flags = it.flags & (SYN | FIN | RST)
    # Bare ACKs go with the run before them: they are counted, and nothing else depends on them.
    said = np.flatnonzero((it.size > 0) | (flags != 0))
    seq, sent, flags, cut = it.seq[said], it.size[said], flags[said], (it.held < it.size)[said]
    syn = flags & SYN != 0
    group = np.cumsum(first)[said]
    broken = np.ones(len(said), bool)
    broken[1:] = (seq[:-1] + sent[:-1] + syn[:-1] - seq[1:]) & 0xFFFFFFFF != 0
    broken[1:] |= (group[1:] != group[:-1]) | cut[:-1] | (flags[:-1] & (FIN | RST) != 0)
    broken |= syn
    # One byte may be a keep-alive, which is told only where it is alone.
    broken[1:] |= broken[:-1] & (sent[:-1] == 1)
    begins: Numbers = first.copy()
    begins[said[broken]] = True
    return begins if barred is None else begins | barred
