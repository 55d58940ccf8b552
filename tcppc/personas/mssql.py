"""MS SQL Server's PRELOGIN and LOGIN7 ([MS-TDS] 2.2.6.4 and 2.2.6.5). Who logs in is heard, password too, and refused.

SQL Server runs on Linux as well, so it goes together with the rest of the identity.
"""

from __future__ import annotations

from tcppc.personas.base import MOST_SAID, Place, Talk
from tcppc.personas.identity import Identity

MOST_PACKET = 32767
_RESPONSE, _LOGIN7, _PRELOGIN = 0x04, 0x10, 0x12
_NOT_SUPPORTED = b"\x02"  # ENCRYPT_NOT_SUP
# Cumulative updates of 2017, 2019 and 2022, as Microsoft lists its builds.
_VERSIONS = ((14, 0, 3456), (15, 0, 4322), (15, 0, 4375), (16, 0, 4085), (16, 0, 4115))


def packet(kind: int, data: bytes) -> bytes:
    return bytes((kind, 1)) + (8 + len(data)).to_bytes(2, "big") + b"\0\0\x01\0" + data


def revealed(data: bytes) -> bytes:
    """A LOGIN7's password: each byte was XORed with A5 after its halves were swapped."""
    return bytes((byte ^ 0xA5) >> 4 | ((byte ^ 0xA5) << 4 & 0xF0) for byte in data)


def utf8(data: bytes) -> bytes:
    """UTF-16 as UTF-8; what is no UTF-16 stays the bytes that it was."""
    whole = len(data) & ~1
    characters = data[:whole].decode("utf-16-le", "surrogatepass")
    pieces = (
        character.encode("utf-16-le", "surrogatepass") if "\ud800" <= character <= "\udfff" else character.encode()
        for character in characters
    )
    return b"".join(pieces) + data[whole:]


class Mssql(Talk):
    """A login that is always refused."""

    name = "mssql"
    about = "MS SQL Server's PRELOGIN and LOGIN7, the user name and password decoded"

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._heard = bytearray()
        self._message = bytearray()
        self._version = identity.lot("mssql").choice(_VERSIONS)

    def hear(self, data: bytes) -> bytes:
        self._heard += data
        said = b""
        while len(self._heard) >= 8 and not self.done and len(said) <= MOST_SAID:
            kind, last, size = self._heard[0], self._heard[1] & 1, int.from_bytes(self._heard[2:4], "big")
            if kind not in (_PRELOGIN, _LOGIN7) or not 8 <= size <= MOST_PACKET:
                self.done = True
                break
            if len(self._heard) < size:
                break
            self._message += self._heard[8:size]
            del self._heard[:size]
            if len(self._message) > 4 * MOST_PACKET:
                self.done = True
            elif last:
                message = bytes(self._message)
                self._message.clear()
                said += self._prelogin() if kind == _PRELOGIN else self._login(message)
        return said

    def held(self) -> int:
        return len(self._heard) + len(self._message)

    def _prelogin(self) -> bytes:
        major, minor, build = self._version
        values = [(0, bytes((major, minor)) + build.to_bytes(2, "big") + b"\0\0"), (1, _NOT_SUPPORTED), (2, b"\0"),
                  (3, b""), (4, b"\0")]  # fmt: skip
        at, table, data = 5 * len(values) + 1, b"", b""
        for token, value in values:
            table += bytes([token]) + (at + len(data)).to_bytes(2, "big") + len(value).to_bytes(2, "big")
            data += value
        return packet(_RESPONSE, table + b"\xff" + data)

    def _login(self, message: bytes) -> bytes:
        """Offsets and lengths, in characters, of host, user and password stand from byte 36 on."""
        self.done = True
        texts = []
        for at in (40, 44):
            offset, size = (int.from_bytes(message[at + part : at + part + 2], "little") for part in (0, 2))
            texts.append(message[offset : offset + 2 * size])
        self.findings.tried(utf8(texts[0]), utf8(revealed(texts[1])))
        before, behind = (words.encode("utf-16-le") for words in ("Login failed for user '", "'."))
        said = before + texts[0][:256] + behind
        server = self.identity.host.upper().encode("utf-16-le")
        error = (18456).to_bytes(4, "little") + b"\x01\x0e" + (len(said) // 2).to_bytes(2, "little") + said
        error += bytes([len(server) // 2]) + server + b"\0" + (1).to_bytes(4, "little")
        token = b"\xaa" + len(error).to_bytes(2, "little") + error
        done = b"\xfd\x02\x00\x00\x00" + bytes(8)
        return packet(_RESPONSE, token + done)


TALK = Mssql
