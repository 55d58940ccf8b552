"""The PROXY protocol's header, versions 1 and 2: what a load balancer says of the client before the client's bytes.

Format: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt, "the specification" below. The contract of `read`:
a `Header`, or None for "more data needed", or ValueError with one line for people. Whether bytes are a header never
depends on the pieces they come in. Two liberties are taken: family and transport values that the specification does
not know count as unspecified, so that a new kind of balancer doesn't blind the sensor, and a LOCAL header or one of
AF_UNSPEC is taken whatever its block holds, as a receiver must (LOCAL) or may (AF_UNSPEC).

Strangers' bytes stay bounded: no header has more than MOST_BYTES, and its checksum is computed once at most.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""The first 12 bytes of version 2."""

MOST_V1_BYTES = 107
"""Security limit, in bytes with CRLF: the specification's longest line of version 1."""

MOST_BYTES = 16 + 65535
"""Security limit, in bytes: version 2's fixed part and the longest block its 16-bit length can tell."""

_CRC32C = 0x03  # PP2_TYPE_CRC32C
_COMMANDS = {0: "LOCAL", 1: "PROXY"}
# Family and transport, the high and low half of the 14th byte: the name, and how many bytes the addresses have.
_TRANSPORTS = {
    0x00: ("unspec", 0),
    0x11: ("tcp4", 12),
    0x12: ("udp4", 12),
    0x21: ("tcp6", 36),
    0x22: ("udp6", 36),
    0x31: ("unix_stream", 216),
    0x32: ("unix_dgram", 216),
}
_NOWHERE = ("", 0, "", 0)

# Security limit: TLVs looked at while the header is not whole, since each read of a header that grows costs them all.
_EARLY_TLVS = 64


@dataclass(frozen=True)
class TLV:
    """One type-length-value of version 2: type from 0 to 255, value as received, nested ones (PP2_TYPE_SSL) too."""

    type: int
    value: bytes


@dataclass(frozen=True)
class Header:
    """What a header says.

    `version` is 1 or 2, `command` PROXY or LOCAL (version 1 has PROXY alone). `transport`, with the specification's
    names: tcp4 and tcp6 (TCP4, TCP6; AF_INET, AF_INET6 with STREAM), udp4 and udp6 (with DGRAM), unix_stream and
    unix_dgram (AF_UNIX), unspec (UNKNOWN; AF_UNSPEC, UNSPEC, and values that are not assigned). Addresses are text,
    IPv4-mapped ones as IPv4 where both are mapped (`transport` stays tcp6); ports 0 to 65535. They are "" and 0
    where the header has none: LOCAL, unspec, unix. `size` is the header's length in bytes: data[size:] is payload.
    """

    version: int
    command: str
    transport: str
    src: str
    sport: int
    dst: str
    dport: int
    tlvs: tuple[TLV, ...]
    size: int


def read(data: bytes) -> Header | None:
    """The header that `data`, the first bytes of a connection, begins with; bytes behind it are not looked at.

    None where `data` is too short to tell: version 1 is told by its whole line, version 2 as soon as no header can come
    of `data`, but for a checksum and TLVs after the 64th. ValueError, one line for people. MOST_BYTES always suffice.
    """
    if data.startswith(SIGNATURE):
        return _read_2(data)
    if data.startswith(b"PROXY "):
        return _read_1(data)
    if SIGNATURE.startswith(data) or b"PROXY ".startswith(data):
        return None
    raise ValueError("neither version's first bytes")


def _read_1(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, MOST_V1_BYTES)
    if end >= 0:
        return _line(data[:end])
    if len(data) >= MOST_V1_BYTES:
        raise ValueError(f"version 1 without an end of line in {MOST_V1_BYTES} bytes")
    return None


def _line(line: bytes) -> Header:
    """The header of a whole line, given without its CRLF."""
    size = len(line) + 2
    if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
        return Header(1, "PROXY", "unspec", *_NOWHERE, (), size)
    words = line.split(b" ")
    if words[1] not in (b"TCP4", b"TCP6") or len(words) != 6:
        raise ValueError("version 1 with other words than TCP4 or TCP6, two addresses and two ports")
    src, dst = (_address(words[1], word) for word in words[2:4])
    sport, dport = map(_port, words[4:])
    return Header(1, "PROXY", words[1].decode("ascii").lower(), *_plain(src, sport, dst, dport), (), size)


