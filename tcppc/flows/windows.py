"""A capture in memory, window by window: where its records are, and what they hold, as columns."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from tcppc.flows import columns
from tcppc.flows.columns import Columns, Numbers
from tcppc.flows.libpcap import Filter

WINDOW_PACKETS = 1 << 16
WINDOW_BYTES = 64 << 20
LOOK_PACKETS = 256  # between two looks at how large the window is
CUT = "ends within a "


class Walk(NamedTuple):
    """Where the records of a window begin, where it ends, what is wrong there, and where its last whole record ends.
    What follows an `odd` one has to be read packet by packet."""

    offsets: Numbers
    after: int
    problem: str
    whole: int
    odd: bool = False

    @property
    def last(self) -> bool:
        return self.odd or bool(self.problem)


class Window(NamedTuple):
    """A window's packets: where the record of each begins, its instant (ns), bytes that were captured and that were
    sent; and those of them that are plain."""

    at: Numbers
    instants: Numbers
    captured: Numbers
    size: Numbers
    plain: Columns


class Windows(ABC):
    """Those of a capture that is, in whole or in part, in `view`. Its first record begins at `begin`, and in each one
    the frame `record` bytes behind that; all frames are of one link type. `wanted` leaves out packets."""

    begin: int
    record: int
    link: int

    def __init__(self, view: memoryview, wanted: Filter | None = None) -> None:
        self.view = view
        self.end = len(view)
        self._wanted = wanted

    @abstractmethod
    def _walk(self, at: int) -> Walk: ...

    @abstractmethod
    def _heads(self, at: Numbers) -> tuple[Numbers, Numbers, Numbers, Numbers]:
        """(where, instant, bytes captured, bytes sent) of those that are packets."""

    def walk(self, at: int) -> Walk:
        """The next window; a record begins there."""
        walk = self._walk(at)
        return walk._replace(offsets=self._filtered(walk.offsets)) if self._wanted and len(walk.offsets) else walk

    def decode(self, at: Numbers) -> Window:
        """The packets whose records begin there."""
        at, instants, captured, size = self._heads(at)
        plain = columns.decode(self.view, at + self.record, captured, self.link)
        return Window(at, instants, captured, size, plain)

    def each(self, at: int, stopped: Callable[[], bool]) -> Iterator[tuple[Walk, Window | None]]:
        """All of them from there on, until it is `stopped`; None: without a packet that is wanted."""
        while at < self.end and not stopped():
            walk = self.walk(at)
            yield walk, self.decode(walk.offsets) if len(walk.offsets) else None
            if walk.last:
                return
            at = walk.after

    def words(self, at: Numbers, size: int, order: str) -> Numbers:
        """A row a record: its first `size` bytes as numbers of 32 bits."""
        rows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(self.view, np.uint8), size)[at]
        found: Numbers = rows.view(np.dtype(f"{order}u4")).astype(np.int64)
        return found

    def _filtered(self, offsets: Numbers) -> Numbers:
        assert self._wanted
        at, _, captured, size = self._heads(offsets)
        base = np.frombuffer(self.view, np.uint8).ctypes.data + self.record
        wants, link = self._wanted.at, self.link
        each = zip(at.tolist(), captured.tolist(), size.tolist(), strict=True)
        return np.array(
            [at for at, there, sent in each if wants(link, ctypes.c_void_p(base + at), there, sent)], np.int64
        )
