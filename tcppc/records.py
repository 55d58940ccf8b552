"""The record: what tcppc keeps of one session, as JSON Lines out and in.

The contract is the table of keys in docs/record.md and conf/record-1.schema.json. The first three keys are
tcppc-go's; a key that has nothing to say is left out.

`Encoder.line` is written out as text, not through `json`: every value in it is a number, base64, a time stamp
or an address from the kernel, so that only what strangers or operators can choose (SNI, ALPN, errors, the
sensor's name) needs escaping.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import struct
from base64 import b64decode, b64encode
from binascii import b2a_base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from socket import AF_INET6, IPPROTO_TCP, IPPROTO_UDP, inet_aton, inet_pton
from typing import Any, NamedTuple, Protocol

from tcppc import clock
from tcppc.protocols import app, client_hello, proxy_header
from tcppc.sightings import Lines
from tcppc.spoken import Spoken, found, said, said_in_pieces

FORMATS = ("full", "classic")

_PROTOCOL_NUMBERS = {"tcp": IPPROTO_TCP, "tls": IPPROTO_TCP, "udp": IPPROTO_UDP}
# A str as JSON, ASCII only: what json.dumps of a str calls.
_quote = json.encoder.encode_basestring_ascii
_COMMUNITY_V4 = struct.Struct("!H4s4sBBHH").pack
_COMMUNITY_V6 = struct.Struct("!H16s16sBBHH").pack
_sha1 = hashlib.sha1
_lot = random.SystemRandom().getrandbits(30)
_NODE = f"{8 | _lot >> 28:x}{_lot >> 16 & 0xFFF:03x}-{_lot & 0xFFFF:04x}"  # the variant, then the 30 bits
_count = itertools.count()
_head = (-1, "")  # the last millisecond and its text; replaced whole, so that threads may share it


@dataclass(slots=True)
class TLS:
    """What a TLS session was: `hello` are the client's bytes from the first on, as received, until the
    handshake ended; `error` says why it failed, in one line. `bytes` were TLS on the wire, once the handshake was done;
    payloads from the index `after` on came behind it, as they are."""

    hello: bytes = b""
    version: str | None = None
    cipher: str | None = None
    error: str | None = None
    bytes: int = 0
    after: int = -1


@dataclass(slots=True)
class Proxy:
    """Where a session really came from that a trusted load balancer brought: the connection's own addresses, and what
    its PROXY protocol header was, or why there was none. The session's addresses are then the header's."""

    src: str
    sport: int
    dst: str
    dport: int
    header: proxy_header.Header | None = None
    error: str = ""


Payload = tuple[int, bytes]


class Stowed(Protocol):
    """The beginning of what a session said or was told, where that is not in memory any more."""

    count: int

    @property
    def size(self) -> int:
        """Bytes of all of them, or a little more."""

    def __iter__(self) -> Iterator[tuple[int, bytes, int]]:
        """(instant, bytes, index of the payload that a reply follows)."""

    def free(self) -> None: ...

    def disown(self) -> None:
        """Charge it to no source any more."""


@dataclass(slots=True, eq=False)
class Session:
    """One connection or datagram. Instants are nanoseconds since the epoch; `payloads` are (instant, bytes)
    as read, those in memory; `closed` is peer, reset, timeout, limit, shutdown or error, and empty for a datagram."""

    proto: str
    src: str
    sport: int
    dst: str
    dport: int
    start: int
    payloads: list[tuple[int, bytes]] = field(default_factory=list)
    bytes: int = 0
    end: int = 0
    closed: str = ""
    truncated: bool = False
    tls: TLS | None = None
    charge: int = 0  # bytes of memory that it holds of the books' bound
    proxy: Proxy | None = None
    spoken: Spoken | None = None
    id: str = ""  # given early where event lines or actions share it, else when its line is made
    stepped: bool = False  # it has event lines: its own line is the last of them
    source: Any = None  # whom `charge` is charged to, in the books; None for nobody
    stowed: Stowed | None = None  # payloads before those in `payloads`

    @property
    def count(self) -> int:
        """How many payloads there are."""
        return len(self.payloads) + (self.stowed.count if self.stowed else 0)

    def all_payloads(self) -> Iterator[Payload]:
        """(instant, bytes) of each, also of those that are not in memory."""
        if self.stowed:
            for instant, data, _ in self.stowed:
                yield instant, data
        yield from self.payloads

    def is_large(self) -> bool:
        """Is a part of it not in memory?"""
        return self.stowed is not None or (self.spoken is not None and self.spoken.stowed is not None)

    def free(self) -> None:
        """Give up what is not in memory: it is written, or lost."""
        if self.stowed:
            self.stowed.free()
        if self.spoken and self.spoken.stowed:
            self.spoken.stowed.free()


def most_characters(session: Session) -> int:
    """How long its record may be, about, without making it: base64 and 140 characters each for payloads and replies."""
    spoken, tls = session.spoken, session.tls
    size = sum([len(data) for _, data in session.payloads]) + (session.stowed.size if session.stowed else 0)
    count = session.count
    if spoken:
        size += sum([len(data) for _, data, _ in spoken.replies]) + (spoken.stowed.size if spoken.stowed else 0)
        count += spoken.count
    return (size + (len(tls.hello) if tls and tls.hello else 0)) * 4 // 3 + 140 * count + 2000


class Step(NamedTuple):
    """Something that happened in a session, for `--record events`.

    `event` is start, payload, reply or tls. `number` counts the session's payload lines before it; a handshake's bytes
    are such lines too until `tls` says that all lines from `after` on were the handshake's. Of a reply, `number` counts
    the replies before it, and `after` is the index of the payload line it follows, or -1.
    """

    session: Session
    event: str
    number: int
    instant: int
    data: bytes = b""
    after: int = 0
    charge: int = 0  # bytes of memory that it holds of the books' bound, charged to the session's source


def new_id(instant: int) -> str:
    """A UUIDv7 (RFC 9562 §5.7): milliseconds, twelve bits of their fraction (§6.2 method 3), 30 bits drawn by lot at
    each start, and a counter of 32 bits. A quarter cheaper than 62 new random bits each time."""
    global _head
    milliseconds, rest = divmod(instant, 1_000_000)
    head = _head
    if head[0] != milliseconds:
        text = f"{milliseconds & 0xFFFFFFFFFFFF:012x}"
        head = _head = (milliseconds, f"{text[:8]}-{text[8:]}-7")
    return f"{head[1]}{rest * 4096 // 1_000_000:03x}-{_NODE}{next(_count) & 0xFFFFFFFF:08x}"


def community_id(proto: str, src: str, sport: int, dst: str, dport: int) -> str:
    """Community ID v1 with seed 0 (https://github.com/corelight/community-id-spec), as Zeek prints it."""
    if ":" in src:
        pack, one, other = _COMMUNITY_V6, inet_pton(AF_INET6, src), inet_pton(AF_INET6, dst)
    else:
        pack, one, other = _COMMUNITY_V4, inet_aton(src), inet_aton(dst)
    if one > other or (one == other and sport > dport):
        one, other, sport, dport = other, one, dport, sport
    digest = _sha1(pack(0, one, other, _PROTOCOL_NUMBERS[proto], 0, sport, dport)).digest()
    return "1:" + b2a_base64(digest, newline=False).decode("ascii")


class Encoder:
    """Sessions to lines of one format, for one zone and sensor name. Belongs to one thread."""

    def __init__(self, zone: clock.Zone, sensor: str, form: str = "full") -> None:
        self._stamp = zone.stamp
        self._sensor = f',"sensor":{json.dumps(sensor)}' if sensor else ""
        self._classic = form == "classic"
        self.sighting = Lines(zone.stamp, self._sensor, new_id, community_id).line

    def line(self, session: Session) -> str:
        """One line of JSON without its line feed; ASCII only. Of a session that has event lines: its end."""
        return self._end(session) if session.stepped else self.whole(session)

    def whole(self, session: Session) -> str:
        """The record, also of a session that goes on, as far as it has come."""
        spoken = session.spoken
        if session.stowed or (spoken and spoken.stowed):
            return "".join(self._whole_in_pieces(session))
        stamp = self._stamp
        start = session.start
        began = stamp(start)
        pieces = []
        for index, (instant, data) in enumerate(session.payloads):
            when = began if instant == start else stamp(instant)
            encoded = b2a_base64(data, newline=False).decode("ascii")
            pieces.append(f'{{"index":{index},"timestamp":"{when}","data":"{encoded}"}}')
        payloads = pieces[0] if len(pieces) == 1 else ",".join(pieces)
        flow = self._flow(session, began)
        if self._classic:
            return f"{flow}[{payloads}]}}" if payloads else f"{flow}null}}"
        replies = said(spoken, stamp) if spoken else ""
        return f"{flow}[{payloads}],{self._behind(session)}{replies}}}"

    def _flow(self, session: Session, began: str) -> str:
        """A record up to its payloads."""
        return (
            f'{{"timestamp":"{began}","flow":{{"proto":"{session.proto}","src":"{session.src}",'
            f'"sport":{session.sport},"dst":"{session.dst}","dport":{session.dport}}},"payloads":'
        )

    def _behind(self, session: Session) -> str:
        """What a record has between its payloads and its replies."""
        community = community_id(session.proto, session.src, session.sport, session.dst, session.dport)
        ended = f'"end":"{self._stamp(session.end)}","closed":"{session.closed}",' if session.closed else ""
        return (
            f'"id":"{session.id or new_id(session.start)}",{ended}{_sums(session)}'
            f'{self._sensor},"community_id":"{community}"{_proxy(session.proxy) if session.proxy else ""}'
            f"{_found(session)}{found(session.spoken) if session.spoken else ''}"
        )

    def in_pieces(self, session: Session) -> Iterator[str]:
        """`line` of a session that is not all in memory, in pieces that are."""
        if session.stepped:
            yield self._end(session)
        else:
            yield from self._whole_in_pieces(session)

    def _whole_in_pieces(self, session: Session) -> Iterator[str]:
        stamp = self._stamp
        yield f"{self._flow(session, stamp(session.start))}["
        for index, (instant, data) in enumerate(session.all_payloads()):
            encoded = b2a_base64(data, newline=False).decode("ascii")
            comma = "," if index else ""
            yield f'{comma}{{"index":{index},"timestamp":"{stamp(instant)}","data":"{encoded}"}}'
        if self._classic:
            yield "]}"
            return
        yield f"],{self._behind(session)}"
        yield from said_in_pieces(session.spoken, stamp)
        yield "}"

    def step(self, step: Step) -> str:
        """The event line of a step, without its line feed; ASCII only. The first one gives the session its id."""
        session, event, number, instant, data, after, _ = step
        when = self._stamp(instant)
        if event == "payload":
            encoded = b2a_base64(data, newline=False).decode("ascii")
            return f'{{"timestamp":"{when}","event":"payload","id":"{session.id}","index":{number},"data":"{encoded}"}}'
        if event == "tls":
            tls = f'"tls":{_tls(session.tls)}' if session.tls else ""
            first = f'"from":{after},' if after else ""
            return f'{{"timestamp":"{when}","event":"tls","id":"{session.id}","index":{number},{first}{tls}}}'
        if event == "reply":
            encoded = b2a_base64(data, newline=False).decode("ascii")
            return (
                f'{{"timestamp":"{when}","event":"reply","id":"{session.id}","index":{number},"data":"{encoded}",'
                f'"after":{after}}}'
            )
        session.id, session.stepped = session.id or new_id(session.start), True
        community = community_id(session.proto, session.src, session.sport, session.dst, session.dport)
        return (
            # The session may have become TLS meanwhile: the line is of the moment it was accepted.
            f'{{"timestamp":"{when}","event":"start","flow":{{"proto":"tcp","src":"{session.src}",'
            f'"sport":{session.sport},"dst":"{session.dst}","dport":{session.dport}}},"id":"{session.id}"'
            f'{self._sensor},"community_id":"{community}"{_proxy(session.proxy)}}}'
        )

    def _end(self, session: Session) -> str:
        """The event line of a session's end: what its record has beside the lines before."""
        tls = session.tls
        told = tls and tls.version and not tls.error  # its tls line has it all
        text = _found(session, with_tls=not told)
        if tls and told and (sums := _tls_sums(tls, session.count)):
            text = f',"tls":{{{",".join(sums)}}}{text}'
        replies = f',"replies":{session.spoken.count}' if session.spoken and session.spoken.count else ""
        return (
            f'{{"timestamp":"{self._stamp(session.end)}","event":"end","id":"{session.id}","proto":"{session.proto}",'
            f'"payloads":{session.count}{replies},"closed":"{session.closed}",{_sums(session)}{text}'
            f"{found(session.spoken)}}}"
        )


def run_of(identity: str) -> str:
    """The part of a session's id, or of a ledger line's run, that each start of a sensor draws anew."""
    return identity[19:28]


def _proxy(proxy: Proxy | None) -> str:
    """The record's `proxy`, with its comma before."""
    if not proxy:
        return ""
    said: dict[str, Any] = {"src": proxy.src, "sport": proxy.sport, "dst": proxy.dst, "dport": proxy.dport}
    if header := proxy.header:
        said |= {"version": header.version, "command": header.command, "transport": header.transport}
        if header.tlvs:
            said["tlvs"] = [{"type": tlv.type, "value": b64encode(tlv.value).decode("ascii")} for tlv in header.tlvs]
    if proxy.error:
        said["error"] = proxy.error
    return f',"proxy":{json.dumps(said, separators=(",", ":"))}'


def _sums(session: Session) -> str:
    return f'"bytes":{session.bytes},"truncated":true' if session.truncated else f'"bytes":{session.bytes}'


def _found(session: Session, with_tls: bool = True) -> str:
    """What the decoders made of it, each with its comma before."""
    tls = f',"tls":{_tls(session.tls, session.count)}' if session.tls and with_tls else ""
    first = next(session.all_payloads(), None) if session.stowed else session.payloads[0] if session.payloads else None
    name = app.guess(first[1], session.proto) if first else None
    return f'{tls},"app":"{name}"' if name else tls


def _tls_sums(tls: TLS, count: int) -> list[str]:
    """How much was TLS on the wire, and which of `count` payloads came behind it."""
    parts = [f'"bytes":{tls.bytes}'] if tls.bytes else []
    return [*parts, f'"after":{tls.after}'] if 0 <= tls.after < count else parts


def _tls(tls: TLS, count: int = 0) -> str:
    """The record's `tls`, of a session of `count` payloads; what cannot be decoded of the ClientHello is left out, its
    bytes never."""
    raw, error = tls.hello, tls.error
    said = {"version": tls.version, "cipher": tls.cipher}
    alpn: tuple[str, ...] = ()
    try:
        hello = client_hello.read(raw) if raw else None
    except ValueError as problem:
        hello, error = None, error or str(problem)
    if hello:
        raw, alpn, said["sni"] = hello.raw, hello.alpn, hello.sni
        said["ja3"], said["ja4"] = hello.fingerprints()
    said["error"] = error
    parts = [f'"{key}":{_quote(value)}' for key, value in said.items() if value]
    if alpn:
        parts.append(f'"alpn":[{",".join(map(_quote, alpn))}]')
    if raw:
        parts.append(f'"client_hello":"{b2a_base64(raw, newline=False).decode("ascii")}"')
    return "{" + ",".join(parts + _tls_sums(tls, count)) + "}"


def read_lines(lines: Iterator[bytes]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number from 1, record) for each line that is not empty; None for one that is no JSON object, as a
    crash leaves it."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:  # UnicodeDecodeError and JSONDecodeError are both
            record = None
        except RecursionError:
            record = None
        yield number, record if isinstance(record, dict) else None


def payload_bytes(record: dict[str, Any]) -> bytes:
    """All payloads of a record, joined; ValueError where it is not as the contract says."""
    try:
        return b"".join(b64decode(payload["data"], validate=True) for payload in record["payloads"] or [])
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"payloads are not as the record's contract says: {problem}") from None
