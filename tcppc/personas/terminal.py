"""A terminal at the other end of a connection: telnet's options (RFC 854, 857, 858) and a line as it is typed."""

from __future__ import annotations

IAC, DONT, DO, WONT, WILL, SB, SE = 255, 254, 253, 252, 251, 250, 240
ECHO, GO_AHEAD, WINDOW = 1, 3, 31
OFFER = bytes((IAC, DO, ECHO, IAC, DO, WINDOW, IAC, WILL, ECHO, IAC, WILL, GO_AHEAD))
ECHOES = bytes((IAC, WILL, ECHO, IAC, WILL, GO_AHEAD))
MOST_ANSWERS = 64
"""Option requests answered in one session: a client that asks for ever gets no more."""
MOST_TYPED = 4096


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


def pieces(data: bytes) -> list[bytes]:
    """Split after each end of a line, since what a line does changes how the next one is echoed."""
    found, start = [], 0
    for index, byte in enumerate(data):
        if byte in (10, 13):
            found.append(data[start : index + 1])
            start = index + 1
    return [*found, data[start:]]
