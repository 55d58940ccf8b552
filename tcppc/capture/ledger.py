"""The ledger: one line a time something became of a data file, so that `tcppc account` can say what was lost.

docs/ledger.md is the contract. Counts in a line are those since the line before; so a line that the disk did not
take is no loss: it waits here, bounded in number, and goes before the next one. A thread of the ledger's own writes and
syncs them: a folder that hangs holds up neither the writer nor a stop. What it has not taken at the end is kept in the
state folder, and the next start brings it home.
Any thread may add a line; what threads share is guarded by a lock. Nothing raises but `begin`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tcppc import __version__, text
from tcppc.capture.books import Books
from tcppc.capture.files import LEDGER, append, end_half_line, fixed_folder
from tcppc.clock import Zone
from tcppc.problems import Failure
from tcppc.records import new_id

# How often a line says how things stand while one file stays open: soon after a start, so that a run that is killed
# early has said something, then ever less often: 16 MB a year at most.
FIRST_MARK_SECONDS = 2.0
MARK_SECONDS = 600.0
# Lines that wait for a disk that takes nothing. Over it the oldest go, and are counted as ledger_lines_lost.
MOST_WAITING = 1000
RETRY_SECONDS = 1.0
# Who reads the ledger holds its lock for an instant.
LOCK_TRIES = 40
LOCK_PAUSE_SECONDS = 0.025
# In the state folder: lines that the folder of the data files did not take, each with that folder.
AWAY = "ledger-away.jsonl"
MOST_AWAY_BYTES = 1 << 20

Counts = dict[str, Any]
_RARE = ("bytes_dropped",)  # left out where nothing was added


class LedgerInUse(Failure):
    """Another sensor writes its data files to this folder."""


class Ledger:
    """The ledger beside the data files of `pattern`, or in `folder`; `say` logs. `state` is the folder for lines that
    cannot be written where they belong."""

    def __init__(
        self,
        pattern: str,
        zone: Zone,
        sensor: str,
        books: Books,
        say: Callable[[str], None],
        folder: Path | None = None,
        state: Path | None = None,
    ) -> None:
        self.folder = folder or fixed_folder(pattern)
        self._elsewhere = self.folder != fixed_folder(pattern)
        self.path = self.folder / LEDGER
        self.zone = zone
        self.sensor = sensor
        self.run = new_id(time.time_ns())
        self._away = state / AWAY if state else None
        self._books = books
        self._say = say
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._before: Counts = {}
        self._waiting: deque[bytes] = deque()
        self._held: int | None = None  # keeps a lock: who reads the ledger sees that a sensor runs
        self._locked = False
        self._marked = time.monotonic()
        self._pause = FIRST_MARK_SECONDS
        self._failing = False
        self._ending = False
        self._used = False  # has it a line?
        self._thread: threading.Thread | None = None

    def claim(self) -> None:
        """Take the folder for this sensor, before anything else is done; LedgerInUse where another one has it."""
        try:
            taken = self._hold() or _only_read(self._held)
        except OSError:  # the first line will say so; a folder that cannot be written to has no second sensor either
            return
        if not taken:
            raise LedgerInUse(
                f"{self.folder}: another sensor writes its data files there ({self.path} is locked); "
                "expected a folder for each"
            )

    def release(self) -> None:
        """Nothing was begun: leave the folder as it was."""
        held, self._held = self._held, None
        if held is not None:
            with contextlib.suppress(OSError):  # another one's now, or gone
                if not os.fstat(held).st_size:
                    self.path.unlink()
            os.close(held)

    def adopt(self, zone: Zone, sensor: str) -> None:
        """For lines from now on."""
        self.zone, self.sensor = zone, sensor

    def stands_for(self, folder: Path) -> bool:
        """Is it the ledger of data files in this folder? That of a stream, which stands elsewhere, is."""
        return folder == self.folder or self._elsewhere

    def begin(self, **more: Any) -> None:
        """A run begins. RuntimeError where there is no thread for it."""
        thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        thread.start()
        self._thread = thread
        self._add({"event": "start", "version": __version__, **more})

    def opened(self, path: str, size: int, stream: bool = False) -> None:
        """A data file is open, with `size` bytes in it already."""
        self._add({"event": "open", "file": self._name(path), "size": size, **_stream(stream)})

    def closed(self, path: str, size: int, first: int, last: int, stream: bool = False) -> None:
        """It is closed; `first` and `last` are instants (ns) of what was written to it since it was opened, or 0."""
        self._count("close", path, size, first, last, stream)

    def mark(self, path: str, size: int, first: int, last: int, stream: bool = False) -> None:
        """It stays open; from time to time, and where something happened, say how things stand."""
        now = time.monotonic()
        if now - self._marked >= self._pause:
            self._marked = now
            if self._books.counts() != self._before:
                self._pause = min(3 * self._pause, MARK_SECONDS)
                self._count("mark", path, size, first, last, stream)

    def _count(self, event: str, path: str, size: int, first: int, last: int, stream: bool) -> None:
        times = {"first": self.zone.stamp(first), "last": self.zone.stamp(last)} if first else {}
        self._add({"event": event, "file": self._name(path), "size": size, **_stream(stream), **times}, counting=True)

    def removed(self, path: str, size: int, why: str = "keep_bytes") -> None:
        """A closed file is removed, as files.keep_bytes or files.reserve asks (`why`)."""
        self._add({"event": "remove", "file": self._name(path), "size": size, "why": why})

    def listener(self, kind: str, name: str, alive: bool) -> None:
        """A probe found a listener dead, or alive again."""
        self._add({"event": "listener", "listener": f"{kind.lower()} {name}", "alive": alive})

    def thread(self, name: str, alive: bool, why: str = "") -> None:
        """A thread of the sensor is held up or has died, or goes on again."""
        self._add({"event": "thread", "thread": name, "alive": alive} | ({"why": why} if why else {}))

    def end(self, timeout: float = 5.0) -> None:
        """The run ends: the last counts, and all that waits, within `timeout` seconds. One that never began leaves
        nothing."""
        if not self._used:
            self.release()
            return
        self._add({"event": "stop"}, counting=True)
        with self._lock:
            self._ending = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(timeout)
        if self._thread is None or not self._thread.is_alive():
            self._flush()
        with self._lock:
            left = list(self._waiting)
            self._waiting.clear()
            held, self._held = self._held, None
        if left:
            self._keep_away(left)
        if held is not None:
            os.close(held)

    def _name(self, path: str) -> str:
        return text.kept(text.raw(os.path.relpath(path, self.folder)))

    def _add(self, values: dict[str, Any], counting: bool = False) -> None:
        self._used = True
        with self._lock:
            if counting:
                now = self._books.counts()
                values |= _since(self._before, now)
                self._before = now
                self._marked = time.monotonic()
            head = {"timestamp": self.zone.stamp(time.time_ns()), "run": self.run, "sensor": self.sensor}
            self._waiting.append(json.dumps(head | values, separators=(",", ":")).encode("ascii") + b"\n")
            while len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self._books.error("ledger_lines_lost")
            self._changed.notify_all()
        if self._thread is None:
            self._flush()

    def _run(self) -> None:
        """The ledger's thread: write what waits, try again where the disk takes nothing."""
        self._bring_home()
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._waiting or self._ending, None)
                if not self._waiting:
                    return
            if not self._flush():
                with self._lock:
                    if self._ending or self._changed.wait_for(lambda: self._ending, RETRY_SECONDS):
                        return

    def _flush(self) -> bool:
        """Write what waits; False where it has to wait on."""
        with self._lock:
            lines = list(self._waiting)
        if not lines:
            return True
        try:
            self._write(lines)
            self._failing = False
        except OSError as problem:
            if not self._failing:
                self._say(f"Failed to write the ledger: {self.path}: {problem.strerror}; its lines wait.")
            self._failing = True
            return False
        return True

    def _write(self, lines: list[bytes]) -> None:
        """Put these lines, the first of those that wait, into the file, and sync it."""
        self._hold()
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if self._held is not None and not os.path.sameopenfile(fd, self._held):
                os.close(self._held)  # an editor has put another file in its place
                self._held = None
                self._hold()
            size = end_half_line(fd)
            for line in lines:
                size += append(fd, size, line, str(self.path))
                with self._lock:
                    # Over the bound the oldest were dropped meanwhile: only this very line goes.
                    if self._waiting and self._waiting[0] is line:
                        self._waiting.popleft()
            os.fsync(fd)
        finally:
            os.close(fd)

    def _hold(self) -> bool:
        """Hold the ledger's lock; False where another sensor has it. OSError where there can be no ledger."""
        tries = 1
        if self._held is None:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._held = os.open(self.path, flags, 0o644)
            self._locked, tries = False, LOCK_TRIES
        while not self._locked and tries:
            tries -= 1
            try:
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._locked = True
            except BlockingIOError:  # somebody reads it at this moment; the next line tries again
                time.sleep(LOCK_PAUSE_SECONDS if tries else 0)
            except OSError:  # a file system without locks: then a running sensor is not seen
                return True
        return self._locked

    def _keep_away(self, lines: list[bytes]) -> None:
        """The folder did not take these: keep them in the state folder, where account and the next start find them."""
        place = b'{"folder":' + json.dumps(os.path.abspath(self.folder)).encode("ascii") + b","
        try:
            if self._away is None:
                raise OSError(0, "there is no state folder")
            self._away.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(self._away, flags, 0o600), "ab") as file:
                file.writelines(place + line[1:] for line in lines)
            self._say(
                f"{len(lines)} lines of the ledger {self.path} could not be written there; they are in {self._away}."
            )
        except OSError as problem:
            self._say(f"{len(lines)} lines of the ledger could not be written and are lost ({problem.strerror}).")

    def _bring_home(self) -> None:
        """Lines that an earlier run had to keep in the state folder go into the ledger, before this run's own."""
        if self._away is None:
            return
        with contextlib.suppress(OSError), _locked(self._away) as fd:  # there are none, or they stay where they are
            ours, others = _sorted(os.pread(fd, MOST_AWAY_BYTES, 0), self.folder)
            if not ours:
                return
            self._write(ours)
            os.ftruncate(fd, 0)
            os.pwrite(fd, others, 0)


