"""The SYN watch, with real scanners in namespaces: who knocks at open, closed and filtered ports."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.harness import Sensor, wait_until
from tests.netns import ATTACKER, INNER, ROOT, SENSOR, THIRD, Net, echo, knock
from tests.test_packet import ipv4, tcp

READY = "Watch: "


class Watching:
    """`tcppc watch` on the sensor's host."""

    def __init__(self, net: Net, folder: Path, *flags: str, interface: str = "veth0") -> None:
        self.file = folder / "watch.jsonl"
        self._log = folder / "watch.log"
        self.process = net.sensor.start(
            sys.executable, "-m", "tcppc", "watch", "-i", interface, "-w", str(self.file), "-L", str(self._log), *flags
        )
        self.says(READY)

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def says(self, text: str) -> str:
        wait_until(lambda: text in self.log or self.process.poll() is not None, f"{text} in {self.log}")
        assert text in self.log
        return self.log

    def lines(self, event: str) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        whole = self.file.read_text().rpartition("\n")[0].splitlines()
        return [line for line in map(json.loads, whole) if line["event"] == event]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)


def needs(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"needs {program}")


def targets(lines: list[dict[str, Any]]) -> set[tuple[str, str, int]]:
    return {(line["flow"]["src"], line["flow"]["dst"], line["flow"]["dport"]) for line in lines}


def test_open_closed_and_filtered_ports_are_seen_of_both_families(net: Net, tmp_path: Path) -> None:
    echo(net.sensor, 80, "hello")
    net.sensor.run("nft", "-f", "-", text=FILTERED)
    watch = Watching(net, tmp_path)
    for address in SENSOR:
        for port, answered in ((80, "hello"), (81, "ConnectionRefusedError"), (82, "TimeoutError")):
            assert answered in knock(net.attacker, "tcp", address, port, "x", 0.5)
    wanted = {(ATTACKER[family], SENSOR[family], port) for family in (0, 1) for port in (80, 81, 82)}
    wait_until(lambda: targets(watch.lines("syn")) >= wanted, "all of them")
    assert watch.stop() == 0
    assert targets(watch.lines("syn")) == wanted
    stamp, log = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d: ", watch.log
    assert re.search(stamp + r"New connection: 198.51.100.7:\d+ -> 198.51.100.1:82$", log, re.M)
    assert re.search(stamp + r"New connection: \[2001:db8:a::7\]:\d+ -> \[2001:db8:a::1\]:81$", log, re.M)
    assert re.search(stamp + r"Port scan detected: 198.51.100.7 -> 198.51.100.1 on ports 80,81,82$", log, re.M)
    assert check(watch.file) == 0


FILTERED = """
table inet filter {
  chain input {
    type filter hook input priority filter; policy accept;
    tcp dport 82 drop
  }
}
"""


def check(file: Path) -> int:
    return subprocess.run([sys.executable, "-m", "tcppc", "check", "--records", str(file)], cwd=ROOT).returncode


def test_what_this_host_sends_is_left_out(net: Net, tmp_path: Path) -> None:
    """tcpcap had to be told its own address, and once blocked its own host."""
    echo(net.attacker, 80, "hello")
    watch = Watching(net, tmp_path, interface="any")
    for port in (80, 81, 82, 83):
        knock(net.sensor, "tcp", ATTACKER[0], port, "x")
        knock(net.sensor, "tcp", "127.0.0.1", port, "x")
        knock(net.sensor, "udp", ATTACKER[0], port, "x")
    knock(net.attacker, "tcp", SENSOR[0], 99, "x")
    wait_until(lambda: watch.lines("syn"), "the one that comes from outside")
    assert watch.stop() == 0
    assert targets(watch.lines("syn")) == {(ATTACKER[0], SENSOR[0], 99)}
    assert watch.lines("scan") == []


def test_answers_to_own_datagrams_are_no_scan(net: Net, tmp_path: Path) -> None:
    """A name server's answers go to many ports of this host, one after the other."""
    echo(net.attacker, 53, "answer ")
    watch = Watching(net, tmp_path)
    for _ in range(6):
        assert knock(net.sensor, "udp", ATTACKER[0], 53, "x", 5) == "answer x"
    for port in (7001, 7002, 7003):
        knock(net.attacker, "udp", SENSOR[0], port, "x")
    (scan,) = wait_until(lambda: watch.lines("scan"), "the real one")
    assert (scan["scan"]["proto"], scan["scan"]["ports"]) == ("udp", "7001,7002,7003")
    assert watch.stop() == 0


def test_addresses_of_guests_can_be_given_as_own(net: Net, tmp_path: Path) -> None:
    watch = Watching(net, tmp_path, "--address", "203.0.113.0/24", "--address", THIRD[1], interface="veth1")
    for address in INNER:
        knock(net.third, "tcp", address, 80, "x")
    knock(net.attacker, "tcp", THIRD[0], 81, "x")  # forwarded, and not the guest's own
    assert watch.stop() == 0
    assert watch.lines("syn") == []


