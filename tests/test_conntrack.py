"""ctnetlink's messages: against bytes that a kernel sent, and against bytes that nobody sent."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from tcppc.protocols import conntrack
from tcppc.protocols.conntrack import Flow

ports = st.integers(0, 65535)
FOUR = Flow("198.51.100.1", 12345, "198.51.100.7", 5000)
SIX = Flow("2001:db8:a::1", 12345, "2001:db8:a::7", 5000)


def as_answer(question: bytes) -> bytes:
    """A kernel's answer has the same attributes, for the original direction."""
    body = bytearray(question)
    struct.pack_into("=H", body, 4, 1 << 8)
    struct.pack_into("=H", body, 22, 0x8000 | 1)
    return bytes(body)


@given(flow=st.builds(Flow, st.ip_addresses(v=4).map(str), ports, st.ip_addresses(v=4).map(str), ports))
def test_what_is_written_is_read_ipv4(flow: Flow) -> None:
    assert conntrack.answer(as_answer(conntrack.question(conntrack.UDP, flow, 7)), 7) == flow


@given(flow=st.builds(Flow, st.ip_addresses(v=6).map(str), ports, st.ip_addresses(v=6).map(str), ports))
def test_what_is_written_is_read_ipv6(flow: Flow) -> None:
    assert conntrack.answer(as_answer(conntrack.question(conntrack.TCP, flow, 7)), 7) == flow


@given(data=st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_none(data: bytes) -> None:
    assert conntrack.answer(data, 1) is None or len(data) >= 16
    conntrack.answer(struct.pack("=IHHII", 16 + len(data), 1 << 8, 0, 1, 0) + data, 1)


@given(cut=st.integers(0, 100), flow=st.sampled_from([FOUR, SIX]))
def test_a_cut_answer_is_none_or_whole(cut: int, flow: Flow) -> None:
    whole = as_answer(conntrack.question(conntrack.UDP, flow, 7))
    assert conntrack.answer(whole[:cut], 7) == (flow if cut >= len(whole) else None)


def test_an_error_is_an_errno() -> None:
    assert conntrack.answer(struct.pack("=IHHIIi", 36, 2, 0, 7, 0, -2) + bytes(16), 7) == 2


def test_the_answer_to_another_question_is_none() -> None:
    assert conntrack.answer(as_answer(conntrack.question(conntrack.UDP, FOUR, 7)), 8) is None
