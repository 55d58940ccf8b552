"""MySQL's first messages (https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html): greeting, login, and a
few answers for those who are let in. A password is never sent in clear text: what is kept is salt and response, as
`$mysqlna$SALT*RESPONSE`, the form that password crackers read.
"""

from __future__ import annotations

from tcppc.personas.base import MOST_SAID, Place, Talk
from tcppc.personas.identity import Identity

MOST_PACKET = 64 << 10
# CLIENT_* flags: long password, found rows, long flag, connect with db, compress not, protocol 4.1, transactions,
# secure connection, multi results, plugin auth.
_CAPABILITIES = 0x000FA28F & ~0x0820 | 0x00080000
_WITH_DB, _PROTOCOL_41, _SECURE, _LENENC, _SSL = 0x08, 0x0200, 0x8000, 0x00200000, 0x0800
_PLUGIN = b"mysql_native_password"
_QUIT, _QUERY, _PING = 1, 3, 14
_STATUS = b"\x02\x00"  # autocommit


def packet(number: int, data: bytes) -> bytes:
    return len(data).to_bytes(3, "little") + bytes([number & 255]) + data


def text(value: bytes) -> bytes:
    """A string with its length before it; of up to 250 bytes."""
    return bytes([min(len(value), 250)]) + value[:250]


class Mysql(Talk):
    """A server that lets half of all users in, whatever their password is."""

    name = "mysql"
    about = "MySQL's greeting and login, and answers for simple queries"
    speaks_first = True

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._heard = bytearray()
        self._in = False
        lot = identity.lot(f"salt {place.now} {place.src} {place.sport}")
        self._salt = bytes(lot.randrange(33, 126) for _ in range(20))

    def greet(self) -> bytes:
        thread = int(self.place.now - self.identity.installed) % 900_000 + 8
        capabilities = _CAPABILITIES.to_bytes(4, "little")
        return packet(
            0,
            b"\x0a" + self.identity.mysql.encode() + b"\0" + thread.to_bytes(4, "little") + self._salt[:8] + b"\0"
            + capabilities[:2] + b"\x2d" + _STATUS + capabilities[2:] + bytes([21]) + bytes(10) + self._salt[8:] + b"\0"
            + _PLUGIN + b"\0",
        )  # fmt: skip

    def hear(self, data: bytes) -> bytes:
        self._heard += data
        said = b""
        while len(self._heard) >= 4 and not self.done and len(said) <= MOST_SAID:
            size, number = int.from_bytes(self._heard[:3], "little"), self._heard[3]
            if size > MOST_PACKET:
                self.done = True
                break
            if len(self._heard) < 4 + size:
                break
            body = bytes(self._heard[4 : 4 + size])
            del self._heard[: 4 + size]
            said += self._command(body) if self._in else self._login(body, number)
        return said

    def held(self) -> int:
        return len(self._heard)

    def _error(self, number: int, code: int, state: bytes, message: str) -> bytes:
        return packet(
            number, b"\xff" + code.to_bytes(2, "little") + b"#" + state + message.encode("utf-8", "surrogateescape")
        )

    def _login(self, body: bytes, number: int) -> bytes:
        """HandshakeResponse41: capabilities, largest packet, charset, 23 zeros, user, response, database."""
        capabilities = int.from_bytes(body[:4], "little")
        if len(body) < 33 or not capabilities & _PROTOCOL_41 or (capabilities & _SSL and len(body) == 32):
            self.done = True
            return self._error(number + 1, 1043, b"08S01", "Bad handshake")
        user, _, rest = body[32:].partition(b"\0")
        response = rest[1 : 1 + rest[0]] if rest else b""
        name = user[:80].decode("utf-8", "surrogateescape")
        kept = f"$mysqlna${self._salt.hex()}*{response.hex()}" if response else ""
        self.findings.tried(user, kept)
        self._in = self.identity.admits(name, "any")
        if self._in:
            return packet(number + 1, b"\x00\x00\x00" + _STATUS + b"\x00\x00")
        self.done = True
        using = "YES" if response else "NO"
        said = f"Access denied for user '{name}'@'{self.place.src}' (using password: {using})"
        return self._error(number + 1, 1045, b"28000", said)

    def _command(self, body: bytes) -> bytes:
        kind = body[0] if body else _QUIT
        if kind == _QUIT:
            self.done = True
            return b""
        if kind != _QUERY:
            return packet(1, b"\x00\x00\x00" + _STATUS + b"\x00\x00")
        query = body[1:1000].decode("utf-8", "replace").strip().lower()
        if "version" in query:
            comment = "(Debian)" if "Debian" in self.identity.system else "(Ubuntu)"
            value = comment if "comment" in query else self.identity.mysql.removeprefix("5.5.5-")
            return self._rows("@@version", [value])
        if query.startswith("show databases"):
            return self._rows(
                "Database", ["information_schema", "mysql", "performance_schema", self.identity.people[0]]
            )
        if query.startswith(("select", "show", "describe", "explain")):
            return self._rows("1" if query.startswith("select") else "Name", ["1"] if query == "select 1" else [])
        return packet(1, b"\x00\x00\x00" + _STATUS + b"\x00\x00")

    def _rows(self, column: str, values: list[str]) -> bytes:
        """A result of one column, each packet numbered: count, its definition, end, rows, end."""
        name = column.encode()
        definition = text(b"def") + text(b"") * 3 + text(name) + text(name) + b"\x0c\x2d\x00" + bytes((255, 0, 0, 0))
        definition += b"\xfd\x00\x00\x1f\x00\x00"
        end = b"\xfe\x00\x00" + _STATUS
        bodies = [b"\x01", definition, end, *(text(value.encode()) for value in values), end]
        return b"".join(packet(number, body) for number, body in enumerate(bodies, 1))


TALK = Mysql
