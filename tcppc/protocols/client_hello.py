"""The TLS ClientHello (RFC 8446 §4.1.2) and the fingerprints JA3 and JA4 of it.

The contract of `read`: a `ClientHello`, or None for "more data needed", or ValueError with one line for
people. TLS 1.3, 1.2 (RFC 5246 §7.4.1.2) and SSLv3 (RFC 6101 §5.6.1.2) share the form; an SSLv2 hello
(RFC 5246 §E.2) is not one of them. Strict about the skeleton, the lengths that hold the message together;
lenient about what stands in it, because scanners send odd things and their fingerprint is worth having: any
version goes, and an extension whose body is no list as its RFC says counts by its type and gives no values.
Of an extension that comes twice the first is read.

Strangers' bytes stay bounded: no more than MAX_CLIENT_HELLO bytes and MAX_RECORDS records are looked at.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

MAX_CLIENT_HELLO = 64 * 1024
"""Security limit, in bytes with record headers: a longer hello is refused. Usual ones have 200 to 2,000."""

MAX_RECORDS = 1024
"""Security limit: records one hello may be cut into; each costs time at every read of a hello that grows."""

MAX_FRAGMENT = 2**14 + 256
"""Bytes a TLS record may hold: 2^14 and the room for expansion that RFC 8446 §5.2 allows."""

_HANDSHAKE = 0x16  # content type, RFC 8446 §5.1
_CLIENT_HELLO = 1  # handshake type, RFC 8446 §4
_RECORD_HEADER = 5
_HANDSHAKE_HEADER = 4

# Extension types, RFC 8446 §4.2.
_SERVER_NAME = 0
_SUPPORTED_GROUPS = 10
_EC_POINT_FORMATS = 11
_SIGNATURE_ALGORITHMS = 13
_ALPN = 16
_SUPPORTED_VERSIONS = 43

_GREASE = frozenset(0x0A0A + 0x1010 * step for step in range(16))  # RFC 8701 §2

_JA4_VERSIONS = {
    0x0304: "13",
    0x0303: "12",
    0x0302: "11",
    0x0301: "10",
    0x0300: "s3",
    0x0002: "s2",
    0xFEFF: "d1",
    0xFEFD: "d2",
    0xFEFC: "d3",
}
_JA4_NOTHING = "000000000000"
_ALPHANUMERIC = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

_uint16 = struct.Struct("!H").unpack_from
_extension_header = struct.Struct("!HH").unpack_from
_record_header = struct.Struct("!BBBH").unpack_from

# Security limit: what the cache of fingerprints may hold, 512 keys of hellos of up to 2 KiB (some 20 kB each).
_CACHED_CLIENTS = 512
_CACHED_HELLO = 2048
_cache: dict[tuple[object, ...], tuple[str, str]] = {}


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a ClientHello says. Numbers are as on the wire, GREASE (RFC 8701) included, in their order.

    `raw` holds the TLS records that carry the hello, as received, headers included. `sni`, the first host
    name, and `alpn` are decoded as Latin-1, one character for each byte, so that no byte is lost; they may
    hold control characters.
    """

    raw: bytes
    record_version: int
    legacy_version: int
    ciphers: tuple[int, ...]
    extensions: tuple[int, ...]
    groups: tuple[int, ...]
    point_formats: tuple[int, ...]
    signature_algorithms: tuple[int, ...]
    supported_versions: tuple[int, ...]
    sni: str | None
    alpn: tuple[str, ...]

    @property
    def ja3_text(self) -> str:
        """The five lists that JA3 hashes (https://github.com/salesforce/ja3): decimal numbers, no GREASE."""
        lists = (self.ciphers, self.extensions, self.groups, self.point_formats)
        joined = ["-".join(map(str, _real(numbers))) for numbers in lists]
        return ",".join([str(self.legacy_version), *joined])

    @property
    def ja3(self) -> str:
        """JA3: the MD5 of `ja3_text`, 32 hexadecimal digits."""
        return hashlib.md5(self.ja3_text.encode("ascii"), usedforsecurity=False).hexdigest()

    @property
    def ja4(self) -> str:
        """JA4 of a TLS client over TCP, 36 characters, by technical_details/JA4.md of FoxIO-LLC/ja4."""
        ciphers, extensions = self._ja4_lists()
        return f"{self._ja4_a()}_{_ja4_hash(ciphers)}_{_ja4_hash(extensions)}"

    @property
    def ja4_r(self) -> str:
        """JA4 with the lists that `ja4` hashes written out."""
        ciphers, extensions = self._ja4_lists()
        return f"{self._ja4_a()}_{ciphers}_{extensions}"

    def fingerprints(self) -> tuple[str, str]:
        """(JA3, JA4): both from a small cache, since the same few clients come again and again."""
        if len(self.raw) > _CACHED_HELLO:
            return self.ja3, self.ja4
        lists = (self.ciphers, self.extensions, self.groups, self.point_formats)
        key = (self.legacy_version, *lists, self.signature_algorithms, self.supported_versions, self.alpn[:1])
        found = _cache.get(key)
        if found is None:
            if len(_cache) >= _CACHED_CLIENTS:
                _cache.clear()
            found = _cache[key] = (self.ja3, self.ja4)
        return found

    def _ja4_a(self) -> str:
        offered = _real(self.supported_versions)
        version = _JA4_VERSIONS.get(max(offered) if offered else self.legacy_version, "00")
        name = "d" if _SERVER_NAME in self.extensions else "i"
        ciphers, extensions = (min(len(_real(numbers)), 99) for numbers in (self.ciphers, self.extensions))
        return f"t{version}{name}{ciphers:02}{extensions:02}{_ja4_alpn(self.alpn)}"

    def _ja4_lists(self) -> tuple[str, str]:
        ciphers = _hex_list(sorted(_real(self.ciphers)))
        told_elsewhere = (_SERVER_NAME, _ALPN)
        extensions = _hex_list(sorted(kind for kind in _real(self.extensions) if kind not in told_elsewhere))
        algorithms = _hex_list(_real(self.signature_algorithms))
        return ciphers, f"{extensions}_{algorithms}" if algorithms else extensions


