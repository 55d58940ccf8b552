"""Standard input, output and error as who started us left them: closed, full, or with nobody at the other end.

Standard output is what a command is for: what it does not take is an error, which names it. Standard error takes what
it can: there is no other place to say that it took less.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, BinaryIO, cast

from tcppc.problems import Failure
from tcppc.text import ESCAPED


class OutputError(Failure):
    """What standard output does not take, in one line: no OSError, which commands have of the files they read."""


class ReaderGoneError(OutputError):
    """Nobody reads it any more, as behind `| head`."""


class _Stream(io.FileIO):
    """A descriptor to write to; one that whom we share it with made non-blocking is waited for."""

    def write(self, data: Any) -> int:
        while (written := super().write(data)) is None:
            room = select.poll()
            room.register(self.fileno(), select.POLLOUT)
            room.poll()
        return written


class _Output(_Stream):
    """Standard output: what it does not take is told once, and what comes after that has nowhere to go."""

    failed = False

    def write(self, data: Any) -> int:
        if self.failed:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as problem:
            self.failed = True
            words = "it is closed" if problem.errno == errno.EBADF else problem.strerror
            kind = ReaderGoneError if isinstance(problem, BrokenPipeError) else OutputError
            raise kind(f"standard output: {words}") from None


class _Errors(_Stream):
    """Standard error: no command ends for it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:  # closed, full or nobody there: there is no other place to say it
            return memoryview(data).nbytes


def prepare() -> None:
    """What is opened next must not be taken for a standard descriptor that who starts us closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free descriptor, so this one. What is written to a closed standard output is an error.
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)
    _put_in_place("stdout", 1, _Output)
    _put_in_place("stderr", 2, _Errors)


def _put_in_place(name: str, number: int, kind: type[_Stream]) -> None:
    """A stream of our own, unless somebody (a test) has put another one there."""
    before = getattr(sys, name)
    if before is not getattr(sys, f"__{name}__") or (before is not None and before.fileno() != number):
        return
    raw = cast(BinaryIO, io.BufferedWriter(kind(number, "w", closefd=False)))
    # What a terminal's encoding has not is shown escaped.
    encoding = before.encoding if before is not None else "utf-8"
    lines = number == 2 or raw.isatty() or bool(os.environ.get("PYTHONUNBUFFERED"))
    setattr(sys, name, io.TextIOWrapper(raw, encoding, ESCAPED, line_buffering=lines))


def reason(problem: OSError) -> str:
    """One line: where, and what."""
    if problem.filename is None and problem.errno == errno.ENOENT and not _folder():
        return "the working folder was removed: expected one that is there; cd to another one"
    words = problem.strerror or str(problem) or type(problem).__name__
    name = os.fsdecode(problem.filename) if isinstance(problem.filename, bytes) else problem.filename
    return words if name is None else f"{name}: {words}"


def _folder() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False
