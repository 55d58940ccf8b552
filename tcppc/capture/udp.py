"""The UDP server: one thread, one record a datagram."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from time import monotonic, sleep, time_ns
from typing import Any

from tcppc.capture import sockets
from tcppc.capture.answering import safe
from tcppc.capture.books import SESSION_CHARGE, Books
from tcppc.capture.intake import Intake
from tcppc.capture.origin import Origin
from tcppc.capture.probe import Awaited
from tcppc.capture.replies import Replies
from tcppc.capture.touched import Touched
from tcppc.log import Log, Seldom
from tcppc.personas.registry import Personas
from tcppc.protocols.conntrack import Flow
from tcppc.records import Session

POLL_SECONDS = 1.0
# How long datagrams gather in the kernel once they come thick: 5,000 a second cost 16 µs each with 0.01, 14 with 0.03.
GATHER_SECONDS = 0.03
ERROR_PAUSE_SECONDS = 0.1
HAND_SECONDS = 0.5  # for a datagram that is being dealt with when the time is over
# What is not read in the time of a stop is counted by reading it away, so fast that this is never reached.
COUNT_SECONDS = 1.0


class UDPServer(socketserver.ThreadingUDPServer):
    """One socket and the thread that empties it; no thread a datagram, since nothing is waited for.

    `given` is a socket that a service manager bound: then `address` and `port` only say where, and what comes after
    `stop` stays in it for whom the manager starts next. `origin` is asked where NAT rules redirect datagrams to it.
    """

    allow_reuse_address = False  # on UDP it would let another process take our datagrams
    max_packet_size = 65535
    daemon_threads = True

    def __init__(
        self,
        address: sockets.Address,
        port: int,
        *,
        alone: bool,
        buffer: int,
        books: Books,
        intake: Intake,
        log: Log,
        given: socket.socket | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.address_family = address[0]
        self.buffer = buffer
        self.transparent = False
        self.stopping = False
        self.progress = 0  # datagrams read: it moves while the server is busy, however long a probe waits
        self.awaited = Awaited()
        self.personas: Personas | None = None
        self.actions: Touched | None = None
        self._replies = Replies(self)
        self._origin = origin
        self._alone = alone
        self.books = self._books = books
        self._intake = intake
        self._log = log
        self._drops = 0
        self._drops_counted = False  # to the end: nothing more is taken
        self._until = float("inf")  # when reading ends (monotonic seconds)
        self._seldom = Seldom()
        super().__init__(sockets.bound(address, port), socketserver.BaseRequestHandler, bind_and_activate=given is None)
        self._shared = given is not None
        if given:
            self._take_over(given)
        self._own, self._port = sockets.plain(str(self.server_address[0])), int(self.server_address[1])
        self._six = self.address_family == socket.AF_INET6
        self._thread = threading.Thread(target=self.serve_forever, name=f"udp {self.name}", daemon=True)

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
        sockets.want_destinations(self.socket)
        self.buffer = sockets.set_receive_buffer(self.socket, self.buffer)
        sockets.set_receive_timeout(self.socket, POLL_SECONDS)

    def _take_over(self, given: socket.socket) -> None:
        self.socket.close()
        self.socket = given
        given.setblocking(True)
        self._prepare()
        self.server_address = given.getsockname()
        with contextlib.suppress(OSError):  # a kernel before 4.12: see count_lost
            self._drops = sockets.drops(given)  # those before were another one's

    def set_personas(self, personas: Personas | None) -> None:
        """Who answers datagrams from now on; None for nobody."""
        self.personas = personas

    def start(self) -> None:
        self._thread.start()

    def answers(self) -> bool:
        """Is somebody reading?"""
        return self._thread.is_alive()

    def serve_forever(self, poll_interval: float = POLL_SECONDS) -> None:
        """Empty the socket until `stop`, and then what is still in it."""
        while True:
            try:
                self._receive()
                return
            except Exception as problem:
                if self.stopping:
                    return
                self._failed(problem)
                sleep(ERROR_PAUSE_SECONDS)

    def _receive(self) -> None:
        """Read datagrams and hand them on, until the socket is shut down and empty.

        While they keep coming, wake up for many of them, not for each: the kernel notes when each came and holds
        them meanwhile.
        """
        recvmsg, most, room = self.socket.recvmsg, self.max_packet_size, sockets.ANCILLARY_BYTES
        told, admit, put = sockets.told, self._books.datagram, self._intake.put
        shared, awaited, origin = self._shared, self.awaited, self._origin
        wait, came = 0, False
        while not (self.stopping and (shared or monotonic() > self._until)):
            try:
                data, ancillary, flags, peer = recvmsg(most, room, wait)
            except BlockingIOError:  # nothing there (MSG_DONTWAIT), or nothing came for long (SO_RCVTIMEO)
                wait, came = (socket.MSG_DONTWAIT, False) if came else (0, False)
                if wait:
                    sleep(GATHER_SECONDS)
                continue
            if peer is None:
                return
            wait, came = socket.MSG_DONTWAIT, True
            self.progress += 1
            dst, dport, instant, lost = told(ancillary)
            if lost:
                self._count_drops(lost)
            if awaited and awaited.came(peer[:2], data):
                continue
            size = len(data)
            src = sockets.plain(peer[0]) if self._six else peer[0]
            source = admit(size, src)
            if source is False:
                continue
            try:
                local = dst or self._own, dport or self._port
                flow = src, peer[1], *local
                if origin and flow[3] == self._port:
                    flow = origin.of("udp", Flow(*flow))
                now = instant or time_ns()
                session = Session("udp", *flow, now, [(now, data)], size)
            except BaseException as problem:
                self._books.give(size + SESSION_CHARGE, source)
                self._books.drop("memory" if isinstance(problem, MemoryError) else "error", 1, size)
                raise
            session.charge, session.source = size + SESSION_CHARGE, source
            if flags & socket.MSG_TRUNC:
                session.truncated = True
                self._books.cut("datagram_size")
            try:
                if self.personas:
                    self._answer(session, data, peer, local)
                if self.actions and self.actions.sessions:
                    self.actions.datagram(session)
            finally:  # whatever is wrong there, it was taken out of the kernel and is charged
                put(session)

    def _answer(self, session: Session, data: bytes, peer: Any, local: tuple[str, int]) -> None:
        """Have a persona say something back. Whatever goes wrong, the datagram is recorded."""
        try:
            self._replies.answer(session, data, peer, local)
        except Exception as problem:
            count = self._books.error("persona_errors")
            if session.spoken:
                session.spoken.error = safe(problem)
            if self._seldom.due("persona"):
                self._log(f"Persona for UDP: {safe(problem)} ({count} times so far); going on.")

    def _count_drops(self, total: int) -> None:
        """`total` is a u32 that wraps."""
        lost = (total - self._drops) & 0xFFFFFFFF
        if not lost or self._drops_counted:
            return
        self._drops = total
        count = self._books.error("kernel_udp_drops", lost)
        if self._seldom.due("drops"):
            self._log(
                f"UDP: {count} datagrams lost by the kernel so far: its buffer of {self.buffer} bytes was full; "
                "raise capture.udp_buffer, and net.core.rmem_max where CAP_NET_ADMIN is missing."
            )

    def _failed(self, problem: Exception) -> None:
        count = self._books.error("udp_errors")
        if self._seldom.due("read"):
            self._log(f"Failed to read UDP message: {problem} ({count} times so far); going on.")

    def stop(self, timeout: float = 1.0) -> None:
        """Take nothing more, read what has arrived, for `timeout` seconds at most, then end. May be called twice."""
        self._until = monotonic() + timeout
        self.stopping = True
        if self._shared:
            return  # a shutdown would be for good, also for others: the reader looks up each POLL_SECONDS
        try:
            self.count_lost()
            sockets.take_no_more(self.socket)
            self._drops_counted = True
        except OSError:  # then reading ends when the time is over, or once the socket is empty
            pass
        try:
            sockets.set_receive_timeout(self.socket, 0.001)
            self.socket.shutdown(socket.SHUT_RD)
        except OSError:  # ENOTCONN on an unconnected socket, which wakes the reader all the same
            return

    def join(self, timeout: float) -> int:
        """Wait for the thread; 1 where it has not ended after `timeout` seconds. It reads until the time of `stop` is
        over, and has one more datagram in hand then."""
        if self._thread.ident:
            until = self._until if self.stopping else 0.0
            self._thread.join(max(timeout, until - monotonic() + HAND_SECONDS))
        if not self._shared:
            self._count_unread()
        self.count_lost()
        self.server_close()
        return int(self._thread.is_alive())

    def _count_unread(self) -> None:
        """Datagrams that are still in the socket: read away and counted."""
        count = size = 0
        room = bytearray(self.max_packet_size)
        until = monotonic() + COUNT_SECONDS
        try:
            while monotonic() < until:
                length, peer = self.socket.recvfrom_into(room, 0, socket.MSG_DONTWAIT)
                if not peer:  # it is shut down and empty
                    break
                size += length
                count += 1
        except OSError:  # it is empty
            pass
        self._books.left_unread(datagrams=count, size=size)

    def count_lost(self) -> None:
        """Count also what was lost after the last datagram that came through."""
        try:
            self._count_drops(sockets.drops(self.socket))
        except OSError:  # a kernel before 4.12 has no SO_MEMINFO: SO_RXQ_OVFL told all but the last
            return
