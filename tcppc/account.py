"""The ledger read back: what was accepted, what became of it, and whether the files still hold it.

`tcppc account DIR` in three steps: `read` the ledger's lines, `Account` adds them up by run and by file, `check` counts
the lines and bytes that are there. docs/ledger.md tells the lines; all of them may be damaged, or from another sensor.
Bounds: a ledger line is at most MOST_LINE bytes; data files are read in pieces.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tcppc import clock
from tcppc.capture.files import LEDGER
from tcppc.capture.ledger import in_use
from tcppc.show import DataError, damage, open_data
from tcppc.text import bytes_of

MOST_LINE = 1 << 20
READ_BYTES = 1 << 20
MOST_FOLDERS = 4  # of a pattern such as %Y/%m/%d/%H.jsonl
_TOTALS = ("accepted", "recorded", "bytes_in", "lines", "bytes")
_CAUSES = ("refused", "truncated", "dropped", "errors")
_OF_FILES = ("open", "close", "mark", "remove")
_EVENTS = ("start", *_OF_FILES, "listener", "stop")


@dataclass
class Cause:
    """How often something happened, and within which ledger lines: (from, to) as their time stamps."""

    count: int = 0
    since: str = ""
    until: str = ""


@dataclass
class Run:
    """One start of a sensor: totals of its lines, and how it ended."""

    id: str
    sensor: str
    began: str
    last: str
    totals: Counter[str] = field(default_factory=Counter)
    causes: dict[tuple[str, str], Cause] = field(default_factory=dict)  # by (kind, name)
    open: int = 0
    stopped: bool = False

    @property
    def missing(self) -> int:
        """Accepted sessions that are in no count, by its last line. While it runs some are on their way."""
        return self.totals["accepted"] - self.totals["recorded"] - self.totals["dropped"] - self.open


@dataclass
class File:
    """What the ledger says of one name; a name that came back after its file was moved or compressed is one more
    life, and sizes are those of all lives together."""

    name: str
    last: str = ""  # time stamp of the last line about it
    size: int = 0  # of the life that is open or was the last
    before: int = 0  # of the lives before it
    lines: int = 0  # written by sensors, all lives
    earlier: int = 0  # of them, those of the lives before
    unknown: int = 0  # bytes that no ledger line tells of: older than the ledger, or of a run that was killed
    changed: list[str] = field(default_factory=list)
    removed: bool = False
    loose: bool = False  # keep_bytes removed a life of it: what else stands there may be of others

    def remove(self, name: str) -> None:
        """keep_bytes removed this file, or what became of one of its lives."""
        self.loose = True
        if name in (self.name, f"{self.name}.gz", f"{self.name}.zst"):
            self.removed = True
        else:
            self.lines, self.earlier, self.before = self.lines - self.earlier, 0, 0

    def live_again(self) -> None:
        """The name begins a new life."""
        if self.removed:
            self.removed, self.size, self.before, self.lines, self.unknown = False, 0, 0, 0, 0
        self.before += self.size
        self.earlier = self.lines


def read(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number, values); None for a line that is no ledger line. OSError where it cannot be read."""
    with path.open("rb") as file:
        yield from read_lines(file)


