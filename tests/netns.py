"""Three hosts in network namespaces that a test makes: an attacker, a sensor, and one behind the sensor.

    attacker veth0 ---- veth0 sensor veth1 ---- veth1 third

All traffic stays in them. Addresses are those for documentation (RFC 5737, RFC 3849).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from tests.harness import wait_until

ATTACKER = ("198.51.100.7", "2001:db8:a::7")
SENSOR = ("198.51.100.1", "2001:db8:a::1")
INNER = ("203.0.113.1", "2001:db8:c::1")  # the sensor's address towards the third host
THIRD = ("203.0.113.9", "2001:db8:c::9")
ROUTED = ("192.0.2.55", "2001:db8:b::55")  # of networks that are routed to the sensor and not configured on it
ROUTED_NETWORKS = ("192.0.2.0/24", "2001:db8:b::/64")
ROOT = Path(__file__).parent.parent


def run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass
class Host:
    """One namespace."""

    name: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def prefix(self) -> tuple[str, ...]:
        return "ip", "netns", "exec", self.name

    def run(self, *command: str, text: str | None = None) -> str:
        return run(*self.prefix, *command, text=text)

    def ip(self, words: str) -> str:
        return run("ip", "-n", self.name, *words.split())

    def python(self, program: str, *arguments: str) -> str:
        return self.run(sys.executable, "-c", program, *arguments)

    def start(self, *command: str, stdin: int | IO[str] | None = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """A process that is ended with the test."""
        process = subprocess.Popen(
            [*self.prefix, *command], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.processes.append(process)
        return process

    def tcppc(
        self, *arguments: str, environment: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """The command, typed on this host, as from a terminal that is no ssh session unless `environment` says so."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
        return subprocess.run(
            [*self.prefix, *prefix, sys.executable, "-m", "tcppc", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
            env=clean | (environment or {}),
        )

    def state(self) -> tuple[str, ...]:
        """All that rules are made of, but for what the kernel itself adds and takes away (link-local, multicast)."""
        texts = [self.run("nft", "list", "ruleset")]
        for family in (4, 6):
            lines = (self.ip(f"-{family} rule show") + self.ip(f"-{family} route show table all")).splitlines()
            texts.append("\n".join(sorted(line for line in lines if "fe80:" not in line and "ff00:" not in line)))
        return tuple(texts)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
            if process.stdin:
                process.stdin.close()
        # What the test's own processes left behind in this namespace, such as a session of sshd.
        for pid in run("ip", "netns", "pids", self.name).split():
            os.kill(int(pid), signal.SIGKILL)
        run("ip", "netns", "del", self.name)


@dataclass
class Net:
    attacker: Host
    sensor: Host
    third: Host


def _settled(host: Host, device: str) -> bool:
    """Does the kernel answer who asks for this device's IPv6 address? It takes a moment after the device is up."""
    return f"multicast ff00::/8 dev {device}" in host.ip("-6 route show table local type multicast")


def _join(left: Host, right: Host, device: str, ours: tuple[str, str], theirs: tuple[str, str]) -> None:
    left.ip(f"link add {device} type veth peer name {device} netns {right.name}")
    for host, (four, six) in ((left, ours), (right, theirs)):
        host.ip(f"addr add {four}/24 dev {device}")
        host.ip(f"addr add {six}/64 dev {device} nodad")
        host.ip(f"link set {device} up")
    wait_until(lambda: _settled(left, device) and _settled(right, device), "IPv6 to settle")


def why_not() -> str:
    """Why there are no network namespaces here; empty where there are."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("nft"):
        return "network namespaces need root, ip and nft"
    return ""


def make() -> Iterator[Net]:
    if problem := why_not():
        pytest.skip(problem)
    hosts: list[Host] = []
    try:
        for letter in "ast":
            name = f"tcppc-{letter}{os.getpid()}"
            run("ip", "netns", "add", name)
            hosts.append(Host(name))
            hosts[-1].ip("link set lo up")
            # Addresses are used at once: no second's wait for another host that might have them.
            hosts[-1].run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
            # A refused datagram is told each time.
            hosts[-1].run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
        net = Net(*hosts)
        _join(net.attacker, net.sensor, "veth0", ATTACKER, SENSOR)
        _join(net.sensor, net.third, "veth1", INNER, THIRD)
        for family, gateway, network in zip((4, 6), SENSOR, ROUTED_NETWORKS, strict=True):
            net.attacker.ip(f"-{family} route add {network} via {gateway}")
            net.attacker.ip(f"-{family} route add default via {gateway}")
        for family, gateway in zip((4, 6), INNER, strict=True):
            net.third.ip(f"-{family} route add default via {gateway}")
        net.sensor.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield net
    finally:
        for host in hosts:
            host.close()


# One knock: KIND HOST PORT TEXT; prints what came back, or the error's name.
CLIENT = """
import socket, ssl, sys
kind, host, port, data = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].encode()
family = socket.AF_INET6 if ":" in host else socket.AF_INET
try:
    if kind == "udp":
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.settimeout(float(sys.argv[5]) if len(sys.argv) > 5 else 0.01)
        sock.connect((host, port))
        sock.send(data)
    else:
        sock = socket.create_connection((host, port), timeout=float(sys.argv[5]) if len(sys.argv) > 5 else 20)
        if kind == "tls":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = context.wrap_socket(sock)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    print(sock.recv(4096).decode("ascii", "replace"))
except OSError as problem:
    print(type(problem).__name__)
"""

# Answers each TCP connection and each datagram on PORT with TEXT and what it was sent.
ECHO = """
import socket, sys, threading
port, text = int(sys.argv[1]), sys.argv[2].encode()
tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", port))
def serve(sock):
    while data := sock.recv(4096):
        sock.sendall(text + data)
    sock.close()
def datagrams():
    while True:
        data, peer = udp.recvfrom(65536)
        udp.sendto(text + data, peer)
threading.Thread(target=datagrams, daemon=True).start()
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(tcp.accept()[0],), daemon=True).start()
"""


def echo(host: Host, port: int, text: str) -> None:
    """A service of a host's own."""
    process = host.start(sys.executable, "-c", ECHO, str(port), text)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"


def knock(host: Host, kind: str, address: str, port: int, text: str, seconds: float | None = None) -> str:
    """What one client is answered, or the name of its error."""
    return host.python(CLIENT, kind, address, str(port), text, *([str(seconds)] if seconds else [])).strip()
