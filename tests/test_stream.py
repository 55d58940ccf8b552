"""Segments to streams: the table of what is observed of tcpflow, and any order of any stream."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.flows.stream import MOST_SEEK, Stream, Verdict
from tcppc.protocols.packet import ACK, FIN, RST, SYN


class Memory:
    """Streams of one direction, kept in memory as a file would have them."""

    def __init__(self, most_seek: int = MOST_SEEK) -> None:
        self._most_seek = most_seek
        self.streams: list[tuple[Stream, bytearray]] = []

    def add(self, seq: int, data: bytes = b"", flags: int = ACK) -> None:
        segment = (seq & 0xFFFFFFFF, flags, len(data))
        if not self.streams:
            if not Stream.begins(*segment[1:]):
                return
            self._begin()
        stream, content = self.streams[-1]
        verdict = stream.offer(*segment)
        if verdict.what == "compare" and content[verdict.offset : verdict.offset + len(data)] == data:
            return
        if verdict.what in ("new", "compare"):
            if Stream.begins(*segment[1:]):
                self._begin()
                self.add(seq, data, flags)
            return
        if verdict.what == "shift":
            content[:0] = bytes(verdict.offset)
            content[: len(data)] = data
        elif verdict.what == "write":
            content.extend(bytes(max(0, verdict.offset - len(content))))
            content[verdict.offset : verdict.offset + len(data)] = data

    def _begin(self) -> None:
        self.streams.append((Stream(self._most_seek), bytearray()))

    def contents(self) -> list[bytes]:
        return [bytes(content) for _, content in self.streams]


def made(*segments: Any, syn: bool = True, most_seek: int = MOST_SEEK) -> Memory:
    memory = Memory(most_seek)
    if syn:
        memory.add(100, flags=SYN)
    for segment in segments:
        memory.add(*segment)
    return memory


@pytest.mark.parametrize(
    ("segments", "wanted"),
    [
        ([(101, b"aaaa"), (105, b"bbbb")], [b"aaaabbbb"]),
        ([(101, b"aaaa"), (110, b"bbbb")], [b"aaaa" + bytes(5) + b"bbbb"]),
        ([(101, b"aaaaaa"), (103, b"BBBBBB")], [b"aaBBBBBB"]),
        ([(101, b"aaaa"), (101, b"XXXX")], [b"XXXX"]),
        ([(105, b"bbbb"), (101, b"aaaa")], [b"aaaabbbb"]),
        ([(90, b"before"), (101, b"aaaa")], [b"aaaa"]),
        ([(101, b"aaaa"), (104, b"a"), (105, b"b")], [b"aaaab"]),  # a keep-alive
        ([(109, b"", FIN | ACK), (101, b"aaaa"), (105, b"bbbb"), (200, b"late")], [b"aaaabbbb", b"late"]),
        ([(101, b"aaaa", RST), (101, b"aaaa"), (101, b"bbbb")], [b"aaaa", b"bbbb"]),
        ([(101, b"aaaa"), (105, b"", FIN | ACK), (101, b"aaaa")], [b"aaaa"]),
        ([(101, b"aaaa"), (5000, b"", SYN), (5001, b"new")], [b"aaaa", b"new"]),
        ([(100, b"fast", SYN), (105, b"open")], [b"fastopen"]),
        ([(101, b"aaaa"), (101 + 4 + 101, b"far")], [b"aaaa", b"far"]),
        ([(101, b"aaaa"), (101 + 4 + 100, b"near")], [b"aaaa" + bytes(100) + b"near"]),
        ([(101, b""), (101, b"", FIN), (101, b"", RST)], [b""]),
    ],
)
def test_what_is_observed(segments: list[Any], wanted: list[bytes]) -> None:
    assert made(*segments, most_seek=100).contents() == wanted


def test_without_a_syn_earlier_bytes_go_before() -> None:
    memory = made((5004, b"dddd"), (5000, b"cccc"), (5008, b"eeee"), syn=False)
    assert memory.contents() == [b"ccccddddeeee"]
    assert memory.streams[0][0].out_of_order == 1


def test_a_bare_ack_begins_nothing() -> None:
    assert made((1, b""), (1, b"", FIN), (1, b"", RST), syn=False).contents() == []


def test_sequence_numbers_wrap() -> None:
    top = 1 << 32
    assert made((top - 2, b"ab"), (0, b"cd"), (2, b"ef"), syn=False).contents() == [b"abcdef"]


def test_more_than_four_gigabytes_in_one_stream() -> None:
    stream = Stream()
    stream.offer(0, SYN, 0)
    step, at = 1 << 20, 0
    for _ in range(5 * 1024):
        verdict = stream.offer((1 + at) & 0xFFFFFFFF, ACK, step)
        assert verdict == Verdict("write", at)
        at += step
    assert stream.seen == 5 << 30


def test_gaps_and_counts_are_told() -> None:
    memory = made((101, b"aaaa"), (110, b"bbbb"), (103, b"XX"), (50, b"before"))
    stream = memory.streams[0][0]
    assert stream.gaps == [(4, 5)]
    assert (stream.out_of_order, stream.violations) == (1, 1)


@given(
    st.binary(min_size=1, max_size=200), st.integers(0, (1 << 32) - 1), st.lists(st.integers(1, 40), max_size=20),
    st.randoms(), st.booleans(),
)  # fmt: skip
def test_any_order_of_a_whole_stream_gives_it_back(
    content: bytes, begin: int, sizes: list[int], order: Any, syn: bool
) -> None:
    pieces, at = [], 0
    for size in [*sizes, len(content)]:
        if at < len(content):
            pieces.append((begin + 1 + at, content[at : at + size]))
            at += size
    again = [*pieces, *order.sample(pieces, len(pieces) // 2)]
    order.shuffle(again)
    memory = Memory()
    if syn:
        memory.add(begin, flags=SYN)
    for seq, data in again:
        # A byte at the end of what is there may be a keep-alive, and one that is new is taken for one then.
        memory.add(seq, data)
    if all(len(data) > 1 for _, data in pieces):
        assert memory.contents() == [content]
        assert memory.streams[0][0].gaps == []


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.binary(max_size=30), st.sampled_from([ACK, SYN, FIN, RST, SYN | FIN])),
        max_size=30,
    )
)
def test_any_segments_end_in_streams(segments: list[tuple[int, bytes, int]]) -> None:
    memory = Memory(most_seek=100)
    for seq, data, flags in segments:
        memory.add(seq, data, flags)
    for stream, content in memory.streams:
        assert stream.seen <= len(content) or not content
        assert all(size > 0 for _, size in stream.gaps)
