"""Addresses of this host: what it sends itself is no stranger's knock. And those it depends on: its gateways and
resolvers, which must never be blocked.

Formats are those of proc(5), Documentation/networking/fib_trie.rst of the kernel, and resolv.conf(5).
"""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path

from tcppc.netfilter import tools

PROC = Path("/proc/net")
RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_LOCAL = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)\n\s+/32 host LOCAL")
_RTF_GATEWAY = 0x2  # linux/route.h


def _read(path: Path) -> str:
    """Empty where there is none: a kernel without IPv6, a host without resolvers."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def addresses() -> set[bytes]:
    """Of all interfaces of this network namespace, packed; IPv4 ones also mapped into IPv6 are not there."""
    found = {socket.inet_aton(text) for text in _LOCAL.findall(_read(PROC / "fib_trie"))}
    for line in _read(PROC / "if_inet6").splitlines():
        digits = line.split(" ", 1)[0]
        if re.fullmatch(r"[0-9a-f]{32}", digits):
            found.add(bytes.fromhex(digits))
    return found


def gateways() -> set[bytes]:
    """Routers that this host's routes name, in all tables and with all their next hops where ip(8) tells."""
    found = _told_by_ip()
    for line in _read(PROC / "route").splitlines()[1:]:
        words = line.split()
        if len(words) > 3 and re.fullmatch(r"[0-9A-F]{8}", words[2]) and int(words[3], 16) & _RTF_GATEWAY:
            found.add(struct.pack("=I", int(words[2], 16)))
    for line in _read(PROC / "ipv6_route").splitlines():
        words = line.split()
        if len(words) > 8 and re.fullmatch(r"[0-9a-f]{32}", words[4]) and int(words[8], 16) & _RTF_GATEWAY:
            found.add(bytes.fromhex(words[4]))
    return found


def _told_by_ip() -> set[bytes]:
    """Empty where there is no ip(8): /proc knows the main table's first next hops."""
    found = set()
    for family in ("-4", "-6"):
        try:
            routes = tools.query("ip", "-j", family, "route", "show", "table", "all")
        except tools.RulesError:
            continue
        for route in routes:
            for hop in (route, *route.get("nexthops", [])):
                via = hop.get("gateway") or hop.get("via", {}).get("host", "")
                found |= _packed(str(via))
    return found


def resolvers() -> set[bytes]:
    """Name servers of this host, and those that a resolver on this host asks."""
    found = set()
    for path in RESOLVERS:
        for line in _read(path).splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                found |= _packed(words[1].partition("%")[0])
    return found


def _packed(text: str) -> set[bytes]:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return {socket.inet_pton(family, text)}
        except OSError:
            continue
    return set()
