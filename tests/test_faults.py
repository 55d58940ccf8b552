"""Every port open, strangers at all of them, and then something breaks: what was sent is held against what is recorded.

Who sends knows that its session was served when the sensor closes its side after all was read.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import PATIENCE, Sensor, payload, wait_until
from tests.netns import SENSOR, Net, knock
from tests.test_rules import EVERYWHERE, PORT, rules

# Sessions and datagrams to random ports, from some threads, until standard input ends. Prints for each that was served
# its number and when it began.
LOAD = """
import random, socket, sys, threading, time
hosts, ended, lock, number = sys.argv[1:3], threading.Event(), threading.Lock(), 0

def one():
    global number
    while not ended.is_set():
        with lock:
            number += 1
            mine = number
        begin, host = time.time(), random.choice(hosts)
        try:
            with socket.create_connection((host, random.randrange(1, 65536)), timeout=60) as sock:
                sock.sendall(b"%d" % mine)
                sock.shutdown(socket.SHUT_WR)
                if sock.recv(1) == b"":
                    with lock:
                        print(mine, begin, flush=True)
        except OSError:
            ended.wait(0.05)  # nobody there, for a moment

threads = [threading.Thread(target=one) for _ in range(8)]
for thread in threads:
    thread.start()
sys.stdin.read()
ended.set()
for thread in threads:
    thread.join()
"""


class Load:
    """Strangers at work, on the attacker's host."""

    def __init__(self, net: Net, folder: Path) -> None:
        self.file = folder / "served"
        command = f'exec "$0" "$@" > {self.file}'
        self.process = net.attacker.start(
            "sh", "-c", command, sys.executable, "-c", LOAD, *SENSOR, stdin=subprocess.PIPE
        )
        wait_until(lambda: self.file.exists() and self.file.stat().st_size, "the load to be under way")

    def end(self) -> dict[int, float]:
        """Number of each session that was served: when it began."""
        self.process.communicate(timeout=90)
        words = [line.split() for line in self.file.read_text(encoding="ascii").splitlines()]
        return {int(number): float(begin) for number, begin in words}


