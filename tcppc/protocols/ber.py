"""BER as SNMP uses it (RFC 1157, X.690): tag, length, value; definite lengths."""

from __future__ import annotations

from collections.abc import Iterator

INTEGER, OCTETS, NULL, OID, SEQUENCE = 0x02, 0x04, 0x05, 0x06, 0x30


def encode(tag: int, value: bytes) -> bytes:
    size = len(value)
    if size < 128:
        return bytes((tag, size)) + value
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + value


def integer(number: int) -> bytes:
    return encode(INTEGER, number.to_bytes(max(1, (number.bit_length() + 8) // 8), "big", signed=True))


def read(data: bytes) -> tuple[int, bytes, bytes]:
    """(tag, value, what follows it); ValueError where it is cut."""
    if len(data) < 2:
        raise ValueError("cut")
    tag, size, at = data[0], data[1], 2
    if size & 0x80:
        count = size & 0x7F
        if not 1 <= count <= 4 or len(data) < 2 + count:
            raise ValueError("a length that is none")
        size, at = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if len(data) < at + size:
        raise ValueError("cut")
    return tag, data[at : at + size], data[at + size :]


def items(data: bytes, most: int = 100) -> Iterator[tuple[int, bytes]]:
    """What a constructed value holds; ValueError where it is cut, or holds more than `most`."""
    while data:
        if not most:
            raise ValueError("too many")
        most -= 1
        tag, value, data = read(data)
        yield tag, value
