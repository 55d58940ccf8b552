"""SSH's first messages (RFC 4253): the version line and KEXINIT; HASSH of it (https://github.com/salesforce/hassh)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

KEXINIT = 20
MOST_PACKET = 35000
"""Bytes of a packet, at most (RFC 4253 §6.1)."""


@dataclass(frozen=True)
class KexInit:
    """The ten name-lists of a KEXINIT, in their order; a character for each byte."""

    lists: tuple[str, ...]

    @property
    def hassh(self) -> str:
        """Of a client: MD5 of key exchange, encryption, MAC and compression, client to server."""
        chosen = (self.lists[0], self.lists[2], self.lists[4], self.lists[6])
        return hashlib.md5(";".join(chosen).encode("latin-1"), usedforsecurity=False).hexdigest()


def packet(payload: bytes) -> bytes:
    """A binary packet before encryption (RFC 4253 §6): its length, its padding's, the payload, 4 or more of padding."""
    padding = 8 - (5 + len(payload)) % 8
    padding += 8 if padding < 4 else 0
    return (1 + len(payload) + padding).to_bytes(4, "big") + bytes([padding]) + payload + bytes(padding)


def kexinit(cookie: bytes, lists: tuple[str, ...]) -> bytes:
    """A KEXINIT's payload."""
    texts = b"".join(len(text).to_bytes(4, "big") + text.encode("ascii") for text in lists)
    return bytes([KEXINIT]) + cookie + texts + bytes(5)


def read_packet(data: bytes) -> tuple[bytes, int] | None:
    """(payload, bytes taken) of the first packet; None where more is needed. ValueError for what is none."""
    if len(data) < 5:
        return None
    length, padding = int.from_bytes(data[:4], "big"), data[4]
    if not 2 <= length <= MOST_PACKET or padding + 1 > length:
        raise ValueError(f"no SSH packet: length {length}, padding {padding}")
    if len(data) < 4 + length:
        return None
    return data[5 : 4 + length - padding], 4 + length


def read_kexinit(payload: bytes) -> KexInit:
    """ValueError for what is none."""
    if payload[:1] != bytes([KEXINIT]):
        raise ValueError("no KEXINIT")
    at, lists = 17, []
    for _ in range(10):
        size = int.from_bytes(payload[at : at + 4], "big")
        text = payload[at + 4 : at + 4 + size]
        if len(payload) < at + 4 or len(text) != size:
            raise ValueError("a KEXINIT that is cut")
        lists.append(text.decode("latin-1"))
        at += 4 + size
    return KexInit(tuple(lists))
