"""A TOML file, read whatever it is: nothing of it is waited for, and no more of it is read than one may hold."""

from __future__ import annotations

import os
import stat
from typing import Any

import toml

MOST_BYTES = 1 << 20
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_UTF_8 = b"\xef\xbb\xbf"


class TableError(ValueError):
    """What is wrong with a file, in one line that begins with "is" or "cannot"."""


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Its tables; an empty file has none."""
    return parsed(_text(_content(path)))


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        # A pipe that nobody writes to would hold up the start.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as problem:
        raise TableError(f"cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    try:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind != stat.S_IFREG:
            raise TableError(f"is {_KINDS.get(kind, 'no plain file')}; expected a plain file, which can be read again")
        content = bytearray()
        while len(content) <= MOST_BYTES and (piece := os.read(fd, MOST_BYTES + 1 - len(content))):
            content += piece
    except OSError as problem:
        raise TableError(f"cannot be read: {problem.strerror}") from None
    finally:
        os.close(fd)
    if len(content) > MOST_BYTES:
        raise TableError(f"is larger than {MOST_BYTES} bytes")
    return bytes(content)


def _text(content: bytes) -> str:
    if content.startswith(_UTF_16):
        raise TableError("is not UTF-8 text but UTF-16; expected UTF-8")
    try:
        # As text files have it: a byte order mark is none of the text, and any line end is one.
        text = content.removeprefix(_UTF_8).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise TableError(f"is not UTF-8 text: byte {problem.start + 1}; expected UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise TableError(f"is not TOML: line {line} has a NUL byte, as UTF-16 text has; expected UTF-8 text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parsed(text: str) -> dict[str, Any]:
    """The tables of a text. TableError where there are none."""
    try:
        return toml.loads(text)
    except Exception as problem:  # toml 0.10 raises what it happens to for some broken texts, RecursionError too
        said = str(problem) if isinstance(problem, ValueError) else f"{type(problem).__name__}: {problem}"
        raise TableError(f"is not TOML: {' '.join(said.split())[:200]}") from None
