"""Event lines back to session records: what `--record events` wrote, also of sessions that never ended.

Lines may come in any order and from several files; a session is whole once its start, its end and all payload lines
that the end counts are there. Nothing is given twice. What never becomes whole is given by `rest` as `closed: lost`,
with what was written of it. Lines are strangers' as far as payloads go and may be cut or changed anywhere: one that is
not as docs/record.md says is refused with a ValueError. Memory: the sessions that are not whole yet, and 16 bytes of
id, about 100 in a set, for each that was given.
"""

from __future__ import annotations

import bisect
from base64 import b64decode
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tcppc import clock
from tcppc.protocols import app
from tcppc.records import run_of
from tcppc.sightings import EVENTS

Record = dict[str, Any]

_KEYS_BEHIND = ("sensor", "community_id", "proxy")
_TLS_SUMS = {"bytes", "after"}  # what an end line has of TLS where the tls line has the rest
_KEYS_OF_PERSONAS = ("ssh", "credentials", "persona", "persona_error")


@dataclass(slots=True)
class _Parts:
    """What is known of one session. `payloads` by line number: (time stamp, base64); `replies` too, with the number of
    the payload line they follow."""

    start: Record | None = None
    end: Record | None = None
    payloads: dict[int, tuple[str, str]] = field(default_factory=dict)
    replies: dict[int, tuple[str, str, int]] = field(default_factory=dict)
    handshake: range = range(0)  # these payload lines were the TLS handshake's
    tls: Record | None = None
    last: tuple[int, str] = (0, "")  # the latest time of its lines: ns, and as written

    def whole(self) -> bool:
        return (
            self.start is not None
            and self.end is not None
            and len(self.payloads) >= self.end["payloads"]
            and len(self.kept()) == self.end["payloads"]
            and len(self.replies) >= self.end.get("replies", 0)
            and (self.tls is not None or self.end["proto"] != "tls" or bool(set(self.end.get("tls", ())) - _TLS_SUMS))
        )

    def kept(self) -> list[int]:
        """Numbers of the lines that are the session's payloads."""
        return sorted(number for number in self.payloads if number not in self.handshake)


class Assembler:
    """`add` each line's object; it gives the records that become whole by it. With `once` a line that is a record
    already is given the first time only, too."""

    def __init__(self, once: bool = True) -> None:
        self.given: set[bytes] = set()
        self._once = once
        self._parts: dict[str, _Parts] = {}

    def add(self, line: Record) -> Record | None:
        """The record that is whole with this line, if one is: also a line that is a record already, the first time.
        ValueError for an event line that is not as it should be."""
        if line.get("event") in EVENTS:
            clock.parse(str(line.get("timestamp")))
            return None
        if "event" not in line:
            if "flow" not in line or "payloads" not in line:
                raise ValueError("neither a record nor an event line")
            self._parts.pop(str(line.get("id")), None)
            again = (
                _short(str(line.get("id"))) in self.given if not self._once else not self._first_time(line.get("id"))
            )
            return None if again else line
        identity = line.get("id")
        if not isinstance(identity, str) or len(identity) != 36:
            raise ValueError("an event line without the id of a session")
        instant = _check(line)
        if _short(identity) in self.given:
            return None
        parts = self._parts.setdefault(identity, _Parts())
        _put(parts, line, instant)
        if not parts.whole():
            return None
        del self._parts[identity]
        self._first_time(identity)
        return _record(parts)

    def _first_time(self, identity: Any) -> bool:
        """A record without an id, as `--format classic` writes it, cannot be told from another."""
        if not isinstance(identity, str):
            return True
        if (short := _short(identity)) in self.given:
            return False
        self.given.add(short)
        return True

    def rest(self, alive: Container[str] = ()) -> Iterator[Record]:
        """Records of sessions without an end, in the order they began; those of the runs `alive` (see `run_of`) are
        still open, and are left."""
        begun = [(key, parts) for key, parts in self._parts.items() if parts.start]
        for identity, parts in sorted(begun):  # ids sort by time
            if run_of(identity) not in alive and self._first_time(identity):
                del self._parts[identity]
                yield _record(parts)

    def left(self) -> tuple[int, int]:
        """After `rest`: (sessions that are still open, sessions whose start is not among these lines)."""
        still_open = sum(parts.start is not None for parts in self._parts.values())
        return still_open, len(self._parts) - still_open


