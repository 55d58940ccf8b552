"""The sensor's listening sockets: those that a service manager passed, or those of the configuration."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from tcppc.capture import passed, sockets
from tcppc.capture.tcp import TCPServer
from tcppc.capture.terms import Terms
from tcppc.capture.udp import UDPServer
from tcppc.problems import Failure

if TYPE_CHECKING:
    from tcppc.sensor import Sensor


class StartError(Failure):
    """Why the sensor cannot start, in one line: exit code 1."""


def open_sockets(made: Sensor, terms_now: Terms) -> None:
    """The sockets that a service manager passed; where it passed none, those of the configuration."""
    config, log = made.config, made.log
    given = passed.take(os.environ)
    if given:
        _open_passed(made, given, terms_now)
    else:
        if given is not None:
            log("LISTEN_FDS=0: no socket was passed; listening as the configuration says.")
        addresses = sockets.resolve(config.tcppc.host)
        alone = all(family != socket.AF_INET for family, _ in addresses)
        port = config.tcppc.port
        for address in addresses if config.capture.tcp else ():
            opened = _open(made, "TCP", address, port, terms_now, alone)
            port = port or opened.port  # a free one was taken: the same one for all
        for address in addresses if config.capture.udp else ():
            opened = _open(made, "UDP", address, port, terms_now, alone)
            port = port or opened.port


def _open_passed(made: Sensor, given: list[socket.socket], terms_now: Terms) -> None:
    wanted = {"TCP": made.config.capture.tcp, "UDP": made.config.capture.udp}
    for sock in given:
        kind = "TCP" if sock.type == socket.SOCK_STREAM else "UDP"
        host, port = sock.getsockname()[:2]
        where = sockets.shown(host, port)
        if wanted[kind]:
            made.log(f"Passed by the service manager: {kind} {where}")
            _open(made, kind, (sock.family, host), port, terms_now, False, sock)
        else:
            made.log(f"Passed by the service manager, and not served, since {kind} is disabled: {where}")
            sock.close()
    if not made.servers:
        raise StartError("LISTEN_FDS: all sockets that were passed are of a disabled kind; expected one to serve")


def _open(
    made: Sensor,
    kind: str,
    address: sockets.Address,
    port: int,
    terms_now: Terms,
    alone: bool,
    given: socket.socket | None = None,
) -> TCPServer | UDPServer:
    """One server more; StartError where its socket cannot be had, with all others closed."""
    books, intake, log = made.books, made.intake, made.log
    try:
        if kind == "TCP":
            made.tcp.append(
                TCPServer(
                    address,
                    port,
                    alone=alone,
                    terms=terms_now,
                    books=books,
                    intake=intake,
                    log=log,
                    spill=made.spill,
                    given=given,
                    origin=made.origin,
                )
            )
            return made.tcp[-1]
        buffer = made.config.capture.udp_buffer
        made.udp.append(
            UDPServer(
                address,
                port,
                alone=alone,
                buffer=buffer,
                books=books,
                intake=intake,
                log=log,
                given=given,
                origin=made.origin,
            )
        )
        return made.udp[-1]
    except (OSError, OverflowError) as problem:
        for opened in made.servers:
            opened.server_close()
        where = sockets.shown(address[1], port)
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        hint = "; ports below 1024 need CAP_NET_BIND_SERVICE" if isinstance(problem, PermissionError) else ""
        raise StartError(f"Failed to listen {kind} socket: {where}: {reason}{hint}") from None
