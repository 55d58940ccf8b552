"""What the sensor recorded against what a capture saw: equal where nothing was lost, told where something was."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from tcppc.difference import Side, compare, lines
from tests.captures import SYN, pcap
from tests.conftest import Start
from tests.harness import payload, tcppc
from tests.netns import ATTACKER, SENSOR, Net, knock
from tests.test_engine_of_flows import DATA, frames

PORT = 12345


def record(data: bytes, start: str = "2026-01-01T00:00:00Z", **more: Any) -> dict[str, Any]:
    flow = {"proto": "tcp", "src": "198.51.100.7", "sport": 1, "dst": "192.0.2.1", "dport": 2}
    payloads = [{"data": b64encode(data).decode()}] if data else []
    return {"timestamp": start, "flow": flow, "payloads": payloads, "community_id": "1:x", **more}


def side(*records: dict[str, Any]) -> Side:
    numbered = dict(enumerate(records))
    return Side(numbered.items(), lambda wanted: {number: numbered[number] for number in wanted})


def said(one: Side, other: Side) -> list[str]:
    return list(lines(compare(one, other), "S", "C", 20))


def test_the_same_sessions_of_ports_that_were_used_again_in_any_order() -> None:
    first, second = record(b"first"), record(b"second", "2026-01-01T00:00:01Z")
    assert said(side(first, second), side(second, first)) == [
        "2 sessions agree, 0 differ, 0 are only in S, 0 only in C"
    ]


def test_one_that_is_missing_is_not_taken_for_its_neighbour() -> None:
    first, second = record(b"first"), record(b"second", "2026-01-01T00:00:01Z")
    told = said(side(first, second), side(second))
    assert told[0] == "only in S: tcp 198.51.100.7:1 -> 192.0.2.1:2 at 2026-01-01T00:00:00Z, 5 bytes"
    assert told[1] == "1 sessions agree, 0 differ, 1 are only in S, 0 only in C"
    assert said(side(), side(first))[0].startswith("only in C: ")


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (record(b"abcd"), record(b"abXd"), "payloads differ from byte 2 on"),
        (record(b"abcd"), record(b"ab"), "payloads have 4 and 2 bytes, the same up to there"),
        (record(b"a", replies=[{"data": "eA=="}]), record(b"a"), "replies have 1 and 0 bytes"),
        (record(b"ab", truncated=True), record(b"abcd"), ""),
        (record(b"abcd"), record(b"ab", truncated=True), ""),
        (record(b"abcd", truncated=True), record(b"ab"), "payloads have 4 and 2 bytes"),
    ],
)
def test_what_differs_is_told(one: dict[str, Any], other: dict[str, Any], words: str) -> None:
    told = said(side(one), side(other))
    assert len(told) == (2 if words else 1)
    assert words in told[0]


def test_a_stranger_s_words_reach_no_terminal() -> None:
    evil = record(b"x", "\x1b[2J")
    evil["flow"]["src"] = "\x1b]0;title\x07"
    assert "\x1b" not in "".join(said(side(evil), side()))


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap(frames((100, b"", SYN), (101, b"hello", DATA))))
    written = tcppc(
        "flows",
        "-q",
        "-FX",
        "--json",
        str(tmp_path / "a.jsonl"),
        "-r",
        str(tmp_path / "a.pcap"),
        "-X",
        str(tmp_path / "r"),
    )
    assert written.returncode == 0
    same = tcppc("diff", str(tmp_path / "a.jsonl"), str(tmp_path / "a.pcap"))
    assert (same.returncode, same.stdout.startswith("1 sessions agree, 0 differ")) == (0, True)
    none = tcppc("diff", str(tmp_path / "a.jsonl"), str(tmp_path / "a.pcap"), "port", "81")
    assert none.returncode == 1
    assert none.stdout.splitlines()[0].startswith(f"only in {tmp_path}/a.jsonl: tcp 10.0.0.1:1000 -> 10.0.0.2:80 at ")
    for words in (("no", "such"), (str(tmp_path / "a.pcap"), str(tmp_path / "a.jsonl"))):
        wrong = tcppc("diff", *words)
        assert wrong.returncode in (1, 2)
        assert len(wrong.stderr.splitlines()) == 1


# One packet in twelve does not leave the client: segments come late, out of order, and again.
LOSS = "table inet loss { chain out { type filter hook output priority 0; numgen random mod 12 0 drop; }; }"


# Reads all that is said to it: one who goes earlier resets the connection, and with it what nobody has read yet.
POLITE = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30)
sock.sendall(b"hello\\r\\n" * int(sys.argv[3]))
sock.shutdown(socket.SHUT_WR)
while sock.recv(65536):
    pass
"""


