"""The persona follows what the client speaks first; where it waits to be greeted, the port."""

from __future__ import annotations

import importlib
import re

from tcppc.personas.base import Answerer, Findings, Place, Talk
from tcppc.personas.identity import Identity
from tcppc.protocols import app

# What the first payload looks like (protocols/app.py), to the persona's module.
BY_PROTOCOL = {
    "http": "http", "ssh": "ssh", "redis": "redis", "smtp": "smtp", "pop3": "pop3", "ftp": "ftp", "sip": "sip",
    "rpc": "portmap", "dns": "dns", "mssql": "mssql", "ntp": "ntp", "snmp": "snmp", "tftp": "tftp",
}  # fmt: skip
# Datagrams that the first bytes don't tell, by port.
BY_UDP_PORT = {53: "dns", 69: "tftp", 111: "portmap", 123: "ntp", 161: "snmp", 2049: "portmap", 5060: "sip"}
# Ports where clients wait to be greeted (IANA's service names and what is seen in use).
BY_PORT = {
    21: "ftp", 22: "ssh", 23: "telnet", 25: "smtp", 26: "smtp", 110: "pop3", 587: "smtp", 990: "ftp", 995: "pop3",
    3306: "mysql", 465: "smtp", 2121: "ftp", 2222: "ssh", 2323: "telnet", 2525: "smtp", 22222: "ssh", 23231: "telnet",
}  # fmt: skip


# What is gathered until it tells who is meant: no protocol's first words are longer.
MOST_UNDECIDED = 512
_TELNET = re.compile(rb"\xff[\xf0-\xfe]")


def _who_speaks(data: bytes) -> str:
    """The persona for who begins so; empty where more has to come, or nobody fits."""
    if name := BY_PROTOCOL.get(app.guess(data, "tcp") or ""):
        return name
    if _TELNET.match(data):
        return "shell"  # which heeds telnet's options
    a_line = b"\n" in data or b"\r" in data or len(data) >= MOST_UNDECIDED
    return "shell" if a_line and data[:1].isalpha() and data.isascii() else ""


class Auto(Talk):
    """Becomes another one with the first bytes."""

    name = "auto"
    about = "the persona that fits what the client speaks, or the port where it waits for a banner"
    can_starttls = True

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._talk: Talk | None = None
        self._before = b""  # heard, and not enough to tell
        self.speaks_first = place.dport in BY_PORT

    def _become(self, name: str) -> Talk:
        talk: Talk = importlib.import_module(f"tcppc.personas.{name}").TALK(self.identity, self.place)
        talk.findings = self.findings
        talk.can_starttls = talk.can_starttls and self.can_starttls
        talk.secure = self.secure
        self._talk, self.name = talk, talk.name
        return talk

    def held(self) -> int:
        return len(self._before) + (self._talk.held() if self._talk else 0)

    def _said(self, data: bytes) -> bytes:
        if self._talk:
            self.done, self.starttls, self.delay = self._talk.done, self._talk.starttls, self._talk.delay
            self.most_heard = self._talk.most_heard
        return data

    def greet(self) -> bytes:
        return self._said(self._become(BY_PORT[self.place.dport]).greet()) if self.speaks_first else b""

    def hear(self, data: bytes) -> bytes:
        if self._talk is None:
            if len(self._before) >= MOST_UNDECIDED:
                return b""  # nobody here speaks that
            data = self._before = self._before + data
            name = _who_speaks(data)
            if not name:
                return b""
            talk, self._before = self._become(name), b""
            if talk.speaks_first and name != "shell":
                return self._said(talk.greet() + talk.hear(data))
        return self._said(self._talk.hear(data)) if self._talk else b""

    def secured(self) -> None:
        super().secured()
        if self._talk:
            self._talk.secured()


class AutoDatagrams(Answerer):
    """The same for datagrams, each for itself."""

    name = "auto"
    about = Auto.about

    def __init__(self, identity: Identity) -> None:
        super().__init__(identity)
        self._answerers: dict[str, Answerer] = {}

    def named(self, data: bytes, place: Place, findings: Findings) -> tuple[str, bytes]:
        name = BY_PROTOCOL.get(app.guess(data, "udp") or "") or BY_UDP_PORT.get(place.dport, "")
        if name and name not in self._answerers:
            made = getattr(importlib.import_module(f"tcppc.personas.{name}"), "ANSWERER", None)
            self._answerers[name] = (made or Answerer)(self.identity)
        if not name:
            return self.name, b""
        answerer = self._answerers[name]
        return answerer.name or self.name, answerer.answer(data, place, findings)


TALK = Auto
ANSWERER = AutoDatagrams
