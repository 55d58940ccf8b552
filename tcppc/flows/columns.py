"""The plain packets of a capture, all at once: their headers as arrays.

Plain is what nearly all packets are: Ethernet without tags, IPv4 whose header has no options, TCP, whole by itself. All
others are left to engine.py, packet by packet; what stands here for a plain one is what that finds of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADERS = 14 + 20 + 20  # bytes that a plain packet has at least
_ETHERNET = 1

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Columns:
    """One entry a plain packet, in the capture's order. `index` is its number among all packets given, `at` where its
    payload begins in the buffer, `held` how much of it is there and `size` how much was sent."""

    index: Numbers
    src: Numbers
    sport: Numbers
    dst: Numbers
    dport: Numbers
    seq: Numbers
    flags: Numbers
    at: Numbers
    held: Numbers
    size: Numbers

    def __len__(self) -> int:
        return len(self.index)


def decode(buffer: Any, at: Numbers, captured: Numbers, link: int) -> Columns:
    """The plain ones among packets that begin at `at` in `buffer`, `captured` bytes each."""
    data = np.frombuffer(buffer, np.uint8)
    candidates = np.flatnonzero(captured >= HEADERS) if link == _ETHERNET else np.zeros(0, np.int64)
    begin = at[candidates].astype(np.int64)

    def one(offset: int) -> Numbers:
        return data[begin + offset].astype(np.int64)

    def two(offset: int) -> Numbers:
        return one(offset) << 8 | one(offset + 1)

    def four(offset: int) -> Numbers:
        return two(offset) << 16 | two(offset + 2)

    whole = two(20) & 0x3FFF == 0
    header = (one(46) >> 4) * 4
    total = two(16)
    # An IP length of 0 is the card's that cuts it later: what was captured is what there is.
    end = np.where(total == 0, captured[candidates] - 14, total)
    held = np.minimum(end, captured[candidates] - 14) - 20 - header
    plain = (two(12) == 0x0800) & (one(14) == 0x45) & (one(23) == 6) & whole & (header >= 20) & (held >= 0)
    found = Columns(
        candidates, four(26), two(34), four(30), two(36), four(38), one(47), begin + 34 + header, held,
        end - 20 - header,
    )  # fmt: skip
    return Columns(*(getattr(found, name)[plain] for name in Columns.__dataclass_fields__))
