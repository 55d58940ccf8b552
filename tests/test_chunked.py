"""Chunked bodies, in any pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.personas.chunked import Chunks


def decoded(pieces: list[bytes]) -> tuple[bytes, bool, bytes]:
    chunks, heard, found = Chunks(), bytearray(), b""
    for piece in pieces:
        heard += piece
        found += chunks.take(heard)
    return found, chunks.ended, bytes(heard)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 300), max_size=8))
def test_a_body_in_any_pieces(body: list[bytes], cuts: list[int]) -> None:
    text = b"".join(b"%x;x=y\r\n%s\r\n" % (len(chunk), chunk) for chunk in body) + b"0\r\nA: b\r\n\r\nGET /"
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[at:to] for at, to in itertools.pairwise(places)]
    assert decoded(pieces) == (b"".join(body), True, b"GET /")


@given(st.binary(max_size=100))
def test_any_bytes_are_a_body_or_none(data: bytes) -> None:
    try:
        found, _, left = decoded([data])
    except ValueError:
        return
    assert len(found) + len(left) <= len(data)


@pytest.mark.parametrize("text", [b"x\r\n", b"-1\r\n", b"2\r\nabc\r\n", b"1" * 2000, b"0\r\n" + b"a: b\r\n" * 200])
def test_what_is_no_chunked_body(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decoded([text])
