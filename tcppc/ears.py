"""The sockets on which an nc listener hears."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence

from tcppc.capture import sockets

UDP_BUFFER_BYTES = 8 << 20


def listen(host: str, families: Sequence[socket.AddressFamily], port: int, udp: bool) -> Iterator[socket.socket]:
    """A socket for each address; OSError where none can be had, ListenError for a name that has none."""
    wildcard = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
    hosts = [host] if host else [wildcard[family] for family in families]
    addresses = [(family, address) for family, address in sockets.resolve(hosts) if family in families]
    if not addresses:
        raise sockets.ListenError(f"{host!r} has no address of the family that was asked for")
    served = 0
    for number, (family, address) in enumerate(addresses, 1):
        try:
            sock = _open(family, address, port, udp)
        except OSError as problem:
            if not sockets.lacks(family, problem):
                raise OSError(problem.errno, problem.strerror, sockets.shown(address, port)) from None
            # A host without IPv6 is served on IPv4, where both were meant, and the other way round.
            if number == len(addresses) and not served:
                words = f"{sockets.lacking(family, problem)}; expected {sockets.instead(family)}"
                raise OSError(problem.errno, words, sockets.shown(address, port)) from None
            continue
        port, served = port or sock.getsockname()[1], served + 1
        yield sock


def _open(family: socket.AddressFamily, host: str, port: int, udp: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0 if udp else 1)
        sockets.set_v6only(sock, False)
        sock.bind(sockets.bound((family, host), port))
        if udp:
            sockets.set_receive_buffer(sock, UDP_BUFFER_BYTES)
        else:  # urgent data stays where it is in the stream; accepted sockets inherit it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            sock.listen(sockets.LARGEST_BACKLOG)
            sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def shut(sock: socket.socket) -> None:
    """Whoever reads from it wakes; what has arrived can still be read."""
    with contextlib.suppress(OSError):  # gone already, or closed meanwhile
        sock.shutdown(socket.SHUT_RDWR)
