"""Closed data files, and the files of thp's session folder: compressed, and held to what the disk may give for them.

One thread of its own, since compressing takes longer than the writer may be held up. It touches nothing but files that
are the sensor's (ours.py, session_files.py), never the open one, and goes by the oldest first. What goes wrong with one
file is said once, counted as `keeper_errors`, and costs no other file.
"""

from __future__ import annotations

import functools
import os
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tcppc.capture import room
from tcppc.capture.files import fixed_folder
from tcppc.capture.limits import why
from tcppc.capture.ours import Found, files_of, temporaries_of
from tcppc.capture.pack import ENDINGS, is_own, pack
from tcppc.capture.room import Disk, Ours, Room, ours_on
from tcppc.capture.session_files import SessionFiles
from tcppc.capture.supervisor import Supervised, described
from tcppc.values import size_text

# How often the disk is asked for its free space, and how often the session folder is looked through.
LOOK_SECONDS = 5.0
TEND_SECONDS = 60.0
# A file that could not be compressed is tried again after so long, twice as long each time.
AGAIN_SECONDS = 60.0
LONGEST_AGAIN_SECONDS = 24 * 3600.0
MOST_SAID = 10_000
# Of files that go together, so many are named in the log; the ledger has them all.
MOST_NAMED = 50
# Where files.reserve is 0, less free space than this share is worth a line, at most once in SAY_AGAIN_SECONDS.
LOW_DISK = 0.05
SAY_AGAIN_SECONDS = 3600.0


@dataclass(frozen=True)
class Terms:
    """What the keeper goes by; a reload makes new ones. The names are those of [files]."""

    pattern: str = ""  # of the data files; empty: there are none
    compress: str = "off"
    keep_bytes: int = 0
    reserve: str | int = 0
    session_dir: str = ""
    session_dir_bytes: int = 0
    session_dir_files: int = 0
    turns: bool = True  # is a data file ever followed by another one?
    others: frozenset[str] = frozenset()  # absolute paths that are no data files, whatever their names


@dataclass
class _Waiting:
    """A file that is to be compressed."""

    due: float = 0.0  # monotonic seconds
    pause: float = field(default_factory=lambda: AGAIN_SECONDS)


