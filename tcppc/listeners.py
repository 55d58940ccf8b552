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


class FamilyError(StartError):
    """This host has no socket of a family."""


def open_sockets(made: Sensor, terms_now: Terms) -> None:
    """The sockets that a service manager passed; where it passed none, those of the configuration."""
    config, log = made.config, made.log
    given = passed.take(os.environ)
    if given:
        _open_passed(made, given, terms_now)
    else:
        if given is not None:
            log("LISTEN_FDS=0: no socket was passed; listening as the configuration says.")
        _open_all(made, sockets.resolve(config.tcppc.host), terms_now)


def _open_all(made: Sensor, addresses: list[sockets.Address], terms_now: Terms) -> None:
    """Those of a family that this host has not are left out, as long as there are others."""
    alone = all(family != socket.AF_INET for family, _ in addresses)
    port = made.config.tcppc.port
    left_out: dict[int, str] = {}
    for kind in ("TCP", "UDP"):
        for address in addresses if getattr(made.config.capture, kind.lower()) else ():
            try:
                opened = _open(made, kind, address, port, terms_now, alone)
            except FamilyError as problem:
                left_out[address[0]] = left_out.get(address[0]) or str(problem)
                continue
            port = port or opened.port  # a free one was taken: the same one for all
    if left_out and not made.servers:
        family, line = next(iter(left_out.items()))
        raise StartError(f"{line}; expected {sockets.instead(family)}")
    for line in left_out.values():
        made.log(f"{line}; serving without it.")


def _open_passed(made: Sensor, given: list[socket.socket], terms_now: Terms) -> None:
    wanted = {"TCP": made.config.capture.tcp, "UDP": made.config.capture.udp}
    for sock in given:
        kind = "TCP" if sock.type == socket.SOCK_STREAM else "UDP"
        host, port = sock.getsockname()[:2]
        where = sockets.named(sock.getsockname())
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
    """One server more; StartError where its socket cannot be had, with all others closed. FamilyError where this host
    has none of that family."""
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
        where = sockets.shown(address[1], port)
        if isinstance(problem, OSError) and sockets.lacks(address[0], problem):
            raise FamilyError(
                f"Failed to listen {kind} socket: {where}: {sockets.lacking(address[0], problem)}"
            ) from None
        for opened in made.servers:
            opened.server_close()
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        hint = "; ports below 1024 need CAP_NET_BIND_SERVICE" if isinstance(problem, PermissionError) else ""
        raise StartError(f"Failed to listen {kind} socket: {where}: {reason}{hint}") from None
