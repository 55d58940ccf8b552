"""One TCP session, from the first read to the last, in its own thread.

Only (time_ns, bytes) are collected here; lines are made in the writer. What a stranger may use is bounded: idle
time and duration by the clock, bytes and payloads kept by `Limits`, memory by the books. What comes over a bound
is read and counted, and not kept.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from time import time_ns

from tcppc.capture import answering, proxy
from tcppc.capture import tls as tls_layer
from tcppc.capture.answering import Answering
from tcppc.capture.books import PAYLOAD_CHARGE, STEP_CHARGE, Books, source_key
from tcppc.capture.intake import SECURED, Intake
from tcppc.capture.sockets import set_receive_timeout
from tcppc.capture.touched import Touched
from tcppc.personas.registry import Personas
from tcppc.protocols.client_hello import looks_like
from tcppc.protocols.proxy_header import Header
from tcppc.records import TLS, Proxy, Session, Step

# The first reads are small, so that an open connection that says little holds little memory; one that fills
# them gets large ones.
FIRST_READ = 2048
LARGE_READ = 65536
# Where bytes go that are counted only. All threads write to it, nobody reads it.
_NOWHERE = bytearray(LARGE_READ)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session is served under; a reload makes new ones for later sessions. Times are nanoseconds."""

    timeout: int
    duration: int
    session_bytes: int
    session_payloads: int
    tls_mode: str
    context: ssl.SSLContext | None
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()  # whose PROXY protocol header is believed
    personas: Personas | None = None  # what is said back; None where all are silent


class Stopped(Exception):  # noqa: N818 - it is how a session ends, not an error
    """The session has ended; `args[0]` is its `closed`."""