def read_lines(file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """As `read`, of an open file."""
    for number, line in enumerate(iter(functools.partial(file.readline, MOST_LINE), b""), 1):
        if line == b"\n":
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if _sound(values):
            if "file" in values:
                values["file"] = bytes_of(values["file"]).decode("utf-8", "surrogateescape")
            yield number, values
        else:
            yield number, None


def _is_stamp(value: Any) -> bool:
    try:
        return bool(clock.parse(value))
    except (ValueError, TypeError, AttributeError):
        return False


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sound(values: Any) -> bool:
    """Is this a line as docs/ledger.md says?"""
    if not isinstance(values, dict) or values.get("event") not in _EVENTS:
        return False
    texts = ["run", "sensor"]
    numbers: list[str] = []
    if values["event"] in _OF_FILES:
        texts.append("file")
        numbers.append("size")
    if values["event"] in ("close", "mark", "stop"):
        numbers += [*_TOTALS, "open"]
    return (
        _is_stamp(values.get("timestamp"))
        and all(isinstance(values.get(name), str) for name in texts)
        and all(_count(values.get(name)) for name in numbers)
        and all(
            isinstance(values.get(name, {}), dict) and all(map(_count, values.get(name, {}).values()))
            for name in _CAUSES
        )
    )


def running(folder: Path) -> str | None:
    """The id of the run that writes here, where one does: the newest without an end while its sensor holds the ledger.
    It stands in the folder, or in one above it. OSError where a ledger cannot be read."""
    for place in (folder, *folder.resolve().parents[:MOST_FOLDERS]):
        if (path := place / LEDGER).exists():
            if not in_use(path):
                return None
            runs: dict[str, bool] = {}
            for _, values in read(path):
                if values:
                    runs[values["run"]] = values["event"] == "stop"
            return next((run for run in reversed(runs) if not runs[run]), None)
    return None


class Account:
    """The sums of one folder's ledger. `problems` are why they do not agree, `notes` what one should know. Runs and
    files whose last line is older than `since` (ns) are left out."""

    def __init__(self, folder: Path, since: int = 0) -> None:
        self.folder = folder
        self.since = since
        self.runs: dict[str, Run] = {}
        self.files: dict[str, File] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.checked = 0
        self.running: Run | None = None
        self._open: dict[str, str] = {}  # run: the file it has open
        self._files: dict[Path, list[Path]] | None = None

    def add(self, values: dict[str, Any]) -> None:
        """The next line of the ledger."""
        stamp, key, event = values["timestamp"], values["run"], values["event"]
        run = self.runs.setdefault(key, Run(key, values["sensor"], stamp, stamp))
        before, run.last = run.last, stamp
        if event in ("close", "mark", "stop"):
            for name in _TOTALS:
                run.totals[name] += values[name]
            run.open = values["open"]
            run.totals["dropped"] += sum(values.get("dropped", {}).values())
            _add_causes(run, values, before)
        run.stopped = run.stopped or event == "stop"  # the keeper may remove a file after it
        if event in _OF_FILES:
            self._add_file(values, before)
        if event in ("open", "mark"):
            self._open[key] = values["file"]
        elif event in ("close", "stop"):
            self._open.pop(key, None)

    def _add_file(self, values: dict[str, Any], before: str) -> None:
        name, event, size = values["file"], values["event"], values["size"]
        if event == "remove":
            for file in self.files.values():
                if belongs(Path(name).name, Path(file.name).name) and Path(name).parent == Path(file.name).parent:
                    file.remove(name)
            return
        known = name in self.files
        file = self.files.setdefault(name, File(name))
        file.last = values["timestamp"]
        if event == "open":
            if known and size == 0:
                file.live_again()
            elif size > file.size:
                file.unknown += size - file.size
                if known and not self._left_open(file):
                    file.changed.append(f"{size - file.size} bytes added between {before} and {values['timestamp']}")
            elif size < file.size:
                file.changed.append(f"{file.size - size} bytes shorter at {values['timestamp']} than at {before}")
        else:
            file.lines += values["lines"]
            if size < file.size + values["bytes"]:
                file.changed.append(
                    f"{file.size + values['bytes'] - size} bytes taken out between {before} and {values['timestamp']}"
                )
            elif size > file.size + values["bytes"]:
                more = size - file.size - values["bytes"]
                file.unknown += more
                file.changed.append(f"{more} bytes added between {before} and {values['timestamp']}")
        file.size = size

    def close(self) -> None:
        """All lines are read: judge the runs. The newest one without an end is the one that runs, if one does."""
        unended = [run for run in self.runs.values() if not run.stopped]
        if unended and in_use(self.folder / LEDGER):
            self.running = unended.pop()
        if self.since:
            self.runs = {key: run for key, run in self.runs.items() if run is self.running or self._new(run.last)}
            self.files = {name: file for name, file in self.files.items() if self._new(file.last)}
            unended = [run for run in unended if run.id in self.runs]
        for run in unended:
            self.problems.append(
                f"the run of {run.began} never stopped (kill -9, power cut): its last line is of {run.last}, with "
                f"{run.open} sessions open; what it had not written by its end is lost"
            )
        for run in self.runs.values():
            if run.stopped and run.missing:
                self.problems.append(f"the run of {run.began}: {run.missing} accepted sessions are in no count")
            if run.stopped and run.open:
                self.problems.append(
                    f"the run of {run.began}: {run.open} sessions were still open at its stop, and are lost"
                )
        sensors = sorted({run.sensor for run in self.runs.values()})
        if len(sensors) > 1:
            self.notes.append(f"lines of {len(sensors)} sensors: {', '.join(sensors)}")

    def _new(self, stamp: str) -> bool:
        return clock.parse(stamp) >= self.since

    def causes(self, kind: str) -> dict[str, Cause]:
        """Those of all runs, by name."""
        found: dict[str, Cause] = {}
        for run in self.runs.values():
            for (of, name), cause in run.causes.items():
                if of == kind:
                    all_of_it = found.setdefault(name, Cause(0, cause.since))
                    all_of_it.count += cause.count
                    all_of_it.until = cause.until
        return dict(sorted(found.items()))

    def bytes_to_read(self) -> int:
        """About how much `check` has to read."""
        return sum(path.stat().st_size for file in self.files.values() for path in self._found(file))

    def _found(self, file: File) -> list[Path]:
        return self._index().get(self.folder / file.name, [])

    def _index(self) -> dict[Path, list[Path]]:
        """What stands in the folders for each file of the ledger; each folder is looked through once."""
        if self._files is None:
            self._files = {self.folder / name: [] for name in self.files}
            for folder in sorted({path.parent for path in self._files}):
                for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                    ends = [at for at, letter in enumerate(path.name) if letter in ".-"]
                    for end in (len(path.name), *reversed(ends)):  # the longest name: log.1.gz is of log.1, not of log
                        base = folder / path.name[:end]
                        if base in self._files and belongs(path.name, base.name) and path.is_file():
                            self._files[base].append(path)
                            break
        return self._files

    def check(self, progress: Callable[[int], None] = lambda size: None) -> None:
        """Hold the files against the sums; `progress` is told of bytes read."""
        for file in self.files.values():
            found = self._found(file)
            for words in file.changed:
                self.problems.append(f"{file.name}: {words}")
            if file.removed:
                self.notes.append(f"{file.name}: removed, as files.keep_bytes asks: {file.lines} lines")
                continue
            if not found and file.size + file.before:
                self.problems.append(f"{file.name}: is gone, with {file.lines} lines; it was moved or removed")
                continue
            try:
                counted = {path: count_lines(path, progress) for path in found}
            except DataError as problem:
                self.problems.append(str(problem))
                continue
            self.checked += 1
            itself = counted.get(self.folder / file.name)
            if itself and itself[1] == file.before + file.size and len(counted) > 1:
                self.notes.append(
                    f"{file.name}: {len(counted) - 1} files beside it are not counted: it is whole by itself"
                )
                counted = {found[0]: itself}
            self._compare(file, sum(lines for lines, _ in counted.values()), sum(size for _, size in counted.values()))

    def _compare(self, file: File, lines: int, size: int) -> None:
        expected = file.before + file.size
        written_to = self.running is not None and self._open.get(self.running.id) == file.name
        if size < expected:
            self.problems.append(f"{file.name}: {_missing(file, lines, expected - size)} since {file.last}")
        elif size > expected and not written_to and not file.loose and not self._left_open(file):
            self.problems.append(f"{file.name}: has {size - expected} bytes that no ledger line tells of")
        elif lines < file.lines:
            self.problems.append(f"{file.name}: has {lines} lines where {file.lines} were written; some were taken out")
        elif size == expected and not file.unknown and not file.loose and lines != file.lines:
            self.problems.append(f"{file.name}: has {lines} lines where {file.lines} were written; it was changed")
        else:
            extra = lines - file.lines
            if extra > 0 and not written_to:
                self.notes.append(
                    f"{file.name}: {extra} lines that the ledger does not tell of: of a run that was killed, or older"
                )

    def _left_open(self, file: File) -> bool:
        """Was a run killed that had it open?"""
        return file.name in self._open.values()

    def agrees(self) -> bool:
        return not self.problems


def _add_causes(run: Run, values: dict[str, Any], before: str) -> None:
    for kind in _CAUSES:
        for name, count in values.get(kind, {}).items():
            cause = run.causes.setdefault((kind, name), Cause(0, before))
            cause.count += count
            cause.until = values["timestamp"]


def _missing(file: File, lines: int, size: int) -> str:
    gone = file.lines - lines
    exact = f"{gone} lines, " if gone > 0 and not file.unknown else f"at least {gone} lines, " if gone > 0 else ""
    return f"{exact}{size} bytes are missing"


def belongs(name: str, base: str) -> bool:
    """Is `name` the file `base`, or what compressing or logrotate made of it: base.gz, base.1.gz, base-20261121?"""
    return name == base or (name.startswith((f"{base}.", f"{base}-")) and not name.endswith(".tmp"))


def count_lines(path: Path, progress: Callable[[int], None]) -> tuple[int, int]:
    """(lines, bytes) of a data file, decompressed. DataError where it cannot be read."""
    lines = size = 0
    try:
        with open_data(path) as file:
            while block := file.read(READ_BYTES):
                lines += block.count(b"\n")
                size += len(block)
                progress(len(block))
    except damage() as problem:
        raise DataError(f"{path}: is damaged after {size} bytes: {problem}") from None
    except OSError as problem:
        raise DataError(f"{path}: cannot be read: {problem.strerror}") from None
    return lines, size
