"""HTTP/1 messages in a stream (RFC 9112), by h11: requests or responses, one behind the other.

Responses are read with the methods of their requests, so that those to HEAD and CONNECT have no body. h11 is strict,
and strangers are not: of a head it is given what says where the body ends, the rest is kept as it is. Behind a message
that is broken the next one is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import h11

MOST_HEAD_BYTES = 1 << 20
MOST_MESSAGES = 65536  # of one stream
MOST_LINE_BYTES = 70000
_FIRST_BYTES, _FEED_BYTES = 512, 65536
_METHOD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,40}"
_REQUEST = re.compile(rb"(" + _METHOD + rb") [^\r\n]{1,65536}? HTTP/(1\.[01])\r?\n")
_RESPONSE = re.compile(rb"HTTP/(1\.[0-9]) {1,9}([0-9]{1,3})[^\r\n]{0,65536}\r?\n")
# At the beginning of a line: to try it everywhere would take the square of a line's length.
_NEXT_REQUEST = re.compile(rb"\n" + _REQUEST.pattern)
_NEXT_RESPONSE = re.compile(rb"\n" + _RESPONSE.pattern)
# What a stream that may be HTTP begins with.
BEGIN = re.compile(rb"[\r\n]*(?:HTTP/1\.|" + _METHOD + rb" )")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:[ \t]*(.*?)[ \t\r]*", re.DOTALL)
Headers = Sequence[tuple[bytes, bytes]]  # names in lower case


class Head(NamedTuple):
    """A message begins. `number` counts from 1, `word` is the request's method or the response's status, `at` where
    its body begins in the stream."""

    number: int
    word: str
    headers: Headers
    at: int
    raw: bytes  # as it was sent, with the empty line

    def header(self, name: bytes) -> str:
        """All of that name, as one; Latin-1, as it is defined."""
        return ", ".join(value.decode("latin-1") for key, value in self.headers if key == name)


class Body(NamedTuple):
    """A part of its body, without the chunks' own bytes."""

    data: bytes


class End(NamedTuple):
    """Its end, at this place of the stream; `whole` unless the stream ended, or broke, before it."""

    at: int
    whole: bool


Event = Head | Body | End


def requests(parts: Iterable[bytes]) -> Iterator[Event]:
    """Of what a client sent, in parts."""
    return _Reader(parts).requests()


def responses(parts: Iterable[bytes], methods: Sequence[str]) -> Iterator[Event]:
    """Of what a server sent. `methods` are those of the requests; behind them, and without them, GET is assumed."""
    return _Reader(parts).responses(methods)


