"""PROXY protocol: the header that a trusted load balancer sends before the client's bytes, taken from a connection."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address
from time import monotonic_ns
from typing import Any

from tcppc.protocols.proxy_header import Header, read
from tcppc.records import Proxy, Session

READ_BYTES = 2048


def trusted(address: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Is a load balancer at this address believed?"""
    found = ip_address(address)
    return any(found in network for network in networks)


def receive(sock: socket.socket | Any, heard: bytearray, until: int) -> Header:
    """The header, read before `until` (monotonic ns); `heard` gets all that came, with what follows the header.
    ValueError with the reason where it is none, OSError (BlockingIOError for time) where the connection gives out."""
    while (header := read(bytes(heard))) is None:
        data = sock.recv(READ_BYTES)
        if not data:
            raise ValueError("the connection ended within the header")
        heard += data
        if monotonic_ns() > until:
            raise BlockingIOError
    return header


def behind(data: bytes, session: Session) -> bytes:
    """What has come of a connection that is refused: the header's addresses are the session's, and what follows it is
    returned; all of it where it is no whole header."""
    record = session.proxy = Proxy(session.src, session.sport, session.dst, session.dport)
    try:
        header = read(data)
    except ValueError as problem:
        record.error = str(problem)
        return data
    if header is None:
        record.error = "the connection was refused within the header"
        return data
    record.header = header
    if header.src:
        session.src, session.sport, session.dst, session.dport = header.src, header.sport, header.dst, header.dport
    return data[header.size :]
