"""Datagrams, from outside."""

from __future__ import annotations

import socket
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import payload, tcppc


def test_a_datagram_is_one_record(start: Start) -> None:
    sensor = start()
    sport = sensor.datagram(b"hello")
    (record,) = sensor.records(1)
    assert record["flow"] == {
        "proto": "udp", "src": "127.0.0.1", "sport": sport, "dst": "127.0.0.1", "dport": sensor.port,
    }  # fmt: skip
    assert payload(record) == b"hello"
    assert record["bytes"] == 5
    assert "UDP: Received: " in sensor.log
    assert '"hello" (5 bytes)' in sensor.log


# tcppc-go cut datagrams at 2048 bytes; 65,507 is the most that UDP over IPv4 carries.
@pytest.mark.parametrize("size", [0, 1, 1024, 2047, 2048, 2049, 4096, 65507])
def test_datagrams_of_any_size_are_kept_whole(start: Start, size: int) -> None:
    sensor = start("-q")
    data = bytes(index % 253 for index in range(size))
    sensor.datagram(data)
    (record,) = sensor.records(1)
    assert payload(record) == data
    assert len(record["payloads"]) == 1


def test_an_ipv6_datagram_is_kept_and_ends_nothing(start: Start) -> None:
    sensor = start(hosts=("127.0.0.1", "::1"))
    sensor.datagram(b"six", host="::1")
    sensor.datagram(b"four")
    flows = {payload(record): record["flow"] for record in sensor.records(2)}
    assert (flows[b"six"]["src"], flows[b"six"]["dst"], flows[b"six"]["dport"]) == ("::1", "::1", sensor.port)
    assert flows[b"four"]["src"] == "127.0.0.1"


def test_a_wildcard_socket_records_the_address_that_was_meant(start: Start) -> None:
    sensor = start(hosts=("0.0.0.0",))
    sensor.datagram(b"to two", host="127.0.0.2")
    sensor.datagram(b"to three", host="127.0.0.3")
    flows = {payload(record): record["flow"]["dst"] for record in sensor.records(2)}
    assert flows == {b"to two": "127.0.0.2", b"to three": "127.0.0.3"}


def test_what_the_kernel_drops_is_counted_and_shown(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text("[capture]\nudp_buffer = 4096\n", encoding="ascii")
    sensor = start("-q", "-c", str(path))
    import signal

    sensor.signal(signal.SIGSTOP)  # nobody reads while these arrive
    sent = 500
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(sent):
            sock.sendto(b"x" * 100, ("127.0.0.1", sensor.port))
    sensor.signal(signal.SIGCONT)
    sensor.records(1)
    time.sleep(0.2)
    assert sensor.stop() == 0
    lost = int(sensor.log.split(" kernel_udp_drops")[0].rpartition(" ")[2])
    assert lost > 0
    assert len(sensor.lines()) + lost == sent
    assert "datagrams lost by the kernel" in sensor.log


def test_a_burst_of_datagrams_is_kept_without_a_loss(start: Start) -> None:
    sensor = start("-q")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(5000):
            sock.sendto(b"%d" % number, ("127.0.0.1", sensor.port))
    records = sensor.records(5000)
    assert Counter(payload(record) for record in records) == Counter(b"%d" % number for number in range(5000))


def test_what_has_arrived_at_sigterm_is_recorded(start: Start) -> None:
    import signal

    sensor = start("-q")
    sensor.signal(signal.SIGSTOP)
    for number in range(50):
        sensor.datagram(b"%d" % number)
    sensor.signal(signal.SIGTERM)
    sensor.signal(signal.SIGCONT)
    assert sensor.stop() == 0
    assert len(sensor.lines()) == 50


def test_udp_alone_serves_no_tcp(start: Start) -> None:
    sensor = start("-disable-tcp-server")
    sensor.datagram(b"only me")
    assert payload(sensor.records(1)[0]) == b"only me"
    with pytest.raises(ConnectionRefusedError):
        sensor.connect()


def test_both_disabled_is_refused() -> None:
    done = tcppc("-disable-tcp-server", "-disable-udp-server")
    assert done.returncode == 2
    assert done.stderr == "tcppc: the command line: TCP and UDP are both disabled: there is nothing to serve\n"
