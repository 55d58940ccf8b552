"""What a persona said in a session and what it found out, for the record."""

from __future__ import annotations

import json
from binascii import b2a_base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_quote = json.encoder.encode_basestring_ascii

# A reply beside its bytes: a tuple, three integers, a bytes header, its place in the list; measured as a payload's.
REPLY_CHARGE = 200


@dataclass(slots=True)
class Spoken:
    """`replies` are (instant in ns, bytes as sent, index of the payload they follow or -1 for none)."""

    persona: str
    replies: list[tuple[int, bytes, int]] = field(default_factory=list)
    credentials: list[tuple[str, str]] = field(default_factory=list)
    ssh: dict[str, str] | None = None
    error: str = ""
    stowed: Any = None  # replies before those in `replies`, which are not in memory: a records.Stowed

    @property
    def count(self) -> int:
        """How many replies there are."""
        return len(self.replies) + (self.stowed.count if self.stowed else 0)

    def all_replies(self) -> Iterator[tuple[int, bytes, int]]:
        if self.stowed:
            yield from self.stowed
        yield from self.replies


def reply(index: int, when: str, data: bytes, after: int) -> str:
    """One reply as the record has it."""
    encoded = b2a_base64(data, newline=False).decode("ascii")
    return f'{{"index":{index},"timestamp":"{when}","data":"{encoded}","after":{after}}}'


def found(spoken: Spoken | None) -> str:
    """The record's ssh, credentials, persona and persona_error, each with its comma before; ASCII only."""
    if spoken is None:
        return ""
    text = f',"ssh":{json.dumps(spoken.ssh, separators=(",", ":"))}' if spoken.ssh else ""
    if spoken.credentials:
        tried = (f'{{"user":{_quote(user)},"password":{_quote(secret)}}}' for user, secret in spoken.credentials)
        text += f',"credentials":[{",".join(tried)}]'
    if spoken.persona:  # a capture does not tell who answered
        text += f',"persona":{_quote(spoken.persona)}'
    return f'{text},"persona_error":{_quote(spoken.error)}' if spoken.error else text


def said(spoken: Spoken | None, stamp: Callable[[int], str]) -> str:
    """The record's replies, with their comma before."""
    return "".join(said_in_pieces(spoken, stamp))


def said_in_pieces(spoken: Spoken | None, stamp: Callable[[int], str]) -> Iterator[str]:
    """As `said`, a piece for each reply."""
    if spoken is None or not spoken.count:
        return
    for index, (instant, data, after) in enumerate(spoken.all_replies()):
        yield "," if index else ',"replies":['
        yield reply(index, stamp(instant), data, after)
    yield "]"
