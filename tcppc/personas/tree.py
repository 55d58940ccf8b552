"""A small file system for the shell and FTP: made of the sensor's identity, remembering what this session wrote."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace

from tcppc.personas.identity import Identity

MOST_FILES = 200
MOST_FILE_BYTES = 48 << 10
NODE_CHARGE = 400  # bytes of one file or folder beside its path and what is in it
MOST_BYTES = 96 << 10
MOST_DEPTH = 16
MOST_NAME, MOST_PATH = 255, 1024
"""What a session may write: files and folders, bytes of each and in all; how deep folders may go; characters of a name
and of a path."""

_FOLDERS = (
    "/bin", "/boot", "/dev", "/etc", "/etc/init.d", "/home", "/lib", "/media", "/mnt", "/opt", "/proc", "/root", "/run",
    "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/local", "/usr/local/bin", "/usr/sbin", "/usr/share",
    "/var", "/var/backups", "/var/cache", "/var/lib", "/var/log", "/var/run", "/var/spool", "/var/tmp", "/var/www",
    "/var/www/html",
)  # fmt: skip
_READ_ONLY = ("/proc", "/sys")
_PROGRAMS = (
    "bash", "busybox", "cat", "chmod", "chown", "cp", "curl", "date", "dd", "df", "echo", "free", "grep", "head",
    "hostname", "id", "kill", "ls", "mkdir", "mount", "mv", "ps", "pwd", "rm", "rmdir", "sh", "sleep",
    "tail", "tftp", "touch", "uname", "uptime", "w", "wget", "which", "who", "whoami",
)  # fmt: skip


@dataclass
class Node:
    """A file, or a folder where `data` is None."""

    data: bytes | None
    mode: int
    owner: str
    changed: float
    size: int = -1

    @property
    def length(self) -> int:
        return 4096 if self.data is None else self.size if self.size >= 0 else len(self.data)


class TreeError(Exception):
    """What a program says of a path it cannot use: `No such file or directory`."""


def absolute(path: str, folder: str) -> str:
    """A path made absolute, with . and .. taken out."""
    parts: list[str] = []
    for part in (path if path.startswith("/") else f"{folder}/{path}").split("/"):
        if part == "..":
            parts[-1:] = []
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


@functools.lru_cache(maxsize=4)
def _first_nodes(identity: Identity) -> dict[str, Node]:
    """What every session finds. Nobody changes it."""
    nodes: dict[str, Node] = {}
    lot = identity.lot("tree")
    begun = float(identity.installed)
    for path in ("/", *_FOLDERS):
        mode = 0o700 if path == "/root" else 0o1777 if path in ("/tmp", "/var/tmp") else 0o755
        nodes[path] = Node(None, mode, "root", begun + lot.randrange(10_000_000))
    for name in _PROGRAMS:
        nodes[f"/bin/{name}"] = Node(b"\x7fELF", 0o755, "root", begun, lot.randrange(20_000, 900_000))
    for person in identity.people:
        nodes[f"/home/{person}"] = Node(None, 0o755, person, begun + lot.randrange(30_000_000))
    for path, text in _texts(identity, lot.randrange(1_000_000)).items():
        nodes[path] = Node(text.encode(), 0o640 if "shadow" in path else 0o644, "root", begun)
    for path in ("/dev/null", "/dev/zero", "/dev/tty", "/dev/urandom"):
        nodes[path] = Node(b"", 0o666, "root", begun)
    return nodes


def _texts(who: Identity, salt: int) -> dict[str, str]:
    people = [(name, 1000 + number) for number, name in enumerate(who.people)]
    system = [("root", 0, "/root", "/bin/bash"), ("daemon", 1, "/usr/sbin", "/usr/sbin/nologin"),
              ("bin", 2, "/bin", "/usr/sbin/nologin"), ("sys", 3, "/dev", "/usr/sbin/nologin"),
              ("mail", 8, "/var/mail", "/usr/sbin/nologin"), ("www-data", 33, "/var/www", "/usr/sbin/nologin"),
              ("nobody", 65534, "/nonexistent", "/usr/sbin/nologin")]  # fmt: skip
    accounts = [(*entry, entry[0]) for entry in system]
    accounts += [(name, number, f"/home/{name}", "/bin/bash", f"{name},,,") for name, number in people]
    passwd = "".join(f"{name}:x:{uid}:{uid}:{full}:{home}:{shell}\n" for name, uid, home, shell, full in accounts)
    last = who.installed // 86400 + salt % 90
    shadow = "".join(f"{name}:*:{last}:0:99999:7:::\n" for name, *_ in accounts)
    name, version = who.system.rsplit(" ", 1)[0], who.system
    processors = "".join(
        f"processor\t: {core}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\n"
        f"model name\t: Intel(R) Xeon(R) CPU E5-26{salt % 90 + 10} v4 @ 2.{salt % 7 + 2}0GHz\n"
        f"cpu MHz\t\t: 2{salt % 700 + 200}.{salt % 1000:03d}\ncache size\t: 16384 KB\ncpu cores\t: {who.cores}\n"
        "flags\t\t: fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat sse sse2 ht syscall nx lm\n\n"
        for core in range(who.cores)
    )
    return {
        "/etc/hostname": f"{who.host}\n",
        "/etc/hosts": f"127.0.0.1\tlocalhost\n127.0.1.1\t{who.domain}\t{who.host}\n::1\tlocalhost ip6-localhost\n",
        "/etc/passwd": passwd,
        "/etc/shadow": shadow,
        "/etc/issue": f"{version} \\n \\l\n\n",
        "/etc/os-release": f'PRETTY_NAME="{version}"\nNAME="{name}"\n',
        "/etc/resolv.conf": "nameserver 127.0.0.53\noptions edns0 trust-ad\n",
        "/etc/machine-id": f"{who.machine_id}\n",
        "/proc/cpuinfo": processors,
        "/proc/meminfo": f"MemTotal:       {who.memory_kib} kB\nMemFree:        {who.memory_kib // 3} kB\n"
        f"MemAvailable:   {who.memory_kib // 2} kB\nBuffers:        {who.memory_kib // 40} kB\n",
        "/proc/version": f"Linux version {who.kernel} {who.build}\n",
        "/proc/mounts": "/dev/vda1 / ext4 rw,relatime,errors=remount-ro 0 0\nproc /proc proc rw,nosuid,nodev 0 0\n"
        "sysfs /sys sysfs rw,nosuid,nodev,noexec 0 0\ntmpfs /run tmpfs rw,nosuid,noexec 0 0\n"
        "tmpfs /tmp tmpfs rw 0 0\n",
        "/var/www/html/index.html": f"<html><body><h1>{who.host}</h1></body></html>\n",
        "/root/.bashrc": "# ~/.bashrc: executed by bash(1) for non-login shells.\n",
    }


class Tree:
    """Paths are absolute and plain (`absolute`)."""

    def __init__(self, identity: Identity) -> None:
        self._written = 0
        self._bytes = 0
        self.held = 0  # bytes of what this session has made, also of what is gone again
        self.nodes = dict(_first_nodes(identity))

    def changeable(self, path: str) -> Node:
        """A node of this session's own, to be changed: the others are all sessions'."""
        self.nodes[path] = node = replace(self.get(path))
        return node

    def get(self, path: str) -> Node:
        if (node := self.nodes.get(path)) is None:
            raise TreeError("No such file or directory")
        return node

    def names(self, path: str) -> list[str]:
        """What is in a folder, in order."""
        if self.get(path).data is not None:
            raise TreeError("Not a directory")
        start = path.rstrip("/") + "/"
        return sorted(
            name[len(start) :]
            for name in self.nodes
            if name.startswith(start) and "/" not in name[len(start) :] and name != "/"
        )

    def _room(self, path: str) -> None:
        """TreeError where nothing may be written there."""
        parent = path.rpartition("/")[0] or "/"
        if self.get(parent).data is not None:
            raise TreeError("Not a directory")
        if path.startswith(_READ_ONLY):
            raise TreeError("Permission denied")
        if len(path) > MOST_PATH or len(path.rpartition("/")[2]) > MOST_NAME:
            raise TreeError("File name too long")
        if path not in self.nodes:
            if self._written >= MOST_FILES or path.count("/") > MOST_DEPTH:
                raise TreeError("No space left on device")
            self._written += 1
            self.held += NODE_CHARGE + len(path)

    def write(self, path: str, data: bytes, now: float, append: bool = False) -> None:
        """As a shell's > and >>."""
        node = self.nodes.get(path)
        if node and node.data is None:
            raise TreeError("Is a directory")
        if path.startswith("/dev/") and node:
            return
        self._room(path)
        before = node.data if node and node.data and append else b""
        self._bytes += min(len(data), MOST_FILE_BYTES)
        if self._bytes > MOST_BYTES:
            raise TreeError("No space left on device")
        self.held += min(len(data), MOST_FILE_BYTES)
        self.nodes[path] = Node((before + data)[:MOST_FILE_BYTES], node.mode if node else 0o644, "root", now)

    def make(self, path: str, now: float) -> None:
        """As mkdir."""
        if path in self.nodes:
            raise TreeError("File exists")
        self._room(path)
        self.nodes[path] = Node(None, 0o755, "root", now)

    def remove(self, path: str, deep: bool = False) -> None:
        """As rm, with `deep` rm -r."""
        node = self.get(path)
        if path.startswith((*_READ_ONLY, "/dev")) or path == "/":
            raise TreeError("Operation not permitted")
        if node.data is None and not deep:
            raise TreeError("Is a directory")
        for name in [name for name in self.nodes if name == path or name.startswith(f"{path}/")]:
            del self.nodes[name]


def long_line(name: str, node: Node, now: float) -> str:
    """As ls -l has it; the year where it is more than half a year ago."""
    kind = "d" if node.data is None else "-"
    bits = "".join(letter if node.mode >> (8 - index) & 1 else "-" for index, letter in enumerate("rwxrwxrwx"))
    if node.mode & 0o1000:
        bits = bits[:-1] + "t"
    changed = min(node.changed, now)
    recent = now - changed < 182 * 86400
    when = time.strftime("%b %e %H:%M" if recent else "%b %e  %Y", time.gmtime(changed))
    links = 2 if node.data is None else 1
    return f"{kind}{bits} {links:>3} {node.owner:<8} {node.owner:<8} {node.length:>8} {when} {name}"
