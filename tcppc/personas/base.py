"""What a persona is: a conversation without sockets. Bytes heard go in, bytes to say come out.

Who calls (capture/answering.py) keeps the bounds: time, rounds, bytes out, memory; and whatever a persona raises is
caught there. A persona opens nothing, starts nothing and knows no clock but `Place.now`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tcppc import text
from tcppc.personas.identity import Identity

MOST_LINE = 4096
"""Bytes of a line; what is longer is taken for a line that ends there."""

MOST_SAID = 256 << 10
"""Bytes said at once: a persona that has so many stops answering there, and capture/answering.py ends it."""

MOST_CREDENTIALS = 100
MOST_CREDENTIAL = 256
"""Credentials kept of a session, and characters kept of each name and password."""


@dataclass
class Findings:
    """What a persona made of what it heard, for the record."""

    credentials: list[tuple[str, str]] = field(default_factory=list)
    ssh: dict[str, str] | None = None

    def tried(self, user: bytes | str, password: bytes | str) -> None:
        """A login was tried with these: bytes as they were said, or text."""
        if len(self.credentials) < MOST_CREDENTIALS:
            found = _text(user), _text(password)
            if found not in self.credentials:
                self.credentials.append(found)


def _text(value: bytes | str) -> str:
    return text.cut(text.kept(value if isinstance(value, bytes) else text.raw(value)), MOST_CREDENTIAL)


@dataclass(slots=True)
class Place:
    """Where a conversation takes place. `now` is when it began, in seconds since the epoch; `own_port` the port that is
    listened on, which is `dport` unless rules bring every port here."""

    src: str = "198.51.100.7"
    sport: int = 50000
    dst: str = "192.0.2.10"
    dport: int = 0
    own_port: int = 0
    tls: bool = False
    now: float = 0.0
    awaits: Callable[[Place, int, Talk], None] | None = None

    def expect(self, port: int, talk: Talk) -> None:
        """Have `talk` serve the next connection from this source to that port, where that can be."""
        if self.awaits:
            self.awaits(self, port, talk)


class Talk:
    """One conversation. Subclasses say `greet` and `hear`; `done` ends it once what was returned is sent, and
    `starttls` has TLS begin with the bytes that come next."""

    name = "silent"
    about = "says nothing"
    speaks_first = False
    can_starttls = False
    delay = 0.0  # seconds before each reply
    most_heard = 8 << 20  # bytes; from then on nothing is answered

    def __init__(self, identity: Identity, place: Place) -> None:
        self.identity = identity
        self.place = place
        self.findings = Findings()
        self.done = False
        self.starttls = False
        self.secure = place.tls

    def greet(self) -> bytes:
        """What is said before anything was heard, where `speaks_first`."""
        return b""

    def hear(self, data: bytes) -> bytes:
        """What is said to this; any bytes in any pieces."""
        return b""

    def held(self) -> int:
        """About how many bytes it remembers now, of what it heard and of what it made of that: its session is charged
        with the most that it ever was."""
        return 0

    def attach(self, deliver: Callable[[bytes], None]) -> None:
        """The connection is there; `deliver` says something on it and ends it, from any thread."""

    def secured(self) -> None:
        """TLS has begun, as `starttls` asked."""
        self.starttls = False
        self.secure = True


class LineTalk(Talk):
    """A conversation in lines, as `line` answers them without their end."""

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._heard = bytearray()

    def hear(self, data: bytes) -> bytes:
        self._heard += data
        said = bytearray()
        while self._heard and not self.done and not self.starttls and len(said) <= MOST_SAID:
            end = self._heard.find(b"\n", 0, MOST_LINE)
            if end < 0 and len(self._heard) < MOST_LINE:
                break
            line = bytes(self._heard[: end if end >= 0 else MOST_LINE])
            del self._heard[: end + 1 if end >= 0 else MOST_LINE]
            said += self.line(line.rstrip(b"\r"))
        if self.starttls or self.done:
            self._heard.clear()  # what was said in clear text before TLS does not count after it (RFC 3207 §6)
        return bytes(said)

    def held(self) -> int:
        return len(self._heard)

    def line(self, line: bytes) -> bytes:
        """What is said to one line."""
        return b""


class Answerer:
    """A persona for datagrams. What `answer` returns is never sent where it is longer than what was heard."""

    name = ""
    about = ""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def answer(self, data: bytes, place: Place, findings: Findings) -> bytes:
        """The reply to one datagram; empty for none."""
        return b""

    def named(self, data: bytes, place: Place, findings: Findings) -> tuple[str, bytes]:
        """(whose reply, the reply); threads share an Answerer."""
        return self.name, self.answer(data, place, findings)
