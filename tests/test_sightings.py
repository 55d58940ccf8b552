"""Lines of what the watch saw keep to the schema, whatever the packet holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc import schema
from tcppc.clock import Zone
from tcppc.protocols import packet
from tcppc.records import Encoder
from tcppc.sightings import Probe, Scan, said
from tcppc.watch import tools
from tests.test_packet import FOUR, SIX, ipv4, ipv6, tcp

ENCODER = Encoder(Zone("UTC"), "sensor-1")


@pytest.fixture(scope="module")
def events() -> Any:
    return schema.validators()[1]


def probe(data: bytes, kind: int, vlan: int = -1) -> Probe | None:
    found = packet.decode(data, kind)
    return found and Probe(1_780_000_000_123_456_789, found, data, vlan, "eth0", tools.name(found, data))


def test_a_syn_s_line(events: Any) -> None:
    seen = probe(ipv4(tcp(extra=b"\2\4\5\xb4"), ttl=50), packet.IPV4, vlan=5)
    assert seen
    line = json.loads(ENCODER.sighting(seen))
    events.validate(line)
    assert line["flow"] == {"proto": "tcp", "src": "198.51.100.7", "sport": 5973, "dst": "192.0.2.10", "dport": 80}
    assert line["syn"] == {
        "flags": "S", "ttl": 50, "ip_id": 7, "df": False, "seq": 1, "window": 1024, "options": ["mss:1460"],
        "interface": "eth0", "vlan": 5, "tool": "nmap",
    }  # fmt: skip
    assert (line["event"], line["sensor"]) == ("syn", "sensor-1")
    assert said(seen) == "New connection: 198.51.100.7:5973 -> 192.0.2.10:80 (nmap)"


def test_a_probe_s_line(events: Any) -> None:
    seen = probe(ipv6(tcp(flags=packet.FIN)), packet.IPV6)
    assert seen
    line = json.loads(ENCODER.sighting(seen))
    events.validate(line)
    assert (line["event"], line["syn"]["flags"], "ip_id" in line["syn"]) == ("probe", "F", False)
    assert said(seen) == "New probe (F): [2001:db8:a::7]:5973 -> [2001:db8:b::1]:80"


@given(st.binary(min_size=40, max_size=120), st.sampled_from([packet.IPV4, packet.IPV6]))
def test_any_packet_makes_a_line_of_the_schema(data: bytes, kind: int) -> None:
    for inner in (data, ipv4(data), ipv6(data)):
        seen = probe(inner, kind)
        if seen and seen.packet.proto == "tcp" and not seen.packet.flags & (packet.ACK | packet.RST):
            line = ENCODER.sighting(seen)
            assert line.isascii()
            error = next(iter(schema.validators()[1].iter_errors(json.loads(line))), None)
            assert error is None, error


@pytest.mark.parametrize("ended", [0, 1_780_000_001_000_000_000])
def test_a_scan_s_line(events: Any, ended: int) -> None:
    scan = Scan(
        1_780_000_002_000_000_000, "hosts", "tcp", SIX[0], ((22, 22),), (SIX[1], FOUR[0]), 2, 3,
        1_780_000_000_000_000_000, ended, 60.0, True, "zmap",
    )  # fmt: skip
    line = json.loads(ENCODER.sighting(scan))
    events.validate(line)
    assert line["scan"]["hosts"] == ["2001:db8:b::1", "198.51.100.7"]
    assert ("ended" in line["scan"]) == bool(ended)


ZMAP = bytes.fromhex("020405b40103030801010402")
LINUX = bytes.fromhex("020405b40402080a010203040000000001030307")
DST = int.from_bytes(FOUR[1], "big")
DF = 0x4000


# What each program sends (tests/test_watch.py runs those that Debian has), and what is nearly that.
@pytest.mark.parametrize(
    ("tool", "data"),
    [
        ("zmap", ipv4(tcp(window=65535), ip_id=54321, ttl=245)),
        ("zmap", ipv4(tcp(window=65535, extra=b"\2\4\5\xb4"), ip_id=54321, ttl=245)),
        ("zmap", ipv4(tcp(window=65535, extra=ZMAP))),
        ("mirai", ipv4(tcp(seq=DST, window=14600))),
        ("masscan", ipv4(tcp(seq=0xAABBCCDD, dport=81), ip_id=0x020A ^ 81 ^ 0xCCDD, ttl=240)),
        ("masscan", ipv4(tcp(seq=0xAABBCCDD, window=1025, extra=b"\2\4\5\xb4"), ip_id=0x020A ^ 80 ^ 0xCCDD, ttl=240)),
        ("nmap", ipv4(tcp(window=2048, extra=b"\2\4\5\xb4"), ttl=50)),
        ("nmap", ipv6(tcp(extra=b"\2\4\5\xb4"))),
        ("hping3", ipv4(tcp(window=512, ack=5))),
        ("", ipv4(tcp(window=64240, extra=LINUX), fragment=DF)),
        ("", ipv4(tcp(window=65535, extra=ZMAP), fragment=DF, ttl=120)),
        ("", ipv4(tcp(window=65535, extra=ZMAP), ttl=120)),
        ("", ipv4(tcp(window=65535), ip_id=54320)),
        ("", ipv4(tcp(seq=0xAABBCCDD), ip_id=0x020A ^ 80 ^ 0xCCDD, ttl=64)),
        ("", ipv4(tcp(extra=b"\2\4\5\xb4"), ttl=64)),
        ("", ipv4(tcp())),
        ("", ipv4(tcp(window=512))),
        ("", ipv4(tcp(flags=packet.FIN, window=512, ack=5))),
    ],
)
def test_the_program_is_named_by_its_marks(tool: str, data: bytes) -> None:
    found = packet.decode(data, packet.IPV6 if data[0] >> 4 == 6 else packet.IPV4)
    assert found
    assert tools.name(found, data) == tool