class Keeper:
    """Told of each closed file by `closed(path)`. `open_path()` gives the one that must not be touched; `removed(path,
    size, why)` is told of each data file that went, `why` being keep_bytes or reserve; `count` is Books.error."""

    def __init__(
        self,
        terms: Terms,
        open_path: Callable[[], str],
        say: Callable[[str], None],
        count: Callable[[str], object],
        removed: Callable[[str, int, str], None] = lambda path, size, why: None,
    ) -> None:
        self.terms = terms
        self.gone: Counter[str] = Counter()  # files removed, by why
        self.disks: dict[str, tuple[Disk, int]] = {}  # by folder: its disk, and what stays free of it
        self.thread = Supervised("keeper", self._run, say, count)
        self._open_path = open_path
        self._say = say
        self._count = count
        self._removed = removed
        self._todo: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stopping = False
        self._begun = False
        self._waiting: dict[str, _Waiting] = {}
        self._looked = self._tended = 0.0
        self._rooms: dict[int, Room] = {}
        self._copies: SessionFiles | None = None
        self._said: dict[str, float] = {}

    def start(self) -> None:
        """Begin with what an earlier run has left: closed files not yet compressed, more than may be kept."""
        for line in promises(self.terms):
            self._say(line)
        self.thread.start()

    def closed(self, path: str) -> None:
        """This file will not be written to again."""
        self._todo.put(path)

    def adopt(self, terms: Terms) -> None:
        """From the next look on."""
        old, self.terms = self.terms, terms
        if terms != old:
            for line in promises(terms):
                self._say(line)
        self._todo.put("")

    def stop(self, timeout: float) -> None:
        """End; a file that is being compressed stays as it was."""
        self._stopping = True
        self.thread.stop()
        self._todo.put(None)
        self.thread.join(timeout)

    def _run(self) -> None:
        if not self._begun:
            self._begun = True
            self._guarded(self._begin, self.terms)
        while not self._stopping:
            news = self._take()
            terms = self.terms
            if self._stopping:
                return
            self._guarded(self._look_at_disks, terms)
            if news and terms.keep_bytes:
                self._guarded(self._forget, terms)
            self._compress_all(terms)
            if terms.session_dir and time.monotonic() - self._tended >= TEND_SECONDS:
                self._tended = time.monotonic()
                self._guarded(self._bound_copies, terms)

    def _begin(self, terms: Terms) -> None:
        self._todo.put("")
        for file in temporaries_of(terms.pattern, self._failed):  # a run that was killed left them
            try:
                if is_own(os.lstat(file.path)):
                    os.unlink(file.path)
            except OSError as problem:
                self._failed(problem, file.path)
        for file in self._files(terms) if terms.compress != "off" else ():
            if os.path.splitext(file.path)[1] not in ENDINGS.values():
                self.closed(file.path)

    def _take(self) -> bool:
        """What was closed joins what waits. False where nothing came within LOOK_SECONDS."""
        came, timeout = False, LOOK_SECONDS
        while True:
            try:
                path = self._todo.get(timeout=timeout)
            except queue.Empty:
                return came
            came, timeout = True, 0.0
            if path and self.terms.pattern:
                self._waiting[path] = _Waiting()

    def _is_open(self, path: str) -> bool:
        return os.path.abspath(path) == os.path.abspath(self._open_path())

    # What goes wrong.

    def _guarded(self, work: Callable[[Terms], None], terms: Terms) -> None:
        try:
            work(terms)
        except OSError as problem:
            self._failed(problem)
        except Exception as problem:  # a fault of ours, or no memory: the other work is done all the same
            self._tell("", described(problem))

    def _failed(self, problem: OSError, path: str = "") -> None:
        self._tell(problem.filename or path, why(problem))

    def _tell(self, path: str, text: str) -> None:
        """Count it each time, say it once."""
        self._count("keeper_errors")
        if self._is_news(f"{path}: {text}"):
            self._say(f"Failed to tend closed session files: {f'{path}: ' if path else ''}{text}; going on.")

    def _is_news(self, text: str, seconds: float = float("inf")) -> bool:
        """Was it not said within so many seconds?"""
        now = time.monotonic()
        if now - self._said.get(text, float("-inf")) < seconds:
            return False
        if len(self._said) >= MOST_SAID:
            self._said.clear()
        self._said[text] = now
        return True

    # Compressing.

    def _compress_all(self, terms: Terms) -> None:
        if terms.compress == "off":
            self._waiting.clear()
            return
        for path, waiting in list(self._waiting.items()):
            if self._stopping:
                return
            if time.monotonic() < waiting.due:
                continue
            if self._compress(path, terms):
                del self._waiting[path]
            else:
                waiting.due = time.monotonic() + waiting.pause
                waiting.pause = min(2 * waiting.pause, LONGEST_AGAIN_SECONDS)
            self._guarded(self._look_at_disks, terms)

    def _compress(self, path: str, terms: Terms) -> bool:
        """True where there is nothing more to do with it."""
        if self._is_open(path) or not os.path.lexists(path):  # a name that came back; or it was moved away
            return True
        try:
            pack(path, terms.compress, functools.partial(self._goes_on, path, terms), self._damaged)
            return True
        except FileNotFoundError as problem:
            if problem.filename != path:
                self._failed(problem, path)
        except OSError as problem:
            self._failed(problem, path)
        except Exception as problem:  # of a library, or no memory: other files are another matter
            self._tell(path, described(problem))
        return False

    def _goes_on(self, path: str, terms: Terms) -> bool:
        """May it be compressed further? It takes long enough that the disk is looked at meanwhile."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._guarded(self._look_at_disks, terms)
        return not self._stopping and not self._is_open(path)

    def _damaged(self, packed: str, text: str) -> None:
        self._count("keeper_errors")
        if self._is_news(f"{packed}: {text}"):
            self._say(f"Not a compressed copy: {packed}: {text}; it stays, and the data file gets another name.")

    # Removing.

    def _files(self, terms: Terms) -> list[Found]:
        return files_of(terms.pattern, self._failed, terms.others)

    def _forget(self, terms: Terms) -> None:
        """The oldest closed files go until the rest is within `keep_bytes`."""
        closed = [file for file in self._files(terms) if not self._is_open(file.path)]
        over = sum(file.size for file in closed) - terms.keep_bytes
        self._remove(closed, over, "keep_bytes", f"files.keep_bytes is {terms.keep_bytes}")

    def _remove(self, files: Iterable[Found], needed: int, bound: str, because: str) -> int:
        """One after the other, until so many bytes are free; returns how many are. They are bytes of the disk for the
        reserve, and the files' own for keep_bytes."""
        freed = named = more = 0
        for file in files:
            if freed >= needed:
                break
            if not self._unlink(file, bound):
                continue
            freed += file.room if bound == "reserve" else file.size
            if named < MOST_NAMED:
                named += 1
                self._say(f"Removed the oldest session file: {file.path} ({file.size} bytes): {because}.")
            else:
                more += 1
        if more:
            self._say(f"Removed the oldest session file: and {more} more; the ledger names them: {because}.")
        return freed

    def _unlink(self, file: Found, bound: str) -> bool:
        """Is it gone now?"""
        try:
            now = os.lstat(file.path)
            if (now.st_dev, now.st_ino) != file.identity or self._is_open(file.path):
                return False
            os.unlink(file.path)
        except FileNotFoundError:  # somebody else removed it
            return False
        except OSError as problem:
            self._failed(problem, file.path)
            return False
        self.gone[bound] += 1
        self._removed(file.path, file.size, bound)
        return True

    def _copies_of(self, terms: Terms) -> SessionFiles | None:
        if not terms.session_dir:
            return None
        if self._copies is None or self._copies.folder != terms.session_dir:
            self._copies = SessionFiles(terms.session_dir, self._failed)
        return self._copies

    def _bound_copies(self, terms: Terms) -> None:
        if copies := self._copies_of(terms):
            gone = copies.bound(terms.session_dir_files, terms.session_dir_bytes)
            if gone.files:
                self.gone["session_dir"] += gone.files
                self._say(
                    f"Removed the {gone.files} oldest files of {copies.folder} ({size_text(gone.room)}): "
                    f"files.session_dir_files is {terms.session_dir_files}, session_dir_bytes "
                    f"{terms.session_dir_bytes}."
                )

    # The disk.

    def _look_at_disks(self, terms: Terms) -> None:
        self._looked = time.monotonic()
        disks = {}
        for device, folder in room.folders(self._places(terms)).items():
            known = self._rooms.get(device)
            if known is None or known.folder != folder:
                known = self._rooms[device] = Room(folder, self._say, self._remove, self._count_copies)
            try:
                disks[folder] = known.look(terms.reserve, functools.partial(self._ours, device, terms))
                self._warn_of(folder, *disks[folder])
            except OSError as problem:  # the other disks are looked at all the same
                self._failed(problem, folder)
        self.disks = disks

    def _places(self, terms: Terms) -> list[str]:
        data = os.path.dirname(self._open_path()) or str(fixed_folder(terms.pattern)) if terms.pattern else ""
        return [folder for folder in (data, terms.session_dir) if folder]

    def _ours(self, device: int, terms: Terms) -> Ours:
        return ours_on(device, self._files(terms), lambda file: self._is_open(file.path), self._copies_of(terms))

    def _count_copies(self, count: int) -> None:
        self.gone["reserve"] += count

    def _warn_of(self, folder: str, disk: Disk, reserve: int) -> None:
        if not reserve and disk.free < LOW_DISK * disk.total and self._is_news(folder, SAY_AGAIN_SECONDS):
            self._say(
                f"The disk of {folder} is nearly full: {disk.free} bytes free; files.keep_bytes and files.reserve "
                "bound what is kept."
            )


