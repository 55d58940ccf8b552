"""ESMTP (RFC 5321), AUTH (RFC 4954) and STARTTLS (RFC 3207). Mail is heard, kept as payload, and goes nowhere."""

from __future__ import annotations

import re
from base64 import b64decode

from tcppc.personas.base import LineTalk, Place
from tcppc.personas.identity import Identity

MOST_RECIPIENTS = 100


def decoded(text: bytes) -> bytes:
    """Base64 as far as it is any."""
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""


class Smtp(LineTalk):
    """A mail server that takes mail for its own domain, and for others from who has logged in."""

    name = "smtp"
    about = "ESMTP with STARTTLS, AUTH PLAIN and LOGIN; mail is kept and relayed nowhere"
    speaks_first = True
    can_starttls = True

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._waits = ""  # for what the next line is: data, user, password, plain
        self._user = b""
        self._greeted = False
        self._sender = False
        self._recipients = 0
        self._in = False
        self._mails = identity.lot("mail").getrandbits(24)

    def greet(self) -> bytes:
        return f"220 {self.identity.domain} {self.identity.smtp}\r\n".encode()

    def line(self, line: bytes) -> bytes:
        if self._waits == "data":
            return self._data(line)
        if self._waits:
            return self._auth_goes_on(line)
        verb, _, rest = line.partition(b" ")
        answer = {
            b"EHLO": self._ehlo, b"HELO": self._helo, b"AUTH": self._auth, b"MAIL": self._mail, b"RCPT": self._rcpt,
            b"DATA": self._begin_data, b"STARTTLS": self._starttls,
        }.get(verb.upper())  # fmt: skip
        if answer:
            return answer(rest.strip())
        return self._short(verb.upper())

    def _short(self, verb: bytes) -> bytes:
        if verb == b"QUIT":
            self.done = True
            return b"221 2.0.0 Bye\r\n"
        if verb == b"RSET":
            self._sender, self._recipients = False, 0
        return {
            b"RSET": b"250 2.0.0 Ok\r\n",
            b"NOOP": b"250 2.0.0 Ok\r\n",
            b"VRFY": b"252 2.0.0 Cannot VRFY user\r\n",
            b"EXPN": b"502 5.5.1 Error: command not implemented\r\n",
            b"HELP": b"502 5.5.1 Error: command not implemented\r\n",
        }.get(verb, b"500 5.5.2 Error: bad syntax\r\n")

    def _helo(self, rest: bytes) -> bytes:
        self._greeted = True
        return f"250 {self.identity.domain}\r\n".encode() if rest else b"501 Syntax: HELO hostname\r\n"

    def _ehlo(self, rest: bytes) -> bytes:
        if not rest:
            return b"501 Syntax: EHLO hostname\r\n"
        self._greeted = True
        words = [self.identity.domain, "PIPELINING", "SIZE 5242880", "VRFY"]
        if self.can_starttls and not self.secure:
            words.append("STARTTLS")
        words += ["AUTH PLAIN LOGIN", "ENHANCEDSTATUSCODES", "8BITMIME", "DSN", "SMTPUTF8"]
        return "".join(f"250{'-' if word is not words[-1] else ' '}{word}\r\n" for word in words).encode()

    def _starttls(self, rest: bytes) -> bytes:
        if not self.can_starttls or self.secure:
            return b"502 5.5.1 Error: command not implemented\r\n"
        self.starttls = True
        return b"220 2.0.0 Ready to start TLS\r\n"

    def _auth(self, rest: bytes) -> bytes:
        kind, _, first = rest.partition(b" ")
        if kind.upper() == b"PLAIN":
            if first:
                return self._plain(first)
            self._waits = "plain"
            return b"334 \r\n"
        if kind.upper() == b"LOGIN":
            if first:
                self._user, self._waits = decoded(first), "password"
                return b"334 UGFzc3dvcmQ6\r\n"
            self._waits = "user"
            return b"334 VXNlcm5hbWU6\r\n"
        return b"535 5.7.8 Error: authentication failed: Invalid authentication mechanism\r\n"

    def _auth_goes_on(self, line: bytes) -> bytes:
        waits, self._waits = self._waits, ""
        if line == b"*":
            return b"501 5.7.0 Authentication aborted\r\n"
        if waits == "plain":
            return self._plain(line)
        if waits == "user":
            self._user, self._waits = decoded(line), "password"
            return b"334 UGFzc3dvcmQ6\r\n"
        return self._tried(self._user, decoded(line))

    def _plain(self, text: bytes) -> bytes:
        """[authorization identity] NUL user NUL password (RFC 4616)."""
        parts = decoded(text).split(b"\0")
        if len(parts) != 3:
            return b"535 5.7.8 Error: authentication failed: \r\n"
        return self._tried(parts[1], parts[2])

    def _tried(self, user: bytes, password: bytes) -> bytes:
        self.findings.tried(user, password)
        self._in = self.identity.admits(user.decode("latin-1"), password.decode("latin-1"))
        if self._in:
            return b"235 2.7.0 Authentication successful\r\n"
        return b"535 5.7.8 Error: authentication failed: authentication failure\r\n"

    def _mail(self, rest: bytes) -> bytes:
        if not self._greeted:
            return b"503 5.5.1 Error: send HELO/EHLO first\r\n"
        if not re.match(rb"FROM:", rest, re.IGNORECASE):
            return b"501 5.5.4 Syntax: MAIL FROM:<address>\r\n"
        self._sender = True
        return b"250 2.1.0 Ok\r\n"

    def _rcpt(self, rest: bytes) -> bytes:
        if not self._sender:
            return b"503 5.5.1 Error: need MAIL command\r\n"
        match = re.match(rb"TO:\s*<?([^>\s]{1,320})", rest, re.IGNORECASE)
        if not match:
            return b"501 5.5.4 Syntax: RCPT TO:<address>\r\n"
        domain = match[1].rpartition(b"@")[2].lower()
        if not self._in and b"@" in match[1] and domain != self.identity.domain.encode():
            return b"554 5.7.1 <%s>: Relay access denied\r\n" % match[1]
        if self._recipients >= MOST_RECIPIENTS:
            return b"452 4.5.3 Error: too many recipients\r\n"
        self._recipients += 1
        return b"250 2.1.5 Ok\r\n"

    def _begin_data(self, rest: bytes) -> bytes:
        if not self._recipients:
            return (
                b"554 5.5.1 Error: no valid recipients\r\n"
                if self._sender
                else b"503 5.5.1 Error: need RCPT command\r\n"
            )
        self._waits = "data"
        return b"354 End data with <CR><LF>.<CR><LF>\r\n"

    def _data(self, line: bytes) -> bytes:
        if line != b".":
            return b""
        self._waits, self._sender, self._recipients = "", False, 0
        self._mails += 1
        return b"250 2.0.0 Ok: queued as %X\r\n" % self._mails

    def secured(self) -> None:
        super().secured()
        self._greeted = self._sender = False
        self._recipients = 0


TALK = Smtp
