"""HTTP/1 messages in a stream (RFC 9112), by h11: requests or responses, one behind the other.

Responses are read with the methods of their requests, so that those to HEAD and CONNECT have no body. Where a stream is
no HTTP, or none any more, its messages end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import h11

MOST_HEAD_BYTES = 65536
MOST_MESSAGES = 65536  # of one stream
_FEED_BYTES = 65536
_REQUEST = re.compile(rb"[A-Z][A-Z-]{1,20} [^\x00-\x20]{1,8192} HTTP/1\.[01]\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_HOST = re.compile(rb"\nhost[ \t]*:", re.IGNORECASE)
Headers = Sequence[tuple[bytes, bytes]]  # names in lower case


class Head(NamedTuple):
    """A message begins. `number` counts from 1, `word` is the request's method or the response's status, `at` where
    its body begins in the stream."""

    number: int
    word: str
    headers: Headers
    at: int

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
    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._buffer = b""
        self._read = 0  # bytes of the stream that were taken from `parts`
        self._over = False
        self._number = 0

    def _more(self) -> bool:
        part = next(self._parts, None)
        if part is None:
            self._over = True
            return False
        self._read += len(part)
        self._buffer += part
        return True

    def _head(self) -> bytes:
        """The next message's, with the empty line; empty where there is none."""
        while True:
            if found := _HEAD_END.search(self._buffer, 0, MOST_HEAD_BYTES):
                return self._buffer[: found.end()]
            if len(self._buffer) >= MOST_HEAD_BYTES or not self._more():
                return b""

    def requests(self) -> Iterator[Event]:
        while self._number < MOST_MESSAGES:
            self._skip_empty_lines()
            head = self._head()
            line = _REQUEST.match(head)
            if not line:
                return
            connection = h11.Connection(h11.SERVER, MOST_HEAD_BYTES)
            if not _HOST.search(head):  # h11 insists on one; strangers do not
                self._buffer = self._buffer[: line.end()] + b"Host: -\r\n" + self._buffer[line.end() :]
            yield from self._message(connection)
            if self._broken:
                return

    def responses(self, methods: Sequence[str]) -> Iterator[Event]:
        answered = 0
        while self._number < MOST_MESSAGES:
            self._skip_empty_lines()
            head = self._head()
            if not head.startswith(b"HTTP/1."):
                return
            connection = h11.Connection(h11.CLIENT, MOST_HEAD_BYTES)
            method = methods[answered] if answered < len(methods) else "GET"
            asked = [("Host", "-"), *([("Upgrade", "-"), ("Connection", "upgrade")] if head[9:12] == b"101" else [])]
            connection.send(h11.Request(method=method, target="/", headers=asked))
            connection.send(h11.EndOfMessage())
            answered += 1
            yield from self._message(connection)
            if self._broken:
                return

    def _skip_empty_lines(self) -> None:
        """RFC 9112 §2.2."""
        while True:
            self._buffer = self._buffer.lstrip(b"\r\n")
            if self._buffer or not self._more():
                return

    def _message(self, connection: h11.Connection) -> Iterator[Event]:
        """Up to its end. `_broken`, unless another one may follow."""
        self._broken = True
        begun = False
        try:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    self._feed(connection)
                elif isinstance(event, h11.Request | h11.Response | h11.InformationalResponse):
                    self._number += 1
                    begun = not isinstance(event, h11.InformationalResponse)
                    yield Head(self._number, _word(event), list(event.headers), self._place(connection))
                    if not begun:
                        yield End(self._place(connection), True)
                elif isinstance(event, h11.Data):
                    yield Body(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    yield End(self._place(connection), True)
                    self._broken = False
                    break
                else:  # another protocol from here on, or the connection's end
                    if begun:
                        yield End(self._place(connection), True)
                    break
        except h11.RemoteProtocolError:  # what there is of it is kept
            if begun:
                yield End(self._read - len(self._buffer), False)
            return
        self._buffer = bytes(connection.trailing_data[0]) + self._buffer

    def _feed(self, connection: h11.Connection) -> None:
        if not self._buffer and not self._more():
            connection.receive_data(b"")
            return
        data, self._buffer = self._buffer[:_FEED_BYTES], self._buffer[_FEED_BYTES:]
        connection.receive_data(data)

    def _place(self, connection: h11.Connection) -> int:
        """Where in the stream the message has come to."""
        return self._read - len(self._buffer) - len(connection.trailing_data[0])


def _word(event: Any) -> str:
    return event.method.decode("ascii") if isinstance(event, h11.Request) else str(event.status_code)
