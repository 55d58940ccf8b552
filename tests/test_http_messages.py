"""HTTP messages in streams: where each begins and ends, whatever the cuts."""

from __future__ import annotations

from collections.abc import Iterator

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.flows.http_messages import Body, End, Event, Head, requests, responses


def parts(data: bytes, size: int = 1 << 16) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def told(events: Iterator[Event]) -> list[tuple[int, str, bytes, bool]]:
    """(number, word, body, whole) each."""
    found: list[tuple[int, str, bytes, bool]] = []
    head, body = None, b""
    for event in events:
        if isinstance(event, Head):
            head, body = event, b""
        elif isinstance(event, Body):
            body += event.data
        elif isinstance(event, End):
            assert head
            found.append((head.number, head.word, body, event.whole))
    return found


ASKED = (
    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    b"\r\nHEAD /b HTTP/1.1\r\n\r\n"  # an empty line before, and no Host
    b"GET /c HTTP/1.0\r\n\r\n"
    b"PUT /d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n"
    b"\r\n"
)
ANSWERED = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"
    b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"  # of HEAD: no body
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n\r\n"
)


@given(st.integers(1, 200))
def test_pipelined_requests_in_parts_of_any_size(size: int) -> None:
    assert told(requests(parts(ASKED, size))) == [
        (1, "POST", b"hello", True), (2, "HEAD", b"", True), (3, "GET", b"", True), (4, "PUT", b"abcde", True),
    ]  # fmt: skip


@given(st.integers(1, 200))
def test_their_responses(size: int) -> None:
    methods = ["POST", "HEAD", "GET", "PUT"]
    assert told(responses(parts(ANSWERED, size), methods)) == [
        (1, "100", b"", True), (2, "200", b"one", True), (3, "200", b"", True), (4, "304", b"", True),
        (5, "200", b"four", True),
    ]  # fmt: skip


def test_where_a_body_is() -> None:
    events = list(responses(parts(ANSWERED, 7), ["POST"]))
    head = next(event for event in events if isinstance(event, Head) and event.number == 2)
    end = [event for event in events if isinstance(event, End)][1]
    assert ANSWERED[head.at : end.at] == b"one"
    asked = list(requests(parts(ASKED, 11)))
    heads = [event for event in asked if isinstance(event, Head)]
    ends = [event for event in asked if isinstance(event, End)]
    assert ASKED[heads[0].at : ends[0].at] == b"hello"
    assert ASKED[heads[3].at : ends[3].at].startswith(b"3\r\nabc")  # with the chunks' own bytes


def test_a_body_without_a_length_goes_to_the_end() -> None:
    assert told(responses(parts(b"HTTP/1.0 200 OK\r\n\r\nall of it"), [])) == [(1, "200", b"all of it", True)]


def test_what_follows_connect_and_upgrade_is_no_http() -> None:
    tunnel = b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    assert told(responses(parts(tunnel), ["CONNECT"])) == [(1, "200", b"", True)]
    switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x81\x05hello"
    assert told(responses(parts(switched), ["GET"])) == [(1, "101", b"", True)]
    refused = b"HTTP/1.1 405 No\r\nContent-Length: 2\r\n\r\nno" + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    assert [each[2] for each in told(responses(parts(refused), ["CONNECT", "GET"]))] == [b"no", b"x"]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", [(1, "200", b"short", False)]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", [(1, "200", b"abc", False)]),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", [(1, "200", b"x", True)]),
        (b"HTTP/1.1 200 OK\r\nno colon\r\nServer : x\r\n\r\nall", [(1, "200", b"all", True)]),
        (b"HTTP/1.1 99 OK\r\nContent-Length: -1\r\nX@y: z\r\n\r\nall", [(1, "99", b"all", True)]),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            [(1, "200", b"", False), (2, "200", b"x", True)],
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Le", []),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20000 + b"\r\nall", [(1, "200", b"all", True)]),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200_000 + b"\r\nall", []),
        (b"SSH-2.0-x\r\n\r\n", []),
        (b"", []),
    ],
)  # fmt: skip
def test_broken_http_is_kept_as_far_as_it_goes(data: bytes, found: list[tuple[int, str, bytes, bool]]) -> None:
    assert told(responses(parts(data, 10_000), [])) == found
    if len(data) < 1000:
        assert told(responses(parts(data, 1), [])) == found


@given(st.binary(max_size=400), st.integers(1, 50), st.booleans())
def test_any_bytes_end(data: bytes, size: int, after: bool) -> None:
    for lead in (ASKED if after else b"", b"GET / HTTP/1.1\r\n" if after else b""):
        list(requests(parts(lead + data, size)))
    list(responses(parts((ANSWERED if after else b"HTTP/1.1 200 OK\r\n") + data, size), ["POST", "CONNECT"]))


def test_messages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcppc.flows.http_messages.MOST_MESSAGES", 10)
    assert len(told(requests(parts(b"GET / HTTP/1.1\r\n\r\n" * 50)))) == 10


def test_requests_as_strangers_send_them() -> None:
    sent = b"get /a b HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + b"GET /" + b"x" * 9000 + b" HTTP/1.0\r\n\r\n"
    assert [each[1] for each in told(requests(parts(b"\r\n" + sent)))] == ["get", "GET"]


def test_a_transfer_coding_before_the_chunks_is_told() -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nContent-Encoding: br\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    head = next(event for event in responses(parts(data), []) if isinstance(event, Head))
    assert head.header(b"content-encoding") == "br, gzip"


def test_a_message_costs_what_it_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: bytes that are given to h11 for many small messages in one large part."""
    given = 0
    receive = h11.Connection.receive_data

    def counted(self: h11.Connection, data: bytes) -> None:
        nonlocal given
        given += len(data)
        receive(self, data)

    monkeypatch.setattr(h11.Connection, "receive_data", counted)
    asked = b"GET / HTTP/1.1\r\n\r\n" * 2000
    assert len(told(requests(iter([asked])))) == 2000
    assert given < 3 * len(asked)
    given = 0
    assert len(told(responses(iter([b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\nx" * 1000]), []))) == 1000
    assert given < 1000 * 1000
