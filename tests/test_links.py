"""Frames of each link type, and whatever else may stand there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.flows import links
from tcppc.flows.links import Frame
from tcppc.protocols import packet
from tests.test_packet import ipv4, ipv6, tcp

FOUR, SIX = ipv4(tcp()), ipv6(tcp())
DST, SRC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
SNAP = bytes.fromhex("aaaa03000000")
TO_SYSTEM = bytes.fromhex("08010000") + b"BSSID0" + SRC + DST + b"\0\0"
FROM_SYSTEM = bytes.fromhex("08020000") + DST + b"BSSID0" + SRC + b"\0\0"
BRIDGED = bytes.fromhex("08030000") + b"RECEIV" + b"TRANSM" + DST + b"\0\0" + SRC
QOS = bytes.fromhex("88010000") + b"BSSID0" + SRC + DST + b"\0\0" + b"\0\0"


@pytest.mark.parametrize(
    ("link", "head", "vlan", "macs"),
    [
        (1, DST + SRC + b"\x08\x00", -1, (SRC, DST)),
        (1, DST + SRC + bytes.fromhex("8100602a0800"), 42, (SRC, DST)),
        (1, DST + SRC + bytes.fromhex("88a80005810000060800"), 5, (SRC, DST)),
        (1, DST + SRC + bytes.fromhex("8847000010400001013f"), -1, (SRC, DST)),
        (1, DST + SRC + bytes.fromhex("8864110000010030") + bytes.fromhex("0021"), -1, (SRC, DST)),
        (1, DST + SRC + b"\x00\x30" + SNAP + b"\x08\x00", -1, (SRC, DST)),
        (0, bytes.fromhex("02000000"), -1, (b"", b"")),
        (0, bytes.fromhex("00000002"), -1, (b"", b"")),
        (108, bytes.fromhex("00000002"), -1, (b"", b"")),
        (9, bytes.fromhex("ff030021"), -1, (b"", b"")),
        (9, bytes.fromhex("0021"), -1, (b"", b"")),
        (12, b"", -1, (b"", b"")),
        (101, b"", -1, (b"", b"")),
        (228, b"", -1, (b"", b"")),
        (113, bytes.fromhex("000000010006") + SRC + b"\0\0" + b"\x08\x00", -1, (SRC, b"")),
        (276, b"\x08\x00" + bytes(8) + b"\x00\x06" + SRC + b"\0\0", -1, (SRC, b"")),
        (105, TO_SYSTEM + SNAP + b"\x08\x00", -1, (SRC, DST)),
        (105, FROM_SYSTEM + SNAP + b"\x08\x00", -1, (SRC, DST)),
        (105, BRIDGED + SNAP + b"\x08\x00", -1, (SRC, DST)),
        (105, QOS + SNAP + b"\x08\x00", -1, (SRC, DST)),
        (127, bytes.fromhex("00000c000000000000000000") + TO_SYSTEM + SNAP + b"\x08\x00", -1, (SRC, DST)),
    ],
)
def test_ipv4_behind_every_link_type(link: int, head: bytes, vlan: int, macs: tuple[bytes, bytes]) -> None:
    data = head + FOUR
    found = links.frame(link, data)
    assert found == Frame(packet.IPV4, len(head), vlan, *macs)
    decoded = packet.decode(data[len(head) :], packet.IPV4)
    assert decoded
    assert decoded.dport == 80


@pytest.mark.parametrize(
    ("link", "head"),
    [
        (1, DST + SRC + b"\x86\xdd"), (0, bytes.fromhex("1e000000")), (0, bytes.fromhex("18000000")), (101, b""),
        (229, b""), (9, bytes.fromhex("ff030057")), (1, DST + SRC + bytes.fromhex("8864110000010030") + b"\x00\x57"),
    ],
)  # fmt: skip
def test_ipv6(link: int, head: bytes) -> None:
    found = links.frame(link, head + SIX)
    assert found
    assert (found.kind, found.at) == (packet.IPV6, len(head))


@pytest.mark.parametrize(
    ("link", "data"),
    [
        (1, DST + SRC + b"\x08\x06" + FOUR),  # ARP
        (1, DST + SRC + b"\x00\x30" + b"\x42\x42\x03" + FOUR),  # spanning tree
        (1, DST + SRC + bytes.fromhex("81000001") * 9 + b"\x08\x00" + FOUR),
        (1, DST),
        (1, DST + SRC + b"\x08\x00"),
        (105, bytes([0x80]) + bytes(40)),  # a beacon
        (105, TO_SYSTEM[:1] + b"\x41" + TO_SYSTEM[2:] + SNAP + b"\x08\x00" + FOUR),  # encrypted
        (127, bytes.fromhex("00000400") + FOUR),
        (9, bytes.fromhex("c021") + FOUR),
        (101, b""),
        (147, FOUR),  # a link type of somebody's own
    ],
)
def test_frames_without_ip(link: int, data: bytes) -> None:
    assert links.frame(link, data) is None


@given(st.sampled_from(sorted(links.LINKS)), st.binary(max_size=120))
def test_any_bytes_are_a_frame_or_none(link: int, data: bytes) -> None:
    found = links.frame(link, data)
    if found:
        assert found.kind in (packet.IPV4, packet.IPV6)
        assert 0 <= found.at < len(data)
        assert -1 <= found.vlan < 4096
        packet.decode(data[found.at :], found.kind)
