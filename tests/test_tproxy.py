"""Real TPROXY: what the kernel hands over reaches the file with what was addressed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import payload
from tests.netns import ATTACKER, ROUTED, SENSOR, Net, knock

PORT = 12345

# By hand, so that this is no test of `tcppc rules`.
RULES = """
table inet by_hand {
  chain prerouting {
    type filter hook prerouting priority mangle; policy accept;
    iifname "veth0" meta nfproto ipv4 meta l4proto { tcp, udp } tproxy ip to :%(port)d meta mark set 1 accept
    iifname "veth0" meta nfproto ipv6 meta l4proto { tcp, udp } tproxy ip6 to :%(port)d meta mark set 1 accept
  }
}
"""


def test_every_port_of_every_address_reaches_the_file_with_what_was_addressed(
    start: Start, net: Net, tmp_path: Path
) -> None:
    for family, everything in ((4, "0.0.0.0/0"), (6, "::/0")):
        net.sensor.ip(f"-{family} rule add fwmark 1 lookup 100")
        net.sensor.ip(f"-{family} route add local {everything} dev lo table 100")
    net.sensor.run("nft", "-f", "-", text=RULES % {"port": PORT})
    sensor = start(hosts=("0.0.0.0", "::"), port=PORT, prefix=net.sensor.prefix)
    assert "IP_TRANSPARENT" not in sensor.log
    wanted = set()
    for kind in ("tcp", "tls", "udp"):
        for host in (SENSOR[0], SENSOR[1], *ROUTED):
            for port in (1, 22, 8443, 65535):
                data = f"{kind} to {host} {port}"
                knock(net.attacker, kind, host, port, data)
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
