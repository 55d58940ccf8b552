"""What had come when the stop began is recorded or counted, and nothing makes the stop endless."""

from __future__ import annotations

import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import PATIENCE, Sensor, ended, payload, tcppc, wait_until


def frozen(sensor: Sensor) -> None:
    sensor.process.send_signal(signal.SIGSTOP)


def stop_and_thaw(sensor: Sensor) -> float:
    """SIGTERM is waiting when it goes on; returns how long the stop took."""
    sensor.process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    sensor.process.send_signal(signal.SIGCONT)
    sensor.process.wait(60)
    return time.monotonic() - begun


@pytest.mark.parametrize("record", ["sessions", "events"])
def test_datagrams_that_lie_in_the_socket_are_read(start: Start, record: str) -> None:
    sensor = start("-q", "--record", record)
    sensor.datagram(b"first")
    sensor.records(1)
    frozen(sensor)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(5000):
            sock.sendto(b"%d" % number, ("127.0.0.1", sensor.port))
    stop_and_thaw(sensor)
    assert sensor.process.returncode == 0
    said = sorted(int(payload(record)) for record in sensor.records(5001)[1:])
    assert said == list(range(5000))
    assert "5001 accepted, 0 open, 5001 recorded" in sensor.log


def test_datagrams_for_which_there_is_no_time_are_counted(start: Start, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[limits]\nstop = 0.2\n", encoding="ascii")
    slow = "import time; from tcppc.capture.intake import Intake; real = Intake.put; "
    slow += "Intake.put = lambda self, item: (time.sleep(0.01), real(self, item))[1]"
    sensor = start("-q", "-c", str(tmp_path / "c.toml"), patch=slow)
    sensor.datagram(b"first")
    sensor.records(1)
    frozen(sensor)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(3000):
            sock.sendto(b"%04d" % number, ("127.0.0.1", sensor.port))
    stop_and_thaw(sensor)
    found = re.search(
        r"Sessions: 3001 accepted, 0 open, (\d+) dropped \(stop\), (\d+) bytes in those dropped", sensor.log
    )
    assert found, sensor.log
    assert int(found[2]) == 4 * int(found[1])
    assert len(sensor.lines()) + int(found[1]) == 3001
    assert sensor.account().returncode == 0


@pytest.mark.parametrize("kind", ["datagram", "session"])
def test_what_a_late_thread_has_in_hand_when_the_writer_ends_is_counted(
    start: Start, tmp_path: Path, kind: str
) -> None:
    """It was accepted, is not open, and reaches no file: the books agree all the same."""
    (tmp_path / "c.toml").write_text("[limits]\nstop = 0.2\n", encoding="ascii")
    slow = "import time; from tcppc.capture.intake import Intake; real = Intake.put; "
    slow += "Intake.put = lambda self, item: (getattr(item, 'bytes', 0) == 4 and time.sleep(60), real(self, item))[1]"
    sensor = start("-q", "-c", str(tmp_path / "c.toml"), patch=slow)
    sensor.send(b"first")
    sensor.records(1)
    if kind == "datagram":
        sensor.datagram(b"late")
    else:
        with sensor.connect() as sock:
            sock.sendall(b"late")
    time.sleep(0.3)
    sensor.process.send_signal(signal.SIGTERM)
    assert sensor.process.wait(PATIENCE) == 1
    assert re.search(r"Sessions: 2 accepted, 0 open, 1 dropped \(stop\)", sensor.log), sensor.log
    assert sensor.account().returncode == 0, sensor.account().stdout


@pytest.mark.parametrize("persona", ["silent", "own"])
def test_who_waits_in_the_back_log_is_served_by_the_crew_and_no_persona_delays_it(
    start: Start, tmp_path: Path, persona: str
) -> None:
    (tmp_path / "personas").mkdir()
    (tmp_path / "personas" / "own.toml").write_text('banner = "hello\\r\\n"\ndelay = 5.0\n', encoding="ascii")
    (tmp_path / "c.toml").write_text(
        f'[personas]\nfolder = "{tmp_path}/personas"\ndefault = "{persona}"\n', encoding="ascii"
    )
    sensor = start("-q", "-c", str(tmp_path / "c.toml"))
    frozen(sensor)
    socks = []
    for number in range(300):
        sock = socket.create_connection(("127.0.0.1", sensor.port), timeout=PATIENCE)
        sock.sendall(b"waiting %d" % number)
        socks.append(sock)
    took = stop_and_thaw(sensor)
    assert sensor.process.returncode == 0
    assert took < 20
    records = sensor.records(300)
    assert sorted(payload(record) for record in records) == sorted(b"waiting %d" % number for number in range(300))
    for sock in socks:
        sock.close()


SLOW_DISK = "import time; import tcppc.capture.syncer as s; s.os.fsync = lambda fd: time.sleep(3)"


def test_a_disk_that_syncs_slowly_costs_neither_sessions_nor_the_stop(start: Start, tmp_path: Path) -> None:
    sensor = start("-q", "-T", "1", "-w", str(tmp_path / "d-%H%M%S.jsonl"), file="", patch=SLOW_DISK)
    begun = time.monotonic()
    sent = 0
    while time.monotonic() < begun + 5:
        sensor.send(b"%d" % sent)
        sent += 1
        time.sleep(0.02)
    written = sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("d-*.jsonl"))
    assert written > sent - 100  # they are not held up behind the syncs
    stopping = time.monotonic()
    assert sensor.stop() == 0
    assert time.monotonic() - stopping < 30
    assert sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("d-*.jsonl")) == sent
    assert "Failed to sync" in sensor.log
    assert tcppc("account", str(tmp_path)).returncode == 0
    assert b'"event":"stop"' in (tmp_path / "ledger.jsonl").read_bytes()


