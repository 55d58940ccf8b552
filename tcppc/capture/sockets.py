"""Listening sockets: addresses, transparency, original destinations, kernel counters.

Constants that CPython's socket module lacks are from the kernel's UAPI headers, named as there.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from tcppc.problems import Failure

IP_TRANSPARENT = 19  # linux/in.h
IP_RECVORIGDSTADDR = IP_ORIGDSTADDR = 20
IPV6_TRANSPARENT = 75  # linux/in6.h
IPV6_RECVORIGDSTADDR = IPV6_ORIGDSTADDR = 74
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
SO_ATTACH_FILTER = 26
SO_TIMESTAMPNS = 35  # SO_TIMESTAMPNS_OLD: struct timespec of this machine's long
SO_RXQ_OVFL = 40
SO_MEMINFO = 55
_SK_MEMINFO_DROPS = 8  # linux/sock_diag.h: the ninth of its u32 values
_SK_MEMINFO_VARS = 9

# The kernel cuts it down to net.core.somaxconn; it is a u32 there and an int here.
LARGEST_BACKLOG = 0x7FFFFFFF

_TIMEVAL = struct.Struct("ll")
_TIMESPEC = struct.Struct("ll")
# recvmsg(2) ancillary room for one of each: sockaddr_in, sockaddr_in6, timespec, u32.
ANCILLARY_BYTES = sum(map(socket.CMSG_SPACE, (16, 28, _TIMESPEC.size, 4)))

# A family and an address, with its zone where it has one: "fe80::1%eth0".
Address = tuple[socket.AddressFamily, str]
_OWN_IPV6 = Path("/proc/net/if_inet6")


class ListenError(Failure, OSError):
    """A socket that could not be opened, in one line."""


def resolve(hosts: Iterable[str]) -> list[Address]:
    """Addresses, without repeats, of IPv4 and IPv6 literals and names; ListenError for a name that has none."""
    found: list[Address] = []
    for host in hosts:
        try:
            answers = socket.getaddrinfo(
                _with_index(host.strip("[]")), None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except (OSError, UnicodeError) as problem:
            if isinstance(problem, ListenError):
                raise
            reason = problem.strerror if isinstance(problem, OSError) else "it is no host name"
            raise ListenError(
                f"cannot listen on {host!r}: {reason}; expected an address or a name of this host"
            ) from None
        for family, _, _, _, address in answers:
            if family in (socket.AF_INET, socket.AF_INET6) and (family, zoned(address)) not in found:
                found.append((family, zoned(address)))
    return found


def _with_index(host: str) -> str:
    """A link-local address with its interface's number; others as they are. ListenError where it lacks one, or has one
    that is none of this host's."""
    address, percent, zone = host.partition("%")
    try:
        parsed = ip_address(address)
    except ValueError:  # a name
        return host
    interfaces = {name: number for number, name in socket.if_nameindex()}
    known = ", ".join(interfaces)
    if not (parsed.version == 6 and parsed.is_link_local):
        if percent:
            raise ListenError(f"cannot listen on {host!r}: only link-local addresses (fe80::/10) have a zone")
        return host
    if not zone:
        raise ListenError(
            f"cannot listen on {host!r}: a link-local address needs its interface: expected {address}%NAME, of {known}"
        )
    number = interfaces.get(zone) or (int(zone) if zone.isascii() and zone.isdigit() and len(zone) < 10 else 0)
    if number not in interfaces.values():
        raise ListenError(f"cannot listen on {host!r}: there is no interface {zone!r}; expected one of {known}")
    return f"{address}%{number}"


def zoned(address: Sequence[Any]) -> str:
    """The address of what getsockname(2) or getaddrinfo(3) gave, with its zone."""
    if len(address) < 4 or not address[3]:
        return str(address[0])
    try:
        zone = socket.if_indextoname(address[3])
    except OSError:  # gone meanwhile
        zone = str(address[3])
    return f"{address[0]}%{zone}"


def bound(address: Address, port: int) -> tuple[Any, ...]:
    """As bind(2) takes it. OSError where an interface is gone."""
    host, percent, zone = address[1].partition("%")
    return (host, port, 0, socket.if_nametoindex(zone)) if percent else (host, port)


def named(address: Sequence[Any]) -> str:
    """host:port of what getsockname(2) gave."""
    return shown(zoned(address), address[1])


