"""A record that no file of this process may be large enough for (RLIMIT_FSIZE): as much of its session as fits."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from dataclasses import replace

from tcppc.records import Session

# What a payload or a reply takes in a record beside its bytes: its keys, a time stamp, two numbers.
ENTRY_CHARACTERS = 140
_SPARE_CHARACTERS = 64  # for `truncated` and the reason why a persona was cut

_Entry = tuple[int, bytes, int]  # as in the spill file


def most() -> int:
    """How many bytes a file of this process may have."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return limit if limit != resource.RLIM_INFINITY else 1 << 62


def shorten(session: Session, most_bytes: int, line: Callable[[Session], str]) -> bool:
    """Cut what the session said, and then what it was told, so that its line has `most_bytes` bytes at most; False
    where that does not do. SpillError where what it said cannot be read back."""
    spoken = session.spoken
    bare = replace(session, payloads=[], stowed=None, spoken=spoken and replace(spoken, replies=[], stowed=None))
    room = most_bytes - len(line(bare)) - _SPARE_CHARACTERS
    if room < 0 or session.stepped:
        return False
    payloads, room = _as_fits(((when, data, 0) for when, data in session.all_payloads()), room)
    replies, _ = _as_fits(spoken.all_replies(), room) if spoken else ([], room)
    session.truncated = session.truncated or sum(len(data) for _, data, _ in payloads) < session.bytes
    if spoken and sum(len(data) for _, data, _ in replies) < sum(len(data) for _, data, _ in spoken.all_replies()):
        spoken.error = spoken.error or "bound: file_size"
    session.free()
    session.payloads, session.stowed = [(when, data) for when, data, _ in payloads], None
    if spoken:
        spoken.replies, spoken.stowed = replies, None
    return True


def _as_fits(entries: Iterator[_Entry], room: int) -> tuple[list[_Entry], int]:
    """(the first of them, the last one cut, characters that are left)."""
    found: list[_Entry] = []
    for entry in entries:
        data = entry[1]
        fits = max(0, room - ENTRY_CHARACTERS) // 4 * 3  # base64
        if fits < len(data):
            if fits:
                found.append((entry[0], data[:fits], entry[2]))
            return found, 0
        room -= ENTRY_CHARACTERS + (len(data) + 2) // 3 * 4
        found.append(entry)
    return found, room
