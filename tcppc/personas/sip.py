"""SIP (RFC 3261) over UDP and TCP: a registrar that wants to know who is calling."""

from __future__ import annotations

import re

from tcppc.personas.base import Answerer, Findings, LineTalk, Place
from tcppc.personas.identity import Identity

MOST_LINES = 100
_METHODS = (b"REGISTER", b"INVITE", b"OPTIONS", b"MESSAGE", b"SUBSCRIBE", b"BYE", b"CANCEL")
# Copied into the response, in their order (RFC 3261 §8.2.6); the short forms too.
_COPIED = re.compile(rb"(?:via|v|from|f|to|t|call-id|i|cseq)\s*:", re.IGNORECASE)
_USER = re.compile(rb'username="([^"]{0,256})"')
_RESPONSE = re.compile(rb'response="([^"]{0,256})"')


def respond(lines: list[bytes], identity: Identity, findings: Findings) -> bytes:
    """The response to a request's lines; empty for what is none."""
    words = lines[0].split() if lines else []
    if len(words) != 3 or words[2].upper() != b"SIP/2.0" or words[0] not in _METHODS:
        return b""
    copied = [line[:512] for line in lines[1:MOST_LINES] if _COPIED.match(line)]
    status, extra = b"200 OK", []
    if words[0] in (b"REGISTER", b"INVITE", b"MESSAGE", b"SUBSCRIBE"):
        authorization = next(
            (line for line in lines if line.lower().startswith((b"authorization", b"proxy-auth"))), b""
        )
        user, response = _USER.search(authorization), _RESPONSE.search(authorization)
        if user and response:
            findings.tried(user[1], b"digest " + response[1])
            status = b"403 Forbidden"
        else:
            status = b"401 Unauthorized"
            nonce = identity.lot("sip").getrandbits(32)
            extra.append(f'WWW-Authenticate: Digest realm="{identity.domain}",nonce="{nonce:08x}"'.encode())
    return b"\r\n".join([b"SIP/2.0 " + status, *copied, *extra, b"Content-Length: 0", b"", b""])


class SipDatagrams(Answerer):
    """Over UDP: no answer where it would be longer than the question."""

    name = "sip"
    about = "SIP over UDP and TCP: asks who calls, and lets nobody in"

    def answer(self, data: bytes, place: Place, findings: Findings) -> bytes:
        return respond(data.partition(b"\r\n\r\n")[0].split(b"\r\n"), self.identity, findings)


class Sip(LineTalk):
    """Over TCP."""

    name = "sip"
    about = SipDatagrams.about

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._lines: list[bytes] = []

    def held(self) -> int:
        return super().held() + sum(map(len, self._lines))

    def line(self, line: bytes) -> bytes:
        if line:
            if len(self._lines) < MOST_LINES:
                self._lines.append(line)
            return b""
        lines, self._lines = self._lines, []
        return respond(lines, self.identity, self.findings)


TALK = Sip
ANSWERER = SipDatagrams
