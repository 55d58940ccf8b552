"""One TCP session, from the first read to the last, in its own thread.

Only (time_ns, bytes) are collected here; lines are made in the writer. What a stranger may use is bounded: idle
time and duration by the monotonic clock, and what is kept by recorder.py. What comes over a bound is read and counted,
and not kept. However a session ends, what the kernel has of it by then is read (`_sweep`): each byte that it has
acknowledged to the client is in the record or in its count.
"""

from __future__ import annotations

import contextlib
import socket
from time import monotonic_ns, time_ns

from tcppc.capture import answering, proxy
from tcppc.capture.answering import Answering
from tcppc.capture.books import Books, source_key
from tcppc.capture.deadline import Deadline, Stopped
from tcppc.capture.intake import Intake
from tcppc.capture.recorder import Recorder
from tcppc.capture.secure import Secure
from tcppc.capture.terms import Server, Terms
from tcppc.protocols.client_hello import looks_like
from tcppc.protocols.proxy_header import Header
from tcppc.records import TLS, Proxy, Session, Step

# The first reads are small, so that an open connection that says little holds little memory; one that fills
# them gets large ones.
FIRST_READ = 2048
LARGE_READ = 65536
NO_MEMORY = "no memory left for the header"
# At a session's end the kernel has no more than its receive buffer (net.ipv4.tcp_rmem); this is a bound on any.
MOST_SWEPT_READS = 4096
# Where bytes go that are counted only. All threads write to it, nobody reads it.
_NOWHERE = bytearray(LARGE_READ)


