"""Closed data files: compressed, and held to a bound on the disk, where the configuration asks for it.

One thread of its own, since compressing takes longer than the writer may be held up. It touches nothing but files
whose names fit the data file's pattern, never the open one, and goes by the oldest first.
"""

from __future__ import annotations

import gzip
import os
import queue
import re
import shutil
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tcppc.capture.files import LEDGER, fixed_folder
from tcppc.log import Log

ENDINGS = {"gzip": ".gz", "zstd": ".zst"}
# What a strftime(3) directive can become in a file name; all others become any run of characters but a slash.
_NUMBERS = {"Y": r"\d{4}", "j": r"\d{3}", "s": r"\d+"} | dict.fromkeys("mdHMSyIUWVeklCg", r"[\d ]{2}")
LOW_DISK = 0.05
COPY_BYTES = 1 << 20


def pattern_regex(pattern: str) -> re.Pattern[str]:
    """Which file names a pattern can have made: with a number before the ending, with .gz or .zst behind it."""
    stem, ending = os.path.splitext(os.path.basename(pattern))
    parts = []
    for text in (stem, ending):
        pieces = re.split(r"%[-_0^#]?([a-zA-Z%])", text)
        parts.append("".join(_piece(piece, index % 2 == 1) for index, piece in enumerate(pieces)))
    return re.compile(rf"{parts[0]}(\.\d+)?{parts[1]}(\.\d+)?(\.gz|\.zst)?")


def _piece(piece: str, directive: bool) -> str:
    if not directive:
        return re.escape(piece)
    return "%" if piece == "%" else _NUMBERS.get(piece, r"[^/]+?")


def files_of(pattern: str) -> list[Path]:
    """Files that `pattern` can have made, the oldest first. A pattern with directives in its folders is looked
    for below the last folder without one."""
    fixed = fixed_folder(pattern)
    depth = len(Path(pattern).parent.parts) - len(fixed.parts)
    name = pattern_regex(pattern)
    found = [
        path
        for path in fixed.glob("/".join(["*"] * depth + ["*"]))
        if name.fullmatch(path.name) and path.name != LEDGER
    ]
    return sorted((path for path in found if path.is_file() and not path.is_symlink()), key=_age)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # gone meanwhile
        return 0.0


def free_name(path: str, ending: str) -> Path:
    """path.gz, or path.1.gz, path.2.gz… where there is one already: a name that came back, as at the end of
    summer time, must not cost the file before it."""
    number = 0
    while True:
        name = Path(f"{path}.{number}{ending}" if number else f"{path}{ending}")
        if not name.exists():
            return name
        number += 1


class Keeper:
    """Told of each closed file by `closed(path)`. `open_path()` gives the one that must not be touched; `removed(path,
    size)` is told of each that went for `keep_bytes`."""

    def __init__(
        self,
        pattern: str,
        compress: str,
        keep_bytes: int,
        open_path: Callable[[], str],
        log: Log,
        removed: Callable[[str, int], None] = lambda path, size: None,
    ) -> None:
        self.pattern = pattern
        self.compress = compress
        self.keep_bytes = keep_bytes
        self._open_path = open_path
        self._log = log
        self._removed = removed
        self._todo: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        """Begin with what an earlier run has left: closed files not yet compressed, more than may be kept."""
        self._thread.start()
        if self.compress != "off":
            for path in files_of(self.pattern):
                if path.suffix not in ENDINGS.values():
                    self.closed(str(path))
        self._todo.put("")

    def adopt(self, pattern: str, compress: str, keep_bytes: int) -> None:
        """From the next file on."""
        self.pattern, self.compress, self.keep_bytes = pattern, compress, keep_bytes

    def closed(self, path: str) -> None:
        """This file will not be written to again."""
        self._todo.put(path)

    def stop(self, timeout: float) -> None:
        """End; a file that is being compressed stays as it was."""
        self._stopping = True
        self._todo.put(None)
        if self._thread.ident:
            self._thread.join(timeout)

    def _run(self) -> None:
        while (path := self._todo.get()) is not None and not self._stopping:
            try:
                if path and self.compress != "off" and not self._is_open(path):
                    self._compress(Path(path))
                if self.keep_bytes:
                    self._forget()
                self._look_at_disk()
            except OSError as problem:
                self._log(f"Failed to tend closed session files: {problem.filename}: {problem.strerror}; going on.")

    def _is_open(self, path: str | Path) -> bool:
        return os.path.abspath(path) == os.path.abspath(self._open_path())

    def _compress(self, path: Path) -> None:
        if not path.exists():
            return
        packed = Path(f"{path}{ENDINGS[self.compress]}")
        if packed.exists() and _same(path, packed, self.compress):
            path.unlink()  # whoever compressed it was ended just before this
            return
        final = free_name(str(path), ENDINGS[self.compress])
        temporary = final.with_name(f".{final.name}.tmp")
        try:
            with path.open("rb") as source, temporary.open("wb") as raw:
                with _compressor(self.compress, raw) as sink:
                    while not self._stopping and (block := source.read(COPY_BYTES)):
                        sink.write(block)
                raw.flush()
                os.fsync(raw.fileno())
                size = source.tell()
            # A name can come back (the end of summer time, a clock set back): then it is written to again.
            if not self._stopping and not self._is_open(path) and path.stat().st_size == size:
                shutil.copystat(path, temporary)
                os.replace(temporary, final)
                path.unlink()
        finally:
            temporary.unlink(missing_ok=True)

    def _forget(self) -> None:
        """The oldest closed files go until the rest is within `keep_bytes`."""
        closed = [(path, path.stat().st_size) for path in files_of(self.pattern) if not self._is_open(path)]
        total = sum(size for _, size in closed)
        for path, size in closed:
            if total <= self.keep_bytes:
                return
            path.unlink()
            total -= size
            self._removed(str(path), size)
            self._log(f"Removed the oldest session file: {path} ({size} bytes): files.keep_bytes is {self.keep_bytes}.")

    def _look_at_disk(self) -> None:
        folder = os.path.dirname(self._open_path()) or "."
        if os.path.isdir(folder):
            usage = shutil.disk_usage(folder)
            if usage.free < LOW_DISK * usage.total:
                self._log(
                    f"The disk of {folder} is nearly full: {usage.free} bytes free; "
                    "files.keep_bytes bounds what is kept."
                )


def _compressor(kind: str, raw: IO[bytes]) -> Any:
    """A context manager with write(); leaves `raw` open."""
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, filename="")
    import zstandard

    return zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False)


def _same(path: Path, packed: Path, kind: str) -> bool:
    """Has the compressed file just these bytes?"""
    try:
        with path.open("rb") as plain, packed.open("rb") as raw, _decompressor(kind, raw) as source:
            while True:
                block = plain.read(COPY_BYTES)
                other = b""
                while len(other) < len(block) and (more := source.read(len(block) - len(other))):
                    other += more
                if block != other:
                    return False
                if not block:
                    return not source.read(1)
    except (OSError, EOFError, zlib.error, ValueError):  # damaged, or another kind of file
        return False


def _decompressor(kind: str, raw: IO[bytes]) -> Any:
    """A context manager with read()."""
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(raw, closefd=False)