def looks_like(head: bytes) -> bool | None:
    """May a stream that begins with `head` be TLS with a ClientHello? None: it fits so far, but tell me more.

    Decides on 6 bytes at most: a handshake record of version 3.0 to 3.4 that is neither empty nor too long,
    and the type of the message. Called for every TCP session, hence the short way out on the first byte.
    """
    if head and head[0] != _HANDSHAKE:
        return False
    if head[1:2] not in (b"", b"\x03") or head[2:3] > b"\x04":
        return False
    if len(head) < _RECORD_HEADER:
        return False if len(head) == 4 and head[3] << 8 > MAX_FRAGMENT else None
    if not 0 < _uint16(head, 3)[0] <= MAX_FRAGMENT:
        return False
    return head[5] == _CLIENT_HELLO if len(head) > _RECORD_HEADER else None


def read(data: bytes) -> ClientHello | None:
    """The ClientHello that `data`, the first bytes of a stream, begins with.

    None where `data` ends before the last record of the hello does. ValueError, one line for people, where it
    is no ClientHello, is malformed or is over a limit. Bytes after the hello's last record are not looked at.
    """
    if looks_like(data) is False:
        raise ValueError("no TLS record with a ClientHello")
    joined = _join(data)
    if joined is None:
        return None
    end, message = joined
    return _decode(data[:end], message)


def _join(data: bytes) -> tuple[int, bytes] | None:
    """(end of the last record in `data`, the handshake message without its header), RFC 8446 §5.1."""
    message = bytearray()
    end = 0
    for _ in range(MAX_RECORDS):
        if len(data) < end + _RECORD_HEADER:
            break
        kind, major, minor, size = _record_header(data, end)
        if kind != _HANDSHAKE or major != 3 or minor > 4:
            raise ValueError(f"a record of type {kind}, version {major}.{minor}, cuts the ClientHello off")
        if not 0 < size <= MAX_FRAGMENT:
            raise ValueError(f"a record of {size} bytes; 1 to {MAX_FRAGMENT} are allowed")
        start, end = end + _RECORD_HEADER, end + _RECORD_HEADER + size
        message += data[start:end]
        need = _HANDSHAKE_HEADER + int.from_bytes(message[1:4], "big") if len(message) >= 4 else 0
        if max(end, need + _RECORD_HEADER) > MAX_CLIENT_HELLO:
            raise ValueError(f"the ClientHello is over the limit of {MAX_CLIENT_HELLO} bytes")
        if end > len(data) or len(data) < need:
            return None
        if 0 < need <= len(message):
            return end, bytes(message[_HANDSHAKE_HEADER:need])
    else:
        raise ValueError(f"the ClientHello is cut into more than {MAX_RECORDS} records")
    return None


