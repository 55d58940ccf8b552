"""--json: each connection as one session record, as the sensor writes them (docs/record.md).

What the client sent are payloads, what the server sent replies, with the times at which they could be read. Pieces wait
in memory, and beyond a bound in a file without a name, until both directions have ended.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tcppc import folders
from tcppc.flows.flow import Flow, Run
from tcppc.flows.listener import Listener
from tcppc.flows.packets import shown
from tcppc.flows.stream import Verdict
from tcppc.protocols import client_hello
from tcppc.protocols.packet import ACK, FIN, RST, SYN, UDP
from tcppc.records import TLS, Session
from tcppc.spoken import Spoken

MOST_BYTES = 16 << 20  # kept of one direction: the sensor's default (limits.session_bytes)
PIECE_COST = 64
MOST_WAITING_BYTES = 64 << 20  # of all, in memory
_HEAD = struct.Struct("<qqI")


class Piece(NamedTuple):
    """`at` is where it stands in its stream; below 0 what came before the first bytes."""

    instant: int
    at: int
    data: bytes


@dataclass
class _Side:
    """What one direction sent."""

    kept: int = 0  # bytes
    pieces: int = 0
    lost: bool = False  # more came than is kept
    shifted: int = 0
    confirmed: bool = False  # was there a packet that only an established connection has?
    closing: int = 0  # when it said FIN or RST first (ns), or 0
    reset: bool = False
    fresh: bytearray = field(default_factory=bytearray)
    spooled: list[tuple[int, int]] = field(default_factory=list)  # (offset, size) in the spool


class Sessions(Listener):
    """Each whole session to `write`; `left_out` counts those that never came to be."""

    by_packet = True

    def __init__(
        self, write: Callable[[Session], object], most_bytes: int = MOST_BYTES, first_wins: bool = False
    ) -> None:
        self.left_out = 0
        self._first_wins = first_wins
        self._write = write
        self._most_bytes = most_bytes
        self._sides: dict[Flow, _Side] = {}
        self._waiting = 0
        self._spool = tempfile.TemporaryFile(prefix="tcppc-", dir=folders.temporary())  # noqa: SIM115 - `finish` closes it

    def segment(self, flow: Flow, run: Run, verdict: Verdict) -> None:
        side = self._sides.get(flow)
        if side is None:
            side = self._sides[flow] = _Side()
        if run.flags & (FIN | RST) and not side.closing:
            side.closing, side.reset = run.first, bool(run.flags & RST)
        side.confirmed |= run.flags & (ACK | RST | SYN) == ACK
        if verdict.what == "shift":
            side.shifted += verdict.offset
            at = -side.shifted
        elif verdict.what == "write":
            at = verdict.offset - side.shifted
        else:
            return
        data = b"".join(run.data.parts())
        # Each piece costs beside its bytes: a direction of single ones has the same bound.
        if side.kept + len(data) + PIECE_COST * side.pieces > self._most_bytes:
            side.lost = True
            data = data[: max(0, self._most_bytes - side.kept - PIECE_COST * side.pieces)]
        side.kept += len(data)
        side.pieces += 1
        if data or flow.named.protocol == UDP:
            side.fresh += _HEAD.pack(run.first, at, len(data)) + data
            self._waiting += _HEAD.size + len(data)

    def settle(self) -> None:
        if self._waiting < MOST_WAITING_BYTES:
            return
        self._spool.seek(0, 2)
        for side in self._sides.values():
            if side.fresh:
                side.spooled.append((self._spool.tell(), len(side.fresh)))
                self._spool.write(side.fresh)
                side.fresh = bytearray()
        self._waiting = 0

    def ended(self, flow: Flow) -> None:
        """Its session is whole once the other direction has ended too."""
        other = flow.partner
        if other and not other.retired:
            return
        flows = [flow, other] if other else [flow]
        client = next((each for each in flows if each.asks), None)
        if client is None and len(flows) > 1:  # each of them said that it answers
            client = min(flows, key=lambda each: each.named.number)
        server = next((each for each in flows if each is not client), None)
        if flow.named.protocol == UDP:
            self._datagrams(client, server)
        else:
            self._connection(client, server)
        for each in flows:
            if side := self._sides.pop(each, None):
                self._waiting -= len(side.fresh)

    def finish(self) -> None:
        self._spool.close()

    def _connection(self, client: Flow | None, server: Flow | None) -> None:
        heard, said = self._side(client), self._side(server)
        if not heard.confirmed and not heard.kept and not said.kept:
            self.left_out += 1  # nobody was connected
            return
        session = _session(client, server)
        pieces = assembled(self._pieces(heard), self._first_wins)
        session.payloads = [(piece.instant, piece.data) for piece in pieces]
        session.bytes = client.stream.seen if client else 0
        session.truncated = heard.lost or sum(len(piece.data) for piece in pieces) < session.bytes
        session.closed, session.end = _closing(heard, said, client, server)
        replies = assembled(self._pieces(said), self._first_wins)
        if replies:
            session.spoken = Spoken("", list(_following(replies, [piece.instant for piece in pieces])))
        session.tls = _tls(b"".join(data for _, data in session.payloads))
        if session.tls:
            session.proto = "tls"
        self._write(session)

    def _datagrams(self, client: Flow | None, server: Flow | None) -> None:
        """A session each of the client's, as the sensor records them; an answer is of the one before it."""
        asked = list(self._pieces(self._side(client)))
        answers = list(self._pieces(self._side(server)))
        answered = 0
        for number, piece in enumerate(asked):
            session = _session(client, server)
            session.start = piece.instant
            session.payloads, session.bytes = [(piece.instant, piece.data)], len(piece.data)
            until = asked[number + 1].instant if number + 1 < len(asked) else 1 << 63
            own: list[tuple[int, bytes, int]] = []
            while answered < len(answers) and answers[answered].instant < until:
                if answers[answered].instant >= piece.instant:  # else it came before the first question
                    own.append((answers[answered].instant, answers[answered].data, 0))
                answered += 1
            if own:
                session.spoken = Spoken("", own)
            self._write(session)

    def _side(self, flow: Flow | None) -> _Side:
        return self._sides.get(flow, _Side()) if flow else _Side()

    def _pieces(self, side: _Side) -> Iterator[Piece]:
        """In order of arrival."""
        for offset, size in side.spooled:
            self._spool.seek(offset)
            yield from _unpacked(self._spool.read(size))
        yield from _unpacked(bytes(side.fresh))


