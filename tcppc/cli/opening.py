"""What `tcppc flows` reads and writes, opened; and rights given up."""

from __future__ import annotations

import contextlib
import importlib
import os
import pwd
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from tcppc.cli.arguments import PROGRAM, UsageError
from tcppc.flows import report
from tcppc.flows.capture_files import CaptureError
from tcppc.flows.sources import Source

# What is imported where it is used.
_LATER = (
    "tcppc.clock", "tcppc.flows.sessions", "tcppc.flows.batches", "tcppc.flows.turns", "tcppc.flows.http_bodies",
    "brotli", "zstandard", "hashlib", "json",
)  # fmt: skip


def tell(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)


def source(name: str) -> Source:
    try:
        return Source(name)
    except OSError as problem:
        raise CaptureError(f"{name}: cannot be read: {problem.strerror}") from None


def first_source(names: Sequence[str]) -> Source | None:
    """What is wrong with it is said in its turn."""
    try:
        return source(names[0]) if names else None
    except CaptureError:
        return None


def output(name: str, captures: Sequence[str], follow: bool = True) -> TextIOWrapper:
    """A file of ours, in place of an older one of that name, but never of one of the captures. `follow` links: where
    the operator gave the name."""
    parent = os.path.dirname(name)
    if parent:
        os.makedirs(parent, exist_ok=True)
    if any(os.path.exists(name) and os.path.exists(each) and os.path.samefile(name, each) for each in captures):
        raise UsageError(f"{name!r} is one of the captures: expected another name for what is written")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    return open(name, "w", encoding="utf-8", opener=lambda path, _: os.open(path, flags, 0o644))


def become(name: str) -> None:
    """That user for good, with that user's groups."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise UsageError(f"-U {name!r}: there is no such user") from None
    for module in _LATER:  # that user may not read where they stand
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    report.libraries()
    try:
        os.initgroups(name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except PermissionError:
        raise UsageError(f"-U {name!r}: only root can become another user") from None
