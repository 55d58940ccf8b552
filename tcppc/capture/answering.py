"""Between a session and its persona: the bounds, the record of what was said, what is made of a persona's faults."""

from __future__ import annotations

import contextlib
import encodings.unicode_escape  # noqa: F401 - else read from a file when `safe` needs it, with no descriptor left
import socket
import threading
from collections.abc import Callable
from time import monotonic_ns, time_ns

from tcppc.capture.deadline import Deadline
from tcppc.capture.recorder import Recorder
from tcppc.capture.terms import Server, Terms
from tcppc.capture.tls import Tunnel
from tcppc.log import Seldom
from tcppc.personas.base import MOST_SAID, Place, Talk
from tcppc.records import Session
from tcppc.spoken import Spoken

MOST_ROUNDS = 5000
MOST_BYTES = 4 << 20
MOST_REPLY = MOST_SAID
"""What one session may be told: pieces, bytes in all, bytes at once."""

# Who waits to be greeted may still be one who is about to say a ClientHello.
GREET_SECONDS = 0.3
FIRST_READ = 2048
# Once all is said, the client has so long to end.
LINGER_SECONDS = 5.0
# A persona's own pause, at most; a stop ends it.
MOST_DELAY = 5.0

_seldom = Seldom()

BOUND = "bound: "


def begin(
    sock: socket.socket, session: Session, terms: Terms, server: Server, recorder: Recorder, deadline: Deadline
) -> Answering | None:
    """Who serves this session; None for nobody."""
    if terms.personas is None:
        return None
    place = Place(session.src, session.sport, session.dst, session.dport, server.port, now=session.start / 1e9)
    talk = terms.personas.talk(place)
    if talk is None:
        return None
    talk.can_starttls = talk.can_starttls and terms.context is not None
    return Answering(talk, sock, session, server, recorder, deadline)


def safe(problem: Exception) -> str:
    """What a persona raised, as one line: there may be a stranger's bytes in it."""
    return f"{type(problem).__name__}: {problem}"[:200].encode("unicode_escape").decode("ascii")


class Answering:
    """What one session is told. Nothing here raises but what sending raises."""

    def __init__(
        self, talk: Talk, sock: socket.socket, session: Session, server: Server, recorder: Recorder, deadline: Deadline
    ) -> None:
        self.unheard = b""  # came before the persona was asked, while it might have been TLS
        self._talk: Talk | None = talk
        self._sock = sock
        self._recorder = recorder
        self._timeout = deadline.timeout / 1e9
        self._deadline = deadline
        self._heard = 0
        self._pushing = threading.Lock()  # held while another session's thread says something here
        self._server = server
        self._books = server.books
        self._tunnel: Tunnel | None = None
        self._greeted = not talk.speaks_first
        self._bytes = 0
        self._held = 0  # bytes: the most that the persona ever remembered
        # Shared, so that what is found is in the record however the session ends.
        self._spoken = session.spoken = Spoken(talk.name, credentials=talk.findings.credentials)
        talk.attach(self._push)

    def open(self, watching: bool) -> bytes:
        """Greet a client that waits to be greeted; returns what one that does not has said. With `watching` it may yet
        speak TLS, and who does says so at once."""
        if self._greeted:
            return b""
        if watching:
            self._deadline.wait(min(GREET_SECONDS, self._timeout))
            try:
                return self._sock.recv(FIRST_READ)
            except BlockingIOError:
                pass
            finally:
                self._deadline.wait(self._timeout)
        self._send(self._ask(lambda talk: b""))
        return b""

    def answer(self, data: bytes) -> bool:
        """Say what is to be said to this. True where TLS begins now."""
        data, self.unheard = self.unheard + data, b""
        self._heard += len(data)
        if self._talk and self._heard > self._talk.most_heard:
            self._end_by("heard")
        self._send(self._ask(lambda talk: talk.hear(data)))
        return self._talk is not None and self._talk.starttls

    def secured(self, tunnel: Tunnel) -> None:
        """TLS has begun: all goes through it."""
        self._tunnel, self.unheard = tunnel, b""
        if self._talk:
            self._talk.secured()
        if not self._greeted:
            self._send(self._ask(lambda talk: b""))

    def _push(self, data: bytes) -> None:
        """Another session of the same client has this said here, in its own thread, and that is all."""
        with self._pushing:
            if talk := self._talk:
                talk.done = True
                # Gone meanwhile, which its own thread finds too.
                with contextlib.suppress(OSError):
                    self._send(self._ask(lambda _: data))

    def _send(self, reply: bytes) -> None:
        talk = self._talk
        if reply:
            if talk and talk.delay:
                self._server.pause(min(talk.delay, MOST_DELAY))
            try:
                self._put(reply)
            except BlockingIOError:
                # It does not read. What it says is kept all the same; it is told no more.
                self._end_by("nobody reads")
                return
        if talk and talk.done:
            self._talk = None
            if self._tunnel:
                # What is there already is the client's: unwrap would read it away.
                while data := self._tunnel.read():
                    self._recorder.keep(data, time_ns())
                self._tunnel.goodbye()
                self._put(b"")
            with contextlib.suppress(OSError):  # gone already
                self._sock.shutdown(socket.SHUT_WR)
            self._deadline.wait(min(LINGER_SECONDS, self._timeout))

    def close(self) -> None:
        """The session is over: what another one would have said here from now on is not said."""
        with self._pushing:
            self._talk = None

    def _put(self, data: bytes) -> None:
        """Send it whole, in the time of an idle session at most: one who reads a byte a minute is ended as such."""
        if self._tunnel:
            if data:
                self._tunnel.write(data)
            data = self._tunnel.to_send()
        left = memoryview(data)
        until = self._deadline.within(self._deadline.timeout)
        while left:
            left = left[self._sock.send(left) :]
            if left and monotonic_ns() > until:
                raise BlockingIOError

    def _ask(self, question: Callable[[Talk], bytes]) -> bytes:
        talk = self._talk
        if talk is None:
            return b""
        try:
            data = b"" if self._greeted else talk.greet()
            self._greeted = True
            data += question(talk)
            self._spoken.persona, self._spoken.ssh = talk.name, talk.findings.ssh
            more = talk.held() - self._held
        except Exception as problem:
            self._fault(problem)
            return b""
        if more > 0:
            if not self._recorder.remember(more):
                self._end_by(self._books.why_full(self._recorder.session.source, more))
                return b""
            self._held += more
        return self._bounded(data) if data else b""

    def _end_by(self, bound: str) -> None:
        """From now on nothing is said."""
        self._talk = None
        self._spoken.error = f"{BOUND}{bound}"
        self._books.cut(f"reply_{bound.replace(' ', '_')}")

    def _fault(self, problem: Exception) -> None:
        self._talk = None
        self._spoken.error = safe(problem)
        count = self._books.error("persona_errors")
        if _seldom.due(self._spoken.persona):
            self._server.log(
                f"Persona {self._spoken.persona}: {self._spoken.error} ({count} times so far); the session goes on."
            )

    def _bounded(self, data: bytes) -> bytes:
        """What of it may be said; it is in the record then."""
        over = ""
        if len(data) > MOST_REPLY:
            over, data = "bytes at once", data[:MOST_REPLY]
        if self._bytes + len(data) > MOST_BYTES:
            over, data = "bytes", b""
        elif self._spoken.count >= MOST_ROUNDS:
            over, data = "rounds", b""
        elif not self._recorder.reply(data):
            over, data = self._books.why_full(self._recorder.session.source, len(data)), b""
        if over:
            self._end_by(over)
        self._bytes += len(data)
        return data
