"""The windows of a capture, read by two processes in turns: each walks and decodes every second one, for both.

A window begins where the one before it ends; so a walk is told as soon as it is done, and the next one begins while
this window is decoded. Columns are handed over in memory that both processes see.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator

import numpy as np

from tcppc.flows.capture_files import CaptureError
from tcppc.flows.columns import Columns, Numbers
from tcppc.flows.sharing import SHARES, Ended, Line
from tcppc.flows.windows import WINDOW_PACKETS, Walk, Window, Windows

# Of each process: when one of them is filled again, the other process has told of a walk that it began after it had
# left what stood there.
_SLOTS = 2
_COLUMNS = (*Window._fields[:-1], *Columns.__dataclass_fields__)
BYTES = SHARES * _SLOTS * len(_COLUMNS) * WINDOW_PACKETS * 8
_Each = Iterator[tuple[Walk, Window | None]]


class Turns:
    """The turns of the process with that number. sharing.Ended where the other one is there no longer."""

    def __init__(self, number: int, line: Line, memory: mmap.mmap) -> None:
        self.over = False  # did the other one stop before a capture's end?
        self._number = number
        self._line = line
        self._slots = np.frombuffer(memory, np.int64).reshape(SHARES, _SLOTS, len(_COLUMNS), WINDOW_PACKETS)
        self._given = [0] * SHARES  # windows, by each

    def agreed(self, name: str, file: os.stat_result | None, size: int = 0) -> int:
        """Both are to read the same file, or neither (None). One that still grows is as long as the first of them found
        it; 0 where the other one has left."""
        mine = (file.st_dev, file.st_ino, size) if file else (0, 0, 0)
        self._line.say(mine)
        theirs = self._line.hear()
        self.over = theirs is None
        if self.over:
            return 0
        if theirs[:2] != mine[:2]:
            raise CaptureError(f"{name}: was replaced by another file while it was read")
        return min(size, int(theirs[2]))

    def leave(self) -> None:
        """Between two captures: this one has stopped, and the other one need not wait for it."""
        with contextlib.suppress(Ended):  # it left before
            self._line.say(None)
            self._line.hear()  # what it says of the next capture: else that, unread, would be in the way of ours

    def windows(self, of: Windows, stopped: Callable[[], bool]) -> _Each:
        """All of them, in order, until one of the two is `stopped`."""
        if of.end <= of.begin:
            return
        theirs = None
        if self._number:
            theirs = self._heard()
            if theirs is None:
                return
        while True:
            own = self._walked(of, theirs, stopped)
            window = self._give(of, own) if own else None
            if theirs:
                taken = self._taken(theirs)
                if taken is None:
                    return
                yield taken
            if own is None:
                return
            yield own, window
            if own.last or own.after >= of.end:
                return
            theirs = self._heard()
            if theirs is None:
                return

    def _walked(self, of: Windows, before: Walk | None, stopped: Callable[[], bool]) -> Walk | None:
        """The window behind the other's; None where there is none, or is to be none."""
        if before and (before.last or before.after >= of.end):
            return None
        if stopped():
            self._line.say(None)
            return None
        walk = of.walk(before.after if before else of.begin)
        self._line.say(walk[1:])
        return walk

    def _heard(self) -> Walk | None:
        """Where the other one's window ends; None: it has stopped."""
        said = self._line.hear()
        self.over = said is None
        return Walk(np.zeros(0, np.int64), *said) if said else None

    def _next(self, number: int) -> Numbers:
        slot: Numbers = self._slots[number, self._given[number] % _SLOTS]
        self._given[number] += 1
        return slot

    def _give(self, of: Windows, walk: Walk) -> Window | None:
        window = of.decode(walk.offsets) if len(walk.offsets) else None
        slot = self._next(self._number)
        packets, plain = (len(window.at), len(window.plain)) if window else (0, 0)
        if window:
            for row, column in zip(slot, (*window[:-1], *vars(window.plain).values()), strict=True):
                row[: len(column)] = column
        self._line.say((packets, plain))
        return window

    def _taken(self, walk: Walk) -> tuple[Walk, Window | None] | None:
        """None: the other one was stopped while it made that window."""
        said = self._line.hear()
        self.over = said is None
        if self.over:
            return None
        packets, plain = said
        slot = self._next(1 - self._number)
        if not packets:
            return walk, None
        of_all = len(Window._fields) - 1
        at, instants, captured, size = (row[:packets] for row in slot[:of_all])
        window = Window(at, instants, captured, size, Columns(*(row[:plain] for row in slot[of_all:])))
        return walk._replace(offsets=window.at), window
