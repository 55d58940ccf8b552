"""Content codings undone (RFC 9110 §8.4) with a bound on what comes out: gzip, deflate, br, zstd, one in the other too.

A few bytes can be made to inflate to gigabytes: no call here gives more than PART_BYTES, and all together no more than
they are allowed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

PART_BYTES = 1 << 20
MOST_CODINGS = 4  # one in the other
ZSTD_WINDOW_BYTES = 8 << 20  # RFC 9659
Decoder = Callable[[Iterable[bytes]], Iterator[bytes]]


class CodingError(Exception):
    """Why a body cannot be inflated, or not further, in one line."""


@dataclass
class Budget:
    """Bytes that decoders may give, each of those that stand one in the other."""

    left: int

    def of(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        """The same parts, paid for."""
        for part in parts:
            self.left -= len(part)
            if self.left < 0:
                raise CodingError("more than all bodies together may inflate to")
            yield part


def codings(header: str) -> list[str]:
    """Of a Content-Encoding, in the order in which they were applied; in lower case."""
    names = [name.strip().lower() for name in header.split(",")]
    return [name.removeprefix("x-") for name in names if name not in ("", "identity")]


def inflated(parts: Iterable[bytes], names: list[str], most: int, budget: Budget | None = None) -> Iterator[bytes]:
    """What the body is without its codings. CodingError where one is not known, is broken, or `most` bytes or the
    budget are reached; what came before that counts."""
    budget = budget or Budget(most * MOST_CODINGS)
    if len(names) > MOST_CODINGS:
        raise CodingError(f"{len(names)} codings one in the other, more than {MOST_CODINGS}")
    found: Iterable[bytes] = parts
    for name in reversed(names):
        decoder = DECODERS.get(name)
        if decoder is None:
            raise CodingError("a coding that is not known")
        found = budget.of(decoder(found))
    left = most
    for part in found:
        yield part[:left]
        left -= len(part)
        if left < 0:
            raise CodingError(f"more than {most} bytes")


def _zlib(parts: Iterable[bytes], bits: int) -> Iterator[bytes]:
    decoder = zlib.decompressobj(bits)
    try:
        for part in parts:
            waiting = part
            while waiting:
                if decoder.eof:  # of one member; in gzip others may follow (RFC 1952)
                    if bits != _GZIP:
                        return
                    decoder = zlib.decompressobj(bits)
                if data := decoder.decompress(waiting, PART_BYTES):
                    yield data
                waiting = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    except zlib.error as problem:
        raise CodingError(str(problem)) from None
    if not decoder.eof:
        raise CodingError("it ends within")


_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's window bits for each format


def _deflate(parts: Iterable[bytes]) -> Iterator[bytes]:
    """With zlib's header, as RFC 9110 says, or without, as some send it."""
    stream = iter(parts)
    first = b""
    while len(first) < 2 and (part := next(stream, None)) is not None:
        first += part
    with_header = len(first) >= 2 and first[0] & 0x0F == 8 and int.from_bytes(first[:2], "big") % 31 == 0
    return _zlib(_chain(first, stream), _ZLIB if with_header else _RAW)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _brotli(parts: Iterable[bytes]) -> Iterator[bytes]:
    try:
        import brotli
    except ImportError:
        raise CodingError("the package brotli is missing: pip install 'tcppc[http]'") from None
    decoder = brotli.Decompressor()
    try:
        for part in parts:
            yield decoder.process(part, output_buffer_limit=PART_BYTES)
            while not decoder.can_accept_more_data() and not decoder.is_finished():
                yield decoder.process(b"", output_buffer_limit=PART_BYTES)
            if decoder.is_finished():
                return
    except brotli.error as problem:
        raise CodingError(str(problem)) from None
    raise CodingError("it ends within")


def _zstd(parts: Iterable[bytes]) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise CodingError("the package zstandard is missing: pip install 'tcppc[zstd]'") from None
    decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    try:
        with decoder.stream_reader(_File(parts), read_across_frames=True) as reader:  # type: ignore[arg-type]
            while part := reader.read(PART_BYTES):
                yield part
    except zstandard.ZstdError as problem:
        raise CodingError(str(problem)) from None


class _File:
    """Parts, as what reads files wants them."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while not self._rest and (part := next(self._parts, None)) is not None:
            self._rest = part
        found, self._rest = (self._rest[:size], self._rest[size:]) if size >= 0 else (self._rest, b"")
        return found


DECODERS: dict[str, Decoder] = {
    "gzip": lambda parts: _zlib(parts, _GZIP),
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
