"""PROXY protocol: headers of trusted peers are taken, of anybody else they are payload."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import struct
import time
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.harness import Sensor, payload, tcppc, wait_until
from tests.test_proxy_header import V4, V6, tlv, v2, with_checksum

ONE = b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 443\r\n"


@pytest.fixture
def trusting(start: Start, tmp_path: Path) -> Any:
    """trusting(*flags) starts a sensor that believes 127.0.0.0/8."""

    def begin(*flags: str, more: str = "", **options: Any) -> Sensor:
        settings = tmp_path / "tcppc.toml"
        settings.write_text(f'[capture]\nproxy_protocol = ["127.0.0.0/8", "::1"]\n{more}', encoding="ascii")
        return start("-c", str(settings), *flags, **options)

    return begin


def flow(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record["flow"][key] for key in ("proto", "src", "sport", "dst", "dport"))


@pytest.mark.parametrize(
    ("header", "expected", "said"),
    [
        (ONE, ("tcp", "203.0.113.9", 40000, "192.0.2.1", 443), {"version": 1, "transport": "tcp4"}),
        (v2(V4), ("tcp", "203.0.113.9", 40000, "192.0.2.1", 443), {"version": 2, "transport": "tcp4"}),
        (v2(V6, 0x21), ("tcp", "2001:db8::9", 40000, "2001:db8:1::1", 443), {"version": 2, "transport": "tcp6"}),
    ],
)
def test_the_headers_addresses_are_the_sessions(
    trusting: Any, header: bytes, expected: tuple[Any, ...], said: dict[str, Any]
) -> None:
    sensor = trusting()
    sensor.send(header + b"GET / HTTP/1.0\r\n\r\n")
    record = sensor.records(1)[0]
    assert flow(record) == expected
    assert payload(record) == b"GET / HTTP/1.0\r\n\r\n"
    assert (record["bytes"], record["app"]) == (18, "http")
    assert said.items() <= record["proxy"].items()
    assert (record["proxy"]["src"], record["proxy"]["dport"]) == ("127.0.0.1", sensor.port)
    assert tcppc("check", "--records", str(sensor.file)).returncode == 0
    assert sensor.stop() == 0


def test_tlvs_are_kept(trusting: Any) -> None:
    sensor = trusting()
    sensor.send(with_checksum(V4 + tlv(2, b"example.org") + tlv(0xEA, b"\x01vpce-1")) + b"x")
    kept = sensor.records(1)[0]["proxy"]["tlvs"]
    assert [(each["type"], b64decode(each["value"])) for each in kept[:2]] == [
        (2, b"example.org"),
        (0xEA, b"\x01vpce-1"),
    ]
    assert kept[2]["type"] == 3


def test_a_header_in_single_bytes_and_tls_behind_it(trusting: Any) -> None:
    sensor = trusting()
    with sensor.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in v2(V4):
            sock.sendall(bytes([byte]))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(sock, server_hostname="example.org") as tls:
            tls.sendall(b"inside")
    record = sensor.records(1)[0]
    assert flow(record) == ("tls", "203.0.113.9", 40000, "192.0.2.1", 443)
    assert (payload(record), record["tls"]["sni"]) == (b"inside", "example.org")


def test_a_health_check_keeps_the_connections_own_addresses(trusting: Any) -> None:
    sensor = trusting()
    sensor.send(v2(b"", 0x00, 0x20))
    sensor.send(b"PROXY UNKNOWN\r\nx")
    local, unknown = sensor.records(2)
    assert (local["flow"]["src"], local["proxy"]["command"], local["payloads"]) == ("127.0.0.1", "LOCAL", [])
    assert (unknown["flow"]["src"], unknown["proxy"]["transport"], payload(unknown)) == ("127.0.0.1", "unspec", b"x")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "neither version's first bytes"),
        (b"PROXY TCP4 nonsense\r\nand more", "other words"),
        (v2(V4)[:20], "the connection ended within the header"),
        (v2(V4 + b"\x01"), "a cut TLV"),
    ],
)
def test_a_bad_header_of_a_trusted_peer_is_recorded_with_its_bytes(trusting: Any, data: bytes, error: str) -> None:
    sensor = trusting()
    sensor.send(data)
    record = sensor.records(1)[0]
    assert error in record["proxy"]["error"]
    assert (payload(record), record["flow"]["src"], record["closed"]) == (data, "127.0.0.1", "peer")


def test_half_a_header_and_then_silence_is_a_timeout_with_its_bytes(trusting: Any) -> None:
    sensor = trusting("-t", "0.3")
    with sensor.connect() as sock:
        sock.sendall(ONE[:20])
        record = sensor.records(1)[0]
    assert (record["closed"], payload(record)) == ("timeout", ONE[:20])
    assert "ended within the header" in record["proxy"]["error"]


def test_from_anybody_else_a_header_is_payload(start: Start, tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text('[capture]\nproxy_protocol = "10.0.0.0/8"\n', encoding="ascii")
    sensor = start("-c", str(settings))
    sensor.send(ONE + b"x")
    record = sensor.records(1)[0]
    assert (payload(record), record["flow"]["src"]) == (ONE + b"x", "127.0.0.1")
    assert "proxy" not in record


def test_bounds_a_source_are_for_the_header_s_source(trusting: Any) -> None:
    sensor = trusting(more="[limits]\nsessions_per_source = 2\n")
    clients = []
    for last in (1, 1, 1, 2):
        clients.append(sensor.connect())
        clients[-1].sendall(v2(bytes([203, 0, 113, last, 192, 0, 2, 1]) + struct.pack("!HH", 1, 2)) + b"x")
        sensor.said(f"(#Sessions: {len(clients)})") if len(clients) < 3 else sensor.records(1)
    third = sensor.records(1)[0]
    assert (third["flow"]["src"], third["closed"], payload(third)) == ("203.0.113.1", "limit", b"x")
    for client in clients:
        client.close()
    assert sensor.stop() == 0
    assert len(sensor.records(4)) == 4
    assert "1 refused (sessions_per_source)" in sensor.log


def test_event_lines_begin_with_the_headers_addresses(trusting: Any) -> None:
    sensor = trusting("--record", "events")
    sensor.send(ONE + b"x")
    sensor.send(b"none")
    assert sensor.stop() == 0
    assert tcppc("check", "--records", str(sensor.file)).returncode == 0
    found = [json.loads(line) for line in tcppc("recover", str(sensor.file)).stdout.splitlines()]
    assert [(record["flow"]["src"], payload(record)) for record in found] == [
        ("203.0.113.9", b"x"),
        ("127.0.0.1", b"none"),
    ]
    assert [record["proxy"].get("error") for record in found] == [None, "neither version's first bytes"]


def test_a_network_that_is_none_is_one_line(tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text('[capture]\nproxy_protocol = ["10.0.0.0/40"]\n', encoding="ascii")
    done = tcppc("check", "-c", str(settings))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "proxy_protocol" in done.stderr
    assert "expected an address or network such as" in done.stderr


HOUR = "import tcppc.oversight; tcppc.oversight.GATEWAY_SECONDS = 0.5"


def test_when_all_sessions_come_from_one_private_address_it_warns_once(start: Start) -> None:
    sensor = start("-q", patch=HOUR)
    while "hides who they are of" not in sensor.log:
        sensor.send(b"x")
    assert "came from 127.0.0.1, a private address" in sensor.log
    for _ in range(3):
        before = sensor.file.stat().st_size
        while sensor.file.stat().st_size < before + 20_000:
            sensor.send(b"x" * 200)
    assert sensor.log.count("hides who they are of") == 1


def test_two_sources_are_no_gateway(start: Start) -> None:
    sensor = start("-q", hosts=("127.0.0.1", "::1"), patch=HOUR)
    until = time.monotonic() + 1.5  # three of these hours
    while time.monotonic() < until:
        sensor.send(b"x")
        sensor.send(b"x", host="::1")
    assert sensor.stop() == 0
    assert "hides who they are of" not in sensor.log


def test_a_connection_that_is_refused_is_its_clients_too(trusting: Any) -> None:
    """Over a bound: what has come is looked at as ever, and the header is no payload."""
    sensor = trusting(more="[limits]\nsessions = 1\n")
    only = sensor.connect()
    wait_until(lambda: sensor.log.count("Established") == 1, "it to be accepted")
    os.kill(sensor.process.pid, signal.SIGSTOP)  # what is sent meanwhile is there when it is looked at
    stopped = Path(f"/proc/{sensor.process.pid}/stat")
    wait_until(lambda: stopped.read_text().rpartition(")")[2].split()[0] == "T", "it to stand still")
    late = [sensor.connect() for _ in range(5)]
    for number, sock in enumerate(late):
        sock.sendall(ONE + b"refused %d" % number)
    os.kill(sensor.process.pid, signal.SIGCONT)
    refused = sensor.records(5)
    for record in refused:
        assert record["closed"] == "limit"
        assert flow(record) == ("tcp", "203.0.113.9", 40000, "192.0.2.1", 443)
        assert record["proxy"]["transport"] == "tcp4"
        assert payload(record).startswith(b"refused ")
    for sock in [only, *late]:
        sock.close()
    assert sensor.stop() == 0


def test_a_load_balancer_with_many_connections_costs_no_client_its_header(trusting: Any) -> None:
    """What all of them hold before their headers come is the load balancer's; the headers are the clients'."""
    sensor = trusting("-q", more='[limits]\nmemory = "1MiB"\n')
    waiting = [sensor.connect() for _ in range(300)]
    sensor.send(b"PROXY TCP4 203.0.113.9 192.0.2.10 4711 23\r\nhello")
    (record,) = sensor.records(1)
    assert (record["proxy"].get("version"), record["proxy"].get("error")) == (1, None)
    assert payload(record) == b"hello"
    for sock in waiting:
        sock.close()
    assert sensor.stop() == 0