class Conversation:
    """Reads one connection to its end. `stopping` tells whether the sensor is ending it."""

    __slots__ = (
        "_acts", "_answering", "_books", "_charge", "_deadline", "_intake", "_number", "_plain", "_review", "_room",
        "_server", "_sock", "_steps", "_terms", "session",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, session: Session, terms: Terms, server: Server) -> None:
        self.session = session
        self._sock = sock
        self._terms = terms
        self._server = server
        self._books: Books = server.books
        self._intake: Intake = server.intake
        self._room = terms.session_bytes
        self._steps = self._intake.steps
        self._acts = server.actions if server.actions and server.actions.sessions else None
        self._answering: Answering | None = None
        self._plain = (0, 0, 0)  # payloads, bytes and payload lines that came before TLS
        self._number = 0  # payload lines so far, where there are event lines
        self._charge = PAYLOAD_CHARGE + STEP_CHARGE if self._steps else PAYLOAD_CHARGE
        self._deadline = session.start + terms.duration
        self._review = self._deadline - terms.timeout  # from then on reads must wait less than the idle timeout

    def run(self) -> None:
        """Serve to the end, and say in the session how it closed. Raises nothing."""
        session = self.session
        proxied = self._terms.proxies and proxy.trusted(session.src, self._terms.proxies)
        if not proxied:
            self._begin()
        try:
            if self._review < session.start:
                self._shorten(session.start)
            first = self._after_header() if proxied else b""
            if self._terms.personas:
                self._answering = answering.begin(self._sock, session, self._terms, self._server)
            session.closed = self._listen(first)
        except Stopped as end:
            session.closed = end.args[0]
        except BlockingIOError:
            session.closed = "limit" if time_ns() >= self._deadline - 1_000_000 else "timeout"
        except (ConnectionResetError, BrokenPipeError):
            session.closed = "shutdown" if self._server.stopping else "reset"
        except OSError as problem:
            session.closed = "shutdown" if self._server.stopping else "error"
            self._books.error(f"read_{problem.errno}")
        if self._answering:
            self._answering.close()
        if self._terms.tls_mode == "on" and session.tls is None:
            session.proto = "tls"
            session.tls = TLS(error="the connection ended before a whole ClientHello")

    def _ending(self) -> str:
        return "shutdown" if self._server.stopping else "peer"

    def _begin(self) -> None:
        if self._acts:
            self._acts.identify(self.session)
            self._acts.session("connect", self.session)
        if self._steps:
            self._intake.put(Step(self.session, "start", 0, self.session.start))

    def _after_header(self) -> bytes:
        """Read the PROXY protocol header and take its addresses; returns what came behind it. Where it is none, its
        bytes are the client's."""
        session = self.session
        record = session.proxy = Proxy(session.src, session.sport, session.dst, session.dport)
        heard = bytearray()
        try:
            header = proxy.receive(self._sock, heard, min(session.start + self._terms.timeout, self._deadline))
        except ValueError as problem:
            record.error = str(problem)
            self._begin()
            return bytes(heard)
        except OSError:
            record.error = "the connection ended within the header"
            self._begin()
            if heard:
                self._keep(bytes(heard), time_ns())
            raise
        bound = self._come_from(header, record)
        self._begin()
        rest = bytes(heard[header.size :])
        if bound:
            if rest:
                self._keep(rest, time_ns())
            raise Stopped("limit")
        return rest

    def _come_from(self, header: Header, record: Proxy) -> str:
        """The session is of the header's addresses, where it has any: "" or the bound that this breaks."""
        session = self.session
        if self._books.take(header.size):
            session.charge += header.size
            record.header = header
        else:
            record.error = "no memory left for the header"
            self._books.cut(self._books.scarce)
        if not header.src:
            return ""
        before = source_key(session.src)
        session.src, session.sport, session.dst, session.dport = header.src, header.sport, header.dst, header.dport
        return self._books.move(before, source_key(session.src))

    def _listen(self, first: bytes) -> str:
        """Read plain TCP, `first` before it; returns how it closed. (A return and not a Stopped, since every session
        ends here.)"""
        recv = self._sock.recv
        session = self.session
        payloads = session.payloads
        tls_mode = self._terms.tls_mode
        size = FIRST_READ
        watching = tls_mode != "off"
        talkative = self._intake.talkative
        answers, acts = self._answering, self._acts
        if answers and not first and tls_mode != "on":
            first = answers.open(watching)
        while not session.truncated:
            data = first or recv(size)
            first = b""
            if not data:
                return self._ending()
            now = time_ns()
            self._keep(data, now)
            if watching and payloads:
                head = data if len(payloads) == 1 else b"".join([piece for _, piece in payloads])
                looks = looks_like(head)
                if looks or (looks is False and tls_mode == "on"):
                    return self._secure(head)
                watching = looks is None
                if answers and not watching and len(payloads) > 1:
                    answers.unheard = head[: -len(data)]
            if talkative:
                self._tell(data)
            if acts:
                acts.session("payload", session, data)
            if answers and not watching and answers.answer(data, self._number):
                return self._secure(b"")
            if len(data) == size:
                size = LARGE_READ
        while size := self._sock.recv_into(_NOWHERE):
            self._count(size)
        return self._ending()

    def _tell(self, data: bytes) -> None:
        self._intake.tell(self.session, len(self.session.payloads), data)

    def _count(self, size: int) -> None:
        """`size` bytes were read and are not kept."""
        self.session.bytes += size
        if (now := time_ns()) > self._review:
            self._shorten(now)

    def _keep(self, data: bytes, now: int) -> None:
        """Bytes of the session's payload came, at least one."""
        session = self.session
        payloads = session.payloads
        size = len(data)
        session.bytes += size
        if session.truncated:
            return
        if size > self._room:
            self._truncate("session_bytes")
            data = data[: self._room]
        elif len(payloads) >= self._terms.session_payloads:
            self._truncate("session_payloads")
            return
        charge = len(data) + self._charge
        if not data or not self._books.take(charge):
            if data:
                self._truncate(self._books.scarce)
            return
        self._room -= len(data)
        session.charge += charge
        payloads.append((now, data))
        if self._steps:
            self._intake.put(Step(session, "payload", self._number, now, data))
            self._number += 1
        if now > self._review:
            self._shorten(now)

    def _truncate(self, bound: str) -> None:
        if not self.session.truncated:
            self.session.truncated = True
            self._books.cut(bound)

    def _shorten(self, now: int) -> None:
        """The longest duration ends before the idle timeout would: read no longer than that."""
        left = self._deadline - now
        if left <= 0:
            raise Stopped("limit")
        set_receive_timeout(self._sock, min(left, self._terms.timeout) / 1e9)

    def _secure(self, head: bytes) -> str:
        """The client speaks TLS, or has to: `head` is all it said so far, kept as payloads until the handshake
        is done, and for good where it fails. Returns how the session closed."""
        session = self.session
        session.proto = "tls"
        record = session.tls = TLS(hello=head)
        if not head:  # as the client and a persona agreed upon
            self._plain = len(session.payloads), session.bytes, self._number
        if self._terms.context is None:
            record.error = "no certificate to answer with"
            return self._listen_on()
        if not self._books.take(tls_layer.TUNNEL_CHARGE):
            record.error = "no memory left for TLS"
            return self._listen_on()
        try:
            return self._converse_inside(tls_layer.Tunnel(self._terms.context), head, record)
        finally:
            self._books.give(tls_layer.TUNNEL_CHARGE)

    def _converse_inside(self, tunnel: tls_layer.Tunnel, head: bytes, record: TLS) -> str:
        try:
            self._shake_hands(tunnel, head, record)
        except ssl.SSLError as problem:
            record.error = tls_layer.reason(problem)
            self._send(tunnel, wait=False)
            self._tell_actions(record.hello)
            return "error"
        except (OSError, Stopped):
            record.error = "the connection ended within the handshake"
            self._tell_actions(record.hello)
            raise
        self._forget_handshake(record, tunnel)
        return self._listen_inside(tunnel)

    def _listen_on(self) -> str:
        if self.session.tls:
            self._tell_actions(self.session.tls.hello)
        while data := self._sock.recv(LARGE_READ):
            self._keep(data, time_ns())
            self._tell_actions(data)
        return self._ending()

    def _tell_actions(self, data: bytes) -> None:
        if self._acts and data:
            self._acts.session("payload", self.session, data)

    def _shake_hands(self, tunnel: tls_layer.Tunnel, head: bytes, record: TLS) -> None:
        """One idle timeout for the whole handshake, so that a trickle cannot stretch it."""
        begun = self.session.start if head else time_ns()  # as the client and a persona agreed upon: now
        until = min(begun + self._terms.timeout, self._deadline)
        heard = bytearray(head)
        if head:
            tunnel.feed(head)
        try:
            while not tunnel.handshake():
                self._send(tunnel)
                data = self._sock.recv(FIRST_READ)
                now = time_ns()
                if not data:
                    raise Stopped(self._ending())
                heard += data
                self._keep(data, now)
                if now > until:
                    raise BlockingIOError
                if len(heard) > tls_layer.MOST_HANDSHAKE_BYTES or self.session.truncated:
                    raise Stopped("limit")
                tunnel.feed(data)
        finally:
            record.hello = bytes(heard)
        self._send(tunnel)

    def _forget_handshake(self, record: TLS, tunnel: tls_layer.Tunnel) -> None:
        """The handshake went well: payloads are what comes inside it from now on."""
        session = self.session
        record.version, record.cipher = tunnel.version, tunnel.cipher
        plain, session.bytes, line = self._plain
        freed = sum(len(data) + self._charge for _, data in session.payloads[plain:]) - len(record.hello)
        self._books.give(freed)
        session.charge -= freed
        del session.payloads[plain:]
        session.truncated = False
        self._room = self._terms.session_bytes - session.bytes
        if self._steps:
            self._intake.put(Step(session, "tls", self._number, time_ns(), after=line))
        if self._intake.talkative:
            self._intake.tell(session, SECURED)

    def _listen_inside(self, tunnel: tls_layer.Tunnel) -> str:
        answers = self._answering
        try:
            if answers:
                answers.secured(tunnel)
            while (data := tunnel.read()) != b"":
                if data is None:
                    self._send(tunnel)
                    raw = self._sock.recv(LARGE_READ)
                    if not raw:
                        break
                    tunnel.feed(raw)
                    if (now := time_ns()) > self._review:
                        self._shorten(now)
                    continue
                self._keep(data, time_ns())
                if self._intake.talkative:
                    self._tell(data)
                self._tell_actions(data)
                if answers:
                    answers.answer(data, self._number)
        except ssl.SSLError as problem:
            if self.session.tls:
                self.session.tls.error = tls_layer.reason(problem)
            return "error"
        finally:
            tunnel.goodbye()
            self._send(tunnel, wait=False)
        return self._ending()

    def _send(self, tunnel: tls_layer.Tunnel, wait: bool = True) -> None:
        """What the tunnel owes the client; bounded by the socket's SO_SNDTIMEO, or not waiting at all."""
        data = tunnel.to_send()
        if not data:
            return
        if wait:
            self._sock.sendall(data)
            return
        try:
            self._sock.send(data, socket.MSG_DONTWAIT)
        except OSError:  # a goodbye that the client does not want to hear
            return


class Server:
    """What a conversation needs of its server."""

    books: Books
    intake: Intake
    stopping: bool
    actions: Touched | None
    log: Callable[[str], None]

    @property
    def port(self) -> int:
        """The one that is listened on."""
        raise NotImplementedError
