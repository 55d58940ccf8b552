"""Packet captures read: pcap in both byte orders with micro- and nanoseconds, pcapng with several interfaces, also
compressed, from a file or standard input.

Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng. Every length in a capture may lie: none is believed beyond
what is there and MOST_PACKET.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

HEAD_BYTES = 1 << 16  # of a file, of which is told how it can be read
MOST_PACKET = 1 << 20  # bytes of one packet, or of a block of pcapng
MOST_INTERFACES = 1 << 16
MOST_XZ_BYTES = 256 << 20  # of memory; xz -9 needs 65 MiB
_READ_BYTES = 1 << 16
LATEST = 9_223_372_036 * 10**9  # in the year 2262: what 64 bits of nanoseconds hold
_PCAP = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000), b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1), b"\xa1\xb2\x3c\x4d": (">", 1),
}  # fmt: skip
MOST_BLOCK = MOST_PACKET + 4096


class Blocks:
    """Kinds of block of pcapng. Those that are CHANGING are no plain packets, or change how what follows is read."""

    SECTION, INTERFACE, OLD_PACKET, SIMPLE_PACKET, PACKET = 0x0A0D0D0A, 1, 2, 3, 6
    CHANGING = frozenset((SECTION, INTERFACE, OLD_PACKET, SIMPLE_PACKET))


_IF_TSRESOL, _IF_TSOFFSET = 9, 14


class CaptureError(Exception):
    """What is wrong with a capture, and where (offset in bytes), in one line."""


class Packet(NamedTuple):
    """`instant` is ns since the epoch, `size` the bytes on the wire, of which `data` are what was captured."""

    instant: int
    link: int  # LINKTYPE_ number
    size: int
    data: bytes


@dataclass
class Interface:
    """Of pcapng: `offset` is in seconds."""

    link: int
    snaplen: int
    per_second: int = 1_000_000
    offset: int = 0


def open_capture(path: Path) -> IO[bytes]:
    """The capture's bytes, decompressed where its first bytes say that it is compressed. OSError, CaptureError."""
    found: IO[bytes] = unpacked(path.open("rb"), str(path))
    return found


def unpacked(raw: Any, name: str) -> Any:
    """The same of a file that is open, such as standard input; `name` is for errors."""
    buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
    if buffered.seekable():
        head = buffered.peek(6)[:6]
    else:  # a pipe gives what its writer wrote first, were it one byte
        head = buffered.read(6)
        buffered = io.BufferedReader(Headed(head, buffered))
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=buffered)
    if head.startswith(b"\xfd7zXZ\x00"):
        return io.BufferedReader(_Xz(buffered))
    if head.startswith(b"BZh"):
        return bz2.BZ2File(buffered)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            import zstandard
        except ImportError:
            raise CaptureError(f"{name}: the package zstandard is missing: pip install 'tcppc[zstd]'") from None
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(buffered, read_across_frames=True))
    return buffered


class Headed(io.RawIOBase):
    """A stream of which the first bytes were read already."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = len(buffer)
        data, self._head = (self._head[:size], self._head[size:]) if self._head else (self._rest.read1(size), b"")
        buffer[: len(data)] = data
        return len(data)


class _Xz(io.RawIOBase):
    """Streams of xz, one behind the other, with a bound on the memory that their headers may ask for."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, MOST_XZ_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            data = b""
            if self._decoder.eof:
                rest = self._decoder.unused_data.lstrip(b"\0") or self._packed.read(_READ_BYTES).lstrip(b"\0")
                if not rest:
                    return 0
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, MOST_XZ_BYTES)
                data = rest
            elif self._decoder.needs_input:
                data = self._packed.read(_READ_BYTES)
                if not data:
                    raise EOFError("it ends before the end of its xz stream")
            found = self._decoder.decompress(data, len(buffer))
            if found:
                buffer[: len(found)] = found
                return len(found)


def packets(file: IO[bytes], name: str) -> Iterator[Packet]:
    """All packets in their order. CaptureError where the rest cannot be read: what came before it counts."""
    reader = Reader(file, name)
    magic = reader.take(4, "a capture's first four bytes")
    if magic in _PCAP:
        yield from _pcap(reader, *_PCAP[magic])
    elif magic == Blocks.SECTION.to_bytes(4, "big"):
        yield from _pcapng(reader, magic)
    else:
        raise CaptureError(f"{name}: is no capture: begins with {magic.hex(' ')}; expected pcap or pcapng")


