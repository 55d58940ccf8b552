"""The PROXY protocol's header, versions 1 and 2: what a load balancer says of the client before the client's bytes.

Format: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt. `read` takes the first bytes of a connection and
decides as early as it can; security limit: it never asks for more than MOST_BYTES.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
MOST_V1_BYTES = 107
MOST_BYTES = 16 + 65535  # version 2: its fixed part and the longest length it can tell
_CRC32C = 0x03  # PP2_TYPE_CRC32C
_COMMANDS = {0: "LOCAL", 1: "PROXY"}
# Family and transport, the high and low half of the fourteenth byte: the name, and how long the addresses are.
_TRANSPORTS = {
    0x00: ("unspec", 0),
    0x11: ("tcp4", 12),
    0x12: ("udp4", 12),
    0x21: ("tcp6", 36),
    0x22: ("udp6", 36),
    0x31: ("unix_stream", 216),
    0x32: ("unix_dgram", 216),
}


@dataclass(frozen=True)
class TLV:
    """One type-length-value of version 2: type from 0 to 255, value as received."""

    type: int
    value: bytes


@dataclass(frozen=True)
class Header:
    """`command` is PROXY or LOCAL; `transport` one of the names above. Addresses are empty and ports 0 where the header
    has none (LOCAL, UNKNOWN, unspec, unix). `size` is its length: data[size:] is the client's."""

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
    """The header that `data` begins with, or None where more bytes are needed to tell; ValueError, with the reason in
    one line, where it cannot be one."""
    if data.startswith(SIGNATURE):
        return _read_2(data)
    if SIGNATURE.startswith(data[: len(SIGNATURE)]) or b"PROXY ".startswith(data[:6]):
        if data.startswith(b"PROXY "):
            return _read_1(data)
        return None
    raise ValueError("neither version's first bytes")


def _read_1(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, MOST_V1_BYTES)
    if end < 0:
        if len(data) >= MOST_V1_BYTES:
            raise ValueError(f"version 1 without an end of line in {MOST_V1_BYTES} bytes")
        if b"\n" in data or not data.isascii():
            raise ValueError("version 1 with bytes that no such line has")
        return None
    words = data[:end].split(b" ")
    if words[1] == b"UNKNOWN":
        return Header(1, "PROXY", "unspec", "", 0, "", 0, (), end + 2)
    if words[1] not in (b"TCP4", b"TCP6") or len(words) != 6:
        raise ValueError("version 1 with other words than TCP4 or TCP6, two addresses and two ports")
    kind = IPv4Address if words[1] == b"TCP4" else IPv6Address
    try:
        src, dst = (kind(word.decode("ascii")) for word in words[2:4])
    except ValueError:
        raise ValueError("version 1 with an address that is none") from None
    if b"%" in words[2] + words[3]:
        raise ValueError("version 1 with an address that has a zone")
    sport, dport = map(_port, words[4:6])
    return Header(1, "PROXY", words[1].decode("ascii").lower(), *_plain(src, sport, dst, dport), (), end + 2)


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
    length = int.from_bytes(data[14:16], "big")
    transport, needed = _TRANSPORTS.get(data[13], ("unspec", length))
    if length < needed:
        raise ValueError(f"version 2 with {length} bytes where its addresses need {needed}")
    if len(data) < 16 + length:
        return None
    header = data[: 16 + length]
    tlvs = tuple(_tlvs(header, 16 + needed))
    command = _COMMANDS[data[12] & 0xF]
    addresses = ("", 0, "", 0)
    if command == "PROXY" and needed in (12, 36):
        addresses = _addresses(header[16 : 16 + needed])
    return Header(2, command, transport, *addresses, tlvs, len(header))


def _addresses(block: bytes) -> tuple[str, int, str, int]:
    half = (len(block) - 4) // 2
    sport, dport = struct.unpack("!HH", block[-4:])
    return _plain(ip_address(block[:half]), sport, ip_address(block[half : 2 * half]), dport)


def _tlvs(header: bytes, at: int) -> list[TLV]:
    """Those from `at` on. Where the checksum is among them it must fit (computed with its own value zeroed)."""
    found = []
    while at < len(header):
        if at + 3 > len(header):
            raise ValueError("version 2 with a cut TLV")
        end = at + 3 + int.from_bytes(header[at + 1 : at + 3], "big")
        if end > len(header):
            raise ValueError("version 2 with a TLV longer than the header")
        value = header[at + 3 : end]
        if header[at] == _CRC32C:
            zeroed = header[: at + 3] + bytes(len(value)) + header[end:]
            if value != crc32c(zeroed).to_bytes(4, "big"):
                raise ValueError("version 2 with a checksum that does not fit")
        found.append(TLV(header[at], value))
        at = end
    return found


def _table() -> tuple[int, ...]:
    made = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ 0x82F63B78 * (byte & 1)
        made.append(byte)
    return tuple(made)


_CRC_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4); the standard library has CRC-32 alone."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC_TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
