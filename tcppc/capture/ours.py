"""Which files are the sensor's: those whose names a pattern can have made, regular, and no symbolic links."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tcppc.capture.files import LEDGER, fixed_folder

# What a strftime(3) directive can become in a file name; all others become any run of characters but a slash.
_NUMBERS = {"Y": r"\d{4}", "j": r"\d{3}", "s": r"\d+"} | dict.fromkeys("mdHMSyIUWVeklCg", r"[\d ]{2}")
_PACKED = r"(\.gz|\.zst)"
_BLOCK_BYTES = 512  # of st_blocks (stat(2)), whatever the file system's own block is

Failed = Callable[[OSError], None]


@dataclass(frozen=True, slots=True)
class Found:
    """One file: `size` is its length, `room` what it takes of the disk, `identity` its device and inode."""

    path: str
    size: int
    room: int
    changed: int  # nanoseconds since the epoch
    identity: tuple[int, int]
    links: int

    @property
    def device(self) -> int:
        return self.identity[0]


def found(path: str, status: os.stat_result) -> Found:
    return Found(
        path, status.st_size, status.st_blocks * _BLOCK_BYTES, status.st_mtime_ns, (status.st_dev, status.st_ino),
        status.st_nlink,
    )  # fmt: skip


def pattern_regex(pattern: str) -> re.Pattern[str]:
    """Which file names a pattern can have made: with a number before the ending, with .gz or .zst behind it."""
    return re.compile(rf"{_made(pattern)}{_PACKED}?")


def _made(pattern: str) -> str:
    stem, ending = os.path.splitext(os.path.basename(pattern))
    return rf"{_regex(stem)}(\.\d+)?{_regex(ending)}(\.\d+)?"


def _regex(text: str) -> str:
    pieces = re.split(r"%[-_0^#]?([a-zA-Z%])", text)
    return "".join(_piece(piece, index % 2 == 1) for index, piece in enumerate(pieces))


def _piece(piece: str, directive: bool) -> str:
    if not directive:
        return re.escape(piece)
    return "%" if piece == "%" else _NUMBERS.get(piece, r"[^/]+?")


def files_of(pattern: str, failed: Failed, others: Collection[str] = ()) -> list[Found]:
    """Files that `pattern` can have made, the oldest first; `failed` is told of folders that cannot be read.

    Below the last folder without directives each folder's name must fit too, and a link to a folder is not followed.
    `others` are absolute paths of files that are no data files, whatever their names.
    """
    if not pattern:
        return []
    made = _walk(str(fixed_folder(pattern)), [*_folders(pattern), pattern_regex(pattern)], failed)
    found = [
        file for file in made if _is_data(os.path.basename(file.path)) and os.path.abspath(file.path) not in others
    ]
    return sorted(found, key=lambda file: (file.changed, file.path))


def _is_data(name: str) -> bool:
    return name != LEDGER and not name.startswith(".")


def temporaries_of(pattern: str, failed: Failed) -> list[Found]:
    """Hidden files that compressing one of `pattern` was writing, by pack.py's names."""
    name = re.compile(rf"\.{_made(pattern)}{_PACKED}(\.\d+)?\.tmp")
    return list(_walk(str(fixed_folder(pattern)), [*_folders(pattern), name], failed)) if pattern else []


def _folders(pattern: str) -> list[re.Pattern[str]]:
    """What the folders are called that have directives in their names."""
    return [re.compile(_regex(name)) for name in Path(pattern).parent.parts[len(fixed_folder(pattern).parts) :]]


def _walk(folder: str, names: Sequence[re.Pattern[str]], failed: Failed) -> Iterator[Found]:
    try:
        with os.scandir(folder) as entries:
            fitting = [entry for entry in entries if names[0].fullmatch(entry.name)]
    except FileNotFoundError:  # not made yet, or gone meanwhile
        return
    except OSError as problem:
        failed(problem)
        return
    for entry in fitting:
        path = entry.name if folder == "." else entry.path
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # gone meanwhile
            continue
        except OSError as problem:
            failed(problem)
            continue
        if len(names) > 1:
            if stat.S_ISDIR(status.st_mode):
                yield from _walk(path, names[1:], failed)
        elif stat.S_ISREG(status.st_mode):
            yield found(path, status)
