"""Real TPROXY in network namespaces that this test makes: an attacker host and a sensor host, joined by a veth."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import payload

# Addresses for documentation (RFC 5737, RFC 3849); the networks are routed to the sensor, not configured on it.
ATTACKER, SENSOR = ("198.51.100.7", "2001:db8:a::7"), ("198.51.100.1", "2001:db8:a::1")
ROUTED = ("192.0.2.55", "2001:db8:b::55")
PORT = 12345

RULES = """
table inet tcppc_test {
  chain prerouting {
    type filter hook prerouting priority mangle; policy accept;
    iifname "veth0" meta nfproto ipv4 meta l4proto { tcp, udp } tproxy ip to :%(port)d meta mark set 1 accept
    iifname "veth0" meta nfproto ipv6 meta l4proto { tcp, udp } tproxy ip6 to :%(port)d meta mark set 1 accept
  }
}
"""


def run(command: str, text: str | None = None) -> None:
    subprocess.run(command.split(), input=text, text=True, check=True, capture_output=True, timeout=30)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """(attacker, sensor): namespaces with a veth between them, TPROXY rules in the sensor's."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("nft"):
        pytest.skip("network namespaces need root, ip and nft")
    attacker, sensor = f"tcppc-a{os.getpid()}", f"tcppc-s{os.getpid()}"
    made = []
    try:
        for name in (attacker, sensor):
            run(f"ip netns add {name}")
            made.append(name)
            run(f"ip -n {name} link set lo up")
        run(f"ip -n {attacker} link add veth0 type veth peer name veth0 netns {sensor}")
        for name, (four, six) in ((attacker, ATTACKER), (sensor, SENSOR)):
            run(f"ip -n {name} addr add {four}/24 dev veth0")
            run(f"ip -n {name} addr add {six}/64 dev veth0 nodad")
            run(f"ip -n {name} link set veth0 up")
        run(f"ip -n {attacker} route add 192.0.2.0/24 via {SENSOR[0]}")
        run(f"ip -n {attacker} -6 route add 2001:db8:b::/64 via {SENSOR[1]}")
        for family, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
            run(f"ip -n {sensor} {family} rule add fwmark 1 lookup 100")
            run(f"ip -n {sensor} {family} route add local {everything} dev lo table 100")
        run(f"ip netns exec {sensor} nft -f -", RULES % {"port": PORT})
        yield attacker, sensor
    finally:
        for name in made:
            run(f"ip netns del {name}")


CLIENT = """
import socket, ssl, sys
kind, host, port, data = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].encode()
family = socket.AF_INET6 if ":" in host else socket.AF_INET
if kind == "udp":
    socket.socket(family, socket.SOCK_DGRAM).sendto(data, (host, port))
else:
    sock = socket.create_connection((host, port), timeout=20)
    if kind == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock)
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)
"""


def test_every_port_of_every_address_reaches_the_file_with_what_was_addressed(
    start: Start, hosts: tuple[str, str], tmp_path: Path
) -> None:
    attacker, sensor_host = hosts
    sensor = start(hosts=("0.0.0.0", "::"), port=PORT, prefix=("ip", "netns", "exec", sensor_host))
    assert "IP_TRANSPARENT" not in sensor.log
    wanted = set()
    for kind in ("tcp", "tls", "udp"):
        for host in (SENSOR[0], SENSOR[1], *ROUTED):
            for port in (1, 22, 8443, 65535):
                data = f"{kind} to {host} {port}"
                client = ["ip", "netns", "exec", attacker, sys.executable, "-c", CLIENT, kind, host, str(port), data]
                subprocess.run(client, check=True, timeout=60, capture_output=True)
                wanted.add((kind, ATTACKER[":" in host], host, port, data.encode()))
    records = sensor.records(len(wanted))
    found = {
        (*(record["flow"][key] for key in ("proto", "src", "dst", "dport")), payload(record)) for record in records
    }
    assert found == wanted
    assert sensor.stop() == 0


def test_without_the_capability_it_warns_once_and_serves(start: Start) -> None:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("dropping a capability needs root and setpriv")
    bounded = ("setpriv", "--bounding-set", "-net_admin,-net_raw", "--inh-caps", "-net_admin,-net_raw")
    sensor = start(hosts=("127.0.0.1", "::1"), prefix=bounded)
    assert sensor.log.count("Failed to set socket option (IP_TRANSPARENT): it needs CAP_NET_ADMIN or CAP_NET_RAW") == 1
    sensor.send(b"still served")
    sensor.datagram(b"still served")
    assert [payload(record) for record in sensor.records(2)] == [b"still served"] * 2
