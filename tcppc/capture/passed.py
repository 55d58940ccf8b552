"""Listening sockets that a service manager opened for us: sd_listen_fds(3).

The manager passes descriptors from 3 on, how many of them in LISTEN_FDS, and for whom in LISTEN_PID. They stay the
manager's: nothing here or in the servers may shut them down, since the next start takes them again.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import MutableMapping

from tcppc.capture.sockets import ListenError

FIRST = 3  # SD_LISTEN_FDS_START


def take(environment: MutableMapping[str, str], pid: int = 0) -> list[socket.socket] | None:
    """The sockets passed to this process, and the variables taken out of `environment`, so that no child believes
    them; None where none were announced. ListenError where one of them cannot be served."""
    for_whom = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if not count or for_whom != str(pid or os.getpid()):
        return None
    if not count.isascii() or not count.isdigit() or int(count) > 1024:
        raise ListenError(f"LISTEN_FDS={count!r}: expected how many sockets the service manager passes")
    return [_take(number) for number in range(FIRST, FIRST + int(count))]


def _take(number: int) -> socket.socket:
    where = f"descriptor {number} of LISTEN_FDS"
    expected = "expected a listening TCP or a bound UDP socket, IPv4 or IPv6"
    try:
        is_socket = stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        raise ListenError(f"{where} is not open; {expected}") from None
    if not is_socket:
        raise ListenError(f"{where} is no socket; {expected}")
    os.set_inheritable(number, False)
    sock = socket.socket(fileno=number)
    kind = (sock.type, sock.proto)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise ListenError(f"{where} is of the family {_named(sock.family)}; {expected}")
    if kind not in ((socket.SOCK_STREAM, socket.IPPROTO_TCP), (socket.SOCK_DGRAM, socket.IPPROTO_UDP)):
        raise ListenError(f"{where} is of the type {_named(sock.type)}, protocol {sock.proto}; {expected}")
    if sock.type == socket.SOCK_STREAM and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ListenError(f"{where} does not listen; {expected}: Accept=no in the socket unit")
    if sock.type == socket.SOCK_DGRAM and not sock.getsockname()[1]:
        raise ListenError(f"{where} is not bound; {expected}")
    return sock


def _named(value: int) -> str:
    return str(getattr(value, "name", value))
