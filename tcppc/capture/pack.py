"""One closed data file becomes a compressed one, beside it, and is removed once all of it is there.

Nothing that stands at a name which is needed is written over or followed: another name is taken.
"""

from __future__ import annotations

import errno
import gzip
import os
import stat
from collections.abc import Callable
from typing import IO, Any

from tcppc.capture.limits import why
from tcppc.capture.regular import open_regular

ENDINGS = {"gzip": ".gz", "zstd": ".zst"}
COPY_BYTES = 1 << 20
MOST_NAMES = 1000

# Told of what stands at the compressed file's name and is no copy: its path, and what is wrong with it.
Damaged = Callable[[str, str], None]


def free_name(path: str, ending: str) -> str:
    """path.gz, or path.1.gz, path.2.gz… where there is one already: a name that came back, as at the end of
    summer time, must not cost the file before it."""
    name, number = f"{path}{ending}", 0
    while os.path.lexists(name):
        number += 1
        name = f"{path}.{number}{ending}"
    return name


def pack(path: str, kind: str, going_on: Callable[[], bool], damaged: Damaged) -> None:
    """Compress `path`, unless `going_on()` ends meanwhile: then it stays as it was. OSError, and what the compressing
    library raises, where it cannot be done; then it stays as it was too."""
    with open(open_regular(path, os.O_RDONLY), "rb") as source:
        before = os.fstat(source.fileno())
        packed = f"{path}{ENDINGS[kind]}"
        if os.path.lexists(packed) and _is_copy(source, packed, kind, damaged):
            _remove(path, before)  # whoever compressed it was ended just before this
            return
        source.seek(0)
        final = free_name(path, ENDINGS[kind])
        temporary, fd = _temporary(final)
        try:
            with open(fd, "wb") as raw:
                _copy(source, raw, kind, going_on)
                os.fchmod(fd, stat.S_IMODE(before.st_mode))
                os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
            # A name can come back (the end of summer time, a clock set back): then it is written to again.
            if going_on() and _unchanged(path, before) and not os.path.lexists(final):
                os.rename(temporary, final)
                _remove(path, before)
        finally:
            if os.path.lexists(temporary):
                os.unlink(temporary)


def _copy(source: IO[bytes], raw: IO[bytes], kind: str, going_on: Callable[[], bool]) -> None:
    with _compressor(kind, raw) as sink:
        while going_on() and (block := source.read(COPY_BYTES)):
            sink.write(block)
    raw.flush()
    os.fsync(raw.fileno())


def _unchanged(path: str, before: os.stat_result) -> bool:
    now = os.lstat(path)
    return (now.st_dev, now.st_ino, now.st_size) == (before.st_dev, before.st_ino, before.st_size)


def _remove(path: str, before: os.stat_result) -> None:
    if _unchanged(path, before):
        os.unlink(path)


def is_own(status: os.stat_result) -> bool:
    """Is a file at a temporary name one that an earlier run has made?"""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1


def _temporary(final: str) -> tuple[str, int]:
    """A new file beside `final`, hidden. What an earlier run left at its name goes; what is not ours stays."""
    folder, name = os.path.split(final)
    for number in range(MOST_NAMES):
        path = os.path.join(folder, f".{name}.{number}.tmp" if number else f".{name}.tmp")
        try:
            status = os.lstat(path)
            if is_own(status):
                os.unlink(path)
        except FileNotFoundError:  # as it should be
            pass
        try:
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:  # not ours: the next name
            continue
    raise FileExistsError(errno.EEXIST, f"{MOST_NAMES} files stand at the names for a temporary one", path)


def _compressor(kind: str, raw: IO[bytes]) -> Any:
    """A context manager with write(); leaves `raw` open."""
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, filename="")
    import zstandard

    return zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False)


def _decompressor(kind: str, raw: IO[bytes]) -> Any:
    """A context manager with read()."""
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(raw, closefd=False)


def _is_copy(plain: IO[bytes], packed: str, kind: str, damaged: Damaged) -> bool:
    """Has the compressed file just these bytes? Whatever stands there, the answer is yes or no."""
    try:
        with open(open_regular(packed, os.O_RDONLY), "rb") as raw, _decompressor(kind, raw) as source:
            same, ends_at = _compare(plain, source)
            if not same and ends_at >= 0:
                damaged(packed, f"it ends after {ends_at} bytes of {os.fstat(plain.fileno()).st_size}")
            return same
    except OSError as problem:  # gzip's BadGzipFile is one, without a number
        damaged(packed, why(problem))
    except Exception as problem:  # zlib, zstandard, or out of memory: it is damaged, or wants to be more than it is
        damaged(packed, f"{type(problem).__name__}: {problem}"[:200])
    return False


def _compare(plain: IO[bytes], source: Any) -> tuple[bool, int]:
    """Are they the same, and where does `source` end too early (-1: it does not, or has other bytes)?"""
    done = 0
    while True:
        block = plain.read(COPY_BYTES)
        other = b""
        while len(other) < len(block) and (more := source.read(len(block) - len(other))):
            other += more
        if block != other:
            return False, done + len(other) if block.startswith(other) else -1
        if not block:
            return not source.read(1), -1
        done += len(block)
