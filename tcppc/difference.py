"""What the sensor recorded and what a packet capture saw of the same sessions, held against each other.

Sessions meet by their Community ID, and where ports were used again by their content and order. Of TLS the sensor has
the plain text and the capture has not: there the ClientHellos are compared.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
AT_ONCE = 256  # records of each side that are read again together


@dataclass(frozen=True)
class Seen:
    """One session of one side: enough to tell whether it is the other's, and `where` its record is to be had again."""

    start: str
    flow: str
    size: int
    digest: bytes
    where: int


@dataclass
class Result:
    """`differ` are (one, other, what differs), in one line each."""

    agree: int = 0
    only_one: list[Seen] = field(default_factory=list)
    only_other: list[Seen] = field(default_factory=list)
    differ: list[tuple[Seen, Seen, str]] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not (self.only_one or self.only_other or self.differ)


class Side:
    """The sessions of one side; `again` gives records by where they are, in one reading."""

    def __init__(
        self, records: Iterable[tuple[int, Record]], again: Callable[[Collection[int]], dict[int, Record]]
    ) -> None:
        self.again = again
        self.by_id: dict[str, list[Seen]] = {}
        self.total = 0
        for where, record in records:
            if "event" in record or "flow" not in record:
                continue
            if not isinstance(record["flow"], dict) or not isinstance(record.get("tls") or {}, dict):
                raise ValueError(f"record {where} is not as its contract says: flow and tls are objects")
            seen = _seen(where, record)
            self.by_id.setdefault(str(record.get("community_id", "")), []).append(seen)
            self.total += 1


def compare(one: Side, other: Side) -> Result:
    """ValueError where a record is not as its contract says."""
    found = Result()
    unequal: list[tuple[Seen, Seen]] = []
    for identity in [*one.by_id, *(each for each in other.by_id if each not in one.by_id)]:
        left = sorted(one.by_id.get(identity, []), key=lambda seen: seen.start)
        right = sorted(other.by_id.get(identity, []), key=lambda seen: seen.start)
        # Equal ones first: what is missing is then what has no equal.
        both = Counter(seen.digest for seen in left) & Counter(seen.digest for seen in right)
        found.agree += both.total()
        left, right = _without(left, both), _without(right, both)
        unequal += zip(left, right, strict=False)
        found.only_one += left[len(right) :]
        found.only_other += right[len(left) :]
    for at in range(0, len(unequal), AT_ONCE):
        pairs = unequal[at : at + AT_ONCE]
        ours = one.again({mine.where for mine, _ in pairs})
        others = other.again({theirs.where for _, theirs in pairs})
        for mine, theirs in pairs:
            if what := _difference(ours[mine.where], others[theirs.where]):
                found.differ.append((mine, theirs, what))
            else:
                found.agree += 1
    return found


def _without(seen: list[Seen], counts: Counter[bytes]) -> list[Seen]:
    """But for so many of each digest."""
    gone = counts.copy()
    rest = []
    for each in seen:
        if gone[each.digest] > 0:
            gone[each.digest] -= 1
        else:
            rest.append(each)
    return rest


def _seen(where: int, record: Record) -> Seen:
    flow = record["flow"]
    ends = "{}:{} -> {}:{}".format(*(_plain(flow.get(key, "?")) for key in ("src", "sport", "dst", "dport")))
    heard, said = _bytes(record, "payloads"), _bytes(record, "replies")
    hello = str((record.get("tls") or {}).get("client_hello", ""))
    if flow.get("proto") == "tls" and hello:
        heard, said = hello.encode(), b""
    digest = hashlib.sha256(len(heard).to_bytes(8, "big") + heard + said).digest()
    return Seen(
        _plain(record.get("timestamp", "")), f"{_plain(flow.get('proto', '?'))} {ends}", len(heard), digest, where
    )


def _plain(value: Any) -> str:
    """For a terminal: a data file may be anybody's."""
    return "".join(each if each.isprintable() and each.isascii() else "?" for each in str(value))


def _bytes(record: Record, key: str) -> bytes:
    try:
        return b"".join(b64decode(piece["data"], validate=True) for piece in record.get(key) or [])
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"{key} are not as the record's contract says: {problem}") from None


def _difference(one: Record, other: Record) -> str:
    """What differs, in one line; empty for nothing that both could know."""
    if "tls" in (one["flow"].get("proto"), other["flow"].get("proto")):
        hellos = [str((record.get("tls") or {}).get("client_hello", "")) for record in (one, other)]
        return "" if hellos[0] == hellos[1] else "the ClientHellos differ"
    for key in ("payloads", "replies"):
        pair: list[bytes] = [_bytes(record, key) for record in (one, other)]
        cut = [bool(record.get("truncated")) for record in (one, other)]
        if key == "replies" and "reset" in (one.get("closed"), other.get("closed")):
            cut = [True, True]  # what was said into a connection that the client had reset never left the host
        shorter = min(len(each) for each in pair)
        if pair[0][:shorter] != pair[1][:shorter]:
            at = next(number for number in range(shorter) if pair[0][number] != pair[1][number])
            return f"{key} differ from byte {at} on"
        if len(pair[0]) != len(pair[1]) and not cut[len(pair[0]) > len(pair[1])]:
            return f"{key} have {len(pair[0])} and {len(pair[1])} bytes, the same up to there"
    return ""


def lines(result: Result, one: str, other: str, most: int) -> Iterator[str]:
    """For people: each difference, at most so many of a kind, then the sums."""
    kinds = (
        [f"differ: {mine.flow} at {mine.start}: {what}" for mine, _, what in result.differ[:most]],
        [f"only in {one}: {seen.flow} at {seen.start}, {seen.size} bytes" for seen in result.only_one[:most]],
        [f"only in {other}: {seen.flow} at {seen.start}, {seen.size} bytes" for seen in result.only_other[:most]],
    )
    totals = (len(result.differ), len(result.only_one), len(result.only_other))
    for kind, total in zip(kinds, totals, strict=True):
        yield from kind
        if total > len(kind):
            yield f"and {total - len(kind)} more"
    yield (
        f"{result.agree} sessions agree, {len(result.differ)} differ, {len(result.only_one)} are only in {one}, "
        f"{len(result.only_other)} only in {other}"
    )