@pytest.fixture
def sensor(start: Start, net: Net) -> Sensor:
    found = start("-q", hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply")
    return found


def numbers(folder: Path) -> Counter[int]:
    """Of all sessions in all data files."""
    found: Counter[int] = Counter()
    for path in glob.glob(f"{folder}/**/data*.jsonl", recursive=True):
        for line in Path(path).read_bytes().split(b"\n")[:-1]:
            data = payload(json.loads(line))
            if data:
                found[int(data)] += 1
    return found


def under_load(net: Net, folder: Path, breaks: Callable[[], None], seconds: float = 1.0) -> dict[int, float]:
    """Load before, while and after something breaks."""
    load = Load(net, folder)
    time.sleep(seconds)
    breaks()
    time.sleep(seconds)
    return load.end()


def lost(served: dict[int, float], found: Counter[int]) -> list[int]:
    assert len(served) > 100
    assert max(found.values()) == 1  # nothing twice
    return sorted(set(served) - set(found))


def test_descriptors_run_out_and_come_back(sensor: Sensor, net: Net, tmp_path: Path) -> None:
    def breaks() -> None:
        pid = str(sensor.process.pid)
        net.sensor.run("prlimit", "--pid", pid, "--nofile=12:20000")
        sensor.said("Failed to accept a new connection: EMFILE")
        time.sleep(0.5)
        net.sensor.run("prlimit", "--pid", pid, "--nofile=20000:20000")

    served = under_load(net, tmp_path, breaks)
    assert sensor.stop() == 0
    assert lost(served, numbers(tmp_path)) == []
    assert sensor.account().returncode == 0


def test_64_descriptors_from_the_start(start: Start, net: Net, tmp_path: Path) -> None:
    prefix = (*net.sensor.prefix, "prlimit", "--nofile=64:64")
    sensor = start("-q", hosts=EVERYWHERE, port=PORT, prefix=prefix)
    assert "sessions at once fit into that; the limits of this process or its unit can be raised." in sensor.log
    rules(net.sensor, "--apply")
    connected = int(
        net.attacker.python(
            "import socket\n"
            f"socks = [socket.create_connection(({SENSOR[0]!r}, port), timeout=20) for port in range(1, 301)]\n"
            "print(len(socks))"
        )
    )
    assert len(sensor.records(connected)) == connected == 300
    assert sensor.stop() == 0


def test_a_full_disk_and_room_again(start: Start, net: Net, tmp_path: Path) -> None:
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    place = tmp_path / "disk"
    place.mkdir()
    # Mounted by the sensor's own process, in its own namespace, and gone with it; reached by /proc/PID/root.
    mounted = f'mount -t tmpfs -o size=16m tmpfs {place} && exec "$@"'
    prefix = (*net.sensor.prefix, "unshare", "--mount", "sh", "-c", mounted, "sh")
    sensor = start("-q", hosts=EVERYWHERE, port=PORT, prefix=prefix, file="disk/data.jsonl")
    rules(net.sensor, "--apply")
    disk = Path(f"/proc/{sensor.process.pid}/root{place}")
    filler = disk / "filler"

    def breaks() -> None:
        try:
            with filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError as problem:
            assert problem.strerror == "No space left on device"
        sensor.said("No space left on device")
        time.sleep(0.5)
        filler.unlink()

    served = under_load(net, tmp_path, breaks, 0.3)
    wait_until(lambda: set(served) <= set(numbers(disk)), "all that was held back to be written")
    assert max(numbers(disk).values()) == 1


def test_the_data_folder_is_deleted(sensor: Sensor, net: Net, tmp_path: Path, start: Start) -> None:
    sensor.stop()
    place = tmp_path / "place"
    place.mkdir()
    other = start("-q", hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix, file="place/data.jsonl")
    deleted = 0.0

    def breaks() -> None:
        nonlocal deleted
        shutil.rmtree(place)
        deleted = time.time()

    served = under_load(net, tmp_path, breaks)
    assert other.stop() == 0
    # What stood in the file went with it, and what was on its way to it in that moment may have.
    after = {number: begin for number, begin in served.items() if begin > deleted + 0.2}
    assert lost(after, numbers(tmp_path)) == []


# What the sensor is told of the time, since a machine's own clock is not a test's to move: an hour on while one file is
# there, an hour back while the other is.
MOVED = """
import os, time
def moved(real, hour):
    return lambda: real() + hour * (os.path.exists({plus!r}) - os.path.exists({minus!r}))
time.time, time.time_ns = moved(time.time, 3600), moved(time.time_ns, 3600 * 10**9)
"""


@pytest.mark.parametrize("way", ["plus", "minus"])
def test_the_clock_is_moved_by_an_hour(start: Start, net: Net, tmp_path: Path, way: str) -> None:
    files = {name: str(tmp_path / name) for name in ("plus", "minus")}
    patch = f"exec({MOVED.format(**files)!r})"
    flags = ("-q", "-T", "600")
    sensor = start(*flags, hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix, file="data-%H%M.jsonl", patch=patch)
    rules(net.sensor, "--apply")
    served = under_load(net, tmp_path, Path(files[way]).touch)
    assert sensor.stop() == 0
    assert lost(served, numbers(tmp_path)) == []
    assert len(glob.glob(f"{tmp_path}/data-*.jsonl")) >= 2
    assert sensor.account().returncode == 0


def test_sigterm_under_load(sensor: Sensor, net: Net, tmp_path: Path) -> None:
    served = under_load(net, tmp_path, lambda: sensor.signal(signal.SIGTERM))
    assert sensor.process.wait(PATIENCE) == 0
    sensor.check_the_books()
    assert lost(served, numbers(tmp_path)) == []
    assert sensor.account().returncode == 0


def test_kill_9_under_load(sensor: Sensor, net: Net, tmp_path: Path, start: Start) -> None:
    killed = 0.0

    def breaks() -> None:
        nonlocal killed
        time.sleep(2.5)  # the ledger has had its first mark
        killed = time.time()
        sensor.kill()

    served = under_load(net, tmp_path, breaks)
    found = numbers(tmp_path)  # each line is whole
    # At most what was not yet written: what the writer gathered in its last moment.
    missing = lost(served, found)
    assert all(served[number] > killed - 0.5 for number in missing)
    # The host is reachable, and the next sensor goes on in the same file.
    assert knock(net.attacker, "tcp", SENSOR[0], 80, "?") == "ConnectionRefusedError"
    start("-q", hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    again = under_load(net, tmp_path, lambda: None, 0.5)
    wait_until(lambda: len(numbers(tmp_path)) >= len(again), "the next sensor's records")


IDLE = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
first, last, each, host = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
socks = []
for source in range(first, last):
    for port in range(1, each + 1):
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: as many ports as there are destinations
        sock.bind((f"198.51.100.{source}", 0))
        sock.settimeout(60)
        sock.connect((host, port))
        socks.append(sock)
print(len(socks), flush=True)
sys.stdin.read()
"""


def resident(pid: int) -> int:
    """Bytes in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_15000_idle_connections_and_a_flood_from_one_source(start: Start, net: Net, tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text("[limits]\nsessions_per_source = 1000\n[tcppc]\ntimeout = 600\n", encoding="ascii")
    sensor = start("-q", "-c", str(settings), "-R", "20000", hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply")
    for source in range(20, 221):
        net.attacker.ip(f"addr add 198.51.100.{source}/24 dev veth0")
    before = resident(sensor.process.pid)
    idle = net.attacker.start(sys.executable, "-c", IDLE, "20", "220", "75", SENSOR[0], stdin=subprocess.PIPE)
    assert idle.stdout
    assert idle.stdout.readline() == "15000\n"
    wait_until(lambda: sensor.threads() > 15000, "15,000 sessions")
    # 20 kB each is what docs/speed.md promises; the bound of limits.memory is for what they send.
    assert resident(sensor.process.pid) - before < 15000 * 20_000
    flood = net.attacker.start(sys.executable, "-c", IDLE, "220", "221", "3000", SENSOR[0], stdin=subprocess.PIPE)
    assert flood.stdout
    assert flood.stdout.readline() == "3000\n"
    sensor.records(2000)  # over the bound of one source: recorded, and closed at once
    for address in SENSOR:  # others are served
        knock(net.attacker, "tcp", address, 443, "served")
    wait_until(lambda: sum(payload(record) == b"served" for record in sensor.records(2002)) == 2, "others")
    assert resident(sensor.process.pid) - before < 16000 * 20_000
    assert sensor.stop() == 0
    closed = Counter((record["flow"]["src"] == "198.51.100.220", record["closed"]) for record in sensor.records(18002))
    assert closed == {(False, "shutdown"): 15000, (False, "peer"): 2, (True, "limit"): 2000, (True, "shutdown"): 1000}
    assert "2000 refused (sessions_per_source)" in sensor.log
