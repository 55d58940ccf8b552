"""Headers of probes: RFC layouts, and whatever strangers make of them."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcppc.protocols import packet
from tcppc.protocols.packet import IPV4, IPV6, SYN

OPTIONS = bytes.fromhex("020405b40402080a010203040000000001030307")
FOUR = [socket.inet_aton("198.51.100.7"), socket.inet_aton("192.0.2.10")]
SIX = [socket.inet_pton(socket.AF_INET6, text) for text in ("2001:db8:a::7", "2001:db8:b::1")]


def tcp(dport: int = 80, flags: int = SYN, seq: int = 1, window: int = 1024, extra: bytes = b"", ack: int = 0) -> bytes:
    return struct.pack("!HHIIBBHHH", 5973, dport, seq, ack, (5 + len(extra) // 4) << 4, flags, window, 0, 0) + extra


def ipv4(
    inner: bytes, protocol: int = 6, ip_id: int = 7, fragment: int = 0, options: bytes = b"", ttl: int = 64
) -> bytes:
    first, size = 0x45 + len(options) // 4, 20 + len(options) + len(inner)
    return struct.pack("!BBHHHBBH4s4s", first, 0, size, ip_id, fragment, ttl, protocol, 0, *FOUR) + options + inner


def ipv6(inner: bytes, following: int = 6) -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, len(inner), following, 63, *SIX) + inner


def test_a_syn_of_ipv4_with_all_its_options() -> None:
    data = ipv4(tcp(extra=OPTIONS), fragment=0x4000)
    found = packet.decode(data, IPV4)
    assert found
    assert (packet.address(found.src), found.sport) == ("198.51.100.7", 5973)
    assert (packet.address(found.dst), found.dport) == ("192.0.2.10", 80)
    assert (found.flags, found.ttl, found.ip_id, found.window, found.dont_fragment) == (SYN, 64, 7, 1024, True)
    assert packet.options(data, found.options) == ["mss:1460", "sackok", "ts", "nop", "ws:7"]


def test_options_of_ipv4_and_headers_of_ipv6_before_tcp() -> None:
    assert packet.decode(ipv4(tcp(), options=b"\1" * 8), IPV4) == packet.decode(ipv4(tcp()), IPV4)._replace(  # type: ignore[union-attr]
        options=(48, 48)
    )
    hop_by_hop, fragment = bytes([44, 0]) + b"\1\4\0\0\0\0", bytes([6, 0, 0, 1, 0, 0, 0, 9])
    found = packet.decode(ipv6(hop_by_hop + fragment + tcp(dport=443), 0), IPV6)
    assert found
    assert (packet.address(found.src), found.dport, found.ip_id) == ("2001:db8:a::7", 443, -1)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (ipv4(tcp(), fragment=0x0001), IPV4),  # a later fragment
        (ipv6(bytes([6, 0, 0, 8, 0, 0, 0, 9]) + tcp(), 44), IPV6),
        (ipv4(b"\x08\0\0\0", protocol=1), IPV4),
        (ipv4(tcp()), 0x0806),
        (b"", IPV4),
        (ipv4(tcp())[:30], IPV4),
        (b"\x41" + ipv4(tcp())[1:], IPV4),  # a header length of 4
        (ipv6(tcp())[:50], IPV6),
        (ipv6(b"\0\0" * 40, 0), IPV6),  # hop by hop, again and again
    ],
)
def test_what_is_no_probe(data: bytes, kind: int) -> None:
    assert packet.decode(data, kind) is None


def test_two_vlan_tags() -> None:
    tagged = b"\0\5\x81\0" + b"\0\6" + struct.pack("!H", IPV4) + ipv4(tcp())
    found = packet.decode(tagged, 0x88A8)
    assert found
    assert found.dport == 80
    assert packet.decode(b"\0\5\x81\0" * 9 + ipv4(tcp()), 0x8100) is None


def test_a_first_fragment_whose_flags_are_in_the_next_one() -> None:
    found = packet.decode(ipv4(tcp(dport=443)[:8], fragment=0x2000), IPV4)
    assert found
    assert (found.dport, found.flags, found.cut) == (443, 0, True)
    found = packet.decode(ipv6(bytes([6, 0, 0, 1, 0, 0, 0, 9]) + tcp(dport=443)[:16], 44), IPV6)
    assert found
    assert found.cut


def test_udp_and_flags() -> None:
    found = packet.decode(ipv4(struct.pack("!HHHH", 53, 5353, 8, 0), protocol=17), IPV4)
    assert found
    assert (found.proto, found.sport, found.dport, found.flags) == ("udp", 53, 5353, 0)
    assert [packet.flag_letters(flags) for flags in (0, 1, 2, 0x29, 0xC2)] == ["", "F", "S", "FPU", "SEC"]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (b"\2\4\5\xb4", ["mss:1460"]),
        (b"\0\1\1\1", ["eol"]),
        (b"\1\1\1", ["nop"] * 3),
        (b"\2\0\0\0", ["cut"]),
        (b"\2\x28", ["cut"]),
        (b"\3", ["cut"]),
        (b"\xfe\3\1", ["254"]),
        (b"\2\2\3\2", ["mss:0", "ws:0"]),
    ],
)
def test_options_that_are_cut_or_unknown(options: bytes, shown: list[str]) -> None:
    assert packet.options(options, (0, len(options))) == shown


@given(st.binary(max_size=128), st.sampled_from([IPV4, IPV6, 0x8100, 0x88A8]))
@example(b"\x60" + b"\0" * 39, IPV6)
def test_any_bytes_are_a_probe_or_none(data: bytes, kind: int) -> None:
    found: Any = packet.decode(data, kind)
    if found:
        assert 0 <= found.sport < 65536
        assert 0 <= found.dport < 65536
        assert packet.address(found.src)
        assert found.options[1] <= len(data)
        assert len(packet.options(data, found.options)) <= 40


@given(st.binary(max_size=40))
def test_options_end_whatever_they_are(data: bytes) -> None:
    assert all(name.isascii() and name for name in packet.options(data, (0, len(data))))
