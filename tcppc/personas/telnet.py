"""Telnet: options negotiated, login and password asked for, then the shell. As BusyBox's telnetd begins."""

from __future__ import annotations

from tcppc.personas.base import Place, Talk
from tcppc.personas.identity import Identity
from tcppc.personas.shell import Shell
from tcppc.personas.terminal import OFFER, Editing, Options, pieces

TRIES = 3


class Telnet(Talk):
    """Login, password, shell."""

    name = "telnet"
    about = "option negotiation, login and password, then the shell"
    speaks_first = True
    most_heard = 256 << 10

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._options = Options()
        self._editing = Editing()
        self._shell = Shell(identity, place)
        self._user = b""
        self._asked = "login"
        self._failed = 0

    def held(self) -> int:
        return self._shell.held()

    def greet(self) -> bytes:
        return OFFER + self._login()

    def _login(self) -> bytes:
        self._asked = "login"
        self._editing.echo = True
        return f"\r\n{self.identity.host} login: ".encode()

    def hear(self, data: bytes) -> bytes:
        said = bytearray()
        for byte in pieces(self._options.plain(data)):
            echoed, lines = self._editing.type(byte)
            said += echoed
            for line in lines:
                said += self._line(line)
            if self.done:
                break
        return self._options.take() + bytes(said)

    def _line(self, line: bytes) -> bytes:
        if self._asked == "login":
            if not line:
                return self._login()
            self._user, self._asked, self._editing.echo = line, "password", False
            return b"Password: "
        if self._asked == "password":
            return self._password(line)
        said = self._shell.line(line)
        self.done = self._shell.done
        return said

    def _password(self, password: bytes) -> bytes:
        self.findings.tried(self._user, password)
        if self.identity.admits(*(word.decode("utf-8", "surrogateescape") for word in (self._user, password))):
            self._asked, self._editing.echo = "shell", True
            version = self.identity.system
            return f"\r\nLinux {self.identity.host} {self.identity.kernel} x86_64\r\n{version}\r\n\r\n".encode() + (
                self._shell.prompt()
            )
        self._failed += 1
        if self._failed >= TRIES:
            self.done = True
            return b"\r\nLogin incorrect\r\n"
        return b"\r\nLogin incorrect\r\n" + self._login()


TALK = Telnet
