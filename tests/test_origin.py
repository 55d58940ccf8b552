"""Mode redirect: where redirected connections were addressed, with real NAT."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import payload
from tests.netns import ATTACKER, SENSOR, Net, knock
from tests.test_rules import EVERYWHERE, PORT, rules

# One source port to many ports: translation must then change the source port, and the record must not.
ONE_TO_MANY = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
udp = socket.socket(family, socket.SOCK_DGRAM)
udp.bind(("", 5000))
for port in range(1000, 1050):
    udp.sendto(b"%d" % port, (sys.argv[1], port))
    tcp = socket.socket(family)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind(("", 6000))
    tcp.settimeout(20)
    tcp.connect((sys.argv[1], port))
    tcp.sendall(b"%d" % port)
"""


@pytest.mark.parametrize("hosts", [EVERYWHERE, ("::",)], ids=["two sockets", "dual stack"])
def test_one_source_port_to_many_ports(start: Start, net: Net, hosts: tuple[str, ...]) -> None:
    sensor = start("--mode", "redirect", hosts=hosts, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--mode", "redirect")
    wanted = set()
    for family in (0, 1):
        net.attacker.python(ONE_TO_MANY, SENSOR[family])
        for kind, source in (("udp", 5000), ("tcp", 6000)):
            wanted |= {
                (kind, ATTACKER[family], source, SENSOR[family], port, b"%d" % port) for port in range(1000, 1050)
            }
    found = {
        (*(record["flow"][key] for key in ("proto", "src", "sport", "dst", "dport")), payload(record))
        for record in sensor.records(200)
    }
    assert found == wanted


def test_without_the_capability_tcp_is_told_by_so_original_dst(start: Start, net: Net, tmp_path: Path) -> None:
    without = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
    sensor = start("--mode", "redirect", hosts=("::",), port=PORT, prefix=(*net.sensor.prefix, *without))
    rules(net.sensor, "--apply", "--mode", "redirect")
    for address in SENSOR:
        knock(net.attacker, "tcp", address, 80, "tcp")
        knock(net.attacker, "udp", address, 80, "udp")
    flows = {tuple(record["flow"][key] for key in ("proto", "dst", "dport")) for record in sensor.records(4)}
    assert flows == {("tcp", address, 80) for address in SENSOR} | {("udp", address, PORT) for address in SENSOR}
    assert (
        sensor.log.count("Connection tracking cannot be asked: Operation not permitted; it needs CAP_NET_ADMIN.") == 1
    )


def test_called_directly_it_is_as_it_is(start: Start) -> None:
    sensor = start("--mode", "redirect", hosts=("127.0.0.1", "::1"))
    sensor.send(b"tcp")
    sensor.datagram(b"udp", "::1")
    assert {record["flow"]["dport"] for record in sensor.records(2)} == {sensor.port}
    assert sensor.stop() == 0
