"""POP3 (RFC 1939) with CAPA (RFC 2449), STLS (RFC 2595) and SASL (RFC 5034), as Dovecot speaks it. The box is empty."""

from __future__ import annotations

from tcppc.personas.base import LineTalk, Place
from tcppc.personas.identity import Identity
from tcppc.personas.smtp import decoded


class Pop3(LineTalk):
    """A mailbox that somebody may get into, with nothing in it."""

    name = "pop3"
    about = "POP3 with STLS, USER, PASS and AUTH; an empty mailbox"
    speaks_first = True
    can_starttls = True

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._user = b""
        self._waits = ""
        self._in = False

    def greet(self) -> bytes:
        return b"+OK Dovecot ready.\r\n"

    def line(self, line: bytes) -> bytes:
        if self._waits:
            return self._auth_goes_on(line)
        verb, _, rest = line.partition(b" ")
        verb = verb.upper()
        if verb == b"QUIT":
            self.done = True
            return b"+OK Logging out\r\n"
        if verb == b"CAPA":
            stls = b"STLS\r\n" if self.can_starttls and not self.secure else b""
            return (
                b"+OK\r\nCAPA\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\n"
                + stls
                + (b"USER\r\nSASL PLAIN LOGIN\r\n.\r\n")
            )
        if verb == b"STLS" and self.can_starttls and not self.secure:
            self.starttls = True
            return b"+OK Begin TLS negotiation now.\r\n"
        return self._box(verb) if self._in else self._login(verb, rest)

    def _login(self, verb: bytes, rest: bytes) -> bytes:
        if verb == b"USER" and rest:
            self._user = rest
            return b"+OK\r\n"
        if verb == b"PASS":
            return self._tried(self._user, rest) if self._user else b"-ERR No username given.\r\n"
        if verb == b"APOP":  # RFC 1939 §7; it was not offered, and is heard all the same
            user, _, digest = rest.partition(b" ")
            self.findings.tried(user, b"apop " + digest)
        if verb == b"AUTH":
            kind, _, first = rest.partition(b" ")
            if kind.upper() not in (b"PLAIN", b"LOGIN"):
                return b"-ERR Unsupported authentication mechanism.\r\n"
            if first and kind.upper() == b"PLAIN":
                return self._plain(first)
            self._waits = "plain" if kind.upper() == b"PLAIN" else "user"
            return b"+ \r\n" if self._waits == "plain" else b"+ VXNlcm5hbWU6\r\n"
        return b"-ERR Unknown command.\r\n"

    def _auth_goes_on(self, line: bytes) -> bytes:
        waits, self._waits = self._waits, ""
        if waits == "plain":
            return self._plain(line)
        if waits == "user":
            self._user, self._waits = decoded(line), "password"
            return b"+ UGFzc3dvcmQ6\r\n"
        return self._tried(self._user, decoded(line))

    def _plain(self, text: bytes) -> bytes:
        parts = decoded(text).split(b"\0")
        return self._tried(parts[1], parts[2]) if len(parts) == 3 else b"-ERR Invalid base64 data.\r\n"

    def _tried(self, user: bytes, password: bytes) -> bytes:
        self.findings.tried(user, password)
        self._in = self.identity.admits(user.decode("latin-1"), password.decode("latin-1"))
        return b"+OK Logged in.\r\n" if self._in else b"-ERR [AUTH] Authentication failed.\r\n"

    def _box(self, verb: bytes) -> bytes:
        return {
            b"STAT": b"+OK 0 0\r\n",
            b"LIST": b"+OK 0 messages:\r\n.\r\n",
            b"UIDL": b"+OK\r\n.\r\n",
            b"NOOP": b"+OK\r\n",
            b"RSET": b"+OK\r\n",
            b"RETR": b"-ERR There's no message 1.\r\n",
            b"TOP": b"-ERR There's no message 1.\r\n",
            b"DELE": b"-ERR There's no message 1.\r\n",
        }.get(verb, b"-ERR Unknown command.\r\n")


TALK = Pop3
