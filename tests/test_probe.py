"""A sensor that knocks at its own listeners."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from tcppc.capture import probe
from tcppc.capture.probe import Awaited
from tests.conftest import Start
from tests.harness import Sensor, payload
from tests.netns import Net

OFTEN = "import tcppc.capture.probe as probe; probe.PAUSE_SECONDS = 0.2; probe.ANSWER_SECONDS = 0.5"
DROP = (
    "table inet wall {{ chain input {{ type filter hook input priority 0; iifname lo {kind} dport {port} drop\n}}\n}}"
)


def listener_lines(folder: Path) -> list[tuple[str, bool]]:
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_bytes().splitlines()]
    return [(line["listener"], line["alive"]) for line in lines if line["event"] == "listener"]


def test_a_listener_that_stops_answering_is_found_out_and_found_again(start: Start, net: Net, tmp_path: Path) -> None:
    """The kernel stands in for a dead listener: what comes for it is dropped."""
    hosts = ("0.0.0.0", "::")
    sensor = start(hosts=hosts, port=12345, prefix=net.sensor.prefix, patch=OFTEN)
    wanted = []
    for kind, name in (("tcp", "[::]:12345"), ("udp", "0.0.0.0:12345")):
        net.sensor.python("import time; time.sleep(1)")  # each listener has answered once by now
        family = "ip6 nexthdr" if name.startswith("[") else "ip protocol"
        wall = DROP.format(kind=f"{family} {kind} {kind}", port=12345)
        net.sensor.run("nft", "-f", "-", text=wall)
        sensor.said(f"Probe of {kind.upper()} {name}: NO ANSWER: nothing is captured there (")
        net.sensor.run("nft", "delete", "table", "inet", "wall")
        sensor.said(f"Probe of {kind.upper()} {name}: it answers again.")
        wanted += [(f"{kind} {name}", False), (f"{kind} {name}", True)]
    assert sensor.stop() == 0
    assert listener_lines(tmp_path) == wanted
    assert "2 listener_dead" in sensor.log
    assert sensor.lines() == []  # a probe is nobody's session
    assert sensor.account().returncode == 0


def test_probes_are_no_sessions_and_strangers_are_no_probes(start: Start) -> None:
    sensor: Sensor = start(hosts=("127.0.0.1", "::1"), patch=OFTEN)
    for number in range(20):
        sensor.send(b"session %d" % number)
        sensor.datagram(b"datagram %d" % number)
    records = sensor.records(40)
    assert {payload(record) for record in records} == {
        b"%s %d" % (kind, number) for kind in (b"session", b"datagram") for number in range(20)
    }
    assert sensor.stop() == 0
    assert " Sessions: 40 accepted" in sensor.log
    assert "Probe" not in sensor.log


def test_only_the_expected_source_with_the_expected_bytes_is_a_probe() -> None:
    awaited = Awaited()
    assert not awaited
    event = awaited.expect(("127.0.0.1", 5000), b"nonce")
    assert awaited
    assert not awaited.came(("127.0.0.1", 5001), b"nonce")
    assert not awaited.came(("127.0.0.1", 5000), b"other")
    assert not event.is_set()
    assert awaited.came(("127.0.0.1", 5000), b"nonce")
    assert event.is_set()
    awaited.forget(("127.0.0.1", 5000))
    assert not awaited.came(("127.0.0.1", 5000), b"nonce")


def test_a_probe_that_comes_late_is_no_stranger_s(monkeypatch: pytest.MonkeyPatch) -> None:
    awaited = Awaited()
    datagram, connection = ("127.0.0.1", 5000), ("127.0.0.1", 5001)
    awaited.expect(datagram, b"nonce")
    awaited.forget(datagram, late=True)
    awaited.expect(connection)
    awaited.forget(connection, late=True)
    assert [awaited.came(datagram, b"nonce") for _ in range(3)] == [True] * 3  # as many as were sent
    assert not awaited.came(datagram, b"a stranger's")
    assert [awaited.came(connection) for _ in range(2)] == [True, False]
    monkeypatch.setattr(probe, "LATE_SECONDS", -1.0)
    awaited.forget(datagram, late=True)
    awaited.forget(datagram)
    assert not awaited


def test_a_probe_that_never_was_answered_says_so_once(start: Start, net: Net) -> None:
    net.sensor.run("nft", "-f", "-", text=DROP.format(kind="tcp", port=12345))
    sensor = start(hosts=("0.0.0.0",), port=12345, prefix=net.sensor.prefix, patch=OFTEN)
    sensor.said("Probe of TCP 0.0.0.0:12345: no answer from here; is its loopback traffic filtered?")
    net.sensor.python("import time; time.sleep(2)")
    assert sensor.log.count("Probe of TCP") == 1
    assert sensor.stop() == 0


class Fickle:
    """A listener that answers as the test says."""

    name = "0.0.0.0:1"
    progress = 0


def test_one_knock_in_vain_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []
    answers = iter([True, False, False, True, False, False, False, False, True])
    monkeypatch.setattr(probe, "knock_tcp", lambda listener: next(answers))
    prober = probe.Prober([Fickle()], [], lambda line: None, lambda kind, name, alive: found.append(alive))  # type: ignore[list-item]
    well = []
    for _ in range(9):
        prober._look("TCP", Fickle())  # type: ignore[arg-type]
        well.append(prober.well())
    assert found == [False, True]
    assert well == [True] * 6 + [False, False, True]


def test_a_listener_that_a_flood_keeps_busy_is_not_dead(start: Start, tmp_path: Path) -> None:
    """Its buffer is always full, so that no knock ever comes through."""
    (tmp_path / "c.toml").write_text("[capture]\nudp_buffer = 8192\n", encoding="ascii")
    slow = "import time; from tcppc.capture.books import Books; real = Books.datagram; "
    slow += "Books.datagram = lambda self, *a: (time.sleep(0.005), real(self, *a))[1]; "
    slow += f"import tcppc.capture.probe as p; p.ANSWER_SECONDS = 0.3; {OFTEN}"
    sensor = start("-q", "-c", str(tmp_path / "c.toml"), patch=slow)
    sensor.datagram(b"first")
    sensor.records(1)
    time.sleep(1.5)  # for the first knocks, which are answered
    until = time.monotonic() + 8
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while time.monotonic() < until:
            for _ in range(50):
                sock.sendto(b"flood", ("127.0.0.1", sensor.port))
            time.sleep(0.005)
    assert "NO ANSWER" not in sensor.log
    assert sensor.stop() == 0
    assert "kernel_udp_drops" in sensor.log
