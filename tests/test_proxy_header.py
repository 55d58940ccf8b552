"""The PROXY protocol's header, against examples as on the wire and against bytes of all kinds."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc.protocols.proxy_header import MOST_BYTES, MOST_V1_BYTES, SIGNATURE, TLV, Header, crc32c, read

Addresses = tuple[str, int, str, int]

V4 = bytes([203, 0, 113, 9, 192, 0, 2, 1]) + struct.pack("!HH", 40000, 443)
V6 = ip_address("2001:db8::9").packed + ip_address("2001:db8:1::1").packed + struct.pack("!HH", 40000, 443)
ADDRESSES_4 = ("203.0.113.9", 40000, "192.0.2.1", 443)
ADDRESSES_6 = ("2001:db8::9", 40000, "2001:db8:1::1", 443)
NONE = ("", 0, "", 0)
LONGEST = b"0000:0000:0000:0000:0000:ffff:255.255.255.255"  # 45 bytes; the specification's longest has 39
SSL = b"\x01\0\0\0\0\x21\0\x07TLSv1.3"


def v2(block: bytes, kind: int = 0x11, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes([command, kind]) + struct.pack("!H", len(block)) + block


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + struct.pack("!H", len(value)) + value


def with_checksum(block: bytes, kind: int = 0x11, command: int = 0x21, behind: bytes = b"") -> bytes:
    """As v2, with PP2_TYPE_CRC32C behind the block, and `behind` behind that."""
    zeroed = v2(block + tlv(3, bytes(4)) + behind, kind, command)
    at = 16 + len(block) + 3
    return zeroed[:at] + struct.pack("!I", crc32c(zeroed)) + zeroed[at + 4 :]


def mapped(last: int) -> bytes:
    return IPv6Address(f"::ffff:203.0.113.{last}").packed


def whole(data: bytes) -> Header:
    """The header, with the promises for each held: no shorter bytes give one, no more bytes give another."""
    header = read(data)
    assert header is not None
    assert header.size == len(data)
    assert [size for size in range(len(data)) if read(data[:size]) is not None] == []
    for more in (b"\r\n", b"PROXY TCP4", SIGNATURE, bytes(300)):
        assert read(data + more) == header
    return header


# What is read.


@pytest.mark.parametrize(
    ("line", "transport", "addresses"),
    [
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 443", "tcp4", ADDRESSES_4),
        (
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535",
            "tcp4",
            ("255.255.255.255", 65535, "255.255.255.255", 65535),
        ),
        (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0", "tcp4", ("0.0.0.0", 0, "0.0.0.0", 0)),
        (b"PROXY TCP6 2001:db8::9 2001:db8:1::1 40000 443", "tcp6", ADDRESSES_6),
        (b"PROXY TCP6 2001:0DB8:0:0:0:0:0:9 2001:DB8:1::1 40000 443", "tcp6", ADDRESSES_6),
        (b"PROXY TCP6 ::ffff:203.0.113.9 ::ffff:c000:201 40000 443", "tcp6", ADDRESSES_4),
        (b"PROXY UNKNOWN", "unspec", NONE),
        (b"PROXY UNKNOWN ", "unspec", NONE),
        (b"PROXY UNKNOWN 203.0.113.9 192.0.2.1 40000 443", "unspec", NONE),
        (b"PROXY UNKNOWN  a\nb \r \x00\xff\r", "unspec", NONE),
        (b"PROXY UNKNOWN " + b"f" * (MOST_V1_BYTES - 16), "unspec", NONE),
    ],
)
def test_lines_of_version_1_are_read(line: bytes, transport: str, addresses: Addresses) -> None:
    data = line + b"\r\n"
    assert whole(data) == Header(1, "PROXY", transport, *addresses, (), len(data))


@pytest.mark.parametrize(
    ("data", "command", "transport", "addresses"),
    [
        (v2(V4), "PROXY", "tcp4", ADDRESSES_4),
        (v2(V4, 0x12), "PROXY", "udp4", ADDRESSES_4),
        (v2(V6, 0x21), "PROXY", "tcp6", ADDRESSES_6),
        (v2(V6, 0x22), "PROXY", "udp6", ADDRESSES_6),
        (v2(mapped(1) + mapped(2) + b"\0\1\0\2", 0x21), "PROXY", "tcp6", ("203.0.113.1", 1, "203.0.113.2", 2)),
        (v2(b"/run/a".ljust(108, b"\0") * 2, 0x31), "PROXY", "unix_stream", NONE),
        (v2(bytes(216), 0x32), "PROXY", "unix_dgram", NONE),
        (v2(b"", 0x00), "PROXY", "unspec", NONE),
        (v2(b"\xff" * 9, 0x00), "PROXY", "unspec", NONE),
        (v2(b"whatever", 0x55), "PROXY", "unspec", NONE),
        (v2(V4 + tlv(1, b"h2"), 0x10), "PROXY", "unspec", NONE),
        (v2(V4 + tlv(1, b"h2"), 0x01), "PROXY", "unspec", NONE),
        (v2(V6, 0x23), "PROXY", "unspec", NONE),
        (v2(b"", 0x00, 0x20), "LOCAL", "unspec", NONE),
        (v2(V4, 0x11, 0x20), "LOCAL", "tcp4", NONE),
        # A receiver must take LOCAL and leave its block alone, its family included.
        (v2(b"", 0x11, 0x20), "LOCAL", "tcp4", NONE),
        (v2(V4[:5], 0x31, 0x20), "LOCAL", "unix_stream", NONE),
        (v2(V4 + b"\xff\xff\xff\xff", 0x11, 0x20), "LOCAL", "tcp4", NONE),
        (v2(b"\xff", 0x00, 0x20), "LOCAL", "unspec", NONE),
    ],
)
def test_version_2_is_read(data: bytes, command: str, transport: str, addresses: Addresses) -> None:
    assert whole(data) == Header(2, command, transport, *addresses, (), len(data))


@pytest.mark.parametrize(
    ("block", "kind", "command"),
    [
        (V4, 0x11, 0x21),
        (V6, 0x22, 0x21),
        (bytes(216), 0x31, 0x21),
        (b"", 0x00, 0x21),
        (b"", 0x00, 0x20),
        (V4, 0x11, 0x20),
    ],
)
def test_tlvs_are_kept_in_their_order_and_raw(block: bytes, kind: int, command: int) -> None:
    tlvs = [(1, b"h2"), (2, b"example.org"), (4, b""), (4, bytes(5)), (0x20, SSL), (0xEA, b"\x01vpce-1"), (1, b"h2")]
    data = v2(block + b"".join([tlv(*each) for each in tlvs]), kind, command)
    assert whole(data).tlvs == tuple([TLV(*each) for each in tlvs])


def test_of_two_addresses_with_one_mapped_both_stay_ipv6() -> None:
    header = whole(v2(mapped(1) + V6[:16] + b"\0\1\0\2", 0x21))
    assert (ip_address(header.src), header.dst) == (IPv6Address("::ffff:203.0.113.1"), "2001:db8::9")


def test_the_longest_header_is_read() -> None:
    data = with_checksum(V4 + tlv(0xE0, bytes(65535 - len(V4) - 3 - 7)))
    assert len(data) == MOST_BYTES
    assert read(data[:-1]) is None
    assert read(data + b"x") == read(data) is not None


# What is refused. The words are met at the last byte of `data` and not before.


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"G", "neither version"),
        (b"\x16", "neither version"),
        (b"PROXI", "neither version"),
        (b"PROXY\r", "neither version"),
        (b"\r\n\r\n\x00\r\nQUIT\r", "neither version"),
        (SIGNATURE + b"\x11", "another version"),
        (SIGNATURE + b"\x31", "another version"),
        (SIGNATURE + b"\x22", "unknown command"),
        (v2(V4[:-1])[:16], "11 bytes where its addresses need 12"),
        (v2(V6[:-1], 0x21)[:16], "35 bytes where its addresses need 36"),
        (v2(bytes(215), 0x32)[:16], "215 bytes where its addresses need 216"),
        (v2(V4 + b"\x01\x00")[:16], "a cut TLV"),
        (v2(V4 + tlv(4, b"") + b"\x01")[:31], "a cut TLV"),
        (v2(V4 + b"\x01\x01\x00abc")[:30], "longer than the header"),
        (v2(V4 + b"\x01\x00\x05abc")[:31], "longer than the header"),
        (v2(V4 + b"\x03\x00\x00abc")[:29], "longer than the header"),
        (v2(V4 + b"\x03\x01\x00abcdefg")[:30], "has not 4 bytes"),
        (v2(V4 + tlv(3, bytes(7)))[:31], "has not 4 bytes"),
        (v2(V4 + tlv(3, b"") + bytes(9))[:31], "has not 4 bytes"),
        (v2(V4 + tlv(3, bytes(4)) + tlv(3, bytes(4)))[:36], "second checksum"),
        (v2(V4 + tlv(3, bytes(4))), "does not fit"),
        (v2(tlv(3, bytes(4)), 0x00, 0x20), "does not fit"),
    ],
)
def test_what_is_no_header_is_refused_at_the_first_byte_that_tells(data: bytes, words: str) -> None:
    for more in (b"", b"x", b"\r\n", bytes(70000)):
        with pytest.raises(ValueError) as caught:
            read(data + more)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ValueError, match=words):
        read(data)
    for size in range(len(data)):
        assert read(data[:size]) is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"PROXY ", "other words"),
        (b"PROXY t", "other words"),
        (b"PROXY TCP5 1.1.1.1 2.2.2.2 1 2", "other words"),
        (b"PROXY UDP4 203.0.113.9 192.0.2.1 40000 443", "other words"),
        (b"PROXY UNKNOWNS", "other words"),
        (b"PROXY UNKNOWN\n", "other words"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 40000", "other words"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 443 ", "other words"),
        (b"PROXY TCP4  203.0.113.9 192.0.2.1 40000 443", "other words"),
        (b"PROXY TCP4 2001:db8::9 192.0.2.1 40000 443", "an address"),
        (b"PROXY TCP4 203.0.113.256 192.0.2.1 40000 443", "an address"),
        (b"PROXY TCP4 01.2.3.4 192.0.2.1 40000 443", "an address"),
        (b"PROXY TCP4 1.2.3.4/32 192.0.2.1 40000 443", "an address"),
        (b"PROXY TCP4 \xd9\xa1.2.3.4 192.0.2.1 40000 443", "an address"),
        (b"PROXY TCP6 fe80::1%eth0 fe80::2 40000 443", "zone"),
        (b"PROXY TCP6 12345:: ::1 40000 443", "an address"),
        (b"PROXY TCP6 ::1.2.3.256 ::1 40000 443", "an address"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 65536 1", "a port"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 00 1", "a port"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 -1 1", "a port"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 +1 1", "a port"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 1 443\n", "a port"),
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 1 443\rx", "a port"),
        (b"PROXY UNKNOWN " + b"x" * (MOST_V1_BYTES - 15), "without an end"),
        (b"PROXY UNKNOWN " + b"x" * (MOST_V1_BYTES - 16) + b"\rx", "without an end"),
        (b"PROXY TCP6 " + LONGEST + b" " + LONGEST + b" 65535 65535", "without an end"),
    ],
)
def test_a_line_that_is_no_header_is_refused_with_the_reason(line: bytes, words: str) -> None:
    for more in (b"", b"x", b"\r\n", bytes(70000)):
        with pytest.raises(ValueError, match=words):
            read(line + b"\r\n" + more)


def test_lines_of_107_bytes_are_read_and_longer_ones_are_not() -> None:
    line = b"PROXY TCP6 " + LONGEST + b" " + LONGEST[:-1] + b" 0 0\r\n"
    assert len(line) == MOST_V1_BYTES
    assert whole(line).src == "255.255.255.255"
    with pytest.raises(ValueError, match="without an end"):
        read(line.replace(b" 0 0", b" 0 10"))


def test_the_checksum_is_castagnolis_and_is_held_to() -> None:
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    for behind in (b"", tlv(4, bytes(3))):
        good = with_checksum(V4 + tlv(2, b"example.org"), behind=behind)
        assert whole(good).tlvs[1].type == 3
        kind_of_checksum = 16 + len(V4) + 3 + len(b"example.org")
        for at in {*range(16, len(good))} - {kind_of_checksum}:  # with another type it is no checksum any more
            with pytest.raises(ValueError):
                read(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])


def test_more_tlvs_than_64_are_looked_at_when_all_are_there() -> None:
    most = tlv(4, b"") * 21_000
    bad = v2(V4 + most + b"\4\xff\xff\0")
    assert read(bad[:-1]) is None
    with pytest.raises(ValueError, match="longer than the header"):
        read(bad)
    assert (header := read(v2(V4 + most))) is not None
    assert len(header.tlvs) == 21_000


# Promises for bytes of all kinds.

a_line = st.builds(
    lambda words, end: b"PROXY " + b" ".join(words) + end,
    st.lists(
        st.sampled_from([b"TCP4", b"TCP6", b"UNKNOWN", b"1.2.3.4", b"::1", b"::ffff:1.2.3.4", b"1:2", b"0", b"443"])
        | st.text("0123456789abcdefF:.% \r\n-x", max_size=12).map(str.encode),
        max_size=7,
    ),
    st.sampled_from([b"", b"\r", b"\r\n", b"\n"]),
)
a_block = st.builds(
    lambda start, tlvs, end: start + b"".join([tlv(*each) for each in tlvs]) + end,
    st.sampled_from([b"", V4, V6, bytes(216)]) | st.binary(max_size=40),
    st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=6)), max_size=4),
    st.binary(max_size=4),
)
a_kind = st.sampled_from([0x00, 0x01, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32]) | st.integers(0, 255)
a_start = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=40).map(lambda data: SIGNATURE + data),
    st.binary(max_size=120).map(lambda data: b"PROXY " + data),
    a_line,
    st.builds(v2, a_block, a_kind, st.sampled_from([0x20, 0x21])),
    st.builds(with_checksum, a_block, a_kind, st.sampled_from([0x20, 0x21]), a_block),
)


def verdict(data: bytes) -> Header | str | None:
    """What `read` says; of a ValueError that it was one."""
    try:
        return read(data)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
        return "refused"


@settings(max_examples=500)
@given(data=a_start)
def test_any_bytes_give_a_header_none_or_value_error_in_whatever_pieces_they_come(data: bytes) -> None:
    said = [verdict(data[:size]) for size in range(len(data) + 1)]
    told = next((size for size, each in enumerate(said) if each is not None), len(said))
    assert said[told:] == said[told : told + 1] * len(said[told:])
    if isinstance(header := said[-1], Header):
        assert header.size == told
        assert (header.src == "") is (header.dst == "")
        for address in (header.src, header.dst):
            assert not address or str(ip_address(address)) == address


an_address_pair = st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)) | st.tuples(
    st.ip_addresses(v=6), st.ip_addresses(v=6)
)
a_port = st.integers(0, 65535)
some_tlvs = st.lists(st.tuples(st.sampled_from([1, 2, 4, 5, 0x20, 0x30, 0xE0]), st.binary(max_size=20)), max_size=3)


@given(pair=an_address_pair, sport=a_port, dport=a_port, tlvs=some_tlvs, datagram=st.booleans(), more=st.binary())
def test_what_was_built_is_read(
    pair: tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address],
    sport: int,
    dport: int,
    tlvs: list[tuple[int, bytes]],
    datagram: bool,
    more: bytes,
) -> None:
    src, dst = pair
    inside = [address.ipv4_mapped if isinstance(address, IPv6Address) else None for address in pair]
    shown = inside if all(inside) else pair
    addresses = (str(shown[0]), sport, str(shown[1]), dport)
    one = f"PROXY TCP{src.version} {src} {dst} {sport} {dport}\r\n".encode("ascii")
    assert whole(one) == read(one + more) == Header(1, "PROXY", f"tcp{src.version}", *addresses, (), len(one))
    kind = (0x10 if src.version == 4 else 0x20) + 1 + datagram
    block = src.packed + dst.packed + struct.pack("!HH", sport, dport) + b"".join([tlv(*each) for each in tlvs])
    two = with_checksum(block, kind)
    name = f"{'udp' if datagram else 'tcp'}{src.version}"
    checksum = TLV(3, two[-4:])
    found = (*[TLV(*each) for each in tlvs], checksum)
    assert whole(two) == read(two + more) == Header(2, "PROXY", name, *addresses, found, len(two))
