from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.protocols.proxy_header import SIGNATURE, TLV, Header, crc32c, read

V4 = bytes([203, 0, 113, 9, 192, 0, 2, 1]) + struct.pack("!HH", 40000, 443)
V6 = ip_address("2001:db8::9").packed + ip_address("2001:db8:1::1").packed + struct.pack("!HH", 40000, 443)


def v2(block: bytes, kind: int = 0x11, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes([command, kind]) + struct.pack("!H", len(block)) + block


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + struct.pack("!H", len(value)) + value


def with_checksum(block: bytes, kind: int = 0x11) -> bytes:
    """As v2, with PP2_TYPE_CRC32C behind the block."""
    zeroed = v2(block + tlv(3, bytes(4)), kind)
    return zeroed[:-4] + struct.pack("!I", crc32c(zeroed))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 443\r\n",
            Header(1, "PROXY", "tcp4", "203.0.113.9", 40000, "192.0.2.1", 443, (), 44),
        ),
        (
            b"PROXY TCP6 2001:db8::9 2001:db8:1::1 1 65535\r\n",
            Header(1, "PROXY", "tcp6", "2001:db8::9", 1, "2001:db8:1::1", 65535, (), 46),
        ),
        (
            b"PROXY TCP6 ::ffff:203.0.113.9 ::ffff:192.0.2.1 0 443\r\n",
            Header(1, "PROXY", "tcp6", "203.0.113.9", 0, "192.0.2.1", 443, (), 54),
        ),
        (b"PROXY UNKNOWN\r\n", Header(1, "PROXY", "unspec", "", 0, "", 0, (), 15)),
        (b"PROXY UNKNOWN ffff: any words 1\r\n", Header(1, "PROXY", "unspec", "", 0, "", 0, (), 33)),
        (v2(V4), Header(2, "PROXY", "tcp4", "203.0.113.9", 40000, "192.0.2.1", 443, (), 28)),
        (v2(V4, 0x12), Header(2, "PROXY", "udp4", "203.0.113.9", 40000, "192.0.2.1", 443, (), 28)),
        (v2(V6, 0x21), Header(2, "PROXY", "tcp6", "2001:db8::9", 40000, "2001:db8:1::1", 443, (), 52)),
        (v2(bytes(216), 0x31), Header(2, "PROXY", "unix_stream", "", 0, "", 0, (), 232)),
        (v2(b"", 0x00), Header(2, "PROXY", "unspec", "", 0, "", 0, (), 16)),
        (v2(b"whatever", 0x55), Header(2, "PROXY", "unspec", "", 0, "", 0, (), 24)),
        (v2(b"", 0x00, 0x20), Header(2, "LOCAL", "unspec", "", 0, "", 0, (), 16)),
        (v2(V4, 0x11, 0x20), Header(2, "LOCAL", "tcp4", "", 0, "", 0, (), 28)),
        (
            v2(
                V4 + tlv(1, b"h2") + tlv(2, b"example.org") + tlv(4, b"")
                + tlv(0x20, b"\x01\0\0\0\0" + tlv(0x21, b"x"))
            ),
            Header(
                2, "PROXY", "tcp4", "203.0.113.9", 40000, "192.0.2.1", 443,
                (TLV(1, b"h2"), TLV(2, b"example.org"), TLV(4, b""), TLV(0x20, b"\x01\0\0\0\0!\0\x01x")), 62,
            ),
        ),
    ],
)  # fmt: skip
def test_headers_are_read(data: bytes, expected: Header) -> None:
    assert read(data) == expected
    assert read(data + b"PROXY TCP4") == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\n", "neither version"),
        (b"PROXI", "neither version"),
        (b"\r\n\r\n\x00\r\nQUIT\r", "neither version"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 40000\r\n", "other words"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 443 1\r\n", "other words"),
        (b"PROXY TCP4  203.0.113.9 192.0.2.1 40000 443\r\n", "other words"),
        (b"PROXY UDP4 203.0.113.9 192.0.2.1 40000 443\r\n", "other words"),
        (b"PROXY TCP4 2001:db8::9 192.0.2.1 40000 443\r\n", "an address"),
        (b"PROXY TCP4 203.0.113.256 192.0.2.1 40000 443\r\n", "an address"),
        (b"PROXY TCP6 fe80::1%eth0 fe80::2 40000 443\r\n", "a zone"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 65536 443\r\n", "a port"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 040 443\r\n", "a port"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 -1 443\r\n", "a port"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 1 443\n", "no such line"),
        (b"PROXY " + b"x" * 101, "without an end"),
        (SIGNATURE + b"\x11", "another version"),
        (SIGNATURE + b"\x22", "unknown command"),
        (v2(V4[:-1]), "11 bytes where its addresses need 12"),
        (v2(V4 + b"\x01\x00"), "a cut TLV"),
        (v2(V4 + b"\x01\x00\x05abc"), "longer than the header"),
        (v2(V4 + tlv(3, b"\0\0\0\0")), "a checksum"),
        (v2(V4 + tlv(3, b"")), "a checksum"),
    ],
)
def test_what_is_no_header_is_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(data)


def test_the_checksum_is_castagnolis_and_is_held_to() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    good = with_checksum(V4 + tlv(2, b"example.org"))
    header = read(good)
    assert header is not None
    assert header.tlvs[1].type == 3
    for at in {*range(16, len(good))} - {len(good) - 7}:  # with another type it is no checksum any more
        bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        with pytest.raises(ValueError):
            read(bad)


@given(
    st.binary(max_size=300)
    | st.binary(max_size=40).map(lambda data: SIGNATURE + data)
    | st.binary(max_size=120).map(lambda data: b"PROXY " + data)
)
def test_any_bytes_give_a_header_none_or_value_error(data: bytes) -> None:
    try:
        header = read(data)
    except ValueError:
        return
    assert header is None or 15 <= header.size <= len(data)


ADDRESSES = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)), st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6))
)
PORTS = st.integers(0, 65535)
TLVS = st.lists(st.tuples(st.sampled_from([1, 2, 4, 5, 0x20, 0x30, 0xE0]), st.binary(max_size=20)), max_size=3)


@given(ADDRESSES, PORTS, PORTS, TLVS, st.binary(max_size=10))
def test_what_was_built_is_read_and_each_prefix_asks_for_more(
    addresses: tuple[IPv4Address, IPv4Address],
    sport: int,
    dport: int,
    tlvs: list[tuple[int, bytes]],
    behind: bytes,
) -> None:
    src, dst = addresses
    block = src.packed + dst.packed + struct.pack("!HH", sport, dport) + b"".join(tlv(*each) for each in tlvs)
    one = f"PROXY TCP{src.version} {src} {dst} {sport} {dport}\r\n".encode()
    two = with_checksum(block, 0x11 if src.version == 4 else 0x21)
    for data in (one, two):
        for size in range(len(data)):
            assert read(data[:size]) is None
        header = read(data + behind)
        assert header is not None
        assert (header.size, header.sport, header.dport) == (len(data), sport, dport)
        if not header.src.startswith("::ffff:") and src.version == 4:
            assert (header.src, header.dst) == (str(src), str(dst))
