"""A record that fits into no file: what it keeps is the beginning of what was said and of what was answered."""

from __future__ import annotations

import json
from base64 import b64decode

from hypothesis import given
from hypothesis import strategies as st

from tcppc.capture.shorten import shorten
from tcppc.clock import Zone
from tcppc.records import Encoder, Session
from tcppc.spoken import Spoken

PIECES = st.lists(st.binary(min_size=1, max_size=3000), max_size=8)


@given(PIECES, PIECES, st.integers(0, 20_000))
def test_a_record_that_was_cut_fits_and_has_the_beginning(said: list[bytes], told: list[bytes], most: int) -> None:
    encoder = Encoder(Zone("UTC"), "s")
    session = Session("tcp", "203.0.113.9", 1, "192.0.2.1", 22, 1, [(5, data) for data in said], end=9, closed="peer")
    session.id = "0" * 36
    session.bytes = sum(map(len, said))
    session.spoken = Spoken("http", [(6, data, 0) for data in told])
    before = encoder.line(session)
    if not shorten(session, most, encoder.line):
        assert encoder.line(session) == before
        assert most < 600
        return
    line = encoder.line(session)
    assert len(line) <= most
    record = json.loads(line)
    kept = b"".join(b64decode(each["data"]) for each in record["payloads"])
    answered = b"".join(b64decode(each["data"]) for each in record.get("replies", []))
    assert b"".join(said).startswith(kept)
    assert b"".join(told).startswith(answered)
    assert record.get("truncated", False) == (kept != b"".join(said))
    assert ("persona_error" in record) == (answered != b"".join(told))
    if most >= len(before) + 140 * (len(said) + len(told)) + 64:
        assert line == before