@pytest.mark.parametrize(
    ("words", "kind", "proto", "tool"),
    [
        (("nmap", "-sS", "-n", "-Pn", "-p", "1-100"), "syn", "tcp", "nmap"),
        (("nmap", "-sF", "-n", "-Pn", "-p", "1-100"), "probe", "tcp", ""),
        (("nmap", "-sN", "-n", "-Pn", "-p", "1-100"), "probe", "tcp", ""),
        (("nmap", "-sX", "-n", "-Pn", "-p", "1-100"), "probe", "tcp", ""),
        (("nmap", "-sU", "-n", "-Pn", "-p", "1-20"), "", "udp", ""),
        (("nmap", "-sS", "-f", "-n", "-Pn", "-p", "1-100"), "probe", "tcp", ""),
        (("hping3", "-S", "-p", "++1", "-c", "20", "-i", "u1000", "-q"), "syn", "tcp", "hping3"),
    ],
    ids=["nmap -sS", "nmap -sF", "nmap -sN", "nmap -sX", "nmap -sU", "nmap -f", "hping3"],
)
def test_scanners_are_found(net: Net, tmp_path: Path, words: tuple[str, ...], kind: str, proto: str, tool: str) -> None:
    needs(words[0])
    watch = Watching(net, tmp_path)
    # hping3 ends with 1 where nobody answers.
    subprocess.run([*net.attacker.prefix, *words, SENSOR[0]], capture_output=True, timeout=60, check=False)
    wait_until(lambda: watch.lines("scan"), "the scan")
    assert watch.stop() == 0
    begin, *_, end = (line["scan"] for line in watch.lines("scan"))
    assert (begin["kind"], begin["proto"], begin["src"]) == ("ports", proto, ATTACKER[0])
    assert (begin["hosts"], begin["number"]) == ([SENSOR[0]], 3)
    assert end["number"] >= 19
    if kind:
        seen = watch.lines(kind)
        assert len(seen) >= 19
        assert {line["syn"].get("tool", "") for line in seen} == {tool}
    assert check(watch.file) == 0


def test_masscan_sweeps_a_network(net: Net, tmp_path: Path) -> None:
    needs("masscan")
    watch = Watching(net, tmp_path, "-q")
    mac = json.loads(net.sensor.run("ip", "-j", "link", "show", "veth0"))[0]["address"].replace(":", "-")
    net.attacker.run(
        "masscan", "192.0.2.0/26", "-p", "22", "--rate", "1000", "-e", "veth0", "--router-mac", mac, "--wait", "0",
        "--source-ip", ATTACKER[0],
    )  # fmt: skip
    wait_until(lambda: len(watch.lines("syn")) >= 64, "all of them")
    assert watch.stop() == 0
    begin, end = (line["scan"] for line in watch.lines("scan"))
    assert (begin["kind"], begin["ports"], begin["number"], begin["tool"]) == ("hosts", "22", 10, "masscan")
    assert (end["number"], end["probes"]) == (64, 64)
    assert {line["syn"].get("tool") for line in watch.lines("syn")} == {"masscan"}
    assert "New connection" not in watch.log
    assert "Sweep detected: 198.51.100.7 -> port 22 on 192.0.2." in watch.log


SEND_FRAME = """
import socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("veth0", 0))
sock.send(bytes.fromhex(sys.argv[1]))
"""


@pytest.mark.parametrize("tags", ["8100 0005", "88a8 0005 8100 0006"], ids=["VLAN", "QinQ"])
def test_tagged_packets_are_seen(net: Net, tmp_path: Path, tags: str) -> None:
    """Frames as a tagged port has them; made by hand, since not every kernel has VLAN devices."""
    watch = Watching(net, tmp_path)
    frame = "ffffffffffff 020000000001" + tags + "0800" + ipv4(tcp(dport=2323)).hex()
    net.attacker.python(SEND_FRAME, frame.replace(" ", ""))
    (seen,) = wait_until(lambda: watch.lines("syn"), "the SYN")
    assert (seen["flow"]["src"], seen["flow"]["dport"], seen["syn"]["vlan"]) == ("198.51.100.7", 2323, 5)
    assert watch.stop() == 0


def test_an_interface_that_goes_and_comes_back(net: Net, tmp_path: Path) -> None:
    net.sensor.ip("link add d0 type veth peer name d1")
    net.sensor.ip("link set d0 up")
    watch = Watching(net, tmp_path, interface="d0")
    net.sensor.ip("link del d0")
    watch.says("nothing is seen there until it is back")
    assert watch.process.poll() is None
    net.sensor.ip("link add d0 type veth peer name d1")
    net.sensor.ip("link set d0 up")
    watch.says("Watch d0: it is back.")
    assert watch.stop() == 0


