"""HTTP/1.x and 0.9 (RFC 9110, 9112): a login page and what a server says of all else. Never a proxy."""

from __future__ import annotations

import re
import time
from base64 import b64decode
from urllib.parse import parse_qsl

from tcppc.personas.base import MOST_SAID, Place, Talk
from tcppc.personas.chunked import Chunks
from tcppc.personas.identity import Identity

MOST_HEAD = 64 << 10
MOST_BODY_LOOKED_AT = 16 << 10
MOST_REQUESTS = 1000
"""Bytes of a request's head; bytes of a body that are searched for a login; requests of one session."""

_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"PROPFIND", b"TRACE", b"CONNECT")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_USER = re.compile(r"user|login|email|name|account|log$", re.IGNORECASE)
_PASSWORD = re.compile(r"pass|pwd|psw|secret", re.IGNORECASE)
_NAME = re.compile(rb'\busername="([^"]{0,256})"')
_RESPONSE = re.compile(rb'\bresponse="([^"]{0,256})"')
_PROTECTED = re.compile(rb"^/(?:admin|manager|phpmyadmin|pma|private|cgi-bin|config|webdav|api)\b", re.IGNORECASE)
_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    413: "Request Entity Too Large", 417: "Expectation Failed", 431: "Request Header Fields Too Large",
    501: "Not Implemented", 505: "HTTP Version Not Supported",
}  # fmt: skip


