"""Sockets that a service manager passes: real ones, by systemd's own program and by hand."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcppc.capture import passed
from tcppc.capture.sockets import ListenError
from tests.conftest import Start
from tests.harness import PATIENCE, Sensor, payload, wait_until


def listener(host: str, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    sock.bind((host, 0))
    if kind == socket.SOCK_STREAM:
        sock.listen(100)
    return sock


@pytest.fixture
def four() -> Iterator[list[socket.socket]]:
    """TCP and UDP, IPv4 and IPv6, as a manager holds them."""
    made = [listener(host, kind) for host in ("127.0.0.1", "::1") for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
    yield made
    for sock in made:
        sock.close()


def say(where: socket.socket, data: bytes) -> None:
    with socket.socket(where.family, where.type) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(where.getsockname())
        sock.sendall(data)


def test_serves_the_sockets_it_is_given_and_no_others(start: Start, four: list[socket.socket]) -> None:
    sensor = start(passed=four)
    wanted = set()
    for number, sock in enumerate(four):
        say(sock, b"to %d" % number)
        proto = "tcp" if sock.type == socket.SOCK_STREAM else "udp"
        wanted.add((proto, *sock.getsockname()[:2], b"to %d" % number))
    found = {
        (record["flow"]["proto"], record["flow"]["dst"], record["flow"]["dport"], payload(record))
        for record in sensor.records(4)
    }
    assert found == wanted
    assert sensor.log.count("Passed by the service manager: ") == 4
    assert sensor.log.count("Listen: ") == 4
    assert sensor.stop() == 0


def test_who_comes_between_two_runs_is_served_by_the_second(start: Start, four: list[socket.socket]) -> None:
    first = start(passed=four)
    for sock in four:
        say(sock, b"first")
    first.records(4)
    assert first.stop() == 0
    for sock in four:
        say(sock, b"between")
    second = start(passed=four)
    for sock in four:
        say(sock, b"second")
    found = [payload(record) for record in second.records(12)]
    assert {text: found.count(text) for text in found} == {b"first": 4, b"between": 4, b"second": 4}
    assert second.stop() == 0


def test_open_sessions_end_with_a_stop_and_idle_acceptors_do_not_hold_it_up(
    start: Start, four: list[socket.socket]
) -> None:
    sensor = start(passed=four)
    with socket.create_connection(four[0].getsockname(), timeout=PATIENCE) as sock:
        sock.sendall(b"half")
        sensor.said("Received: ")
        assert sensor.stop() == 0
    assert [(record["closed"], payload(record)) for record in sensor.records(1)] == [("shutdown", b"half")]
    assert "did not end in time" not in sensor.log


def test_what_a_disabled_kind_is_passed_is_left_alone_and_said(start: Start, four: list[socket.socket]) -> None:
    sensor = start("-disable-udp-server", passed=four)
    assert sensor.log.count("and not served, since UDP is disabled") == 2
    say(four[0], b"tcp")
    assert [payload(record) for record in sensor.records(1)] == [b"tcp"]


def refused(tmp_path: Path, *given: socket.socket | int) -> str:
    """The one line a sensor says before it ends with 1."""
    sensor = Sensor(tmp_path, passed=given)
    try:
        assert sensor.process.wait(PATIENCE) == 1
    finally:
        sensor.kill()
    return sensor.log.splitlines()[-1]


def test_descriptors_that_cannot_be_served_are_named_in_one_line(tmp_path: Path) -> None:
    with listener("127.0.0.1", socket.SOCK_STREAM) as good, (tmp_path / "file").open("wb") as file:
        assert "descriptor 4 of LISTEN_FDS is no socket; expected a listening TCP" in refused(
            tmp_path, good, file.fileno()
        )
    with socket.socket(socket.AF_UNIX) as local:
        assert "descriptor 3 of LISTEN_FDS is of the family AF_UNIX" in refused(tmp_path, local)
    with socket.socket() as idle:
        assert "descriptor 3 of LISTEN_FDS does not listen" in refused(tmp_path, idle)
    with socket.socket(type=socket.SOCK_DGRAM) as unbound:
        assert "descriptor 3 of LISTEN_FDS is not bound" in refused(tmp_path, unbound)
    if os.geteuid() == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            assert "descriptor 3 of LISTEN_FDS is of the type SOCK_RAW, protocol 1" in refused(tmp_path, raw)


def test_a_descriptor_that_is_not_open_and_a_count_that_is_none() -> None:
    with pytest.raises(ListenError, match=r"^descriptor \d+ of LISTEN_FDS is not open"):
        passed._take(os.dup(0) + 50)
    for count in ("-1", "two", "99999999"):
        with pytest.raises(ListenError, match="expected how many sockets"):
            passed.take({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def test_variables_meant_for_another_process_are_not_believed_and_not_handed_on() -> None:
    for pid, count, expected in ((os.getpid() + 1, "1", None), (os.getpid(), "0", [])):
        environment = {"LISTEN_PID": str(pid), "LISTEN_FDS": count, "LISTEN_FDNAMES": "a", "HOME": "/"}
        assert passed.take(environment) == expected
        assert environment == {"HOME": "/"}


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="needs systemd-socket-activate (systemd)")
@pytest.mark.parametrize("datagram", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_under_systemd_socket_activate(tmp_path: Path, host: str, datagram: bool) -> None:
    with listener(host, socket.SOCK_DGRAM if datagram else socket.SOCK_STREAM) as free:
        address = free.getsockname()[:2]
    where = f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"
    data = tmp_path / "data.jsonl"
    flags = ["--datagram"] if datagram else []
    program = [sys.executable, "-m", "tcppc", "-w", str(data)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["systemd-socket-activate", *flags, "--listen", where, *program],
            stderr=log,
            cwd=Path(__file__).parent.parent,
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        wait_until(lambda: b"Listening on" in (tmp_path / "log").read_bytes(), "systemd-socket-activate")
        with socket.socket(family, socket.SOCK_DGRAM if datagram else socket.SOCK_STREAM) as sock:
            sock.connect(address)
            sock.sendall(b"the one that woke it")
        wait_until(lambda: data.exists() and b'"payloads":[{' in data.read_bytes(), "the record")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait(PATIENCE)
