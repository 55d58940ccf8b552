"""TFTP (RFC 1350): no file is there to be read; what is written is heard to its end, a block a datagram."""

from __future__ import annotations

from tcppc.personas.base import Answerer, Findings, Place

_READ, _WRITE, _DATA, _ACK, _ERROR = range(1, 6)


class Tftp(Answerer):
    """Blocks are acknowledged as they come; each is a record of its own."""

    name = "tftp"
    about = "TFTP over UDP: takes what is written, has nothing to read"

    def answer(self, data: bytes, place: Place, findings: Findings) -> bytes:
        if len(data) < 4 or data[0]:
            return b""
        kind = data[1]
        if kind == _READ:
            return bytes((0, _ERROR, 0, 1)) + b"File not found"[: len(data) - 5] + b"\0"
        if kind == _WRITE:
            return bytes((0, _ACK, 0, 0))
        return bytes((0, _ACK)) + data[2:4] if kind == _DATA else b""


ANSWERER = Tftp