@pytest.mark.parametrize("trouble", ["", LOSS])
def test_sensor_and_capture_agree_byte_for_byte(start: Start, net: Net, tmp_path: Path, trouble: str) -> None:
    """Both at once, with real clients; the capture is our own, live, and ends by SIGINT with all of it written."""
    if trouble:
        net.attacker.run("nft", "-f", "-", text=trouble)
    sensor = start("--persona", "auto", hosts=(SENSOR[0], SENSOR[1]), port=PORT, prefix=net.sensor.prefix)
    live = net.sensor.start(
        sys.executable, "-m", "tcppc", "flows", "-i", "veth0", "-K", "-o", str(tmp_path / "kept"), "-w",
        str(tmp_path / "udp.pcap"), "port", str(PORT),
    )  # fmt: skip
    assert live.stdout
    assert live.stdout.readline() == "tcppc: listening on veth0\n"
    for host in SENSOR:
        for number in range(4):
            net.attacker.python(POLITE, host, str(PORT), str(2000 * number))
        knock(net.attacker, "tls", host, PORT, "within TLS", 20)
        shown = f"[{host}]" if ":" in host else host
        net.attacker.run("curl", "-sS", "-o", "/dev/null", "--max-time", "20", f"http://{shown}:{PORT}/")
        if not trouble:
            knock(net.attacker, "udp", host, PORT, "a datagram", 0.5)
    wanted = 12 + (0 if trouble else 2)
    sensor.records(wanted)
    assert sensor.stop() == 0
    live.send_signal(2)
    assert live.wait(30) == 0
    captures = sorted(str(path) for path in (tmp_path / "kept").glob("*.pcap"))
    assert captures
    whole = tmp_path / "whole.pcap"
    net.sensor.run("mergecap", "-F", "nsecpcap", "-w", str(whole), *captures, str(tmp_path / "udp.pcap"))
    done = tcppc("diff", str(sensor.file), str(whole))
    assert done.stdout.splitlines()[-1].startswith(f"{wanted} sessions agree, 0 differ, 0 are only in "), done.stdout
    assert done.returncode == 0, done.stdout
    made = tcppc(
        "flows", "-q", "--udp", "-FX", "-S", "enable_report=NO", "--json", str(tmp_path / "c.jsonl"), "-r", str(whole)
    )
    assert made.returncode == 0, made.stderr
    ours = _bytes(tmp_path / "c.jsonl")
    assert {key: data for key, data in _bytes(sensor.file).items() if key[0] != "tls"} == {
        key: data for key, data in ours.items() if key[0] != "tls"
    }
    assert {ATTACKER[0], ATTACKER[1]} == {key[1] for key in ours}
    checked = tcppc("check", "--records", str(tmp_path / "c.jsonl"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def _bytes(path: Path) -> dict[tuple[str, str, int], tuple[bytes, str]]:
    found = {}
    for line in path.read_text().splitlines():
        each = json.loads(line)
        flow = each["flow"]
        found[flow["proto"], flow["src"], flow["sport"]] = payload(each), each.get("app", "")
    return found
