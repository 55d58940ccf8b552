"""What this host has of its own: interfaces, listening ports, and where its ssh is.

The formats of /proc are those of proc(5) and Documentation/networking/proc_net_tcp.rst of the kernel.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_UNCONNECTED, _LISTEN = 0x07, 0x0A  # include/net/tcp_states.h
# OpenSSH's listener is called sshd, its sessions sshd or, since 9.8, sshd-session.
_SSH_PROGRAMS = re.compile(r"sshd(-.*)?|dropbear|tinysshd.*")
# A service manager that listens for others may do so for ssh (ssh.socket).
_MANAGERS = re.compile(r"systemd|init")
# An environment that somebody else wrote may be long; the names looked for come early or not at all.
_MOST_ENVIRONMENT = 1 << 20


class Socket(NamedTuple):
    """A line of /proc/net/{tcp,udp}{,6}."""

    kind: str  # tcp or udp
    port: int
    state: int
    inode: int
    loopback: bool = False  # it is bound to 127.0.0.0/8 or ::1: strangers do not reach it

    @property
    def listens(self) -> bool:
        return self.state == (_LISTEN if self.kind == "tcp" else _UNCONNECTED)


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def has_ipv6(interface: str) -> bool:
    """Is IPv6 there, on this interface and on lo, where TPROXY's packets are delivered?"""
    if not (PROC / "net/if_inet6").exists():
        return False
    for name in (interface, "lo"):
        try:
            if (PROC / "sys/net/ipv6/conf" / name / "disable_ipv6").read_text(encoding="ascii").strip() == "1":
                return False
        except OSError:  # no such switch: a kernel without it, or an interface that is gone, which others tell
            continue
    return True


def parse_sockets(kind: str, text: str) -> Iterator[Socket]:
    """The sockets of one /proc/net file; lines that are none are passed over."""
    for line in text.splitlines()[1:]:
        words = line.split()
        try:
            address, _, port = words[1].rpartition(":")
            loopback = address.endswith("7F") if len(address) == 8 else address == "0" * 24 + "01000000"
            yield Socket(kind, int(port, 16), int(words[3], 16), int(words[9]), loopback)
        except (IndexError, ValueError):  # a line of a kernel that writes something else
            continue


def sockets() -> list[Socket]:
    """All TCP and UDP sockets of this network namespace."""
    found: list[Socket] = []
    for kind in ("tcp", "udp"):
        for name in (kind, f"{kind}6"):
            try:
                text = (PROC / "net" / name).read_text(encoding="ascii")
            except OSError:  # no IPv6 here
                continue
            found += parse_sockets(kind, text)
    return found


def listening() -> tuple[tuple[str, int], ...]:
    """(kind, port) of sockets that wait for strangers."""
    return tuple(sorted({(item.kind, item.port) for item in sockets() if item.listens}))


def reached() -> tuple[tuple[str, int], ...]:
    """(kind, port) of sockets that a stranger can reach: those that wait, but for loopback's, and UDP sockets that hear
    answers."""
    return tuple(
        sorted(
            {(item.kind, item.port) for item in sockets() if not item.loopback and (item.listens or item.kind == "udp")}
        )
    )


def owners(inodes: set[int]) -> Iterator[tuple[int, int]]:
    """(inode, pid) of the processes, as far as we may look, that hold these sockets."""
    for process in PROC.iterdir():
        if process.name.isdigit():
            for inode in _held(process):
                if inode in inodes:
                    yield inode, int(process.name)


def _held(process: Path) -> Iterator[int]:
    """Inodes of the sockets that a process holds."""
    try:
        entries = list((process / "fd").iterdir())
    except OSError:  # gone meanwhile, or another user's
        return
    for entry in entries:
        try:
            target = os.readlink(entry)
        except OSError:  # this one was closed meanwhile
            continue
        if target.startswith("socket:["):
            yield int(target[8:-1])


def unseen() -> list[int]:
    """TCP ports that are listened on by processes that we may not look at."""
    waiting = {item.inode: item.port for item in sockets() if item.kind == "tcp" and item.listens}
    for inode, _ in owners(set(waiting)):
        waiting.pop(inode, None)
    return sorted(set(waiting.values()))


def program(pid: int) -> str:
    """The name of a process; empty where it is gone."""
    try:
        return (PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def parse_connection(text: str) -> int | None:
    """The server's port in SSH_CONNECTION: client address, client port, server address, server port (ssh(1))."""
    words = text.split()
    if len(words) == 4 and words[3].isascii() and words[3].isdigit() and 0 < int(words[3]) < 65536:
        return int(words[3])
    return None


def _environments(own: Mapping[str, str]) -> Iterator[str]:
    """SSH_CONNECTION of this process and those it came from: sudo and su take it out of ours."""
    yield own.get("SSH_CONNECTION", "")
    pid = os.getppid()
    while pid > 1:
        try:
            with (PROC / str(pid) / "environ").open("rb") as file:
                for item in file.read(_MOST_ENVIRONMENT).split(b"\0"):
                    if item.startswith(b"SSH_CONNECTION="):
                        yield item.partition(b"=")[2].decode("ascii", "replace")
        except OSError:  # another user's: its sockets tell, where we may look
            pass
        try:
            stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        pid = int(stat.rpartition(")")[2].split()[1])


def ssh_ports(environment: Mapping[str, str]) -> tuple[int, ...]:
    """Ports at which ssh serves this host: that of the session one is typing in, and those of sshd's sockets."""
    found = {port for text in _environments(environment) if (port := parse_connection(text))}
    ours = [item for item in sockets() if item.kind == "tcp"]
    serving = {item.port for item in ours if item.listens}
    # Also the sessions' sockets, for an sshd whose listener is the service manager's; but not its connections out,
    # for whom it forwards.
    ports = {item.inode: item.port for item in ours if item.inode and item.port in serving}
    found |= {ports[inode] for inode, pid in owners(set(ports)) if _SSH_PROGRAMS.fullmatch(program(pid))}
    return tuple(sorted(found))


def managed_ports() -> tuple[int, ...]:
    """TCP ports at which a service manager listens for services that are not started yet."""
    waiting = {item.inode: item.port for item in sockets() if item.kind == "tcp" and item.listens and item.inode}
    return tuple(sorted({waiting[i] for i, pid in owners(set(waiting)) if _MANAGERS.fullmatch(program(pid))}))


def master(interface: str) -> str:
    """The bridge, bond or VRF that an interface is a port of; empty for none."""
    try:
        return os.path.basename(os.readlink(f"/sys/class/net/{interface}/master"))
    except OSError:
        return ""


def marks_are_routed(interface: str) -> bool:
    """Does the kernel look up where a packet came from by its mark (src_valid_mark)? Then marked ones are dropped."""
    for name in ("all", interface):
        try:
            if (PROC / "sys/net/ipv4/conf" / name / "src_valid_mark").read_text(encoding="ascii").strip() == "1":
                return True
        except OSError:  # no such interface, which others tell
            continue
    return False
