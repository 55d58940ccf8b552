"""DNS (RFC 1035): a server that answers nobody's questions, but hears them. Nothing is resolved.

Over UDP the reply is the question with "refused" set, so it is never longer. Over TCP it also tells its version.
"""

from __future__ import annotations

from tcppc.personas.base import MOST_SAID, Answerer, Findings, Place, Talk
from tcppc.personas.identity import Identity

REFUSED, NOT_IMPLEMENTED, FORMAT_ERROR = 5, 4, 1
_VERSION = b"\x07version\x04bind\x00\x00\x10\x00\x03"  # version.bind TXT CHAOS
MOST_NAME = 255


def question_end(data: bytes) -> int:
    """Where the first question of a message ends; ValueError where there is none."""
    at = 12
    while at < len(data):
        size = data[at]
        if size == 0:
            if at + 5 > len(data) or at - 12 > MOST_NAME:
                break
            return at + 5
        if size > 63:
            break
        at += 1 + size
    raise ValueError("no question")


def refusal(data: bytes) -> bytes:
    """The reply to a query; empty for what is none."""
    if len(data) < 12 or data[2] & 0x80:  # an answer is not answered
        return b""
    kind = data[2] >> 3 & 15
    try:
        end = question_end(data)
    except ValueError:
        return data[:2] + bytes((0x80 | data[2] & 0x79, FORMAT_ERROR)) + bytes(8)
    code = REFUSED if kind == 0 else NOT_IMPLEMENTED
    return data[:2] + bytes((0x80 | data[2] & 0x79, code, 0, 1)) + bytes(6) + data[12:end]


class DnsDatagrams(Answerer):
    """Over UDP."""

    name = "dns"
    about = "DNS that refuses every question, over UDP and TCP; over TCP it tells its version"

    def answer(self, data: bytes, place: Place, findings: Findings) -> bytes:
        return refusal(data)


class Dns(Talk):
    """Over TCP: messages with two bytes of length."""

    name = "dns"
    about = DnsDatagrams.about

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._heard = bytearray()

    def hear(self, data: bytes) -> bytes:
        self._heard += data
        said = b""
        while len(self._heard) >= 2 and len(said) <= MOST_SAID:
            size = int.from_bytes(self._heard[:2], "big")
            if len(self._heard) < 2 + size:
                break
            message = bytes(self._heard[2 : 2 + size])
            del self._heard[: 2 + size]
            reply = self._version(message) or refusal(message)
            said += len(reply).to_bytes(2, "big") + reply if reply else b""
        return said

    def held(self) -> int:
        return len(self._heard)

    def _version(self, message: bytes) -> bytes:
        if message[12:].lower()[: len(_VERSION)] != _VERSION or message[2] & 0xF8:
            return b""
        text = self.identity.bind.encode()
        record = b"\xc0\x0c\x00\x10\x00\x03" + bytes(4) + (len(text) + 1).to_bytes(2, "big") + bytes([len(text)]) + text
        return message[:2] + b"\x85\x00\x00\x01\x00\x01" + bytes(4) + message[12 : 12 + len(_VERSION)] + record


TALK = Dns
ANSWERER = DnsDatagrams
