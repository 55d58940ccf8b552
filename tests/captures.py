"""Captures made by hand, byte by byte, for the tests of flows."""

from __future__ import annotations

import struct
from collections.abc import Sequence

ETHERNET = bytes.fromhex("020000000001020000000002")
ACK, PSH, SYN = 0x10, 0x08, 0x02


def tcp_packet(
    src: bytes, sport: int, dst: bytes, dport: int, seq: int, data: bytes = b"", flags: int = ACK | PSH
) -> bytes:
    """An Ethernet frame, of IPv6 where the addresses are; checksums are left out."""
    inner = struct.pack("!HHIIBBHHH", sport, dport, seq, 1, 5 << 4, flags, 65535, 0, 0) + data
    if len(src) == 16:
        return ETHERNET + b"\x86\xdd" + struct.pack("!IHBB16s16s", 6 << 28, len(inner), 6, 64, src, dst) + inner
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(inner), 1, 0, 64, 6, 0, src, dst)
    return ETHERNET + b"\x08\0" + head + inner


def pcap(packets: Sequence[tuple[int, bytes]], order: str = "<", nanoseconds: bool = False, link: int = 1) -> bytes:
    """`packets` are (ns since the epoch, bytes)."""
    magic, unit = (0xA1B23C4D, 1) if nanoseconds else (0xA1B2C3D4, 1000)
    found = [struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link)]
    for instant, data in packets:
        seconds, rest = divmod(instant, 10**9)
        found.append(struct.pack(f"{order}IIII", seconds, rest // unit, len(data), len(data)) + data)
    return b"".join(found)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = len(body) + 12
    return struct.pack(f"{order}II", kind, size) + body + struct.pack(f"{order}I", size)


def section(order: str = "<") -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str = "<", link: int = 1, options: bytes = b"") -> bytes:
    return block(order, 1, struct.pack(f"{order}HHI", link, 0, 65535) + options)


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


def enhanced(data: bytes, ticks: int, number: int = 0, order: str = "<", size: int = 0) -> bytes:
    head = struct.pack(f"{order}IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), size or len(data))
    return block(order, 6, head + data)
