"""The data files of a ledger: what its lines say of each, held against what stands there.

`Files` takes the lines that are of files; `check` then looks at the disk. What is found is `problems`, `notes`, and
`unread`, what could not be looked at: of that nobody knows whether it agrees. Nothing but regular files is ever opened.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tcppc.capture.files import LEDGER
from tcppc.ledger_lines import Values
from tcppc.show import ENDINGS, DataError, damage, open_data

READ_BYTES = 1 << 20
Progress = Callable[[int], None]


class Finding(NamedTuple):
    """Something that is not as it should be, and the time stamp of the ledger line that tells it, or of the last one
    before. Of a file: its name; `run` is who wrote it last."""

    stamp: str
    text: str
    run: str = ""
    file: str = ""


class Counted(NamedTuple):
    """What stands in a file, decompressed; `within` are the lines of its first so many bytes."""

    lines: int
    size: int
    within: int


class UnreadableError(Exception):
    """Why a file cannot be read, in one line. `gone`: it is not there any more."""

    def __init__(self, text: str, gone: bool = False) -> None:
        super().__init__(text)
        self.gone = gone


@dataclass
class File:
    """What the ledger says of one name; a name that came back after its file was moved or compressed is one more
    life, and sizes are those of all lives together."""

    name: str
    last: str = ""  # time stamp of the last line about it
    run: str = ""  # whose line that was
    size: int = 0  # of the life that is open or was the last
    before: int = 0  # of the lives before it
    lines: int = 0  # written by sensors, all lives
    earlier: int = 0  # of them, those of the lives before
    unknown: int = 0  # bytes that no ledger line tells of: older than the ledger, or of a run that was killed
    streamed: bool = False  # it is or was no regular file
    stream_lines: int = 0  # written to it then
    stream_bytes: int = 0
    changed: list[Finding] = field(default_factory=list)
    explained: list[Finding] = field(default_factory=list)  # changes that somebody acknowledged
    removed: str = ""  # why it need not be there
    loose: bool = False  # keep_bytes removed a life of it: what else stands there may be of others
    moved: bool = False  # its only life was moved, and removed under that name

    @property
    def expected(self) -> int:
        """Bytes, of all lives."""
        return self.before + self.size

    def remove(self, values: Values) -> None:
        """keep_bytes removed this file, or what became of one of its lives."""
        name, stamp, less = values["file"], values["timestamp"], self.size - values["size"]
        if name == self.name and not self.loose and not self.before and less > 0:
            text = f"{less} bytes shorter when it was removed, at {stamp}, than at {self.last}"
            self.changed.append(Finding(stamp, text, self.run))
        self.loose = True
        if name in (self.name, f"{self.name}.gz", f"{self.name}.zst"):
            asked = values.get("why") if values.get("why") in ("keep_bytes", "reserve") else "keep_bytes"
            self.removed = f"removed, as files.{asked} asks: {self.lines} lines"
        else:
            self.moved = not self.before
            self.lines, self.earlier, self.before = self.lines - self.earlier, 0, 0

    def open(self, values: Values, known: bool, left_open: bool) -> None:
        """A sensor opens it; `left_open`: a run that had it open was killed."""
        size, stamp, run = values["size"], values["timestamp"], self.run or values["run"]
        if self.removed:
            self.removed, self.before, self.lines, self.earlier, self.unknown = "", 0, 0, 0, size
        elif known and size == 0:
            self.before += self.size
            self.earlier = self.lines
        elif size > self.size:
            self.unknown += size - self.size
            if known and not left_open:
                text = f"{size - self.size} bytes added between {self.last} and {stamp}"
                self.changed.append(Finding(stamp, f"{text}, or a line of the ledger is gone", run))
        elif size < self.size:
            self._cut(size)
            text = f"{self.size - size} bytes shorter at {stamp} than at {self.last}"
            self.changed.append(Finding(stamp, text, run))
        self.size, self.moved = size, False

    def count(self, values: Values) -> None:
        """A mark or a close."""
        size, stamp, run = values["size"], values["timestamp"], values["run"]
        expected = self.size + values["bytes"]
        since = self.last or "its beginning"
        self.lines += values["lines"]
        if size < expected:
            self._cut(size)
            text = f"{expected - size} bytes taken out between {since} and {stamp}"
            self.changed.append(Finding(stamp, text, run))
        elif size > expected:
            self.unknown += size - expected
            text = f"{size - expected} bytes added between {since} and {stamp}, or a line of the ledger is gone"
            self.changed.append(Finding(stamp, text, run))
        self.size = size

    def end(self, values: Values) -> None:
        """Its run stopped with it open, held up by its disk: what the last line counts is in it."""
        if self.streamed:
            self.stream_lines += values["lines"]
            self.stream_bytes += values["bytes"]
        else:
            self.lines += values["lines"]
            self.size += values["bytes"]

    def _cut(self, size: int) -> None:
        """It became shorter, and how many lines went is not known: only those that come now can be counted."""
        self.lines, self.unknown = self.earlier, size

    def acknowledge(self, found: Values, how: str) -> None:
        """Somebody looked at it and knows why: what stood there then is what is expected from now on."""
        self.explained += [finding._replace(text=f"{finding.text}; {how}") for finding in self.changed]
        self.changed.clear()
        if "size" in found:
            self.removed = "" if found["size"] else f"is gone; {how}"
            self.before, self.size, self.unknown = 0, found["size"], 0
            self.lines, self.earlier = found["lines"], 0


class Files:
    """All of a ledger, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.of: dict[str, File] = {}
        self.problems: list[Finding] = []
        self.notes: list[str] = []
        self.unread: list[str] = []
        self.checked = 0
        self.left_out: set[str] = set()  # older than what is asked for
        self.since = Counted(0, 0, 0)  # lines and bytes that the file which is written to has beyond the ledger
        self.moving = False  # a file went away while it was read, or is gone
        self._there: dict[str, list[Path]] | None = None
        self._other: dict[str, str] = {}  # name: what stands there in place of a file
        self._closed: set[str] = set()  # folders that cannot be looked into
        self._like: list[str] = []  # named as those of the ledger are, but in no line of it

    def add(self, values: Values, left_open: bool) -> None:
        """The next line that is of a file."""
        name = values["file"]
        if values["event"] == "remove":
            for base in _bases(name):
                if base in self.of:
                    self.of[base].remove(values)
            return
        known = name in self.of
        file = self.of.setdefault(name, File(name))
        if values.get("stream") is True or (values["event"] != "open" and values["bytes"] and not values["size"]):
            file.streamed = True  # a file has a size once something was written to it
        if file.streamed:
            file.stream_lines += values.get("lines", 0)
            file.stream_bytes += values.get("bytes", 0)
        elif values["event"] == "open":
            file.open(values, known, left_open)
        else:
            file.count(values)
        file.last, file.run = values["timestamp"], values["run"]

    def bytes_to_read(self) -> int:
        """About how much `check` has to read."""
        return sum(_size(path) for file in self._asked() for path in self.found(file))

    def _asked(self) -> list[File]:
        return [file for name, file in self.of.items() if name not in self.left_out]

    def found(self, file: File) -> list[Path]:
        """What stands there of it: itself, compressed, or as logrotate named it."""
        return self._index().get(file.name, [])

    def there(self, file: File, progress: Progress = lambda size: None) -> tuple[Counted, int]:
        """(what stands there of it, how many copies beside it are not counted). DataError where something is damaged,
        UnreadableError."""
        found = self.found(file)
        if os.path.dirname(file.name) in self._closed or file.name in self._other:
            raise UnreadableError(f"{self.folder / file.name}: cannot be read")
        counted = [count_lines(path, progress, file.expected) for path in found]
        copies = 0
        if len(found) > 1 and found[0] == self.folder / file.name and counted[0].size == file.expected:
            copies, counted = len(found) - 1, counted[:1]
        lines, size = sum(each.lines for each in counted), sum(each.size for each in counted)
        return Counted(lines, size, counted[0].within if len(counted) == 1 else min(lines, file.lines)), copies

    def _index(self) -> dict[str, list[Path]]:
        """Each folder is looked through once."""
        if self._there is None:
            self._there = {name: [] for name in self.of}
            shapes = {_shape(name) for name in self.of}
            for folder in sorted({os.path.dirname(file.name) for file in self._asked()}):
                try:
                    entries = sorted(os.listdir(self.folder / folder))
                except (FileNotFoundError, NotADirectoryError):
                    entries = []
                except OSError as problem:
                    self._closed.add(folder)
                    self.unread.append(f"{self.folder / folder}: cannot be read: {problem.strerror}")
                    continue
                for entry in entries:
                    self._sort(folder, entry, shapes)
        return self._there

    def _sort(self, folder: str, entry: str, shapes: Collection[str]) -> None:
        assert self._there is not None
        name = os.path.join(folder, entry)
        bases = _bases(name) if not name.endswith(".tmp") else iter([name])
        base = next((base for base in bases if base in self.of), "")
        like = not base and entry.endswith(ENDINGS) and entry != LEDGER and _shape(name) in shapes
        if not base and not like:
            return
        try:
            mode = os.stat(self.folder / name).st_mode
        except FileNotFoundError:  # it went this moment, or is a link to nothing
            return
        except OSError as problem:
            self._closed.add(folder)
            self.unread.append(f"{self.folder / name}: cannot be looked at: {problem.strerror}")
            return
        if not stat.S_ISREG(mode):
            if base == name:
                self._other[name] = _kind(mode)
        elif base:
            self._there[base].append(self.folder / name)
        else:
            self._like.append(name)

    def check(self, progress: Progress, written_to: str, left_open: Collection[str]) -> None:
        """Hold what stands there against the lines. A sensor that runs has `written_to` open; of those `left_open`
        nobody knows how much was written after the last line."""
        self._index()
        for file in self._asked():
            self.problems += [
                finding._replace(text=f"{file.name}: {finding.text}", file=file.name) for finding in file.changed
            ]
            self.notes += [f"{file.name}: {finding.text}" for finding in file.explained]
            if not self._elsewhere(file):
                self._look(file, progress, file.name == written_to, file.name in left_open)
        if self._like:
            more = f" and {len(self._like) - 3} more" if len(self._like) > 3 else ""
            self.notes.append(f"no line of the ledger tells of {', '.join(sorted(self._like)[:3])}{more}")

    def _elsewhere(self, file: File) -> bool:
        """Is there nothing to read back? Then it is said why."""
        other = self._other.get(file.name, "")
        if file.streamed or _of_each_process(self.folder / file.name) or (other and not file.expected):
            lines, size = file.stream_lines + file.lines, file.stream_bytes + file.size
            self.notes.append(
                f"{file.name}: a stream: {lines:,} lines, {size:,} bytes were written to it, they cannot be counted "
                "here"
            )
            return True
        if other:
            self._problem(file, f"is {other} now, in place of a file with {file.lines} lines, {file.expected} bytes")
        elif file.removed:
            self.notes.append(f"{file.name}: {file.removed}")
        elif not self.found(file) and file.moved:
            self.notes.append(f"{file.name}: moved, and removed under that name: {file.lines} lines")
        elif not self.found(file) and file.expected and os.path.dirname(file.name) not in self._closed:
            self.moving = True
            self._problem(file, f"is gone, with {file.lines} lines; it was moved or removed")
        else:
            return os.path.dirname(file.name) in self._closed
        return True

    def _look(self, file: File, progress: Progress, written_to: bool, left_open: bool) -> None:
        try:
            there, copies = self.there(file, progress)
        except DataError as problem:
            self.problems.append(Finding(file.last, str(problem), file.run, file.name))
            return
        except UnreadableError as problem:
            self.moving = self.moving or problem.gone
            self.unread.append(str(problem))
            return
        self.checked += 1
        if copies:
            self.notes.append(f"{file.name}: {copies} files beside it are not counted: it is whole by itself")
        self._compare(file, there, written_to, left_open)

    def _compare(self, file: File, there: Counted, written_to: bool, left_open: bool) -> None:
        lines, more = there.lines, there.size - file.expected
        exact = not file.unknown and not file.loose
        if more < 0:
            self._problem(file, f"{_missing(file, lines, -more)} since {file.last}")
        elif more and not written_to and not file.loose and not left_open:
            self._problem(file, f"has {more} bytes that no ledger line tells of")
        elif lines < file.lines:
            self._problem(file, f"has {lines} lines where {file.lines} were written; some were taken out")
        elif exact and (there.within if more else lines) != file.lines:
            some = f"{there.within if more else lines} lines" + (f" in its first {file.expected} bytes" if more else "")
            self._problem(file, f"has {some} where {file.lines} were written; it was changed")
        else:
            if written_to and more:
                self.since = Counted(lines - there.within, more, 0)
                self.notes.append(
                    f"{file.name}: {self.since.lines} lines, {more} bytes more were written after the sensor's last "
                    "line in the ledger"
                )
            if (before := lines - self.since.lines if written_to else lines) > file.lines:
                self.notes.append(
                    f"{file.name}: {before - file.lines} lines that the ledger does not tell of: of a run that was "
                    "killed or stuck, or older"
                )

    def _problem(self, file: File, text: str) -> None:
        self.problems.append(Finding(file.last, f"{file.name}: {text}", file.run, file.name))


