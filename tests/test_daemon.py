"""The sensor as a process: start, signals, reload, disks that fail, kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from base64 import b64decode
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import FULL, PATIENCE, Sensor, payload, tcppc, wait_until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_keeps_what_open_sessions_received(start: Start, number: signal.Signals) -> None:
    sensor = start()
    with contextlib.ExitStack() as stack:
        for index in range(50):
            stack.enter_context(sensor.connect()).sendall(b"open %d" % index)
        stack.enter_context(sensor.connect())
        wait_until(lambda: sensor.log.count("Received: ") == 50, "all to be received")
        sensor.signal(number)
        assert sensor.process.wait(PATIENCE) == 0
    records = [json.loads(line) for line in sensor.lines()]
    assert len(records) == 51
    assert {record["closed"] for record in records} == {"shutdown"}
    assert {payload(record) for record in records} == {b"open %d" % index for index in range(50)} | {b""}
    assert sensor.log.endswith("Exit.\n")


def test_a_stop_keeps_what_is_in_the_kernels_buffers(start: Start) -> None:
    sensor = start()
    with sensor.connect() as sock:
        sock.sendall(b"one ")
        sensor.said("one ")
        sensor.signal(signal.SIGSTOP)
        sock.sendall(b"two")
        sensor.signal(signal.SIGTERM)
        sensor.signal(signal.SIGCONT)
        assert sensor.process.wait(PATIENCE) == 0
    assert payload(sensor.records(1)[0]) == b"one two"


def test_a_stop_keeps_clients_that_wait_to_be_accepted(start: Start) -> None:
    sensor = start("-q")
    sensor.port  # noqa: B018 - it is read from the log before the sensor is halted
    sensor.signal(signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        for index in range(30):
            stack.enter_context(sensor.connect()).sendall(b"waiting %d" % index)
        stack.enter_context(sensor.connect()).sendall(b"\x16\x03\x01\x00\x05\x01")
        sensor.signal(signal.SIGTERM)
        sensor.signal(signal.SIGCONT)
        assert sensor.process.wait(PATIENCE) == 0
    records = sensor.records(31)
    assert {payload(record) for record in records} == {b"waiting %d" % index for index in range(30)} | {
        b"\x16\x03\x01\x00\x05\x01"
    }
    assert {record["closed"] for record in records} == {"shutdown"}
    sensor.check_the_books()


def test_a_second_sigterm_costs_nothing(start: Start) -> None:
    sensor = start("-q")
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(sensor.connect()).sendall(b"x")
        wait_until(lambda: sensor.threads() > 100, "all to be open")
        sensor.signal(signal.SIGTERM)
        sensor.signal(signal.SIGTERM)
        sensor.signal(signal.SIGINT)
        assert sensor.process.wait(PATIENCE) == 0
    assert len(sensor.lines()) == 100


def test_five_thousand_open_sessions_are_recorded_at_sigterm(start: Start) -> None:
    count = 5000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 500:
        pytest.skip(f"needs {count + 500} file descriptors, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sensor = start("-q")
    with contextlib.ExitStack() as stack:
        for index in range(count):
            stack.enter_context(sensor.connect()).sendall(b"%d" % index)
        wait_until(lambda: sensor.threads() > count, "a thread for each")
        begin = time.monotonic()
        assert sensor.stop() == 0
        assert time.monotonic() - begin < 20
    records = [json.loads(line) for line in sensor.lines()]
    assert sorted(int(payload(record)) for record in records) == list(range(count))
    assert {record["closed"] for record in records} == {"shutdown"}
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_kill_9_leaves_whole_lines_and_the_next_start_goes_on(start: Start) -> None:
    sensor = start("-q")
    for index in range(20):
        sensor.send(b"%d" % index)
    sensor.records(20)
    sensor.kill()
    with sensor.file.open("ab") as file:
        file.write(b'{"timestamp":"2026-')  # what a power cut may leave
    again = start("-q")
    again.send(b"after")
    wait_until(lambda: len(again.lines()) == 22, "the line after the half one")
    lines = again.lines()
    assert [payload(json.loads(line)) for line in lines[:20]] == [b"%d" % index for index in range(20)]
    assert lines[20] == b'{"timestamp":"2026-'
    assert payload(json.loads(lines[21])) == b"after"
    assert "is cut off, as a crash leaves it" in again.log


# tcppc-go made its file 100 ms after its listener, and what came before was lost.
def test_a_session_in_the_first_moment_is_kept(start: Start) -> None:
    sensor = start("-q", wait=False)
    sensor.said("Listen: ")
    sensor.send(b"first!")
    assert payload(sensor.records(1)[0]) == b"first!"


def rotation(folder: Path) -> dict[str, int]:
    return {path.name: path.read_bytes().count(b"\n") for path in sorted(folder.glob("d-*.jsonl"))}


def test_files_rotate_at_the_boundary_even_when_nothing_arrives(start: Start, tmp_path: Path) -> None:
    sensor = start("-T", "1", file="d-%H%M%S.jsonl")
    wait_until(lambda: len(rotation(tmp_path)) >= 3, "three files")
    assert sensor.stop() == 0
    stamps = [name[2:8] for name in rotation(tmp_path)]
    assert len(set(stamps)) == len(stamps)


def test_rotation_loses_no_session(start: Start, tmp_path: Path) -> None:
    sensor = start("-q", "-T", "1", file="d-%H%M%S.jsonl")
    end = time.monotonic() + 2.5
    sent = 0
    while time.monotonic() < end:
        sensor.send(b"x")
        sent += 1
    assert sensor.stop() == 0
    assert sum(rotation(tmp_path).values()) == sent
    assert len(rotation(tmp_path)) >= 3


def test_closed_files_are_compressed_where_asked(start: Start, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[files]\ncompress = "gzip"\n', encoding="ascii")
    start("-T", "1", "-c", str(tmp_path / "c.toml"), file="d-%H%M%S.jsonl")
    wait_until(lambda: len(list(tmp_path.glob("d-*.jsonl.gz"))) >= 2, "two compressed files")


UNBOUNDED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def let_grow_by(sensor: Sensor, count: int) -> None:
    """A full disk without root: from now on the data file may grow by `count` bytes (write(2) cuts short, then
    EFBIG). A large record goes first, so that the log, a file too, stays far below the limit."""
    sensor.send(bytes(200_000))
    sensor.records(1)
    resource.prlimit(
        sensor.process.pid, resource.RLIMIT_FSIZE, (sensor.file.stat().st_size + count, resource.RLIM_INFINITY)
    )


def test_a_full_disk_holds_sessions_until_there_is_room(start: Start) -> None:
    sensor = start("-q", patch=FULL)
    let_grow_by(sensor, 100)  # the next write is cut in the middle of a line
    for index in range(30):
        sensor.send(b"held %d" % index)
    sensor.said("holding it until it can be written")
    assert sensor.file.read_bytes().endswith(b"}\n")
    time.sleep(2.2)
    assert sensor.log.count("Failed to write session data") == 1
    resource.prlimit(sensor.process.pid, resource.RLIMIT_FSIZE, UNBOUNDED)
    records = sensor.records(31)
    assert [payload(record) for record in records[1:]] == [b"held %d" % index for index in range(30)]
    assert "Writing session data again after" in sensor.said("Writing session data again after")
    assert sensor.stop() == 0


def test_what_a_full_disk_makes_it_drop_is_counted(start: Start, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[limits]\nmemory = "64KiB"\n', encoding="ascii")
    sensor = start("-q", "-c", str(tmp_path / "c.toml"), patch=FULL)
    let_grow_by(sensor, 0)
    for _ in range(200):
        sensor.send(b"y" * 100)
    sensor.said("holding it until it can be written")
    resource.prlimit(sensor.process.pid, resource.RLIMIT_FSIZE, UNBOUNDED)
    sensor.said("Writing session data again")
    assert sensor.stop() == 0
    dropped = int(sensor.log.split(" dropped (disk)")[0].rpartition(" ")[2])
    assert dropped + len(sensor.lines()) == 201
    assert dropped > 50
    assert len(sensor.lines()) > 20


def test_a_disk_that_stays_full_ends_with_1_and_says_what_is_lost(start: Start) -> None:
    sensor = start("-q", patch=FULL)
    let_grow_by(sensor, 0)
    sensor.send(b"never")
    sensor.said("holding it until it can be written")
    assert sensor.stop() == 1
    assert "1 sessions with 5 bytes are lost" in sensor.log
    assert "1 dropped (disk)" in sensor.log


def test_a_real_full_disk(start: Start, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        sensor = start("-q", file="disk/data.jsonl")
        for index in range(40):
            sensor.send(b"%04d" % index + b"z" * 4000)
        sensor.said("No space left on device; holding it until it can be written")
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        records = sensor.records(40)
        assert [int(payload(record)[:4]) for record in records] == list(range(40))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=False)
        assert sensor.stop() == 0
    finally:
        sensor.kill()
        subprocess.run(["umount", disk], check=True)


def test_a_vanished_folder_that_cannot_be_made_anew_holds_sessions(start: Start, tmp_path: Path) -> None:
    sensor = start("-q", file="deep/data.jsonl")
    sensor.send(b"one")
    sensor.records(1)
    shutil.rmtree(tmp_path / "deep")
    (tmp_path / "deep").write_text("in the way", encoding="ascii")
    sensor.send(b"two")
    sensor.said("holding it until it can be written")
    (tmp_path / "deep").unlink()
    assert payload(sensor.records(1)[0]) == b"two"


def test_sighup_reopens_files_after_logrotate(start: Start, tmp_path: Path) -> None:
    sensor = start("-L", str(tmp_path / "log"), wait=False)
    log = tmp_path / "log"
    wait_until(lambda: log.exists() and "Start UDP server." in log.read_text(encoding="utf-8"), "the start")
    port = int(log.read_text(encoding="utf-8").split("Listen: 127.0.0.1:")[1].split("\n")[0])
    log.rename(tmp_path / "log.1")
    sensor.file.rename(tmp_path / "data.1")
    sensor.signal(signal.SIGHUP)
    wait_until(lambda: log.exists() and "Reloaded." in log.read_text(encoding="utf-8"), "the reload")
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.sendall(b"after")
    assert payload(sensor.records(1)[0]) == b"after"
    assert (tmp_path / "data.1").read_bytes() == b""


def test_sighup_takes_the_new_configuration_for_new_sessions(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[capture]\nsensor = "old"\n[tcppc]\nport = 1\n', encoding="ascii")
    sensor = start("-c", str(path))
    sensor.send(b"1")
    sensor.records(1)
    path.write_text(
        '[capture]\nsensor = "new"\nquiet = true\n[limits]\nsession_bytes = 3\n'
        '[tcppc]\ntimeout = 0.3\ntimezone = "Asia/Tokyo"\n',
        encoding="ascii",
    )
    sensor.signal(signal.SIGHUP)
    sensor.said("Reloaded.")
    with sensor.connect() as sock:
        sock.sendall(b"12345")
        assert sock.recv(1) == b""
    old, new = sensor.records(2)
    assert (old["sensor"], new["sensor"]) == ("old", "new")
    assert new["timestamp"].endswith("+09:00")
    assert (payload(new), new["truncated"], new["closed"]) == (b"123", True, "timeout")


@pytest.mark.parametrize(
    "text", ["[tcppc]\nport = 'x'\n", "[tcppc", "[limits]\nsessoins = 1\n", '[tcppc]\ntimezone = "Mars"\n']
)
def test_a_wrong_configuration_is_refused_at_sighup_and_the_old_one_stays(
    start: Start, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[capture]\nsensor = "good"\n', encoding="ascii")
    sensor = start("-c", str(path))
    path.write_text(text, encoding="ascii")
    sensor.signal(signal.SIGHUP)
    sensor.said(f"Reload refused, the configuration stays as it was: {path}")
    sensor.send(b"still here")
    assert sensor.records(1)[0]["sensor"] == "good"
    assert sensor.stop() == 0


def test_a_reload_keeps_open_sessions(start: Start) -> None:
    sensor = start()
    with sensor.connect() as sock:
        sock.sendall(b"before ")
        sensor.said("before ")
        sensor.signal(signal.SIGHUP)
        sensor.said("Reloaded.")
        sock.sendall(b"after")
    assert payload(sensor.records(1)[0]) == b"before after"


def test_a_new_file_name_counts_from_the_reload_on(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"

    def name(number: int) -> Path:
        file = tmp_path / f"named-{number}.jsonl"
        path.write_text(f'[tcppc]\ntcpFileFmt = "{file}"\n', encoding="ascii")
        return file

    name(0)
    sensor = start("-c", str(path), file="")
    for number in range(1, 8):
        file = name(number)
        sensor.signal(signal.SIGHUP)
        wait_until(lambda number=number: sensor.log.count("Reloaded.") == number, "the reload")  # type: ignore[misc]
        sensor.send(b"%d" % number)
        wait_until(lambda file=file: file.exists() and file.stat().st_size, "the session")  # type: ignore[misc]
    assert sensor.stop() == 0
    assert tcppc("account", str(tmp_path)).returncode == 0


def test_what_needs_a_restart_is_said(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("", encoding="ascii")
    sensor = start("-c", str(path))
    path.write_text("[tcppc]\nmaxFdNum = 100\n[capture]\nudp = false\n", encoding="ascii")
    sensor.signal(signal.SIGHUP)
    sensor.said("Reload: tcppc.maxFdNum, capture.udp will be as the file says after a restart.")


def test_without_a_file_it_warns_and_logs(start: Start) -> None:
    sensor = start(file="")
    assert "!!!CAUTION!!! Session data will not be written to files." in sensor.log
    sensor.send(b"seen")
    sensor.said('"seen" (4 bytes)')
    sensor.said("Closed: ")
    assert sensor.stop() == 0


def test_the_log_has_tcppc_gos_wording(start: Start) -> None:
    import re

    sensor = start("-z", "Asia/Tokyo")
    sensor.send(b"Hello, TCPPC\n")
    log = sensor.said("Closed: ")
    stamp = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d "
    name = r"Session: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+0900: Flow: tcp 127\.0\.0\.1:\d+ <-> 127\.0\.0\.1:\d+ "
    for line in [
        r"Maximum number of file descriptors: \d+",
        r"Timezone: Asia/Tokyo",
        r"Timeout: 60",
        r"Session data file: \S+ \(Rotate every 0 seconds w/ 0 seconds offset\)",
        r"Created a session file: \S+",
        r"Listen: 127\.0\.0\.1:\d+",
        r"Start TCP server\.",
        r"Server Mode: UDP",
        r"Start UDP server\.",
        r"TCP: Established: " + name + r"\(0 payloads\) \(#Sessions: 1\)",
        r"TCP: Received: " + name + r'\(1 payloads\): "Hello, TCPPC\\n" \(13 bytes\)',
        r"Wrote data: " + name + r"\(1 payloads\)",
        r"Closed: " + name + r"\(1 payloads\) \(#Sessions: \d\)",
    ]:
        assert re.search(f"^{stamp}{line}$", log, re.MULTILINE), line


def test_classic_records_are_tcppc_gos_alone(start: Start) -> None:
    sensor = start("-format", "classic")
    sensor.send(b"")
    sensor.send(b"x")
    nothing, something = sensor.records(2)
    assert list(nothing) == list(something) == ["timestamp", "flow", "payloads"]
    assert nothing["payloads"] is None
    assert something["payloads"][0]["data"] == "eA=="


def test_a_flood_in_one_session_leaves_memory_flat(start: Start) -> None:
    sensor = start("-q")
    block = bytes(1 << 20)
    with sensor.connect() as sock:
        for _ in range(256):
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
    record = sensor.records(1)[0]
    assert record["bytes"] == 256 << 20
    assert record["truncated"] is True
    assert len(payload(record)) == 16 << 20
    status = Path(f"/proc/{sensor.process.pid}/status").read_text(encoding="ascii")
    peak_kb = int(status.split("VmHWM:")[1].split()[0])
    assert peak_kb < 200_000


def started_without(folder: Path, *flags: str) -> Sensor:
    sensor = Sensor(folder, *flags)
    sensor.process.wait(PATIENCE)
    return sensor


def test_a_port_in_use_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        sensor = Sensor(tmp_path, port=taken.getsockname()[1])
        assert sensor.process.wait(PATIENCE) == 1
    last = sensor.log.splitlines()[-1]
    assert "Failed to listen TCP socket: 127.0.0.1:" in last
    assert last.endswith("Address already in use")
    assert not sensor.file.exists()
    assert "Traceback" not in sensor.log


def test_a_file_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").mkdir()
    sensor = started_without(tmp_path)
    assert sensor.process.returncode == 1
    assert (
        sensor.log.splitlines()[-1] == f"tcppc: Failed to create a session file: {tmp_path}/data.jsonl: Is a directory"
    )


def test_more_descriptors_than_may_be_had_is_one_line(tmp_path: Path) -> None:
    sensor = started_without(tmp_path, "-R", str(1 << 30))
    assert sensor.process.returncode == 1
    assert "Failed to set maximum number of file descriptors: 1073741824: " in sensor.log.splitlines()[-1]


def test_the_soft_limit_of_descriptors_goes_to_the_hard_one_and_to_what_r_asks(start: Start) -> None:
    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 900))

    first = start(preexec=low)
    assert resource.prlimit(first.process.pid, resource.RLIMIT_NOFILE) == (900, 900)
    first.stop()
    assert resource.prlimit(start("-R", "500", preexec=low).process.pid, resource.RLIMIT_NOFILE)[0] == 500


@pytest.mark.parametrize("large", [900_000, 20_000_000])
@pytest.mark.parametrize("record", ["sessions", "events"])
def test_a_record_larger_than_any_file_may_be_is_cut_and_costs_nobody_else_anything(
    record: str, large: int, start: Start, tmp_path: Path
) -> None:
    """RLIMIT_FSIZE, which a stranger's single session is enough to reach."""
    sensor = start("-q", "--record", record, prefix=("prlimit", "--fsize=524288"))
    sensor.said("Files have 524,288 bytes at most (ulimit -f, LimitFSIZE)")
    sensor.send(b"before")
    sensor.send(b"x" * large)
    for number in range(5):
        sensor.send(b"behind %d" % number)
    assert sensor.stop() == 0
    records = []
    for path in tmp_path.glob("data*.jsonl"):
        assert path.stat().st_size <= 524288
        records += [json.loads(line) for line in path.read_bytes().splitlines()]
    account = sensor.account()
    assert account.returncode == 0, account.stdout
    if record == "events":
        assert sum(record["event"] == "end" for record in records) == 7
        return
    cut = [record for record in records if record["bytes"] == large]
    assert len(records) == 7
    assert cut[0]["truncated"]
    assert 380_000 < sum(len(b64decode(each["data"])) for each in cut[0]["payloads"]) < 393_216
    assert "1 truncated (file_size)" in sensor.log
