"""Plain packets decoded at once are what they are one by one."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcppc.flows import columns
from tcppc.flows.capture_files import Packet
from tcppc.flows.packets import Parser, Reading, Totals
from tests.captures import tcp_packet
from tests.test_packet import ipv6, tcp

CLIENT, SERVER = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")
PLAIN = tcp_packet(CLIENT, 1000, SERVER, 80, 0xFFFFFFF0, b"payload")


FOUR, SIX = PLAIN[14:], ipv6(tcp(dport=80, seq=7, flags=0x18) + b"payload")
ETHERNET, SOURCE = PLAIN[:12], PLAIN[6:12]
# Link type, and what stands before the network header of IPv4 and of IPv6.
HEADS = [
    (1, ETHERNET + b"\x08\x00", ETHERNET + b"\x86\xdd"),
    (1, ETHERNET + b"\x81\x00\x60\x2a\x08\x00", ETHERNET + b"\x81\x00\x00\x00\x86\xdd"),
    (113, b"\0\0\0\1\0\6" + SOURCE + b"\0\0\x08\x00", b"\0\4\0\1\0\6" + SOURCE + b"\0\0\x86\xdd"),
    (276, b"\x08\x00" + bytes(8) + b"\4\6" + SOURCE + b"\0\0", b"\x86\xdd" + bytes(9) + b"\6" + SOURCE + b"\0\0"),
    (101, b"", b""),
]


def one_by_one(frame: bytes, link: int = 1) -> tuple[Any, ...] | None:
    """(source, port, destination, port, VLAN, MAC addresses, sequence number, flags, payload, bytes sent)."""
    found = Parser(Reading(), Totals())(Packet(0, link, len(frame), frame))
    if not found:
        return None
    key, run = found
    return *key[:5], run.macs, run.seq, run.flags, b"".join(run.data.parts()), run.size


def at_once(frames: list[bytes], link: int = 1) -> dict[int, tuple[Any, ...]]:
    at = np.cumsum([0, *(len(frame) for frame in frames)])[:-1]
    captured = np.array([len(frame) for frame in frames], np.int64)
    buffer = b"".join(frames)
    found = columns.decode(buffer, at, captured, link)
    rows = zip(
        columns.packed(found.src, found.src_high), found.sport, columns.packed(found.dst, found.dst_high), found.dport,
        found.vlan, columns.macs(buffer, at[found.index], link), found.seq, found.flags, found.at, found.held,
        found.size, found.index, strict=True,
    )  # fmt: skip
    return {int(index): (*row, buffer[begin : begin + held], size) for *row, begin, held, size, index in rows}


@pytest.mark.parametrize(("link", "four", "six"), HEADS)
def test_each_kind_of_plain_packet(link: int, four: bytes, six: bytes) -> None:
    frames = [four + FOUR, six + SIX, four + FOUR[:-3], six + SIX[:-3], six + SIX + b"padding", four + FOUR[:40]]
    assert at_once(frames, link) == {number: one_by_one(frame, link) for number, frame in enumerate(frames)}
    for end in range(len(six + SIX)):  # which is also the buffer's
        frame = (six + SIX)[:end]
        assert at_once([frame], link) == ({0: one_by_one(frame, link)} if end >= len(six) + 60 else {})


@pytest.mark.parametrize(
    "frame",
    [
        PLAIN,
        PLAIN + b"padding",
        PLAIN[:-3],  # cut by the snap length
        PLAIN[:16] + b"\0\0" + PLAIN[18:],  # to be cut by the card
        tcp_packet(CLIENT, 1, SERVER, 2, 3),
    ],
)
def test_plain_packets(frame: bytes) -> None:
    assert at_once([b"x" * 60, frame, b""]) == {1: one_by_one(frame)}


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        PLAIN[:53],
        PLAIN[:12] + b"\x86\xdd" + PLAIN[14:],
        PLAIN[:14] + b"\x46" + PLAIN[15:],  # with options: for the other path
        PLAIN[:20] + b"\x20\x00" + PLAIN[22:],  # a fragment
        PLAIN[:23] + b"\x11" + PLAIN[24:],
        PLAIN[:46] + b"\x40" + PLAIN[47:],
        PLAIN[:46] + b"\xf0" + PLAIN[47:],
        PLAIN[:16] + b"\x00\x14" + PLAIN[18:],
    ],
)
def test_what_is_not_plain_is_left(frame: bytes) -> None:
    assert at_once([frame, PLAIN]) == {1: one_by_one(PLAIN)}


def test_addresses_of_other_sizes_are_left() -> None:
    for head in (b"\0\0\0\1\0\4" + SOURCE, b"\0\0\0\1\1\6" + SOURCE):
        assert at_once([head + b"\0\0\x08\x00" + FOUR], 113) == {}
    assert at_once([b"\x08\x00" + bytes(9) + b"\4" + SOURCE + b"\0\0" + FOUR], 276) == {}


@given(
    st.sampled_from(HEADS), st.booleans(), st.lists(st.binary(max_size=90), max_size=6),
    st.lists(st.integers(0, 79), max_size=4), st.binary(max_size=4), st.integers(0, 90),
)  # fmt: skip
@example(HEADS[0], False, [], [], b"", 90)
def test_whatever_is_plain_is_the_same_one_by_one(
    head: tuple[int, bytes, bytes], of_six: bool, others: list[bytes], places: list[int], values: bytes, end: int
) -> None:
    link, *heads = head
    sound = heads[of_six] + (SIX if of_six else FOUR)
    changed = bytearray(sound)
    for place, value in zip(places, values, strict=False):
        changed[place % len(sound)] = value
    frames = [*others, bytes(changed), sound, sound[:end]]
    found = at_once(frames, link)
    assert len(others) + 1 in found
    for index, row in found.items():
        assert row == one_by_one(frames[index], link)