def _missing(file: File, lines: int, size: int) -> str:
    gone = file.lines - lines
    exact = f"{gone} lines, " if gone > 0 and not file.unknown else f"at least {gone} lines, " if gone > 0 else ""
    return f"{exact}{size} bytes are missing"


def _bases(name: str) -> Iterator[str]:
    """The names of which this one may be: itself, or what compressing or logrotate made of base: base.gz, base.1.gz,
    base-20261121. The longest comes first: log.1.gz is of log.1, not of log."""
    yield name
    start = name.rfind("/") + 1
    for at in range(len(name) - 1, start, -1):
        if name[at] in ".-":
            yield name[:at]


def _shape(name: str) -> str:
    """A name with its numbers masked, and without what compressing added."""
    return re.sub(r"\d+", "#", re.sub(r"\.(gz|zst)$", "", name))


def _of_each_process(path: Path) -> bool:
    """Does this name stand for another file in each process, as /dev/stdout does?"""
    text = os.path.abspath(path)
    return text in ("/dev/stdin", "/dev/stdout", "/dev/stderr") or text.startswith(("/dev/fd/", "/proc/"))


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((words for test, words in kinds if test(mode)), "a device")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # for the progress alone; who reads it tells
        return 0


def count_lines(path: Path, progress: Progress, first: int) -> Counted:
    """`first`: of how many bytes the lines are wanted. DataError where it is damaged, UnreadableError where nobody can
    read it."""
    lines = size = within = 0
    try:
        with open_data(path) as file:
            while block := file.read(READ_BYTES):
                lines += block.count(b"\n")
                within += block.count(b"\n", 0, max(0, first - size))
                size += len(block)
                progress(len(block))
    except damage() as problem:
        raise DataError(f"{path}: is damaged after {size} bytes: {problem}") from None
    except DataError as problem:  # what reads this kind is missing
        raise UnreadableError(str(problem)) from None
    except OSError as problem:
        raise UnreadableError(
            f"{path}: cannot be read: {problem.strerror}", gone=isinstance(problem, FileNotFoundError)
        ) from None
    return Counted(lines, size, within)