def shown(address: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def lacks(family: int, problem: OSError) -> bool:
    """Does what socket(2) or bind(2) says mean that this host has no such family? Its kernel is without it, the unit
    forbids it (RestrictAddressFamilies=), or IPv6 is off on all interfaces."""
    if problem.errno == errno.EADDRNOTAVAIL and family == socket.AF_INET6:
        try:
            return not _OWN_IPV6.read_bytes()
        except OSError:  # a kernel without IPv6 has no such file; without /proc nothing is known
            return Path("/proc/net").exists()
    return problem.errno == errno.EAFNOSUPPORT


def lacking(family: int, problem: OSError) -> str:
    """What is wrong then."""
    return f"this host has no {'IPv4' if family == socket.AF_INET else 'IPv6'} ({problem.strerror})"


def instead(family: int) -> str:
    """And what would be right."""
    return "an IPv6 address, such as ::" if family == socket.AF_INET else "an IPv4 address, such as 0.0.0.0"


def plain(address: str) -> str:
    """An address as records show it: IPv4-mapped as IPv4, without a zone index."""
    if address.startswith("::ffff:") and "." in address:
        return address[7:]
    return address.partition("%")[0]


def set_transparent(sock: socket.socket) -> bool:
    """IP_TRANSPARENT and IPV6_TRANSPARENT (CAP_NET_ADMIN or CAP_NET_RAW); False where the process may not.

    Both set one flag of the socket, which a service manager may have set already (Transparent=yes)."""
    if sock.getsockopt(socket.SOL_IP, IP_TRANSPARENT):
        return True
    try:
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    except OSError as problem:
        if problem.errno in (errno.EPERM, errno.EACCES, errno.ENOPROTOOPT):
            return False
        raise
    return True


def set_v6only(sock: socket.socket, alone: bool) -> None:
    """A dual-stack socket where no IPv4 address is listened on beside it."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if alone else 1)


def want_destinations(sock: socket.socket) -> None:
    """Each datagram comes with the address it was sent to, the time it came, and the count of those lost before."""
    sock.setsockopt(socket.SOL_IP, IP_RECVORIGDSTADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)


def set_receive_buffer(sock: socket.socket, size: int) -> int:
    """Ask for `size` bytes, past net.core.rmem_max where the process may, and never for less than there is;
    returns what is in force."""
    # The kernel doubles what is asked, for its own overhead (socket(7)), and reports the double.
    before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
    except PermissionError:
        if before < size:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def set_receive_timeout(sock: socket.socket, seconds: float) -> None:
    """SO_RCVTIMEO: recv() gives EAGAIN after that long; accepted sockets inherit it. One system call a read,
    where settimeout() costs two."""
    microseconds = max(1, round(seconds * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(*divmod(microseconds, 1_000_000)))


def set_send_timeout(sock: socket.socket, seconds: float) -> None:
    """SO_SNDTIMEO: as set_receive_timeout, for a client that does not read."""
    microseconds = max(1, round(seconds * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(*divmod(microseconds, 1_000_000)))


def told(ancillary: Iterable[tuple[int, int, bytes]]) -> tuple[str, int, int, int]:
    """What the kernel tells with a datagram: its destination's address and port ("" and 0 where it does not), when
    it came (ns since the epoch or 0), and how many this socket has lost so far (u32, wraps; 0 for none).

    These are control messages of recvmsg(2): sockaddr_in, sockaddr_in6, struct timespec and u32; too short ones,
    which no kernel sends, are passed over."""
    dst, dport, instant, lost = "", 0, 0, 0
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET:
            if kind == SO_TIMESTAMPNS and len(data) == _TIMESPEC.size:
                seconds, nanoseconds = _TIMESPEC.unpack(data)
                instant = seconds * 1_000_000_000 + nanoseconds
            elif kind == SO_RXQ_OVFL and len(data) >= 4:
                lost = int.from_bytes(data[:4], sys.byteorder)
        elif kind == IP_ORIGDSTADDR and level == socket.SOL_IP and len(data) >= 8:
            dst, dport = socket.inet_ntoa(data[4:8]), data[2] << 8 | data[3]
        elif kind == IPV6_ORIGDSTADDR and level == socket.IPPROTO_IPV6 and len(data) >= 24:
            dst, dport = plain(socket.inet_ntop(socket.AF_INET6, data[8:24])), data[2] << 8 | data[3]
    return dst, dport, instant, lost


def drops(sock: socket.socket) -> int:
    """SO_MEMINFO: datagrams lost so far, also where no later one came to tell of them (u32, wraps)."""
    data = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * _SK_MEMINFO_VARS)
    values = struct.unpack(f"={len(data) // 4}I", data)
    return values[_SK_MEMINFO_DROPS] if len(values) > _SK_MEMINFO_DROPS else 0


def backlog(sock: socket.socket) -> int:
    """TCP_INFO of a listening socket: how many connections wait to be accepted (tcpi_unacked, the fifth u32 behind
    eight bytes in linux/tcp.h, is its back-log)."""
    data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8 + 5 * 4)
    return int(struct.unpack_from("=I", data, 8 + 4 * 4)[0]) if len(data) >= 28 else 0


def take_no_more(sock: socket.socket) -> None:
    """Have the kernel take nothing more for this datagram socket; what is in its buffer can still be read. OSError
    where that cannot be had."""
    import ctypes  # at a stop alone

    # struct sock_filter and sock_fprog of linux/filter.h: one instruction, BPF_RET | BPF_K, 0 bytes.
    instruction = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    program = struct.pack("@HP", 1, ctypes.addressof(instruction))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
