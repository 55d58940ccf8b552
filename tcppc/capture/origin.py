"""Where a connection or datagram that NAT redirected to us was addressed, and where it came from.

Connection tracking knows both (CAP_NET_ADMIN). Where it may not be asked, SO_ORIGINAL_DST tells a TCP connection's
destination alone; NAT leaves the source port as it was unless one source port called several of ours.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from tcppc.capture import sockets
from tcppc.protocols import conntrack
from tcppc.protocols.conntrack import Flow

SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is the same
_NETLINK_NETFILTER = 12
_ANSWER_BYTES = 8192
# The kernel answers in this call's time or never.
_ANSWER_SECONDS = 1.0


class Origin:
    """Asks the kernel; one for all threads. `say` logs once what cannot be asked."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._sequence = 0
        self._refused = False
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        sockets.set_receive_timeout(self._socket, _ANSWER_SECONDS)

    def of(self, kind: str, seen: Flow) -> Flow:
        """The flow as it was on the wire, of one that is `seen` here: kind tcp or udp."""
        if self._refused:
            return seen
        answers = Flow(seen.dst, seen.dport, seen.src, seen.sport)
        found = self._ask(conntrack.TCP if kind == "tcp" else conntrack.UDP, answers)
        if isinstance(found, Flow):
            return found
        if found not in (errno.ENOENT, None):  # ENOENT: nobody redirected this one
            self._refused = True
            self._say(
                f"Connection tracking cannot be asked: {os.strerror(found)}; it needs CAP_NET_ADMIN. Redirected "
                "datagrams are recorded with the sensor's own port, and TCP by SO_ORIGINAL_DST."
            )
        return seen

    def of_connection(self, sock: Any, seen: Flow) -> Flow:
        """As `of`, for an accepted TCP connection."""
        found = self.of("tcp", seen)
        if found != seen or not self._refused:
            return found
        dst, dport = original_destination(sock, ":" in seen.dst) or (seen.dst, seen.dport)
        return Flow(seen.src, seen.sport, dst, dport)

    def _ask(self, protocol: int, answers: Flow) -> Flow | int | None:
        with self._lock:
            self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            try:
                self._socket.send(conntrack.question(protocol, answers, self._sequence))
                while True:
                    found = conntrack.answer(self._socket.recv(_ANSWER_BYTES), self._sequence)
                    if found is not None:
                        return found
            except BlockingIOError:  # no answer in time: as if there were no such connection
                return None
            except OSError as problem:
                return problem.errno

    def close(self) -> None:
        self._socket.close()


def original_destination(sock: Any, six: bool) -> tuple[str, int] | None:
    """SO_ORIGINAL_DST: sockaddr_in or sockaddr_in6; None where the connection was not redirected."""
    try:
        if six:
            data = sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
            return socket.inet_ntop(socket.AF_INET6, data[8:24]), int.from_bytes(data[2:4], "big")
        data = sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
        return socket.inet_ntoa(data[4:8]), int.from_bytes(data[2:4], "big")
    except OSError:  # ENOENT, ENOPROTOOPT: not tracked
        return None