def assembled(lines: Iterable[Record | None]) -> Iterator[Record | None]:
    """Data lines with event lines made into records, for who reads, what the SYN watch saw among them; None for what
    is neither. A session without an end may be lost or still open: its `closed` says so."""
    assembler = Assembler(once=False)
    for line in lines:
        try:
            record = assembler.add(line) if line is not None else None
            record = line if line and line.get("event") in EVENTS else record
        except ValueError:
            line = record = None
        if line is None or record is not None:
            yield record
    for record in assembler.rest():
        yield record | {"closed": "no end yet, or lost"}


def _short(identity: str) -> bytes:
    """An id as 16 bytes where it is a UUID."""
    try:
        return bytes.fromhex(identity.replace("-", ""))
    except ValueError:
        return identity.encode("utf-8", "surrogatepass")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


_COUNTS = ("payloads", "bytes", "replies")
_FLOW = {"proto": str, "src": str, "sport": int, "dst": str, "dport": int}


def _check(line: Record) -> int:
    """The line's time; ValueError where a key that is used is missing or of another kind."""
    event = line["event"]
    instant = clock.parse(str(line.get("timestamp")))
    if event == "start":
        flow = line.get("flow")
        if not isinstance(flow, dict) or not all(isinstance(flow.get(key), kind) for key, kind in _FLOW.items()):
            raise ValueError("a start line without a flow")
    elif event == "payload":
        if not _is_count(line.get("index")) or not isinstance(line.get("data"), str):
            raise ValueError("a payload line without index and data")
        b64decode(line["data"], validate=True)
    elif event == "reply":
        after = line.get("after")
        counts = _is_count(line.get("index")) and (_is_count(after) or after == -1)
        if not counts or not isinstance(line.get("data"), str):
            raise ValueError("a reply line without index, data and after")
        b64decode(line["data"], validate=True)
    elif event == "tls":
        if not _is_count(line.get("index")) or not isinstance(line.get("tls"), dict):
            raise ValueError("a tls line without index and tls")
        if not _is_count(line.get("from", 0)):
            raise ValueError("a tls line whose from is no number")
    elif event == "end":
        texts = all(isinstance(line.get(key), str) for key in ("proto", "closed"))
        if not isinstance(line.get("tls", {}), dict):
            raise ValueError("an end line whose tls is no object")
        if not texts or not all(_is_count(line.get(key, 0 if key == "replies" else None)) for key in _COUNTS):
            raise ValueError("an end line without proto, closed, payloads and bytes")
    else:
        raise ValueError("an event line of no known kind")
    return instant


def _put(parts: _Parts, line: Record, instant: int) -> None:
    event = line["event"]
    parts.last = max(parts.last, (instant, line["timestamp"]))
    if event == "start":
        parts.start = line
    elif event == "payload":
        parts.payloads[line["index"]] = (line["timestamp"], line["data"])
    elif event == "reply":
        parts.replies[line["index"]] = (line["timestamp"], line["data"], line["after"])
    elif event == "tls":
        parts.handshake, parts.tls = range(line.get("from", 0), line["index"]), line["tls"]
    else:
        parts.end = line


def _record(parts: _Parts) -> Record:
    """The record as the sensor would have written it; what is not whole as `closed: lost`."""
    start, end = parts.start or {}, parts.end
    numbers = parts.kept()
    pieces = [b64decode(parts.payloads[number][1]) for number in numbers]
    proto = end["proto"] if end else "tls" if parts.tls else start["flow"]["proto"]
    made: Record = {
        "timestamp": start["timestamp"],
        "flow": start["flow"] | {"proto": proto},
        "payloads": [
            {"index": index, "timestamp": parts.payloads[number][0], "data": parts.payloads[number][1]}
            for index, number in enumerate(numbers)
        ],
        "id": start["id"],
        "end": end["timestamp"] if end else parts.last[1],
        "closed": end["closed"] if end and parts.whole() else "lost",
        "bytes": end["bytes"] if end else sum(map(len, pieces)),
    }
    if end and end.get("truncated"):
        made["truncated"] = True
    made |= {key: start[key] for key in _KEYS_BEHIND if key in start}
    if tls := (parts.tls or {}) | ((end or {}).get("tls") or {}):
        made["tls"] = tls
    name = end.get("app") if end else app.guess(pieces[0], proto) if pieces else None
    made |= {"app": name} if name else {}
    made |= {key: end[key] for key in _KEYS_OF_PERSONAS if key in end} if end else {}
    if parts.replies:
        made["replies"] = [
            # The index of the payload whose line has that number, or of the last one before it.
            {"index": index, "timestamp": stamp, "data": data, "after": bisect.bisect_right(numbers, after) - 1}
            for index, (stamp, data, after) in sorted(parts.replies.items())
        ]
    return made
