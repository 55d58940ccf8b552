"""Telnet: options negotiated, login and password asked for, then the shell. As BusyBox's telnetd begins (RFC 854, 857).

`Options` takes the protocol out of a stream; `Editing` is a terminal's line with echo. The shell uses both where its
client turns out to speak telnet.
"""

from __future__ import annotations

import hashlib

from tcppc.personas.base import Place, Talk
from tcppc.personas.identity import Identity
from tcppc.personas.shell import Shell

IAC, DONT, DO, WONT, WILL, SB, SE = 255, 254, 253, 252, 251, 250, 240
ECHO, GO_AHEAD, WINDOW = 1, 3, 31
OFFER = bytes((IAC, DO, ECHO, IAC, DO, WINDOW, IAC, WILL, ECHO, IAC, WILL, GO_AHEAD))
MOST_ANSWERS = 64
"""Option requests answered in one session: a client that asks for ever gets no more."""
MOST_TYPED = 4096
TRIES = 3


class Options:
    """Takes telnet's commands out of what was heard, and answers them: no to all but what was offered."""

    def __init__(self) -> None:
        self.spoken = False  # has the client said any?
        self.answers = bytearray()
        self._state = ""
        self._verb = 0
        self._count = 0

    def plain(self, data: bytes) -> bytes:
        """The text of it; `answers` grows."""
        if IAC not in data and not self._state:
            return data
        text = bytearray()
        for byte in data:
            if self._state == "":
                if byte == IAC:
                    self._state = "iac"
                else:
                    text.append(byte)
            elif self._state == "iac":
                self._after_iac(byte, text)
            elif self._state == "option":
                self._state = ""
                self._answer(byte)
            elif self._state == "sub":
                self._state = "sub-iac" if byte == IAC else "sub"
            else:
                self._state = "" if byte == SE else "sub"
        return bytes(text)

    def _after_iac(self, byte: int, text: bytearray) -> None:
        self.spoken = True
        if byte == IAC:
            text.append(IAC)
            self._state = ""
        elif byte in (DO, DONT, WILL, WONT):
            self._verb, self._state = byte, "option"
        else:
            self._state = "sub" if byte == SB else ""

    def _answer(self, option: int) -> None:
        if self._count >= MOST_ANSWERS or option in (ECHO, GO_AHEAD, WINDOW):
            return
        self._count += 1
        if self._verb == DO:
            self.answers += bytes((IAC, WONT, option))
        elif self._verb == WILL:
            self.answers += bytes((IAC, DONT, option))

    def take(self) -> bytes:
        """What is to be said, once."""
        said = bytes(self.answers)
        self.answers.clear()
        return said


class Editing:
    """A line as it is typed: characters are echoed, erased, and the line ends with a carriage return."""

    def __init__(self) -> None:
        self.echo = True
        self._typed = bytearray()
        self._return = False

    def type(self, data: bytes) -> tuple[bytes, list[bytes]]:
        """(what to echo, the lines that ended); after a line the rest waits in `data` of the next call, which is why
        `rest` has to be given back first."""
        echoed, lines = bytearray(), []
        for byte in data:
            after_return, self._return = self._return, byte == 13
            if byte in (10, 13, 0):
                if after_return and byte != 13:
                    continue  # the second half of CR LF or CR NUL
                if byte == 0:
                    continue
                lines.append(bytes(self._typed))
                self._typed.clear()
                echoed += b"\r\n"
            elif byte in (8, 127):
                if self._typed:
                    del self._typed[-1]
                    echoed += b"\b \b" if self.echo else b""
            elif byte == 21:  # ^U
                echoed += b"\b \b" * len(self._typed) if self.echo else b""
                self._typed.clear()
            elif byte == 3:  # ^C
                self._typed.clear()
                echoed += b"^C\r\n"
                lines.append(b"")
            elif byte == 4 and not self._typed:  # ^D
                lines.append(b"exit")
            elif len(self._typed) < MOST_TYPED:
                self._typed.append(byte)
                if self.echo:
                    echoed.append(byte) if byte >= 32 else echoed.extend((94, byte + 64))
        return bytes(echoed), lines


def admits(identity: Identity, user: str, password: str) -> bool:
    """Is this login let in? For one sensor the same answer each time; about half of them are."""
    if not password:
        return False
    digest = hashlib.sha256(f"{identity.machine_id}\0{user}\0{password}".encode("utf-8", "surrogatepass")).digest()
    return digest[0] < 128


class Telnet(Talk):
    """Login, password, shell."""

    name = "telnet"
    about = "option negotiation, login and password, then the shell"
    speaks_first = True

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._options = Options()
        self._editing = Editing()
        self._shell = Shell(identity, place)
        self._user = ""
        self._asked = "login"
        self._failed = 0

    def greet(self) -> bytes:
        return OFFER + self._login()

    def _login(self) -> bytes:
        self._asked = "login"
        self._editing.echo = True
        return f"\r\n{self.identity.host} login: ".encode()

    def hear(self, data: bytes) -> bytes:
        said = bytearray()
        for byte in _pieces(self._options.plain(data)):
            echoed, lines = self._editing.type(byte)
            said += echoed
            for line in lines:
                said += self._line(line.decode("utf-8", "replace"))
            if self.done:
                break
        return self._options.take() + bytes(said)

    def _line(self, line: str) -> bytes:
        if self._asked == "login":
            if not line:
                return self._login()
            self._user, self._asked, self._editing.echo = line, "password", False
            return b"Password: "
        if self._asked == "password":
            return self._password(line)
        said = self._shell.line(line.encode())
        self.done = self._shell.done
        return said

    def _password(self, password: str) -> bytes:
        self.findings.tried(self._user, password)
        if admits(self.identity, self._user, password):
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


def _pieces(data: bytes) -> list[bytes]:
    """Split after each end of a line, since what a line does changes how the next one is echoed."""
    pieces, start = [], 0
    for index, byte in enumerate(data):
        if byte in (10, 13):
            pieces.append(data[start : index + 1])
            start = index + 1
    return [*pieces, data[start:]]


TALK = Telnet
