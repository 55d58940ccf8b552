"""Plain packets decoded at once are what they are one by one."""

from __future__ import annotations

import socket
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcppc.flows import columns, links, network
from tcppc.flows.network import Datagram
from tests.captures import tcp_packet

CLIENT, SERVER = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")
PLAIN = tcp_packet(CLIENT, 1000, SERVER, 80, 0xFFFFFFF0, b"payload")


def one_by_one(frame: bytes) -> tuple[int, ...] | None:
    """(source, port, destination, port, sequence number, flags, payload's offset, bytes there, bytes sent)."""
    found = links.frame(1, frame)
    datagram = network.parse(found.kind, frame[found.at :]) if found else None
    if not isinstance(datagram, Datagram) or datagram.protocol != 6 or len(datagram.data) < 20 or not found:
        return None
    sport, dport, seq, _, offset, flags = struct.unpack_from("!HHIIBB", datagram.data)
    header = (offset >> 4) * 4
    if not 20 <= header <= len(datagram.data):
        return None
    src, dst = (int.from_bytes(each, "big") for each in (datagram.src, datagram.dst))
    held = len(datagram.data) - header
    begin = found.at + (frame[found.at] & 0x0F) * 4 + header
    return src, sport, dst, dport, seq, flags, begin, held, datagram.size - header


def at_once(frames: list[bytes], link: int = 1) -> dict[int, tuple[int, ...]]:
    at = np.cumsum([0, *(len(frame) for frame in frames)])[:-1]
    captured = np.array([len(frame) for frame in frames], np.int64)
    found = columns.decode(b"".join(frames), at, captured, link)
    rows = zip(
        found.index, found.src, found.sport, found.dst, found.dport, found.seq, found.flags, found.at, found.held,
        found.size, strict=True,
    )  # fmt: skip
    return {
        int(index): (*(int(value) for value in row[:6]), int(row[6] - at[index]), *(int(value) for value in row[7:]))
        for index, *row in rows
    }


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


def test_other_link_types_are_left() -> None:
    assert at_once([PLAIN], link=113) == {}


@given(st.lists(st.binary(max_size=90), max_size=6), st.lists(st.integers(0, 59), max_size=4), st.binary(max_size=4))
@example([], [], b"")
def test_whatever_is_plain_is_the_same_one_by_one(others: list[bytes], places: list[int], values: bytes) -> None:
    changed = bytearray(PLAIN)
    for place, value in zip(places, values, strict=False):
        changed[place] = value
    frames = [*others, bytes(changed), PLAIN]
    for index, row in at_once(frames).items():
        assert row == one_by_one(frames[index])