class Reader:
    """Knows where it is, so that errors can say so."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._name = name
        self.at = 0

    def maybe(self, size: int) -> bytes:
        """Up to `size` bytes; fewer at the end alone."""
        found = b""
        while len(found) < size and (more := self._read(self._file.read, size - len(found))):
            found += more
        self.at += len(found)
        return found

    def some(self, size: int) -> bytes:
        """As many of them as there are at once, so that nothing is lost of what stands before a damage; none at the
        end."""
        found = self._read(self._file.read1, size)
        self.at += len(found)
        return found

    def _read(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except (EOFError, OSError, lzma.LZMAError, ValueError) as problem:  # gzip.BadGzipFile is an OSError
            raise self.wrong(f"cannot be read on: {problem}") from None
        except Exception as problem:
            if type(problem).__name__ not in ("ZstdError", "error"):  # zlib's and zstandard's own
                raise
            raise self.wrong(f"cannot be decompressed on: {problem}") from None

    def take(self, size: int, what: str) -> bytes:
        found = self.maybe(size)
        if len(found) < size:
            raise self.wrong(f"ends within {what}: {len(found)} of {size} bytes")
        return found

    def wrong(self, text: str) -> CaptureError:
        return CaptureError(f"{self._name}: at byte {self.at}: {text}")


def _pcap(reader: Reader, order: str, nanoseconds: int) -> Iterator[Packet]:
    _, _, _, _, _, link = struct.unpack(f"{order}HHiIII", reader.take(20, "the file's header"))
    link &= 0xFFFF  # the upper bits tell of a frame check sequence
    head = struct.Struct(f"{order}IIII")
    while raw := reader.maybe(16):
        if len(raw) < 16:
            raise reader.wrong(f"ends within a packet's header: {len(raw)} of 16 bytes")
        seconds, fraction, captured, size = head.unpack(raw)
        if captured > MOST_PACKET:
            raise reader.wrong(f"a packet of {captured} bytes, which is none; the rest cannot be read")
        data = reader.maybe(captured)
        if len(data) < captured:
            raise reader.wrong(f"ends within a packet: {len(data)} of {captured} bytes")
        yield Packet(seconds * 1_000_000_000 + fraction * nanoseconds, link, max(size, captured), data)


def later_blocks(file: Any, name: str, at: int, order: str, interfaces: list[Interface]) -> Iterator[Packet]:
    """The packets of a pcapng file from the block on that begins at `at`, where `file` stands."""
    reader = Reader(file, name)
    reader.at = at
    return _pcapng(reader, reader.maybe(4), order, interfaces)


def _pcapng(reader: Reader, raw: bytes, order: str = "", interfaces: Sequence[Interface] = ()) -> Iterator[Packet]:
    """Blocks of one section after the other; a section may have another byte order. The first block's type, `raw`, is
    read already."""
    interfaces = list(interfaces)
    while raw:
        if len(raw) < 4:
            raise reader.wrong("ends within a block's type")
        length = reader.take(4, "a block's length")
        if raw == Blocks.SECTION.to_bytes(4, "big"):
            magic = reader.take(4, "a section's byte order")
            order = section_order(magic)
            if not order:
                raise reader.wrong(f"a section whose byte order is {magic.hex(' ')}, which is none")
            interfaces = []
            _body(reader, order, length, 12)
        else:
            kind = struct.unpack(f"{order}I", raw)[0]
            body = _body(reader, order, length, 8)
            if kind == Blocks.INTERFACE and len(body) >= 8 and len(interfaces) < MOST_INTERFACES:
                interfaces.append(interface(order, body))
            elif packet := _packet(order, kind, body, interfaces):
                yield packet
        raw = reader.maybe(4)


def section_order(magic: bytes) -> str:
    """Its byte order, as struct writes it; empty for none."""
    return {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}.get(magic, "")


def _body(reader: Reader, order: str, length: bytes, taken: int) -> bytes:
    """The rest of a block, of which `taken` bytes are read."""
    size = struct.unpack(f"{order}I", length)[0]
    if size % 4 or not taken + 4 <= size <= MOST_BLOCK:
        raise reader.wrong(f"a block of {size} bytes, which is none; the rest cannot be read")
    return reader.take(size - taken, "a block")[:-4]


def interface(order: str, body: bytes) -> Interface:
    """What the body of its block says."""
    link, _, snaplen = struct.unpack_from(f"{order}HHI", body)
    found = Interface(link, snaplen)
    at = 8
    while at + 4 <= len(body):
        code, size = struct.unpack_from(f"{order}HH", body, at)
        value = body[at + 4 : at + 4 + size]
        if code == 0:
            break
        if code == _IF_TSRESOL and len(value) == 1:
            power = value[0] & 0x7F
            # Finer than nanoseconds is finer than anybody's clock.
            found.per_second = min(2**power if value[0] & 0x80 else 10 ** min(power, 18), 10**18)
        elif code == _IF_TSOFFSET and len(value) == 8:
            found.offset = struct.unpack(f"{order}q", value)[0]
        at += 4 + (size + 3 & ~3)
    return found


def _packet(order: str, kind: int, body: bytes, interfaces: Sequence[Interface]) -> Packet | None:
    """A packet of one of the three kinds of block; None for other blocks, and for what is broken."""
    if kind == Blocks.SIMPLE_PACKET and len(body) >= 4 and interfaces:
        size = struct.unpack_from(f"{order}I", body)[0]
        captured = min(size, interfaces[0].snaplen or size)
        return Packet(0, interfaces[0].link, size, body[4 : 4 + captured])
    if kind not in (Blocks.PACKET, Blocks.OLD_PACKET) or len(body) < 20:
        return None
    number = struct.unpack_from(f"{order}I" if kind == Blocks.PACKET else f"{order}H", body)[0]
    high, low, captured, size = struct.unpack_from(f"{order}IIII", body, 4)
    if number >= len(interfaces) or captured > len(body) - 20:
        return None
    of = interfaces[number]
    ticks = high << 32 | low
    instant = of.offset * 1_000_000_000 + ticks * 1_000_000_000 // of.per_second
    return Packet(min(max(0, instant), LATEST), of.link, max(size, captured), body[20 : 20 + captured])
