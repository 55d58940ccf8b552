"""IP headers and fragments: whole again in any order, never in memory without bound, teardrops refused."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.flows import network
from tcppc.flows.network import Datagram, Fragment, Fragments
from tcppc.protocols.packet import IPV4, IPV6
from tests.test_packet import FOUR, SIX, ipv4, ipv6

KEY = (FOUR[0], FOUR[1], 17, 7)


def test_what_follows_the_headers_up_to_the_length_that_they_tell() -> None:
    padded = ipv4(b"data", protocol=17) + b"padding of Ethernet"
    assert network.parse(IPV4, padded) == Datagram(FOUR[0], FOUR[1], 17, b"data", 4)
    cut = ipv4(b"0123456789", protocol=6)[:25]
    assert network.parse(IPV4, cut) == Datagram(FOUR[0], FOUR[1], 6, b"01234", 10)
    offloaded = ipv4(b"x" * 100, protocol=6)
    offloaded = offloaded[:2] + b"\0\0" + offloaded[4:]
    assert network.parse(IPV4, offloaded) == Datagram(FOUR[0], FOUR[1], 6, b"x" * 100, 100)


def test_ipv6_behind_its_extension_headers() -> None:
    hop, destination, routing = (bytes([following, 0]) + bytes(6) for following in (60, 43, 51))
    authentication = bytes([44, 4]) + bytes(22)
    atomic = bytes([17, 0, 0, 0, 0, 0, 0, 9])
    data = ipv6(hop + destination + routing + authentication + atomic + b"data", 0)
    assert network.parse(IPV6, data) == Datagram(SIX[0], SIX[1], 17, b"data", 4)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (IPV4, b""), (IPV4, b"\x45"), (IPV4, b"\x65" + bytes(40)), (IPV4, b"\x41" + bytes(40)), (IPV6, b"\x60"),
        (IPV6, b"\x40" + bytes(60)), (IPV4, ipv4(b"")[:2] + b"\0\5" + ipv4(b"")[4:]), (IPV6, ipv6(b"\0\xff" * 20, 0)),
        (IPV4, ipv4(b"12345678", fragment=0x2000)[:-1]), (IPV4, ipv4(b"1234567", fragment=0x2000)),
        (IPV4, ipv4(b"x" * 100, fragment=0x1FFF)),
    ],
)  # fmt: skip
def test_what_is_no_datagram(kind: int, data: bytes) -> None:
    assert network.parse(kind, data) is None


def cut(data: bytes, size: int) -> list[Fragment]:
    """As a router cuts it."""
    return [Fragment(KEY, at, at + size < len(data), data[at : at + size]) for at in range(0, len(data), size)]


@given(st.binary(min_size=1, max_size=400), st.integers(1, 8), st.randoms(), st.booleans())
def test_fragments_in_any_order_and_doubled_are_whole_once(data: bytes, words: int, order: Any, twice: bool) -> None:
    pieces = cut(data, words * 8)
    again = pieces * 2 if twice else list(pieces)
    order.shuffle(again)
    fragments = Fragments()
    found = [datagram for piece in again if (datagram := fragments.add(piece))]
    # Those that come again after the whole was there begin another one, which nobody ends.
    assert found[0] == Datagram(FOUR[0], FOUR[1], 17, data, len(data))
    assert fragments.overlapping == 0


def test_fragments_as_headers_tell_them() -> None:
    fragments = Fragments()
    first = network.parse(IPV4, ipv4(b"12345678", protocol=17, fragment=0x2000))
    last = network.parse(IPV4, ipv4(b"9", protocol=17, fragment=1))
    assert isinstance(first, Fragment)
    assert isinstance(last, Fragment)
    assert fragments.add(last) is None
    assert fragments.add(first) == Datagram(FOUR[0], FOUR[1], 17, b"123456789", 9)
    for offset, more, data in ((0, 1, b"12345678"), (8, 0, b"9")):
        head = bytes([17, 0]) + struct.pack("!HI", offset | more, 77)
        piece = network.parse(IPV6, ipv6(head + data, 44))
        assert isinstance(piece, Fragment)
        whole = fragments.add(piece)
    assert whole == Datagram(SIX[0], SIX[1], 17, b"123456789", 9)
    assert fragments.left() == 0


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, True, b"x" * 24), (8, False, b"y" * 4)],  # teardrop
        [(0, True, b"x" * 16), (8, True, b"y" * 16), (24, False, b"z")],
        [(8, False, b"end"), (8, True, b"y" * 16)],
        [(16, True, b"x" * 8), (8, False, b"y")],
    ],
)
def test_overlapping_fragments_make_no_datagram(pieces: list[tuple[int, bool, bytes]]) -> None:
    fragments = Fragments()
    assert [fragments.add(Fragment(KEY, *piece)) for piece in pieces] == [None] * len(pieces)
    assert fragments.overlapping == 1
    assert [fragments.add(piece) for piece in cut(b"0123456789abcdef!", 8)] == [None] * 3
    assert fragments.overlapping == 1


def test_a_flood_of_first_fragments_is_bounded() -> None:
    fragments = Fragments(most=100)
    for number in range(1000):
        key = (socket.inet_aton(f"10.0.{number >> 8}.{number & 255}"), FOUR[1], 17, number)
        assert fragments.add(Fragment(key, 0, True, b"x" * 8)) is None
    assert fragments.left() == 1000
    assert fragments.lost == 900
    large = Fragments(most_bytes=10_000)
    for number in range(100):
        large.add(Fragment((*KEY[:3], number), 0, True, bytes(1000)))
    assert large.lost == 92  # each piece costs beside its bytes


@given(st.sampled_from([IPV4, IPV6]), st.binary(max_size=120))
def test_any_bytes_are_a_datagram_a_fragment_or_none(kind: int, data: bytes) -> None:
    fragments = Fragments()
    for text in (data, ipv4(data, fragment=0x2000), ipv6(data, 44), ipv6(data, 0)):
        found = network.parse(kind, text)
        if isinstance(found, Fragment):
            fragments.add(found)
        elif found:
            assert len(found.data) <= found.size


def test_an_empty_fragment_takes_nothing_away() -> None:
    fragments = Fragments()
    pieces = [(0, True, b"A" * 16), (16, True, b"B" * 8), (16, True, b""), (24, False, b"C" * 4)]
    found = [fragments.add(Fragment(KEY, *piece)) for piece in pieces]
    assert found[3] == Datagram(FOUR[0], FOUR[1], 17, b"A" * 16 + b"B" * 8 + b"C" * 4, 28)


def test_pieces_of_an_hour_ago_and_of_another_vlan_join_nothing() -> None:
    fragments, second = Fragments(), 10**9
    assert fragments.add(Fragment(KEY, 8, False, b"old tail"), instant=0) is None
    assert fragments.add(Fragment(KEY, 0, True, b"new head"), instant=3600 * second) is None
    assert fragments.add(Fragment(KEY, 8, False, b"tail"), instant=3600 * second, vlan=6) is None
    whole = fragments.add(Fragment(KEY, 8, False, b"new tail"), instant=3601 * second)
    assert whole == Datagram(FOUR[0], FOUR[1], 17, b"new headnew tail", 16)


def test_an_identity_is_spoilt_for_a_minute_alone() -> None:
    fragments, second = Fragments(), 10**9
    for data in (b"12345678", b"otherone"):
        fragments.add(Fragment(KEY, 0, True, data))
    assert fragments.add(Fragment(KEY, 8, False, b"tail"), instant=second) is None
    fragments.add(Fragment(KEY, 0, True, b"12345678"), instant=61 * second)
    whole = fragments.add(Fragment(KEY, 8, False, b"tail"), instant=61 * second)
    assert whole == Datagram(FOUR[0], FOUR[1], 17, b"12345678tail", 12)


def test_extension_headers_behind_the_fragment_header() -> None:
    options = bytes([6, 0]) + bytes(6)
    key = (SIX[0], SIX[1], 60, 7)
    fragments = Fragments()
    assert fragments.add(Fragment(key, 0, True, options)) is None
    assert fragments.add(Fragment(key, 8, False, b"tcp")) == Datagram(SIX[0], SIX[1], 6, b"tcp", 3)
    assert fragments.add(Fragment(key, 0, False, b"\x3c")) is None  # cut within them


def test_the_time_of_a_piece_does_not_grow_with_the_pieces() -> None:
    """Counted, not timed: eight thousand pieces of eight bytes, of which each would be held against all others."""
    fragments, looked = Fragments(), 0

    class Counted(list[int]):
        def __getitem__(self, at: Any) -> Any:
            nonlocal looked
            looked += 1
            return super().__getitem__(at)

    fragments.add(Fragment(KEY, 0, True, bytes(8)))
    (waiting,) = fragments._waiting.values()
    waiting.offsets = Counted(waiting.offsets)
    for offset in range(8, 60_000, 8):
        fragments.add(Fragment(KEY, offset, True, bytes(8)))
    assert looked < 7500 * 40