def promises(terms: Terms) -> list[str]:
    """What bounds the disk, for people."""
    said = [f"Disk: {_promise(terms)}"] if terms.pattern else []
    if terms.session_dir:
        bounds = [f"{terms.session_dir_files} files"] if terms.session_dir_files else []
        bounds += [size_text(terms.session_dir_bytes)] if terms.session_dir_bytes else []
        text = f"kept up to {' and '.join(bounds)}, the oldest go first" if bounds else "all kept"
        said.append(f"Disk: files of {terms.session_dir} are {text}.")
    return said


def _promise(terms: Terms) -> str:
    (folder,) = room.folders([str(fixed_folder(terms.pattern))]).values() or (".",)
    try:
        disk = room.disk_of(folder)
    except OSError as problem:
        return f"files.reserve cannot be kept: {folder}: {why(problem)}."
    reserve = room.reserve_of(terms.reserve, disk.total)
    only = "" if terms.turns else " There is one data file, which is never closed, and so never removed."
    if not reserve and not terms.keep_bytes:
        return f"nothing bounds the closed data files: files.keep_bytes and files.reserve are 0.{only}"
    kept = f"closed data files are kept up to {size_text(terms.keep_bytes)}, the oldest go first"
    if not reserve:
        return f"{kept}; no free space is reserved: files.reserve is 0.{only}"
    free = f"free on the disk of {folder} ({size_text(disk.free)} is now).{only}"
    if terms.keep_bytes:
        return f"{kept}; at least {size_text(reserve)} stays {free}"
    return f"closed data files are kept; the oldest go where less than {size_text(reserve)} is {free}"