def test_a_sensor_with_a_watch_in_it(net: Net, start: Start, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[watch]\ninterface = ["veth0", "none0"]\nrecord = "scans"\n')
    sensor = start("-c", str(tmp_path / "c.toml"), hosts=("0.0.0.0",), port=12345, prefix=net.sensor.prefix)
    sensor.said("Watch none0: there is no such interface; expected any or one of lo, veth0, veth1; all else goes on.")
    for port in (12345, 80, 81):
        knock(net.attacker, "tcp", SENSOR[0], port, "x")
    wait_until(lambda: [line for line in sensor.lines() if b'"event":"scan"' in line], "the scan")
    assert sensor.stop() == 0
    lines = [json.loads(line) for line in sensor.lines()]
    assert sorted(line.get("event", line.get("flow", {}).get("proto")) for line in lines) == ["scan", "scan", "tcp"]
    account = subprocess.run(
        [sys.executable, "-m", "tcppc", "account", str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert account.returncode == 0, account.stdout
    shown = subprocess.run(
        [sys.executable, "-m", "tcppc", "show", "--source", ATTACKER[0], str(sensor.file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "scan of ports tcp 198.51.100.7 -> 198.51.100.1 ports 80,81,12345, 3 ports, 3 probes\n" in shown.stdout
    assert "198.51.100.1:12345, 1 bytes" in shown.stdout


def test_without_the_right_to_watch_the_sensor_goes_on(start: Start, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[watch]\ninterface = "lo"\n')
    without = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    sensor: Sensor = start("-c", str(tmp_path / "c.toml"), prefix=without)
    sensor.said("Watch lo: watching needs CAP_NET_RAW. To grant it: AmbientCapabilities=CAP_NET_RAW")
    sensor.send(b"x")
    assert len(sensor.records(1)) == 1
    assert sensor.stop() == 0
    alone = subprocess.run(
        [*without, sys.executable, "-m", "tcppc", "watch", "-i", "lo"], capture_output=True, text=True, cwd=ROOT
    )
    assert alone.returncode == 1
    assert alone.stderr.splitlines()[-1].startswith("tcppc: Watch lo: watching needs CAP_NET_RAW. To grant it:")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "tcppc: -i is missing: expected any or one of "),
        (("-i", "none0"), "tcppc: Watch none0: there is no such interface; expected any or one of "),
        (("-i", "no such"), "expected a network interface"),
        (("-i", "lo", "--ports", "99"), "--ports '99': expected a whole number from 0 to 64"),
        (("-i", "lo", "--address", "x"), "expected an address or network"),
        (("-i", "lo", "--window", "never"), "expected a duration"),
    ],
)
def test_wrong_words_are_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tcppc", "watch", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=30
    )
    assert done.returncode in (1, 2)
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


FLOOD = """
import socket, struct, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("veth0", 0))
head, tail = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2])
for number in range(int(sys.argv[3]), int(sys.argv[4])):
    while True:
        try:
            sock.send(head + struct.pack(">I", 0x0B000000 + number) + tail)
            break
        except OSError:  # the queue of the interface is full
            continue
"""


def flood(net: Net, first: int, last: int) -> None:
    """A SYN from each of so many made-up sources."""
    whole = bytes.fromhex("ffffffffffff 020000000001 0800".replace(" ", "")) + ipv4(tcp(dport=80))
    net.attacker.python(FLOOD, whole[:26].hex(), whole[30:].hex(), str(first), str(last))


def test_a_flood_of_made_up_sources_is_within_the_memory_counted_and_said_once(net: Net, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[watch]\nmemory = "1MiB"\nrecord = "scans"\n')
    watch = Watching(net, tmp_path, "-q", "-c", str(tmp_path / "c.toml"))
    flood(net, 0, 10_000)
    watch.says(
        "more sources than watch.memory and watch.sources hold: who was silent longest is forgotten, and counted."
    )
    for port in (90, 91, 92):
        knock(net.attacker, "tcp", SENSOR[0], port, "x")
    wait_until(lambda: watch.lines("scan"), "a scan after it")
    assert watch.stop() == 0
    assert watch.log.count("more sources than") == 1
    ledger = (tmp_path / "ledger.jsonl").read_text()
    forgotten = sum(
        json.loads(line).get("errors", {}).get("watch_sources_forgotten", 0) for line in ledger.splitlines()
    )
    assert 5_000 < forgotten < 10_000


def test_out_of_memory_the_watch_goes_on_and_finds_scans_again(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ulimit -v`, for real: set while it runs, and lifted again."""
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # else malloc has 64 MiB of addresses in reserve for each thread
    (tmp_path / "c.toml").write_text('[watch]\nrecord = "scans"\n')
    watch = Watching(net, tmp_path, "-q", "-c", str(tmp_path / "c.toml"))
    flood(net, 0, 2000)
    pages = int(Path(f"/proc/{watch.process.pid}/statm").read_text().split()[0])
    hard = resource.RLIM_INFINITY
    resource.prlimit(watch.process.pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 20), hard))
    for first in range(2000, 200_000, 20_000):
        flood(net, first, first + 20_000)
        if "out of memory at " in watch.log:
            break
    watch.says("out of memory at ")
    assert watch.process.poll() is None
    resource.prlimit(watch.process.pid, resource.RLIMIT_AS, (hard, hard))
    for port in (90, 91, 92):
        knock(net.attacker, "tcp", SENSOR[0], port, "x")
    wait_until(lambda: watch.lines("scan"), "a scan")
    assert watch.stop() == 0
    assert "Traceback" not in watch.log
