"""What a persona says to a datagram: asked for, recorded, and sent as from the address and port that were called."""

from __future__ import annotations

import socket
import struct
from time import time_ns
from typing import Any, Protocol

from tcppc.capture import sockets
from tcppc.capture.books import Books
from tcppc.personas.base import Findings, Place
from tcppc.personas.registry import Personas
from tcppc.records import Session
from tcppc.spoken import REPLY_CHARGE, Spoken

_IP_PKTINFO, _IPV6_PKTINFO = 8, 50  # linux/in.h, linux/in6.h


class Server(Protocol):
    """What is needed of the UDP server."""

    socket: socket.socket
    books: Books
    personas: Personas | None

    @property
    def address_family(self) -> int: ...

    @property
    def port(self) -> int: ...


class Replies:
    """One thread's."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def answer(self, session: Session, data: bytes, peer: Any, local: tuple[str, int]) -> None:
        """`peer` is where it came from as the kernel tells it, `local` the address and port it was delivered to.
        OSError and whatever a persona raises."""
        personas = self._server.personas
        if personas is None:
            return
        place = Place(
            session.src, session.sport, session.dst, session.dport, self._server.port, now=session.start / 1e9
        )
        findings = Findings()
        name, reply = personas.answer(data, place, findings)
        if not name:
            return
        session.spoken = Spoken(name, credentials=findings.credentials)
        charge = len(reply) + REPLY_CHARGE
        if not reply or not self._server.books.take(charge, session.source, small=True):
            return
        session.charge += charge
        if self._send(reply, session, peer, local):
            session.spoken.replies.append((time_ns(), reply, 0))

    def _send(self, reply: bytes, session: Session, peer: Any, local: tuple[str, int]) -> bool:
        """False where the kernel does not take it now."""
        try:
            # Where NAT redirected it here, NAT brings the answer back: it is said from where it was delivered.
            if local[1] == self._server.port:
                self._server.socket.sendmsg([reply], [self._source(local[0])], socket.MSG_DONTWAIT, peer)
            else:
                self._send_as(reply, session, peer)
        except BlockingIOError:
            return False
        return True

    def _source(self, local: str) -> tuple[int, int, bytes]:
        """Say it from this address: struct in_pktinfo, or in6_pktinfo."""
        if self._server.address_family == socket.AF_INET:
            return socket.SOL_IP, _IP_PKTINFO, struct.pack("=i4s4s", 0, socket.inet_aton(local), bytes(4))
        address = local if ":" in local else f"::ffff:{local}"
        return socket.IPPROTO_IPV6, _IPV6_PKTINFO, socket.inet_pton(socket.AF_INET6, address) + bytes(4)

    def _send_as(self, reply: bytes, session: Session, peer: Any) -> None:
        """From another port than the server's: a socket for this one datagram. It hears nothing meanwhile, since TPROXY
        gives datagrams to the server's socket."""
        family = socket.AF_INET6 if ":" in session.dst else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            if not sockets.set_transparent(sock):
                raise PermissionError("an answer from another port needs CAP_NET_ADMIN")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # A link-local address has the zone of who is answered.
            sock.bind((session.dst, session.dport, *((0, peer[3]) if family == socket.AF_INET6 else ())))
            address = (session.src, session.sport) if family == socket.AF_INET else (peer[0], *peer[1:])
            sock.sendto(reply, socket.MSG_DONTWAIT, address)
