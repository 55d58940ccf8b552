"""The TLS half of a session: the handshake, what is said inside, and what comes behind the client's goodbye.

A client's bytes are payloads as they are until the handshake is done, and for good where it fails. Then payloads are
the plain text. What OpenSSL could not read, and what comes behind the close_notify, is kept as payloads again, as it
came; `tls.after` is the first of them. `tls.bytes` is how much was TLS on the wire.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from time import monotonic_ns, time_ns
from typing import Any

from tcppc.capture import tls as tls_layer
from tcppc.capture.answering import LINGER_SECONDS, Answering
from tcppc.capture.deadline import Deadline, Stopped
from tcppc.capture.intake import SECURED
from tcppc.capture.recorder import Recorder
from tcppc.capture.terms import Server, Terms
from tcppc.records import TLS, Step

HANDSHAKE_READ = 2048
LARGE_READ = 65536
MOST_LATE_READS = 256  # of what lies in the socket when a session is ended


class Secure:
    """Serves one session from the first byte of its ClientHello."""

    __slots__ = (
        "_answers", "_books", "_context", "_deadline", "_intake", "_plain", "_record", "_recorder", "_server",
        "_session", "_sock", "_tail", "_tell_actions",
    )  # fmt: skip

    def __init__(
        self,
        sock: Any,
        recorder: Recorder,
        terms: Terms,
        server: Server,
        deadline: Deadline,
        answers: Answering | None,
    ) -> None:
        self._sock = sock
        self._recorder = recorder
        self._context = terms.context
        self._server = server
        self._books = server.books
        self._intake = server.intake
        self._deadline = deadline
        self._answers = answers
        self._session = recorder.session
        self._plain = (0, 0, 0)  # payloads in memory, bytes and payload lines that came before TLS
        self._tail = bytearray()  # raw bytes from the first TLS record on that is not read whole
        self._record = TLS()
        self._tell_actions: Callable[[bytes], None] = lambda data: None

    def serve(self, head: bytes, tell_actions: Callable[[bytes], None]) -> str:
        """The client speaks TLS, or has to: `head` is all it said so far, kept as payloads until the handshake is done.
        Returns how the session closed."""
        session = self._session
        session.proto = "tls"
        record = self._record = session.tls = TLS(hello=head)
        self._tell_actions = tell_actions
        if not head:  # as the client and a persona agreed upon
            self._plain = len(session.payloads), session.bytes, self._recorder.number
        if self._context is None:
            record.error = "no certificate to answer with"
            return self._listen_on()
        if not self._books.take(tls_layer.TUNNEL_CHARGE, session.source, small=True):
            record.error = "no memory left for TLS"
            return self._listen_on()
        self._recorder.pinned = True  # the handshake's bytes leave the payloads again
        try:
            return self._converse(tls_layer.Tunnel(self._context), head)
        finally:
            self._recorder.pinned = False
            self._books.give(tls_layer.TUNNEL_CHARGE, session.source)

    def _converse(self, tunnel: tls_layer.Tunnel, head: bytes) -> str:
        record = self._record
        try:
            self._shake_hands(tunnel, head)
        except ssl.SSLError as problem:
            record.error = tls_layer.reason(problem)
            self._send(tunnel, wait=False)
            self._tell_actions(record.hello)
            return self._linger("error")
        except (OSError, Stopped):
            record.error = "the connection ended within the handshake"
            self._tell_actions(record.hello)
            raise
        self._forget_handshake(tunnel)
        self._recorder.pinned = False
        return self._listen_inside(tunnel)

    def _listen_on(self) -> str:
        """TLS is not answered: all that comes is kept as it is."""
        self._tell_actions(self._record.hello)
        while data := self._sock.recv(LARGE_READ):
            self._keep_raw(data)
        return self._ending()

    def _keep_raw(self, data: bytes) -> None:
        self._recorder.keep(data, time_ns())
        self._tell_actions(data)
        self._look()

    def _look(self) -> None:
        if monotonic_ns() > self._deadline.review:
            self._deadline.shorten()

    def _linger(self, closed: str) -> str:
        """Nothing more is said to the client; what it still says is kept for a while. Returns `closed`."""
        self._recorder.pinned = False
        try:
            self._sock.shutdown(socket.SHUT_WR)
            self._deadline.wait(min(LINGER_SECONDS, self._deadline.timeout / 1e9))
            until = self._deadline.within(round(LINGER_SECONDS * 1e9))
            while monotonic_ns() < until and (data := self._sock.recv(LARGE_READ)):
                self._recorder.keep(data, time_ns())
                self._tell_actions(data)
        except OSError:  # it says nothing more, or went away: the session ended before
            pass
        return "shutdown" if self._server.stopping else closed

    def _ending(self) -> str:
        return "shutdown" if self._server.stopping else "peer"

    def _shake_hands(self, tunnel: tls_layer.Tunnel, head: bytes) -> None:
        """One idle timeout for the whole handshake, so that a trickle cannot stretch it."""
        until = self._deadline.within(self._deadline.timeout)
        heard = bytearray(head)
        if head:
            tunnel.feed(head)
        try:
            while not tunnel.handshake():
                self._send(tunnel)
                data = self._sock.recv(HANDSHAKE_READ)
                if not data:
                    raise Stopped(self._ending())
                heard += data
                self._recorder.keep(data, time_ns())
                self._look()
                if monotonic_ns() > until:
                    raise BlockingIOError
                if len(heard) > tls_layer.MOST_HANDSHAKE_BYTES or self._session.truncated:
                    raise Stopped("limit")
                tunnel.feed(data)
        finally:
            self._record.hello = bytes(heard)
        self._record.bytes = len(heard)
        self._tail += heard[len(heard) - tunnel.unread :]
        self._send(tunnel)

    def _forget_handshake(self, tunnel: tls_layer.Tunnel) -> None:
        """The handshake went well: payloads are what comes inside it from now on."""
        session, record = self._session, self._record
        record.version, record.cipher = tunnel.version, tunnel.cipher
        plain, received, line = self._plain
        self._recorder.forget_since(plain, received, len(record.hello))
        if self._recorder.steps:
            self._intake.put(Step(session, "tls", self._recorder.number, time_ns(), after=line))
        if self._intake.talkative:
            self._intake.tell(session, SECURED)

    def _listen_inside(self, tunnel: tls_layer.Tunnel) -> str:
        answers = self._answers
        try:
            if answers:
                answers.secured(tunnel)
            while (data := tunnel.read()) != b"":
                if data is None:
                    tls_layer.drop_whole_records(self._tail)
                    self._send(tunnel)
                    if not self._feed(tunnel):
                        return self._end_inside(tunnel, len(self._tail), self._ending())
                    continue
                self._recorder.keep(data, time_ns())
                if self._intake.talkative:
                    self._intake.tell(self._session, self._session.count, data)
                self._tell_actions(data)
                if answers:
                    answers.answer(data)
        except ssl.SSLError as problem:
            self._record.error = tls_layer.reason(problem)
            return self._end_inside(tunnel, self._not_tls(tunnel, problem), "error")
        except (OSError, Stopped):
            self._end_inside(tunnel, self._undigested(tunnel), "")
            raise
        return self._end_inside(tunnel, tunnel.unread, self._ending())

    def _feed(self, tunnel: tls_layer.Tunnel) -> bool:
        """Give the tunnel what came next; False at the connection's end."""
        raw = self._sock.recv(LARGE_READ)
        if not raw:
            return False
        self._take(tunnel, raw)
        self._look()
        return True

    def _take(self, tunnel: tls_layer.Tunnel, raw: bytes) -> None:
        self._record.bytes += len(raw)
        self._tail += raw
        tunnel.feed(raw)

    def _not_tls(self, tunnel: tls_layer.Tunnel, problem: ssl.SSLError) -> int:
        """How many of the raw bytes are no TLS: the record that OpenSSL could not read, and what follows it. A record
        that it did read, and that says that the client gives up, is none of them."""
        if "ALERT" in (problem.reason or ""):
            return tunnel.unread
        begin = tls_layer.since_record_before(self._tail, len(self._tail) - tunnel.unread)
        return len(self._tail) - begin

    def _undigested(self, tunnel: tls_layer.Tunnel) -> int:
        """How many of the raw bytes nobody has read, when a session is ended from outside; text that is ready is, and
        what has come and lies in the socket belongs to the tunnel still."""
        try:
            for _ in range(MOST_LATE_READS):
                while data := tunnel.read():
                    self._recorder.keep(data, time_ns())
                if data == b"":  # it has said goodbye
                    return tunnel.unread
                tls_layer.drop_whole_records(self._tail)
                if not (raw := self._lies_there()):
                    break
                self._take(tunnel, raw)
        except ssl.SSLError:  # so it is with the rest
            return tunnel.unread
        return len(self._tail)

    def _lies_there(self) -> bytes:
        try:
            found: bytes = self._sock.recv(LARGE_READ, socket.MSG_DONTWAIT)
        except OSError:  # nothing does
            return b""
        return found

    def _end_inside(self, tunnel: tls_layer.Tunnel, raw: int, closed: str) -> str:
        """The tunnel is over; its last `raw` bytes were no part of it. What comes behind it is kept, where `closed` is
        "" by the caller."""
        record, session = self._record, self._session
        tunnel.goodbye()
        self._send(tunnel, wait=False)
        record.bytes -= raw
        record.after = session.count
        if raw and self._tail:
            self._recorder.keep(bytes(self._tail[len(self._tail) - raw :]), time_ns())
        return self._linger(closed) if closed else ""

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