def test_a_terminal_whose_reader_stopped_holds_up_neither_capture_nor_stop(start: Start) -> None:
    """poll(2) says that it is writable, and write(2) of 4 kB blocks."""
    import os
    import pty
    import subprocess
    import sys
    import tempfile

    leader, follower = pty.openpty()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tcppc", "-H", "127.0.0.1", "-p", "0", "-w", f"{folder}/d.jsonl"]
        with ended(
            subprocess.Popen(command, stderr=follower, stdin=subprocess.DEVNULL, cwd=Path(__file__).parent.parent)
        ) as process:
            said = b""
            while b"Start UDP server." not in said:
                said += os.read(leader, 4096)
            found = re.search(rb"Listen: \S+:(\d+)\r", said)
            assert found
            for number in range(600):  # from here on nobody reads the terminal
                with socket.create_connection(("127.0.0.1", int(found[1])), timeout=PATIENCE) as sock:
                    sock.sendall(b"%d " % number + b"x" * 400)
            wait_until(lambda: Path(f"{folder}/d.jsonl").read_bytes().count(b"\n") == 600, "all records")
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert time.monotonic() - begun < 30
        ledger = Path(f"{folder}/ledger.jsonl").read_bytes()
        assert re.search(rb'"log_lines_lost":[1-9]', ledger)
    os.close(leader)
    os.close(follower)


def test_a_log_on_a_disk_that_hangs_holds_up_neither_capture_nor_stop(start: Start, tmp_path: Path) -> None:
    """No disk that hangs can be had for a test: the log's own write never returns instead."""
    hang = "import time; from tcppc.log import Log; real = Log.start; "
    hang += "Log.start = lambda self: (real(self), setattr(Log, '_put', lambda self, text: time.sleep(1000)))[0]"
    sensor = Sensor(tmp_path, patch=hang)
    port = 0
    try:
        wait_until(lambda: "session file" in sensor.log or (tmp_path / "data.jsonl").exists(), "the start")

        def listening() -> int:
            for line in Path(f"/proc/{sensor.process.pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes(sensor):
                    return int(fields[1].split(":")[1], 16)
            return 0

        port = wait_until(listening, "the listener")
        for number in range(50):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
                sock.sendall(b"%d" % number)
        assert len(sensor.records(50)) == 50
        begun = time.monotonic()
        sensor.process.send_signal(signal.SIGTERM)
        assert sensor.process.wait(60) == 0
        assert time.monotonic() - begun < 30
    finally:
        sensor.kill()


def inodes(sensor: Sensor) -> set[str]:
    found = set()
    for path in Path(f"/proc/{sensor.process.pid}/fd").iterdir():
        try:
            target = path.readlink()
        except OSError:  # closed meanwhile
            continue
        if match := re.fullmatch(r"socket:\[(\d+)\]", str(target)):
            found.add(match[1])
    return found


def test_two_sensors_in_one_folder_are_refused(start: Start, tmp_path: Path) -> None:
    first = start()
    second = start("-w", str(tmp_path / "other.jsonl"), wait=False, file="")
    assert second.process.wait(30) == 1
    assert "another sensor writes its data files there" in second.log
    assert second.log.count("\n") == 1
    first.send(b"one")
    assert payload(first.records(1)[0]) == b"one"
    assert first.stop() == 0
    assert first.account().returncode == 0


def test_a_sensor_that_was_stopped_for_a_while_goes_on(start: Start) -> None:
    """sigtimedwait(2) that is interrupted when its time is over is no signal to stop."""
    sensor = start("-q")
    for _ in range(4):
        frozen(sensor)
        time.sleep(1.3)
        sensor.process.send_signal(signal.SIGCONT)
        time.sleep(0.2)
    assert sensor.process.poll() is None, sensor.log
    sensor.send(b"on it goes")
    assert payload(sensor.records(1)[0]) == b"on it goes"
    assert sensor.stop() == 0
