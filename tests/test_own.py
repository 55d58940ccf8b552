"""Addresses that are this host's, and those it depends on."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tcppc.watch import own
from tests.netns import INNER, SENSOR, Net

PRINT = """
import socket
from tcppc.watch import own
for kind in (own.addresses, own.gateways):
    found = kind()
    print(*sorted(socket.inet_ntop(socket.AF_INET if len(each) == 4 else socket.AF_INET6, each) for each in found))
"""


def test_addresses_and_gateways_of_a_host(net: Net) -> None:
    net.sensor.ip("route add default nexthop via 198.51.100.7 nexthop via 198.51.100.8")
    net.sensor.ip("route add default via 198.51.100.9 table 77")
    net.sensor.ip("-6 route add default via 2001:db8:a::7")
    done = subprocess.run(
        [*net.sensor.prefix, sys.executable, "-c", PRINT],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    addresses, gateways = (line.split() for line in done.stdout.splitlines())
    assert {*SENSOR, *INNER, "127.0.0.1", "::1"} <= set(addresses)
    assert "198.51.100.7" not in addresses
    assert "198.51.100.255" not in addresses
    assert gateways == ["198.51.100.7", "198.51.100.8", "198.51.100.9", "2001:db8:a::7"]


def test_resolvers_as_resolv_conf_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "resolv.conf"
    written.write_text(
        "# nameserver 192.0.2.9\nsearch a\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver x\n"
    )
    monkeypatch.setattr(own, "RESOLVERS", (written, tmp_path / "none"))
    assert own.resolvers() == {socket.inet_aton("192.0.2.1"), socket.inet_pton(socket.AF_INET6, "fe80::1")}


def test_a_kernel_that_writes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "PROC", tmp_path)
    monkeypatch.setattr(own, "_told_by_ip", set)
    assert own.addresses() == own.gateways() == set()
    for name in ("fib_trie", "if_inet6", "route", "ipv6_route"):
        (tmp_path / name).write_text("x\n\nnot what was expected 0 0 0 0 0 0 0 0\n")
    assert own.addresses() == own.gateways() == set()