def _address(kind: bytes, word: bytes) -> IPv4Address | IPv6Address:
    if b"%" in word:  # ipaddress takes it
        raise ValueError("version 1 with an address that has a zone")
    try:
        text = word.decode("ascii")
        return IPv4Address(text) if kind == b"TCP4" else IPv6Address(text)
    except ValueError:
        raise ValueError("version 1 with an address that is none") from None


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or (len(word) > 1 and word[:1] == b"0") or int(word) > 65535:
        raise ValueError("version 1 with a port that is none")
    return int(word)


def _plain(
    src: IPv4Address | IPv6Address, sport: int, dst: IPv4Address | IPv6Address, dport: int
) -> tuple[str, int, str, int]:
    """As records have it: IPv4-mapped addresses as IPv4, where both are."""
    mapped = [address.ipv4_mapped if isinstance(address, IPv6Address) else None for address in (src, dst)]
    if mapped[0] and mapped[1]:
        src, dst = mapped[0], mapped[1]
    return str(src), sport, str(dst), dport


def _read_2(data: bytes) -> Header | None:
    if len(data) > 12 and data[12] >> 4 != 2:
        raise ValueError("version 2's first bytes with another version")
    if len(data) > 12 and data[12] & 0xF not in _COMMANDS:
        raise ValueError("version 2 with an unknown command")
    if len(data) < 16:
        return None
    command = _COMMANDS[data[12] & 0xF]
    length = int.from_bytes(data[14:16], "big")
    # Where the addresses end is unknown for an unknown kind: all of the block is theirs then.
    transport, needed = _TRANSPORTS.get(data[13], ("unspec", length))
    ignored = command == "LOCAL" or transport == "unspec"  # the specification: such a block is not looked at
    if length < needed and not ignored:
        raise ValueError(f"version 2 with {length} bytes where its addresses need {needed}")
    header = data[: 16 + length]
    try:
        tlvs = _tlvs(header, min(16 + needed, 16 + length), 16 + length)
    except ValueError:
        if not ignored:
            raise
        tlvs = []
    if len(header) < 16 + length:
        return None
    _check(header, 16 + needed, tlvs)
    addresses = _addresses(header[16 : 16 + needed]) if needed in (12, 36) and not ignored else _NOWHERE
    return Header(2, command, transport, *addresses, tuple(tlvs), len(header))


def _addresses(block: bytes) -> tuple[str, int, str, int]:
    half = (len(block) - 4) // 2
    sport, dport = struct.unpack("!HH", block[-4:])
    return _plain(ip_address(block[:half]), sport, ip_address(block[half : 2 * half]), dport)


def _tlvs(header: bytes, at: int, total: int) -> list[TLV]:
    """Those from `at` to `total`; of a header that is not all there, those begun, so that a bad one tells early."""
    found: list[TLV] = []
    while at < total:
        if total - at < 3:
            raise ValueError("version 2 with a cut TLV")
        if at >= len(header) or (len(header) < total and len(found) == _EARLY_TLVS):
            break
        kind, length = header[at], header[at + 1 : at + 3]
        if kind == _CRC32C:
            # One alone: each costs a pass over the header, and senders can make many that fit one another.
            if any(tlv.type == _CRC32C for tlv in found):
                raise ValueError("version 2 with a second checksum")
            if not b"\0\4".startswith(length):
                raise ValueError("version 2 with a checksum that has not 4 bytes")
            length = b"\0\4"
        end = at + 3 + int.from_bytes(length.ljust(2, b"\0"), "big")
        if end > total:
            raise ValueError("version 2 with a TLV longer than the header")
        if len(length) < 2:
            break
        found.append(TLV(kind, header[at + 3 : end]))
        at = end
    return found


def _check(header: bytes, at: int, tlvs: list[TLV]) -> None:
    """The checksum among `tlvs`, which begin at `at`, if any: that of the header with its own value zeroed."""
    for tlv in tlvs:
        at += 3 + len(tlv.value)
        if tlv.type == _CRC32C and tlv.value != crc32c(header[: at - 4] + bytes(4) + header[at:]).to_bytes(4, "big"):
            raise ValueError("version 2 with a checksum that does not fit")


def _table() -> tuple[int, ...]:
    made = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ 0x82F63B78 * (byte & 1)
        made.append(byte)
    return tuple(made)


_CRC_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4), 0 to 2^32 - 1; the standard library has CRC-32 alone."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC_TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
