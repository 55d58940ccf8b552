"""Folders that this host, its service manager and its environment give: for what is kept, and for what is not."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

from tcppc.problems import Failure


class NoFolder(Failure):
    """There is none, in one line."""


def state(given: str = "") -> Path:
    """Where what is kept goes: as `capture.state_dir` has it, else where systemd says; else /var/lib/tcppc for root,
    the user's state folder for others (XDG Base Directory, by which a path that is not absolute counts as none)."""
    if given:
        return Path(given)
    for path in os.environ.get("STATE_DIRECTORY", "").split(":"):  # systemd.exec(5): one or more
        if os.path.isabs(path):
            return Path(path)
    if os.geteuid() == 0:
        return Path("/var/lib/tcppc")
    if os.path.isabs(path := os.environ.get("XDG_STATE_HOME", "")):
        return Path(path) / "tcppc"
    return _home() / ".local" / "state" / "tcppc"


def _home() -> Path:
    given = os.environ.get("HOME", "")
    if os.path.isabs(given):
        return Path(given)
    try:
        known = pwd.getpwuid(os.geteuid()).pw_dir
        why = f"has {known!r} in passwd(5)"
    except KeyError:  # a number without a name, as containers have it
        known, why = "", "has no entry in passwd(5)"
    if os.path.isabs(known):
        return Path(known)
    also = f"HOME is {given!r}" if given else "HOME is not set"
    raise NoFolder(
        f"there is no folder for what is kept: uid {os.geteuid()} {why}, and {also}; capture.state_dir takes one"
    )


def temporary() -> str:
    """Where files go that end with this process."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        raise NoFolder(
            "there is no folder for temporary files that can be written to: expected TMPDIR, /tmp or /var/tmp"
        ) from None