class Http(Talk):
    """A web server with something to log in to."""

    name = "http"
    about = "HTTP with a login page, basic authentication and keep-alive; never a proxy"

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._heard = bytearray()
        self._left = 0  # bytes of a body still to come
        self._chunks: Chunks | None = None
        self._body = bytearray()
        self._pending: bytes | None = None  # the answer that waits for its request's body
        self._requests = 0
        self._keep = False
        self._looked = 0  # so much of what was heard has no end of a head in it

    def hear(self, data: bytes) -> bytes:
        self._heard += data
        said = bytearray()
        while self._heard and not self.done and len(said) <= MOST_SAID:
            answer = self._body_goes_on() if self._pending is not None else self._head()
            if answer is None:
                break
            said += answer
        return bytes(said)

    def held(self) -> int:
        return len(self._heard) + len(self._body)

    def _head(self) -> bytes | None:
        """The next request's head; None where more of it is needed."""
        while self._heard[:2] == b"\r\n":
            del self._heard[:2]
        end = self._heard.find(b"\n")
        if end < 0:
            return self._too_long(431) if len(self._heard) > MOST_HEAD else None
        words = bytes(self._heard[:end]).split()
        if len(words) == 2 and words[0] == b"GET":  # HTTP/0.9: no head, no status, the page alone
            self.done = True
            return self._page()
        match = _HEAD_END.search(self._heard, max(0, self._looked - 3))
        if match is None:
            self._looked = len(self._heard)
            return self._too_long(431) if len(self._heard) > MOST_HEAD else None
        self._looked = 0
        head = bytes(self._heard[: match.start()])
        del self._heard[: match.end()]
        return self._request(words, head)

    def _too_long(self, status: int) -> bytes:
        self._heard.clear()
        self.done = True
        return self._answer(status, b"GET", b"", keep=False)

    def _request(self, words: list[bytes], head: bytes) -> bytes | None:
        self._requests += 1
        if len(words) != 3 or not re.fullmatch(rb"HTTP/\d(?:\.\d)?", words[2]):
            self.done = True
            return self._answer(400, b"GET", b"", keep=False)
        method, target, version = words
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in head.split(b"\n")[1:])
        }
        self._authorized(fields.get(b"authorization", b""))
        connection = fields.get(b"connection", b"").lower()
        keep = self._requests < MOST_REQUESTS and (
            b"close" not in connection if version == b"HTTP/1.1" else b"keep-alive" in connection
        )
        answer = self._choose(method, target, version, fields, keep)
        length = fields.get(b"content-length", b"0")
        chunked = b"chunked" in fields.get(b"transfer-encoding", b"").lower()
        self._chunks = Chunks() if chunked else None
        self._left = int(length) if length.isdigit() and len(length) < 16 else 0
        self._keep = keep
        if not chunked and not self._left:
            self.done = not keep
            return answer
        self._pending = answer
        self._body.clear()
        return b"HTTP/1.1 100 Continue\r\n\r\n" if b"100-continue" in fields.get(b"expect", b"").lower() else b""

    def _body_goes_on(self) -> bytes | None:
        """Some of a body came; None where more is needed."""
        if self._chunks:
            try:
                self._keep_body(self._chunks.take(self._heard))
            except ValueError:
                return self._too_long(400)
            if not self._chunks.ended:
                return None
        else:
            taken = min(self._left, len(self._heard))
            self._keep_body(bytes(self._heard[:taken]))
            del self._heard[:taken]
            self._left -= taken
            if self._left:
                return None
        self._login_in(bytes(self._body))
        answer, self._pending = self._pending or b"", None
        self.done = not self._keep
        return answer

    def _keep_body(self, data: bytes) -> None:
        room = MOST_BODY_LOOKED_AT - len(self._body)
        self._body += data[:room] if room > 0 else b""

    def _authorized(self, value: bytes) -> None:
        kind, _, text = value.partition(b" ")
        if kind.lower() == b"digest":  # RFC 7616; it was not asked for, and is heard all the same
            name, response = _NAME.search(text), _RESPONSE.search(text)
            if name and response:
                self.findings.tried(name[1], b"digest " + response[1])
        if kind.lower() != b"basic":
            return
        try:
            user, colon, password = b64decode(text.strip(), validate=True).partition(b":")
        except ValueError:  # no base64: nothing that anybody would have decoded
            return
        if colon:
            self.findings.tried(user, password)

    def _login_in(self, body: bytes) -> None:
        """A form's user and password."""
        try:
            # As Latin-1 each byte is a character, also those that are no UTF-8, and those behind a percent sign.
            fields = parse_qsl(body.decode("latin-1"), keep_blank_values=True, max_num_fields=100, encoding="latin-1")
        except ValueError:  # more fields than any login has
            return
        user = next((value for name, value in fields if _USER.search(name) and not _PASSWORD.search(name)), None)
        password = next((value for name, value in fields if _PASSWORD.search(name)), None)
        if user is not None and password is not None:
            self.findings.tried(user.encode("latin-1"), password.encode("latin-1"))

    def _choose(self, method: bytes, target: bytes, version: bytes, fields: dict[bytes, bytes], keep: bool) -> bytes:
        if not version.startswith(b"HTTP/1."):
            return self._answer(505, method, target, keep=False)
        if method not in _METHODS:
            return self._answer(501, method, target, keep)
        if method in (b"TRACE", b"CONNECT", b"PROPFIND", b"PATCH", b"PUT", b"DELETE"):
            return self._answer(405, method, target, keep)
        if method == b"OPTIONS":
            return self._answer(200, method, target, keep, "Allow: POST,OPTIONS,HEAD,GET\r\n", page=b"")
        ours = re.escape(self.place.dst.encode())
        if re.match(rb"\w+://", target) and not re.match(rb"(?i)https?://\[?" + ours + rb"\]?(:\d+)?(/|$)", target):
            return self._answer(403, method, target, keep)
        if fields.get(b"upgrade", b"").lower() == b"websocket":
            return self._answer(400, method, target, keep)
        if _PROTECTED.match(target) and b"authorization" not in fields:
            realm = self.identity.lot("realm").choice(("Administration", "Restricted", "Members", self.identity.host))
            return self._answer(401, method, target, keep, f'WWW-Authenticate: Basic realm="{realm}"\r\n')
        if _PROTECTED.match(target):
            return self._answer(401, method, target, keep, 'WWW-Authenticate: Basic realm="Restricted"\r\n')
        path = target.partition(b"?")[0]
        if path == b"/" or path.endswith((b".php", b".html", b".asp", b"/login", b".cgi", b".jsp", b"/")):
            return self._answer(200, method, target, keep, page=self._page())
        return self._answer(404, method, target, keep)

    def _page(self) -> bytes:
        lot = self.identity.lot("page")
        title = lot.choice(("Login", "Sign in", "Webmail", "Control panel", "Please log in", self.identity.host))
        user, password = lot.choice(
            (("username", "password"), ("user", "pass"), ("login", "password"), ("email", "pwd"))
        )
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
            f'<body><h1>{title}</h1>\n<form method="post" action="{lot.choice(("/login.php", "/index.php", "/"))}">\n'
            f'<p><label>{user.capitalize()} <input name="{user}"></label></p>\n'
            f'<p><label>{password.capitalize()} <input name="{password}" type="password"></label></p>\n'
            f'<p><button type="submit">{lot.choice(("Log in", "Sign in", "Enter", "OK"))}</button></p>\n'
            "</form></body></html>\n"
        ).encode()

    def _answer(
        self, status: int, method: bytes, target: bytes, keep: bool, extra: str = "", page: bytes | None = None
    ) -> bytes:
        """A whole response; an error's page is the server software's."""
        reason = _REASONS[status]
        if page is None:
            page = self._error_page(status, reason)
        elif method == b"GET" and status == 200 and self.identity.http.startswith("Apache"):
            extra += f"X-Powered-By: {self.identity.php}\r\n"
        when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(self.place.now))
        head = (
            f"HTTP/1.1 {status} {reason}\r\nDate: {when}\r\nServer: {self.identity.http}\r\n{extra}"
            f"Content-Length: {len(page)}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n"
            "Content-Type: text/html; charset=UTF-8\r\n\r\n"
        ).encode()
        return head if method == b"HEAD" else head + page

    def _error_page(self, status: int, reason: str) -> bytes:
        if self.identity.http.startswith("nginx"):
            return (
                f"<html>\r\n<head><title>{status} {reason}</title></head>\r\n<body>\r\n"
                f"<center><h1>{status} {reason}</h1></center>\r\n<hr><center>{self.identity.http}</center>\r\n"
                "</body>\r\n</html>\r\n"
            ).encode()
        return (
            f'<!DOCTYPE HTML PUBLIC "-//IETF//DTD HTML 2.0//EN">\n<html><head>\n<title>{status} {reason}</title>\n'
            f"</head><body>\n<h1>{reason}</h1>\n<hr>\n<address>{self.identity.http} Server at {self.place.dst} Port "
            f"{self.place.dport}</address>\n</body></html>\n"
        ).encode()


TALK = Http