def _decode(raw: bytes, message: bytes) -> ClientHello:
    rest = _Reader(message)
    legacy_version = rest.number("version", 2)
    rest.take("random", 32)
    if len(rest.vector("session id", 1)) > 32:
        raise ValueError("ClientHello with a session id of more than 32 bytes")
    ciphers = rest.vector("cipher suites", 2)
    if len(ciphers) % 2:
        raise ValueError("ClientHello whose cipher suites have an odd number of bytes")
    rest.vector("compression methods", 1)
    # SSLv3 and TLS 1.0 to 1.2 know hellos that end here (RFC 5246 §7.4.1.2).
    extensions = _extensions(rest.vector("extensions", 2)) if rest.left() else []
    if rest.left():
        raise ValueError(f"ClientHello with {rest.left()} bytes after its extensions")
    bodies = dict(reversed(extensions))
    return ClientHello(
        raw=raw,
        record_version=_uint16(raw, 1)[0],
        legacy_version=legacy_version,
        ciphers=_numbers(ciphers),
        extensions=tuple([kind for kind, _ in extensions]),
        groups=_numbers(_listed(bodies.get(_SUPPORTED_GROUPS), 2)),
        point_formats=tuple(_listed(bodies.get(_EC_POINT_FORMATS), 1)),
        signature_algorithms=_numbers(_listed(bodies.get(_SIGNATURE_ALGORITHMS), 2)),
        supported_versions=_numbers(_listed(bodies.get(_SUPPORTED_VERSIONS), 1)),
        sni=_host_name(_listed(bodies.get(_SERVER_NAME), 2)),
        alpn=_protocols(_listed(bodies.get(_ALPN), 2)),
    )


class _Reader:
    """A message from front to back; ValueError where it ends before one of its parts does."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._at = 0

    def left(self) -> int:
        return len(self._message) - self._at

    def take(self, what: str, size: int) -> bytes:
        if size > self.left():
            raise ValueError(f"ClientHello whose {what} should have {size} bytes, and {self.left()} are left")
        self._at += size
        return self._message[self._at - size : self._at]

    def number(self, what: str, size: int) -> int:
        return int.from_bytes(self.take(what, size), "big")

    def vector(self, what: str, size: int) -> bytes:
        """The bytes after a length of `size` bytes (RFC 8446 §3.4)."""
        return self.take(what, self.number(what, size))


def _extensions(block: bytes) -> list[tuple[int, bytes]]:
    """(type, body) of each extension, RFC 8446 §4.2."""
    found = []
    at, end = 0, len(block)
    while at < end:
        if end - at < 4:
            raise ValueError(f"ClientHello whose extensions end within a header, {end - at} bytes of it")
        kind, size = _extension_header(block, at)
        at += 4 + size
        if at > end:
            raise ValueError(f"ClientHello whose extension {kind} is {at - end} bytes longer than the rest")
        found.append((kind, block[at - size : at]))
    return found


def _listed(body: bytes | None, size: int) -> bytes:
    """The one list that an extension's body is, behind a length of `size` bytes; empty where it isn't one."""
    if not body or len(body) < size or int.from_bytes(body[:size], "big") != len(body) - size:
        return b""
    return body[size:]


def _numbers(block: bytes) -> tuple[int, ...]:
    return struct.unpack(f"!{len(block) // 2}H", block) if len(block) % 2 == 0 else ()


def _host_name(names: bytes) -> str | None:
    """The first host_name (type 0) of a server name list, RFC 6066 §3."""
    rest = _Reader(names)
    try:
        while rest.left():
            kind, name = rest.number("name type", 1), rest.vector("name", 2)
            if kind == 0:
                return name.decode("latin-1")
    except ValueError:
        return None
    return None


def _protocols(names: bytes) -> tuple[str, ...]:
    """The protocol names of an ALPN list, RFC 7301 §3.1."""
    rest = _Reader(names)
    found = []
    try:
        while rest.left():
            found.append(rest.vector("protocol name", 1).decode("latin-1"))
    except ValueError:
        return ()
    return tuple(found)


def _real(numbers: Iterable[int]) -> list[int]:
    return [number for number in numbers if number not in _GREASE]


def _hex_list(numbers: list[int]) -> str:
    return struct.pack(f"!{len(numbers)}H", *numbers).hex(",", 2)


def _ja4_hash(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:12] if text else _JA4_NOTHING


def _ja4_alpn(names: tuple[str, ...]) -> str:
    """The first name's outer characters; those of its hexadecimal digits where one is not alphanumeric."""
    first = names[0].encode("latin-1") if names else b""
    if not first:
        return "00"
    if first[0] in _ALPHANUMERIC and first[-1] in _ALPHANUMERIC:
        return chr(first[0]) + chr(first[-1])
    digits = first.hex()
    return digits[0] + digits[-1]