def _unpacked(packed: bytes) -> Iterator[Piece]:
    at = 0
    while at < len(packed):
        instant, place, size = _HEAD.unpack_from(packed, at)
        at += _HEAD.size
        yield Piece(instant, place, packed[at : at + size])
        at += size


def assembled(pieces: Iterator[Piece], first_wins: bool = False) -> list[Piece]:
    """In the stream's order, each byte once, with the bytes that came last (or first) for each place, as the
    stream's file has them; and each with the time at which it could be read: when all before it had come too. Gaps are
    left out."""
    arrived = list(pieces)
    found: list[Piece] = []
    ready = 0
    cluster: list[int] = []
    end = 0
    for number in sorted(range(len(arrived)), key=lambda number: arrived[number].at):
        piece = arrived[number]
        if cluster and piece.at > end:
            ready = _joined(arrived, cluster, ready, found, first_wins)
            cluster = []
        end = max(end, piece.at + len(piece.data)) if cluster else piece.at + len(piece.data)
        cluster.append(number)
    if cluster:
        _joined(arrived, cluster, ready, found, first_wins)
    return found


def _joined(arrived: list[Piece], cluster: list[int], ready: int, found: list[Piece], first_wins: bool) -> int:
    """Adds pieces without a gap between them, by place; returns when the last of them could be read."""
    low = arrived[cluster[0]].at
    content = bytearray(max(arrived[number].at + len(arrived[number].data) for number in cluster) - low)
    for number in sorted(cluster, reverse=first_wins):
        _, at, data = arrived[number]
        content[at - low : at - low + len(data)] = data
    at = low
    for number in cluster:
        instant, begin, data = arrived[number]
        end = begin + len(data)
        if end > at:
            ready = max(ready, instant)
            found.append(Piece(ready, at, bytes(content[at - low : end - low])))
            at = end
    return ready


def _session(client: Flow | None, server: Flow | None) -> Session:
    """Empty yet, begun with the connection's first packet."""
    if client:
        named = client.named
        src, sport, dst, dport = named.src, named.sport, named.dst, named.dport
    else:
        assert server is not None
        named = server.named
        src, sport, dst, dport = named.dst, named.dport, named.src, named.sport
    proto = "udp" if named.protocol == UDP else "tcp"
    start = min(flow.first for flow in (client, server) if flow)
    return Session(proto, shown(src), sport, shown(dst), dport, start)


def _closing(heard: _Side, said: _Side, client: Flow | None, server: Flow | None) -> tuple[str, int]:
    """(why it ended, when); nothing of one that was open when the capture ended."""
    last = max(flow.last for flow in (client, server) if flow)
    if heard.closing and (not said.closing or heard.closing <= said.closing):
        return ("reset" if heard.reset else "peer"), last
    if said.closing:
        return "shutdown", last
    return "", 0


def _following(replies: list[Piece], payloads: list[int]) -> Iterator[tuple[int, bytes, int]]:
    """Each with the number of the payload that it follows, -1 for none."""
    after = -1
    for piece in replies:
        while after + 1 < len(payloads) and payloads[after + 1] <= piece.instant:
            after += 1
        yield piece.instant, piece.data, after


def _tls(data: bytes) -> TLS | None:
    """Decoded, where the client began with a ClientHello."""
    if not client_hello.looks_like(data[:64]):
        return None
    try:
        hello = client_hello.read(data)
    except ValueError:  # it is no ClientHello that can be read: its bytes are the payload
        return None
    return TLS(hello=hello.raw) if hello else None
