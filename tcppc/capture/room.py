"""Free space that stays on the disk (`files.reserve`): where there is less, the oldest of the sensor's closed files go.

What keeps that from costing data in vain:
  - copies (files.session_dir) go before data files, the oldest first, and only as many as are needed;
  - never the open file, nor the newest one;
  - as much as the reserve itself may always stay: where the sensor has no more than that, others fill the disk;
  - none goes where all that may go together would not bring the reserve back, or where those that went did not.
Each removal, and each reason to remove nothing, is said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tcppc.capture.ours import Found
from tcppc.capture.session_files import SessionFiles
from tcppc.values import size_text

# The reserve where files.reserve is "": a share of the disk within two bounds, and no more than another share of it.
SHARE = 0.05
LEAST_BYTES = 1 << 30
MOST_BYTES = 10 << 30
MOST_SHARE = 0.1
# However large a reserve is asked for, no more than this of a disk.
LARGEST_SHARE = 0.5
# A quarter of the reserve, and at most this, is freed beyond it, so that it is not for each few bytes.
MARGIN_BYTES = 1 << 30
# Some file systems give room back a while after a file went.
SETTLE_SECONDS = 30.0
# How long nothing is removed after it did not help, or was not enough; and how often the same is said.
AGAIN_SECONDS = 60.0
VAIN_SECONDS = 3600.0


@dataclass(frozen=True)
class Disk:
    """A disk as statvfs(3) tells it: what this user may still write, and its size."""

    free: int
    total: int


def disk_of(folder: str) -> Disk:
    """OSError where it cannot be told."""
    told = os.statvfs(folder)
    return Disk(told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize)


def reserve_of(setting: str | int, total: int) -> int:
    """`files.reserve` in bytes, for a disk of `total` bytes."""
    if setting == "":
        wanted = min(max(SHARE * total, LEAST_BYTES), MOST_BYTES, MOST_SHARE * total)
    elif isinstance(setting, str):
        wanted = float(setting.rstrip("%")) / 100 * total
    else:
        wanted = setting
    return int(min(wanted, LARGEST_SHARE * total))


@dataclass
class _Went:
    """What was removed from a disk, and what it was like just before."""

    at: float
    room: int
    free: int
    ours: int


@dataclass
class Ours:
    """The sensor's files on one disk: all of them, those of them that may go (the oldest first), and copies."""

    room: int
    closed: Sequence[Found]
    copies: SessionFiles | None
    copies_room: int


def ours_on(device: int, files: Sequence[Found], is_open: Callable[[Found], bool], copies: SessionFiles | None) -> Ours:
    here = [file for file in files if file.device == device]
    # A file with another name somewhere gives no room back. The newest one stays also where none is open.
    closed = [file for file in here if not is_open(file) and file is not files[-1] and file.links == 1]
    there = copies if copies and copies.device() == device else None
    copies_room = there.held().room if there else 0
    return Ours(sum(file.room for file in here) + copies_room, closed, there, copies_room)


class Room:
    """Keeps one disk's reserve. `say` logs; `remove(files, needed, "reserve", because)` removes the first of them until
    so much is freed, and returns how much; `copies_removed(count)` is told of files of the session folder that went."""

    def __init__(
        self,
        folder: str,
        say: Callable[[str], None],
        remove: Callable[[Sequence[Found], int, str, str], int],
        copies_removed: Callable[[int], None],
    ) -> None:
        self.folder = folder
        self._say = say
        self._remove_files = remove
        self._copies_removed = copies_removed
        self._went: _Went | None = None
        self._wait_until = 0.0
        self._said: tuple[str, float] = ("", 0.0)

    def look(self, setting: str | int, ours: Callable[[], Ours]) -> tuple[Disk, int]:
        """Make room where it is short; `ours` is asked only then. Returns how the disk was, and what is to stay free of
        it; OSError where the disk cannot be asked."""
        disk = disk_of(self.folder)
        reserve = reserve_of(setting, disk.total)
        now = time.monotonic()
        if disk.free >= reserve:
            self._went, self._wait_until = None, 0.0
        elif now >= self._wait_until:
            self._make_room(disk, reserve, ours(), now)
        return disk, reserve

    def _make_room(self, disk: Disk, reserve: int, ours: Ours, now: float) -> None:
        if self._went and not self._helped(disk, ours):
            if now - self._went.at >= SETTLE_SECONDS:
                text = f"removing {size_text(self._went.room)} did not make room: something else holds or takes it"
                self._went = None
                self._leave(disk, reserve, ("in vain", text), now + VAIN_SECONDS)
            return
        needed = reserve - disk.free + min(reserve // 4, MARGIN_BYTES)
        may_go = min(ours.room - reserve, ours.copies_room + sum(file.room for file in ours.closed))
        if may_go < needed:
            self._leave(disk, reserve, _why_not(ours, reserve, may_go), now + AGAIN_SECONDS)
            return
        if room := self._remove(disk, reserve, ours, needed):
            self._went = _Went(now, room, disk.free, ours.room)
        else:
            text = "none of the sensor's files there could be removed"
            self._leave(disk, reserve, ("refused", text), now + AGAIN_SECONDS)

    def _helped(self, disk: Disk, ours: Ours) -> bool:
        """Did the last removal make room? What the sensor itself has written since is no sign that it did not."""
        assert self._went
        written = ours.room - (self._went.ours - self._went.room)
        return disk.free - self._went.free + max(0, written) >= self._went.room / 2

    def _leave(self, disk: Disk, reserve: int, why: tuple[str, str], until: float) -> None:
        """Remove nothing until then. `why` is the reason's name and its words."""
        self._wait_until = until
        now = time.monotonic()
        if why[0] != self._said[0] or now - self._said[1] >= VAIN_SECONDS:
            self._said = why[0], now
            self._say(f"The disk of {self.folder} has {_short(disk, reserve)}: {why[1]}. Make room there.")

    def _remove(self, disk: Disk, reserve: int, ours: Ours, needed: int) -> int:
        room = 0
        because = f"the disk has {_short(disk, reserve)}"
        if ours.copies and ours.copies_room:
            gone = ours.copies.remove(0, needed)
            if gone.files:
                self._copies_removed(gone.files)
                gave = size_text(gone.room)
                self._say(f"Removed the {gone.files} oldest files of {ours.copies.folder} ({gave}): {because}.")
            room += gone.room
        if room < needed:
            room += self._remove_files(ours.closed, needed - room, "reserve", because)
        return room


def _why_not(ours: Ours, reserve: int, may_go: int) -> tuple[str, str]:
    held = size_text(ours.room)
    if not ours.closed and not ours.copies_room:
        return "open", f"the sensor's files there hold {held}, but none of them is closed, so none is removed"
    if ours.room <= reserve:
        return "others", f"the sensor's files there hold only {held}, so others fill it; none is removed"
    could = size_text(max(0, may_go))
    return "short", f"of the sensor's files there, {held}, {could} could go, which is not enough; none is removed"


def _short(disk: Disk, reserve: int) -> str:
    return f"{size_text(disk.free)} free, less than files.reserve ({size_text(reserve)})"


def folders(paths: Iterable[str]) -> dict[int, str]:
    """One folder of each disk that these paths are on, by its device; of a folder that is not there yet, the nearest
    one above it."""
    there: dict[int, str] = {}
    for path in paths:
        folder = os.path.abspath(path)
        while not os.path.isdir(folder) and folder != os.path.dirname(folder):
            folder = os.path.dirname(folder)
        try:
            there.setdefault(os.stat(folder).st_dev, folder)
        except OSError:  # gone in this very moment: the next look finds what is there then
            continue
    return there
