"""The TCP server: accepts, admits, serves and never ends by itself."""

from __future__ import annotations

import errno
import os
import select
import socket
import socketserver
import threading
from time import monotonic, sleep, time_ns
from typing import Any

from tcppc.capture import proxy, sockets
from tcppc.capture.books import SESSION_CHARGE, Books, source_key
from tcppc.capture.conversation import LARGE_READ, Conversation
from tcppc.capture.intake import ESTABLISHED, Intake
from tcppc.capture.origin import Origin
from tcppc.capture.probe import Awaited
from tcppc.capture.recorder import Recorder
from tcppc.capture.spill import Spill
from tcppc.capture.terms import Server, Terms
from tcppc.capture.threads import Crew
from tcppc.capture.touched import Touched
from tcppc.log import Log, Seldom
from tcppc.protocols.conntrack import Flow
from tcppc.records import Session

# accept(2) errors that are of one connection, which is gone: ask for the next one at once. All others (EMFILE,
# ENFILE, ENOBUFS, ENOMEM, and what nobody foresaw) are the machine's, and asking again at once would spin.
_OF_ONE_CONNECTION = {
    errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN,
    errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH,
}  # fmt: skip
ACCEPT_PAUSE_SECONDS = 0.1
SEND_TIMEOUT_SECONDS = 10.0
# How often it is looked whether the back-log is empty at a stop, while the crew serves it.
DRAIN_PAUSE_SECONDS = 0.005
# Of a connection that is refused, so many reads at most: what the kernel had when it was accepted.
MOST_REFUSED_READS = 256

# `SocketType` is what socket.socket extends: the same methods, without file objects and context managers.
Request = tuple[Any, Any]