class _Reader:
    """Gives h11 no more than it needs, so that a message costs what it is long."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._buffer = b""
        self._at = 0  # how much of it was given
        self._before = 0  # bytes of the stream before it
        self._number = 0
        self._broken = self._ended = False

    def _more(self) -> bool:
        """Reads on; what was given long ago is let go."""
        part = next(self._parts, None)
        if part is None:
            return False
        gone = max(0, self._at - _FEED_BYTES)  # h11 may give back of what it was given last
        self._buffer = self._buffer[gone:] + part
        self._at -= gone
        self._before += gone
        return True

    def _head(self) -> bytes:
        """The next message's, with the empty line; empty where there is none."""
        looked = 0  # so much of it has no end
        while True:
            while self._buffer[self._at : self._at + 1] in (b"\r", b"\n"):  # RFC 9112 §2.2
                self._at += 1
            if found := _HEAD_END.search(self._buffer, self._at + looked, self._at + MOST_HEAD_BYTES):
                return self._buffer[self._at : found.end()]
            looked = max(0, len(self._buffer) - self._at - 3)
            if looked >= MOST_HEAD_BYTES or not self._more():
                return b""

    def requests(self) -> Iterator[Event]:
        while self._number < MOST_MESSAGES:
            head = self._head()
            line = _REQUEST.match(head)
            if not line:
                if not (head and self._broken and self._resync(_NEXT_REQUEST)):
                    return
                continue
            headers, framing = _headers(head)
            connection = h11.Connection(h11.SERVER, MOST_HEAD_BYTES)
            connection.receive_data(b"%b / HTTP/%b\r\nHost: -\r\n%b\r\n" % (line[1], line[2], framing))
            yield from self._message(connection, head, line[1].decode("ascii"), headers)
            if self._ended:
                return

    def responses(self, methods: Sequence[str]) -> Iterator[Event]:
        answered = 0
        while self._number < MOST_MESSAGES:
            head = self._head()
            line = _RESPONSE.match(head)
            if not line:
                if not (head and self._broken and self._resync(_NEXT_RESPONSE)):
                    return
                continue
            headers, framing = _headers(head)
            connection = h11.Connection(h11.CLIENT, MOST_HEAD_BYTES)
            method = methods[answered] if answered < len(methods) else "GET"
            asked = [("Host", "-"), *([("Upgrade", "-"), ("Connection", "upgrade")] if line[2] == b"101" else [])]
            connection.send(h11.Request(method=method, target="/", headers=asked))
            connection.send(h11.EndOfMessage())
            informational = line[2][:1] == b"1" and len(line[2]) == 3 and line[2] != b"101"
            answered += not informational
            status = line[2] if len(line[2]) == 3 and line[2] >= b"100" else b"200"
            version = line[1] if line[1] in (b"1.0", b"1.1") else b"1.1"
            connection.receive_data(b"HTTP/%b %b -\r\n%b\r\n" % (version, status, framing))
            yield from self._message(connection, head, line[2].decode("ascii"), headers)
            if self._ended:
                return

    def _resync(self, pattern: re.Pattern[bytes]) -> bool:
        """Is there another message, behind one that was broken?"""
        while True:
            if found := pattern.search(self._buffer, self._at):
                self._at = found.start() + 1
                return True
            self._at = max(self._at, len(self._buffer) - MOST_LINE_BYTES)
            if not self._more():
                return False

    def _message(self, connection: h11.Connection, head: bytes, word: str, headers: Headers) -> Iterator[Event]:
        """Up to its end. `_ended`, where none can follow; `_broken`, where one must be looked for."""
        self._at += len(head)
        self._number += 1
        self._broken, self._ended, size, given = False, False, _FIRST_BYTES, self._before + self._at
        begun = False
        try:
            while True:
                event = connection.next_event()
                if isinstance(event, h11.Request | h11.Response | h11.InformationalResponse):
                    begun = True
                    yield Head(self._number, word, headers, self._before + self._at, head)
                    if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                        break
                elif event is h11.NEED_DATA:
                    given = self._before + self._at
                    size = self._feed(connection, size)
                elif isinstance(event, h11.Data):
                    yield Body(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:  # another protocol from here on, or the connection's end
                    self._ended = True
                    break
        except h11.RemoteProtocolError:  # what there is of it is kept
            self._broken = True
            self._at = given - self._before  # the next one may have begun in what was given last
            if not begun:
                yield Head(self._number, word, headers, self._before + self._at, head)
        else:
            self._at -= len(connection.trailing_data[0])
        yield End(self._before + self._at, not self._broken)

    def _feed(self, connection: h11.Connection, size: int) -> int:
        """The next bytes; returns how many it may be next time."""
        if self._at == len(self._buffer) and not self._more():
            connection.receive_data(b"")
            return size
        connection.receive_data(self._buffer[self._at : self._at + size])
        self._at = min(len(self._buffer), self._at + size)
        return min(2 * size, _FEED_BYTES)


def _headers(head: bytes) -> tuple[Headers, bytes]:
    """(all headers of a head, names in lower case; those lines that say where the body ends, as h11 takes them).
    Transfer codings before the last chunked one are content codings to who wants the body."""
    found: list[tuple[bytes, bytes]] = []
    lines = head.replace(b"\r\n", b"\n").split(b"\n")[1:]
    for line in lines:
        if line[:1] in (b" ", b"\t") and found:  # RFC 9112 §5.2
            found[-1] = (found[-1][0], found[-1][1] + b" " + line.strip())
        elif header := _HEADER.fullmatch(line):
            found.append((header[1].lower(), header[2]))
    transfer = b",".join(value for name, value in found if name == b"transfer-encoding")
    codings = [coding.strip().lower() for coding in transfer.split(b",")]
    if codings[-1] == b"chunked":
        framing = b"Transfer-Encoding: chunked\r\n"
        found.append((b"content-encoding", b", ".join(codings[:-1])))
    else:
        lengths = [value for name, value in found if name == b"content-length" and value.isdigit() and len(value) < 19]
        framing = b"Content-Length: %b\r\n" % lengths[0] if lengths else b""
    if any(name == b"upgrade" for name, _ in found):
        framing += b"Upgrade: -\r\nConnection: upgrade\r\n"
    return found, framing