class Conversation:
    """Reads one connection to its end. `stopping` of its server tells whether the sensor is ending it."""

    __slots__ = (
        "_acts",
        "_answering",
        "_books",
        "_deadline",
        "_intake",
        "_recorder",
        "_server",
        "_sock",
        "_terms",
        "session",
    )

    def __init__(self, sock: socket.socket, session: Session, terms: Terms, server: Server) -> None:
        self.session = session
        self._sock = sock
        self._terms = terms
        self._server = server
        self._books: Books = server.books
        self._intake: Intake = server.intake
        self._recorder = Recorder(
            session, server.books, server.intake, server.spill, terms.session_bytes, terms.session_payloads
        )
        self._acts = server.actions if server.actions and server.actions.sessions else None
        self._answering: Answering | None = None
        self._deadline = Deadline(sock, terms.timeout, terms.duration)

    def run(self) -> None:
        """Serve to the end, and say in the session how it closed. Raises nothing."""
        session = self.session
        try:
            session.closed = self._serve()
        except Stopped as end:
            session.closed = end.args[0]
        except BlockingIOError:
            session.closed = "limit" if self._deadline.over() else "timeout"
        except (ConnectionResetError, BrokenPipeError):
            session.closed = "shutdown" if self._server.stopping else "reset"
        except OSError as problem:
            session.closed = "shutdown" if self._server.stopping else "error"
            self._books.error(f"read_{problem.errno}")
        except MemoryError:  # what was read and not kept is told as cut
            session.closed = "error"
            self._recorder.truncate("no_memory")
        if session.closed != "peer" or session.tls:
            self._sweep()
        if self._answering:
            self._answering.close()
        if self._terms.tls_mode == "on" and session.tls is None:
            session.proto = "tls"
            session.tls = TLS(error="the connection ended before a whole ClientHello")

    def _serve(self) -> str:
        proxied = self._terms.proxies and proxy.trusted(self.session.src, self._terms.proxies)
        if not proxied:
            self._begin()
        first = self._after_header() if proxied else b""
        if self._terms.personas:
            self._answering = answering.begin(
                self._sock, self.session, self._terms, self._server, self._recorder, self._deadline
            )
        return self._listen(first)

    def _sweep(self) -> None:
        """Read what is in the kernel. After the shutdown it acknowledges nothing more to the client (late data is
        answered with a reset, RFC 1122 §4.2.2.13), so that nothing comes behind this."""
        with contextlib.suppress(OSError):  # reset by the client: what came before is there all the same
            self._sock.shutdown(socket.SHUT_RDWR)
        try:
            for _ in range(MOST_SWEPT_READS):
                if self.session.truncated:
                    size = self._sock.recv_into(_NOWHERE, 0, socket.MSG_DONTWAIT)
                    self._recorder.count(size)
                    if not size:
                        return
                elif data := self._sock.recv(LARGE_READ, socket.MSG_DONTWAIT):
                    self._recorder.keep(data, time_ns())
                    self._tell_actions(data)
                else:
                    return
        except (OSError, MemoryError):  # nothing is there; or the machine has no memory for it, which is told as cut
            return

    def _ending(self) -> str:
        return "shutdown" if self._server.stopping else "peer"

    def _begin(self) -> None:
        if self._acts:
            self._acts.identify(self.session)
            self._acts.session("connect", self.session)
        if self._recorder.steps:
            self._intake.put(Step(self.session, "start", 0, self.session.start))

    def _after_header(self) -> bytes:
        """Read the PROXY protocol header and take its addresses; returns what came behind it. Where it is none, its
        bytes are the client's."""
        session = self.session
        record = session.proxy = Proxy(session.src, session.sport, session.dst, session.dport)
        heard = bytearray()
        try:
            header = proxy.receive(self._sock, heard, self._deadline.within(self._terms.timeout))
        except ValueError as problem:
            record.error = str(problem)
            self._begin()
            return bytes(heard)
        except OSError:
            record.error = "the connection ended within the header"
            self._begin()
            if heard:
                self._recorder.keep(bytes(heard), time_ns())
            raise
        bound = self._come_from(header, record)
        self._begin()
        rest = bytes(heard[header.size :])
        if bound:
            if rest:
                self._recorder.keep(rest, time_ns())
            raise Stopped("limit")
        return rest

    def _come_from(self, header: Header, record: Proxy) -> str:
        """The session is of the header's addresses, where it has any: "" or the bound that this breaks."""
        session, bound = self.session, ""
        if header.src:
            session.src, session.sport, session.dst, session.dport = header.src, header.sport, header.dst, header.dport
            bound, session.source = self._books.move(session.source, source_key(session.src), session.charge)
        # The header is this client's: the load balancer, from whom all come, may be at its bound.
        if self._books.take(header.size, session.source, small=True):
            session.charge += header.size
            record.header = header
        else:
            record.error = NO_MEMORY
            self._books.cut(self._books.why_full(session.source, header.size))
        return bound

    def _listen(self, first: bytes) -> str:
        """Read plain TCP, `first` before it; returns how it closed. (A return and not a Stopped, since every session
        ends here.)"""
        recv = self._sock.recv
        session, deadline = self.session, self._deadline
        keep = self._recorder.keep
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
            keep(data, time_ns())
            if monotonic_ns() > deadline.review:
                deadline.shorten()
            if watching and session.count:
                pieces = [piece for _, piece in session.payloads]
                head = data if len(pieces) < 2 else b"".join(pieces)
                looks = looks_like(head)
                if looks or (looks is False and tls_mode == "on"):
                    return self._secure(head)
                watching = looks is None
                if answers and not watching and len(pieces) > 1:
                    answers.unheard = head[: -len(data)]
            if talkative:
                self._intake.tell(session, session.count, data)
            if acts:
                acts.session("payload", session, data)
            if answers and not watching and answers.answer(data):
                return self._secure(b"")
            if len(data) == size:
                size = LARGE_READ
        while size := self._sock.recv_into(_NOWHERE):
            self._recorder.count(size)
            if monotonic_ns() > deadline.review:
                deadline.shorten()
        return self._ending()

    def _tell_actions(self, data: bytes) -> None:
        if self._acts and data:
            self._acts.session("payload", self.session, data)

    def _secure(self, head: bytes) -> str:
        """The client speaks TLS from here on; returns how it closed."""
        secure = Secure(self._sock, self._recorder, self._terms, self._server, self._deadline, self._answering)
        return secure.serve(head, self._tell_actions)
