"""Who is never acted upon."""

from __future__ import annotations

import socket
from ipaddress import ip_network

import pytest

from tcppc.actions.allow import Allowed
from tcppc.watch import own


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch) -> Allowed:
    monkeypatch.setattr(own, "addresses", lambda: {socket.inet_aton("192.0.2.10")})
    monkeypatch.setattr(own, "gateways", lambda: {socket.inet_pton(socket.AF_INET6, "2001:db8:1::1")})
    monkeypatch.setattr(own, "resolvers", lambda: {socket.inet_aton("192.0.2.53")})
    made = Allowed([ip_network("203.0.113.0/24"), ip_network("2001:db8:2:3:4::/80")])
    made.look()
    return made


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("198.51.100.7", ""),
        ("192.0.2.11", ""),
        ("2001:db8:9::1", ""),
        ("203.0.113.200", "203.0.113.0/24 is in allow"),
        ("2001:db8:2:3:ffff::1", "2001:db8:2:3:4::/80 is in allow"),  # its /64 would be blocked
        ("192.0.2.10", "192.0.2.10 is this host's own, its gateway or its resolver"),
        ("192.0.2.53", "192.0.2.53 is this host's own, its gateway or its resolver"),
        ("2001:db8:1::77", "2001:db8:1::1 is this host's own, its gateway or its resolver"),
        ("127.0.0.1", "it is no address of the internet"),
        ("::1", "it is no address of the internet"),
        ("fe80::1", "it is no address of the internet"),
        ("224.0.0.1", "it is no address of the internet"),
        ("0.0.0.0", "it is no address of the internet"),
    ],
)
def test_who_is_left_alone(around: Allowed, address: str, why: str) -> None:
    assert around.why(address) == why
    assert around.why(address) == why


def test_a_new_look_forgets_what_it_knew(around: Allowed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert around.why("198.51.100.7") == ""
    monkeypatch.setattr(own, "addresses", lambda: {socket.inet_aton("198.51.100.7")})
    around.look()
    assert around.why("198.51.100.7")


def test_memory_is_bounded(around: Allowed) -> None:
    for number in range(70_000):
        around.why(f"11.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(around._known) <= 65_536