class TCPServer(socketserver.ThreadingTCPServer, Server):
    """One listening socket with its crew. `start` and `stop` are the caller's; `terms` may be replaced any time.

    `given` is a socket that a service manager listens on: then `address` and `port` only say where, and it is left
    listening at the end, with those in its back-log, for whom the manager starts next. `origin` is asked where NAT
    rules redirect connections to this one.
    """

    allow_reuse_address = True
    request_queue_size = sockets.LARGEST_BACKLOG
    daemon_threads = True

    def __init__(
        self,
        address: sockets.Address,
        port: int,
        *,
        alone: bool,
        terms: Terms,
        books: Books,
        intake: Intake,
        log: Log,
        spill: Spill | None = None,
        given: socket.socket | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.address_family = address[0]
        self.books = books
        self.intake = intake
        self.spill = spill
        self.stopping = False
        self.progress = 0  # connections accepted: it moves while the server is busy, however long a probe waits
        self.actions: Touched | None = None
        self.transparent = False
        self.awaited = Awaited()
        self.origin = origin
        self.log = log
        self._alone = alone
        self._stop = threading.Event()
        self._sessions: dict[Session, socket.socket] = {}  # open ones; dict operations are atomic
        self._seldom = Seldom()
        # A listener that others hold too cannot be shut down to wake who waits at it: they wait for this one as well.
        self._wake_fd = os.eventfd(0) if given else -1
        # The handler class is not used: finish_request is overridden, and saves a call and an object a session.
        super().__init__(sockets.bound(address, port), socketserver.BaseRequestHandler, bind_and_activate=given is None)
        if given:
            self._take_over(given)
        self.set_terms(terms)
        self._crew = Crew(f"tcp {self.name}", self._get, self._serve, self._refuse_for_threads, self._failed)

    @property
    def name(self) -> str:
        """host:port as listened on."""
        return sockets.named(self.server_address)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def server_bind(self) -> None:
        sockets.set_v6only(self.socket, self._alone)
        self._prepare()
        super().server_bind()

    def _prepare(self) -> None:
        self.transparent = sockets.set_transparent(self.socket)
        # Urgent data stays where it is in the stream (RFC 6093); accepted sockets inherit it.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    def _take_over(self, given: socket.socket) -> None:
        self.socket.close()
        self.socket = given
        given.setblocking(False)
        self._prepare()
        self.server_address = given.getsockname()
        self.server_activate()

    def set_terms(self, terms: Terms) -> None:
        """For sessions accepted from now on. The listener's time-outs are what accepted sockets inherit."""
        self.terms = terms
        sockets.set_receive_timeout(self.socket, terms.timeout / 1e9)
        sockets.set_send_timeout(self.socket, min(SEND_TIMEOUT_SECONDS, terms.timeout / 1e9))

    def start(self) -> None:
        self._crew.start()

    def answers(self) -> bool:
        """Is somebody waiting for the next connection?"""
        return self._crew.accepting()

    def pause(self, seconds: float) -> None:
        """Wait so long; a stop ends it."""
        self._stop.wait(seconds)

    def stop(self, timeout: float = 1.0) -> None:
        """Wake every session; each ends as `closed: shutdown`. Those that the kernel had accepted for us are served
        too, by the crew, for `timeout` seconds at most. May be called twice."""
        self.stopping = True
        self._stop.set()
        for sock in list(self._sessions.values()):
            _wake(sock)
        if self._wake_fd >= 0:
            self._crew.stop()
            os.eventfd_write(self._wake_fd, 1)
            return
        self._drain(timeout)
        self._crew.stop()
        _wake(self.socket)

    def _drain(self, timeout: float) -> None:
        """Clients in the back-log are connected and may have sent: the crew records what has arrived. A shutdown of the
        listener would reset them."""
        until = monotonic() + timeout
        pending = select.poll()
        try:
            pending.register(self.socket, select.POLLIN)
            while pending.poll(0):
                if monotonic() > until:
                    self.books.left_unread(sockets.backlog(self.socket))
                    return
                sleep(DRAIN_PAUSE_SECONDS)
        except (OSError, ValueError):  # closed already: stopped twice
            return

    def join(self, timeout: float) -> int:
        """Wait for the sessions; returns how many threads are left after `timeout` seconds."""
        left = self._crew.join(timeout)
        self.server_close()
        return left

    def server_close(self) -> None:
        self.socket.close()
        if self._wake_fd >= 0:
            os.close(self._wake_fd)
            self._wake_fd = -1

    def get_request(self) -> Request:
        """socket.accept() without its three enum look-ups and its Python subclass, which cost a session 2 µs of 46."""
        fd, address = self.socket._accept()  # type: ignore[attr-defined]
        self.progress += 1
        return socket.SocketType(self.address_family, socket.SOCK_STREAM, 0, fd), address

    def _get(self) -> Request | None:
        """The next connection, or None for "ask again"."""
        try:
            if self._wake_fd >= 0:
                waiting = select.poll()  # each thread its own: one poll object serves one thread at a time
                waiting.register(self.socket, select.POLLIN)
                waiting.register(self._wake_fd, select.POLLIN)
                waiting.poll()
                if self.stopping:
                    return None
            return self.get_request()
        except BlockingIOError:  # the inherited SO_RCVTIMEO
            return None
        except OSError as problem:
            if not self.stopping:
                self._accept_failed(problem)
            return None

    def _accept_failed(self, problem: OSError) -> None:
        name = errno.errorcode.get(problem.errno or 0, str(problem.errno))
        count = self.books.error(f"accept_{name}")
        if self._seldom.due(name):
            self.log(f"Failed to accept a new connection: {name}: {problem.strerror} ({count} times so far); going on.")
        if problem.errno not in _OF_ONE_CONNECTION:
            self._stop.wait(ACCEPT_PAUSE_SECONDS)

    def _serve(self, request: Request) -> None:
        if self.awaited and self.awaited.came(request[1][:2]):
            request[0].close()
            return
        self.process_request(*request)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In this very thread: the crew has started a successor already."""
        try:
            self.finish_request(request, client_address)
        finally:
            request.close()

    def _begin(self, sock: socket.socket, peer: Any) -> tuple[Session, str]:
        """The session of a new connection, and the bound that refuses it or ""."""
        start = time_ns()
        local = sock.getsockname()
        src, dst = peer[0], local[0]
        if self.address_family == socket.AF_INET6:
            src, dst = sockets.plain(src), sockets.plain(dst)
        sport, dport = peer[1], local[1]
        if self.origin and dport == self.port:
            src, sport, dst, dport = self.origin.of_connection(sock, Flow(src, sport, dst, dport))
        session = Session("tcp", src, sport, dst, dport, start)
        bound, session.source = self.books.enter(source_key(src))
        if bound not in ("memory", "disk"):
            session.charge = SESSION_CHARGE
        return session, bound

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Record one connection from its first byte to its last."""
        session, bound = self._begin(request, client_address)
        if self.intake.talkative:
            self.intake.tell(session, ESTABLISHED, open_sessions=self.books.open)
        try:
            if bound:
                self._refuse(request, session)
                if self.actions and self.actions.sessions:  # now a load balancer's header has told who it is
                    self.actions.identify(session)
                    self.actions.session("connect", session)
                return
            self._sessions[session] = request
            if self.stopping:  # stop() may have looked just before the line above
                _wake(request)
            Conversation(request, session, self.terms, self).run()
        except Exception:
            session.closed = "error"
            raise
        finally:
            self._sessions.pop(session, None)
            self._end(session, bound)

    def _end(self, session: Session, bound: str) -> None:
        """Hand the session over to the writer; one for whose record there was no memory is dropped."""
        session.end = time_ns()
        self.books.leave(session.source)
        if session.charge:
            if self.actions and self.actions.sessions:
                self.actions.session("end", session)
            self.intake.put(session)
        else:
            self.books.drop(bound, 1, session.bytes)

    def _refuse(self, sock: socket.socket, session: Session) -> None:
        """Over a bound: keep what has come already, wait for nothing."""
        session.closed = "limit"
        recorder = Recorder(
            session, self.books, self.intake, self.spill, self.terms.session_bytes, self.terms.session_payloads
        )
        recorder.steps = False  # its record is one line
        proxied = bool(self.terms.proxies) and proxy.trusted(session.src, self.terms.proxies)
        _wake(sock)  # from here on the kernel acknowledges nothing more
        try:
            for _ in range(MOST_REFUSED_READS):
                data = sock.recv(LARGE_READ, socket.MSG_DONTWAIT)
                if not data:
                    return
                if proxied:
                    data, proxied = proxy.behind(data, session), False
                if data and session.charge:
                    recorder.keep(data, time_ns())
                else:
                    recorder.count(len(data))
        except OSError:  # nothing more is there, or it is gone already: the record says the rest
            return

    def _refuse_for_threads(self, request: Request) -> None:
        """No thread could be started: this one records the connection as refused and goes back to accept."""
        sock, address = request
        if self.awaited and self.awaited.came(address[:2]):
            sock.close()
            return
        try:
            session, bound = self._begin(sock, address)
            try:
                self._refuse(sock, session)
            finally:
                self.books.refuse("threads")
                self._end(session, bound or "threads")
        finally:
            sock.close()

    def _failed(self, problem: BaseException) -> None:
        count = self.books.error("session_errors")
        self.log(f"TCP: Failed: {type(problem).__name__}: {problem} ({count} times so far); the session is kept.")


def _wake(sock: socket.socket) -> None:
    """End a blocking accept, recv or send on this socket in another thread; what has arrived can still be read."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # closed or reset meanwhile: awake already
        return