def _only_read(fd: int | None) -> bool:
    """Is it those who read the ledger that hold its lock, and not a sensor?"""
    if fd is None:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Any:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _sorted(data: bytes, folder: Path) -> tuple[list[bytes], bytes]:
    """Of the lines kept away: (those of this folder's ledger, as it has them; all others as they are)."""
    ours: list[bytes] = []
    others = b""
    for line in data.splitlines(keepends=True):
        try:
            values = json.loads(line)
            of = values.pop("folder")
        except (ValueError, AttributeError, KeyError, TypeError):  # cut off, or not ours
            of = None
        if of == os.path.abspath(folder):
            ours.append(json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n")
        else:
            others += line
    return ours, others


def kept_away(state: Path, folder: Path) -> list[bytes]:
    """Ledger lines of this folder that are in the state folder. OSError where they cannot be read."""
    try:
        with (state / AWAY).open("rb") as file:
            return _sorted(file.read(MOST_AWAY_BYTES), folder)[0]
    except FileNotFoundError:
        return []


def _stream(stream: bool) -> dict[str, bool]:
    return {"stream": True} if stream else {}


def in_use(path: Path) -> bool:
    """Does a sensor that runs hold this ledger? OSError where it cannot be read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not see each other
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _since(before: Counts, now: Counts) -> Counts:
    """What has been added, counts by cause where there are any; `open` as it is now."""
    found: Counts = {}
    for name, value in now.items():
        if isinstance(value, dict):
            old = before.get(name, {})
            if added := {cause: count - old.get(cause, 0) for cause, count in value.items() if count != old.get(cause)}:
                found[name] = added
        elif name == "open":
            found[name] = value
        elif (added_now := value - before.get(name, 0)) or name not in _RARE:
            found[name] = added_now
    return found
