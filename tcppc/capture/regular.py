"""Files opened where others may have put something else: a symbolic link, a FIFO, a device, a folder.

Nothing is followed, and nothing that stands there can hold the caller up: O_NOFOLLOW, O_NONBLOCK, and a look at what
was opened. `why` (limits.py) has words for what the OSError says.
"""

from __future__ import annotations

import errno
import os
import stat

_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# What open(2) says of a link, a folder, a FIFO without a reader, a socket or a device without a driver.
_OF_OTHER_KINDS = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV)


def open_regular(path: str, flags: int, mode: int = 0o644) -> int:
    """As os.open, for a regular file alone; OSError, with words for people, where another thing stands there."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, mode)
    except OSError as problem:
        if problem.errno in _OF_OTHER_KINDS:
            raise _not_regular(path, os.lstat(path).st_mode) from None
        raise
    found = os.fstat(fd).st_mode
    if stat.S_ISREG(found):
        return fd
    os.close(fd)
    raise _not_regular(path, found)


def is_regular(path: str) -> bool:
    """Does a regular file stand there, and no link to one?"""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:  # nothing there, or not to be reached
        return False


def _not_regular(path: str, mode: int) -> OSError:
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "another kind of file")
    return OSError(errno.EINVAL, f"{kind} stands there; expected a regular file", path)
