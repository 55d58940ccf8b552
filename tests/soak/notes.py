"""What one stranger did: written by the strangers, read by the judge, a JSON object a line.

What was sent is not kept as bytes but as parts from which the same bytes are made again, so that some gigabytes fit
into a small file. Instants are nanoseconds since the epoch, of the clock that the sensor's records have too.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# ("made", tag, size): `made(tag, size)`. ("said", base64, 0): those bytes.
Part = tuple[str, str, int]

# How a connection ended, as its stranger saw it.
WHOLE = "whole"  # it sent its end (FIN), and then read the sensor's
SENSOR = "sensor"  # the sensor ended first
RESET = "reset"  # the sensor's side reset it
ABORT = "abort"  # the stranger reset it
LEFT = "left"  # the stranger closed and looked no further
PATIENCE = "patience"  # the sensor had not ended after a very long wait
FAILED = "failed"  # no connection came about


def made(tag: str, size: int) -> bytes:
    """`size` bytes that begin with the tag, as far as it fits, and look like noise behind it."""
    head = f"{tag} ".encode("ascii")
    return (head + hashlib.shake_128(head).digest(max(0, size - len(head))))[:size]


def said(data: bytes) -> Part:
    return ("said", b64encode(data).decode("ascii"), 0)


def content(parts: Iterable[Part]) -> bytes:
    """The bytes that the parts stand for."""
    return b"".join(made(text, size) if kind == "made" else b64decode(text) for kind, text, size in parts)


@dataclass
class Note:
    """One connection, or the datagrams of one source port."""

    number: int
    kind: str
    proto: str  # tcp or udp
    src: str
    sport: int
    dst: str
    dport: int
    begun: int
    ended: int = 0
    how: str = FAILED
    parts: list[Part] = field(default_factory=list)  # what the record must hold, in order
    sent: int = 0  # bytes of them that the kernel took
    acked: int = 0  # of those, what the sensor's kernel acknowledged by the end
    marks: list[tuple[int, int]] = field(default_factory=list)  # (when, acked by then)
    fin: int = 0  # when the stranger ended its side; 0: never
    plain: int = 0  # bytes of the parts that came before TLS began
    raw: str = ""  # base64 of what went over the wire from then on: what the record holds where the handshake fails
    noise: str = ""  # base64 of what was sent within TLS that is none
    header: str = ""  # base64 of a PROXY protocol header before the parts, which the record has only where it is broken
    claimed: tuple[str, int] | None = None  # the source that this header names
    datagrams: list[tuple[int, Part]] = field(default_factory=list)  # (when, what)

    def line(self) -> str:
        return json.dumps({key: value for key, value in asdict(self).items() if value or key == "number"})


def read(path: Path) -> Iterator[Note]:
    """All whole notes of a file."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield _note(json.loads(line))


def _note(values: dict[str, Any]) -> Note:
    values["parts"] = [tuple(part) for part in values.get("parts", [])]
    values["marks"] = [tuple(mark) for mark in values.get("marks", [])]
    values["datagrams"] = [(instant, tuple(part)) for instant, part in values.get("datagrams", [])]
    for name in ("src", "dst"):
        values.setdefault(name, "")
    for name in ("sport", "dport", "begun"):
        values.setdefault(name, 0)
    if claimed := values.get("claimed"):
        values["claimed"] = tuple(claimed)
    return Note(**values)
