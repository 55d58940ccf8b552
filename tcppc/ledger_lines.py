"""Lines of the ledger: read back, and added by others than the sensor.

docs/ledger.md is the contract. A line may be damaged, of a newer version, or of another sensor: what is given has the
keys of its event, each of its kind, or is told apart. Bounds: a line is at most MOST_LINE bytes, a count is below
MOST_COUNT.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tcppc import clock
from tcppc.capture.files import LEDGER, append, end_half_line
from tcppc.text import bytes_of

MOST_LINE = 1 << 20
MOST_COUNT = 1 << 62
MOST_STAMP = 64  # characters
MOST_FOLDERS = 4  # of a pattern such as %Y/%m/%d/%H.jsonl
TOTALS = ("accepted", "recorded", "bytes_in", "lines", "bytes")
CAUSES = ("refused", "truncated", "dropped", "errors")
COUNTING = ("close", "mark", "stop")
OF_FILES = ("open", "close", "mark", "remove")
# Said of a run by others, afterwards: `run` is not who wrote them.
EXPLAINING = ("acknowledge", "recover")
# Each event, the texts and the counts that its line has.
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "start": ((), ()),
    "open": (("file",), ("size",)),
    "close": (("file",), ("size", *TOTALS, "open")),
    "mark": (("file",), ("size", *TOTALS, "open")),
    "remove": (("file",), ("size",)),
    "listener": (("listener",), ()),
    "thread": (("thread",), ()),
    "acknowledge": ((), ()),
    "recover": ((), ("sessions", "lost")),
    "stop": ((), (*TOTALS, "open")),
}

Values = dict[str, Any]


def read(path: Path) -> Iterator[tuple[int, Values | None]]:
    """(line number, values); None for a line that is no ledger line. OSError where it cannot be read."""
    with open(path, "rb", opener=_open) as file:
        yield from read_lines(file)


def _open(path: str, flags: int) -> int:
    """Never waits for the other end of a FIFO, and never reads what is no file."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "it is no regular file", path)


def read_lines(file: IO[bytes]) -> Iterator[tuple[int, Values | None]]:
    """As `read`, of an open file. A line of an event that this version does not know has its `event`, and whatever
    else."""
    number = 0
    while line := file.readline(MOST_LINE):
        number += 1
        if line == b"\n":
            continue
        values = None
        if len(line) == MOST_LINE and not line.endswith(b"\n"):
            for piece in iter(functools.partial(file.readline, MOST_LINE), b""):  # the rest of it
                if piece.endswith(b"\n"):
                    break
        else:
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):  # damaged: told as None
                values = None
        if values is None or not _sound(values):
            values = None
        elif isinstance(values.get("file"), str):  # a name of any bytes is in the ledger as text.py writes it
            values["file"] = bytes_of(values["file"]).decode("utf-8", "surrogateescape")
        yield number, values


def known(values: Values) -> bool:
    """Is it of an event that this version knows? Then it has all keys of that event."""
    return values["event"] in _KEYS


def _sound(values: Any) -> bool:
    """Is this a line as docs/ledger.md says?"""
    if not isinstance(values, dict) or not isinstance(values.get("event"), str):
        return False
    if values["event"] not in _KEYS:
        return True
    texts, counts = _KEYS[values["event"]]
    return (
        _is_stamp(values.get("timestamp"))
        and all(isinstance(values.get(key), str) for key in ("run", "sensor", *texts))
        and ("file" not in texts or _is_name(values["file"]))
        and all(_is_count(values.get(key)) for key in counts)
        and _is_count(values.get("bytes_dropped", 0))
        and all(isinstance(values.get(kind, {}), dict) for kind in CAUSES)
        and all(map(_is_count, (count for kind in CAUSES for count in values.get(kind, {}).values())))
        and (values["event"] not in ("listener", "thread") or isinstance(values.get("alive"), bool))
        and (values["event"] not in EXPLAINING or _are_files(values.get("files", [])))
    )


def _is_stamp(value: Any) -> bool:
    try:
        return len(value) <= MOST_STAMP and bool(clock.parse(value))
    except (ValueError, TypeError, AttributeError, OverflowError):
        return False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_COUNT


def _is_name(value: Any) -> bool:
    """Can it be a file's?"""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _are_files(value: Any) -> bool:
    """What was found of files when somebody explained what is missing."""
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and _is_name(item.get("file"))
        and ("size" in item) == ("lines" in item)
        and _is_count(item.get("size", 0))
        and _is_count(item.get("lines", 0))
        for item in value
    )


def find(folder: Path) -> Path | None:
    """The ledger that stands in a folder, or in one above it. OSError where it cannot be looked for."""
    for place in (folder, *Path(os.path.realpath(folder)).parents[:MOST_FOLDERS]):
        try:
            os.stat(place / LEDGER)
        except (FileNotFoundError, NotADirectoryError):
            continue
        return place / LEDGER
    return None


def holder_began(path: Path) -> int | None:
    """When the process began that holds the ledger's lock (ns); None where nobody sees that (proc(5): locks, stat)."""
    try:
        status = os.stat(path)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        locks = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
        holder = next(words[4] for words in locks if words[1:4:2] == ["FLOCK", "WRITE"] and words[5] == place)
        own = Path(f"/proc/{holder}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/stat").read_text(encoding="ascii").split("btime ")[1].split()[0]
    except (OSError, StopIteration, IndexError):
        return None
    return round((int(boot) + int(own[19]) / os.sysconf("SC_CLK_TCK")) * 1e9)


def add(path: Path, lines: Sequence[Values]) -> None:
    """Append lines to a ledger that is there, also while a sensor writes to it. OSError where that cannot be."""
    data = b"".join(json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n" for line in lines)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = end_half_line(fd)
        while data:
            written = append(fd, size, data, str(path))
            size, data = size + written, data[written:]
        os.fsync(fd)
    finally:
        os.close(fd)
