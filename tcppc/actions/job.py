"""What a kind of action is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tcppc.actions.event import Event
from tcppc.actions.rule import Rule
from tcppc.actions.tokens import Values


@dataclass(frozen=True)
class Job:
    """`text` is the record as JSON, or of a digest the list of them; `event` the first of them."""

    rule: Rule
    event: Event
    values: Values
    text: str
    count: int
    timeout: float
    digest: bool = False
    charge: int = 0  # bytes of memory that it holds of the books' bound


class Outcome(NamedTuple):
    """How it went, in words for the log."""

    well: bool
    words: str


Kind = Callable[[Job], Outcome]
