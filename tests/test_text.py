"""Others' bytes as text: nothing is lost for a record, nothing acts on a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc import text


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"root", "root"),
        ("größe".encode(), "größe"),
        (b"r\xf6\xf6t", r"r\xf6\xf6t"),
        (rb"r\xf6\xf6t", r"r\x5cxf6\x5cxf6t"),
        (rb"DOMAIN\user", r"DOMAIN\user"),
        (rb"\\server\xyz", r"\\server\xyz"),
        (b"\\\xf6", r"\\xf6"),
        (rb"\xF6", r"\x5cxF6"),
        (b"\0\x1b", "\0\x1b"),
    ],
)
def test_bytes_are_kept_in_one_form(data: bytes, shown: str) -> None:
    assert text.kept(data) == shown


@given(st.binary() | st.text(alphabet="\\x0f5cö").map(lambda text: text.encode()))
def test_each_text_stands_for_one_sequence_of_bytes(data: bytes) -> None:
    assert text.bytes_of(text.kept(data)) == data


@given(st.text())
def test_harmless_text_is_one_line_that_can_be_printed_anywhere(given: str) -> None:
    shown = text.harmless(given)
    assert shown.isprintable()
    assert text.harmless(shown) == shown
    shown.encode("utf-8")


def test_names_of_the_system_keep_their_bytes() -> None:
    name = b"h\xf6st".decode("utf-8", "surrogateescape")
    assert text.raw(name) == b"h\xf6st"
    assert text.kept(text.raw(name)) == text.harmless(name) == r"h\xf6st"
    assert text.raw("\ud800") == b"\xed\xa0\x80"
