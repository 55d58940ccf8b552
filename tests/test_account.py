"""`tcppc account` after what breaks: each time real sensors, real files, and the books must close."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tcppc.account_files import File, Files
from tcppc.capture.ledger import in_use
from tests.conftest import Start
from tests.harness import FULL, PATIENCE, Sensor, tcppc, wait_until


def number(screen: str, name: str) -> int:
    """The number that the screen has for `name`."""
    found = re.search(rf"^ +(?:{name} +([\d,]+)  |([\d,]+)  {name},)", screen, re.MULTILINE)
    assert found, screen
    return int((found[1] or found[2]).replace(",", ""))


def test_an_undisturbed_run_agrees(start: Start) -> None:
    sensor = start("-T", "1", file="d-%H%M%S.jsonl")
    sessions = 0
    while len(list(sensor.folder.glob("d-*.jsonl"))) < 3:
        sensor.send(b"x")
        sensor.datagram(b"y")
        sessions += 2
    assert sensor.stop() == 0
    done = sensor.account()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "The sums agree.")
    assert number(done.stdout, "accepted") == number(done.stdout, "recorded") == sessions
    assert number(done.stdout, "dropped") == number(done.stdout, "open") == 0


def test_a_sensor_that_runs_is_no_disagreement(start: Start) -> None:
    sensor = start()
    sensor.send(b"x")
    sensor.records(1)
    done = sensor.account()
    assert done.returncode == 0, done.stdout
    assert "by the last line of the sensor that runs" in done.stdout


def test_limits_are_counted_by_their_names(start: Start, tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text("[limits]\nsessions = 2\nsessions_per_source = 2\nsession_bytes = 100\n", encoding="ascii")
    sensor = start("-c", str(settings))
    with sensor.connect(), sensor.connect() as second:
        second.sendall(b"x" * 1000)
        for _ in range(5):
            sensor.send(b"too many")
        sensor.records(5)
    assert sensor.stop() == 0
    done = sensor.account()
    assert done.returncode == 0, done.stdout
    assert (number(done.stdout, "accepted"), number(done.stdout, "recorded")) == (7, 7)
    assert sum(number(done.stdout, name) for name in re.findall(r"  (sessions\w*), between", done.stdout)) == 5
    assert number(done.stdout, "session_bytes") == 1


def test_a_full_queue_is_a_drop_for_memory(start: Start, tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text('[limits]\nmemory = "64KiB"\n', encoding="ascii")
    sensor = start("-q", "-c", str(settings), patch=FULL)
    with contextlib.ExitStack() as stack:
        for _ in range(80):
            stack.enter_context(sensor.connect()).sendall(b"x")
        wait_until(lambda: sensor.threads() > 60, "the sessions")
        for _ in range(100):
            sensor.datagram(b"no room")
        assert sensor.stop() == 0
    done = sensor.account()
    assert done.returncode == 0, done.stdout
    dropped = number(done.stdout, "dropped")
    assert dropped > 0
    assert number(done.stdout, "memory") >= dropped
    assert number(done.stdout, "accepted") == number(done.stdout, "recorded") + dropped
    assert len(sensor.lines()) == number(done.stdout, "recorded")


def full_disk(sensor: Sensor) -> None:
    """No file of this sensor may grow beyond what the data file is now; the log is much smaller."""
    resource.prlimit(sensor.process.pid, resource.RLIMIT_FSIZE, (sensor.file.stat().st_size + 10, -1))


def test_a_disk_that_takes_nothing_to_the_end_is_a_drop(start: Start) -> None:
    sensor = start("-q", patch=FULL)
    sensor.send(b"x" * 50_000)
    sensor.records(1)
    full_disk(sensor)
    sensor.send(b"lost")
    sensor.said("holding it until it can be written")
    assert sensor.stop() == 1
    done = sensor.account()
    assert done.returncode == 0, done.stdout
    assert (number(done.stdout, "accepted"), number(done.stdout, "recorded"), number(done.stdout, "dropped")) == (
        2,
        1,
        1,
    )
    assert re.search(r" 1  disk, between \S+ and \S+\n", done.stdout)


def test_a_real_full_disk_is_in_the_books_once_there_is_room(start: Start, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        sensor = start("-q", "-T", "1", file="disk/d-%H%M%S.jsonl")
        for _ in range(40):
            sensor.send(b"z" * 4000)
        sensor.said("holding it until it can be written")
        sensor.said("Failed to write the ledger")
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        sensor.said("Writing session data again")
        assert sensor.stop() == 0
        done = sensor.account()
        assert done.returncode == 0, done.stdout
        assert number(done.stdout, "recorded") == 40
        assert number(done.stdout, "disk_failures") >= 1
    finally:
        for running in (sensor,):
            running.kill()
        subprocess.run(["umount", disk], check=True)


def test_running_out_of_descriptors_is_an_error_by_name(start: Start) -> None:
    sensor = start("-disable-udp-server")
    pid = sensor.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    in_use = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use + 4, hard))
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(sensor.connect())
        sensor.said("Failed to accept a new connection: EMFILE")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        sensor.said("(#Sessions: 20)")
    assert sensor.stop() == 0
    done = sensor.account()
    assert done.returncode == 0, done.stdout
    assert number(done.stdout, "recorded") == 20
    assert number(done.stdout, "accept_EMFILE") > 0


def test_what_the_kernel_drops_is_counted_beside_what_was_accepted(start: Start, tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text("[capture]\nudp_buffer = 4096\n", encoding="ascii")
    sensor = start("-q", "-c", str(settings))
    sensor.signal(signal.SIGSTOP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(500):
            sock.sendto(b"x" * 100, ("127.0.0.1", sensor.port))
    sensor.signal(signal.SIGCONT)
    sensor.records(1)
    assert sensor.stop() == 0
    done = sensor.account()
    assert done.returncode == 0, done.stdout
    assert number(done.stdout, "recorded") + number(done.stdout, "kernel_udp_drops") == 500


def test_kill_9_in_the_middle_is_told_with_what_is_known(start: Start) -> None:
    sensor = start("-q")
    sensor.send(b"written")
    sensor.records(1)
    with sensor.connect() as sock:
        sock.sendall(b"never written")
        sensor.kill()
    done = sensor.account()
    assert done.returncode == 1
    assert "never stopped (kill -9, power cut)" in done.stdout
    assert "data.jsonl: 1 lines that the ledger does not tell of" in done.stdout
    after = start("-q")
    after.send(b"later")
    assert after.stop() == 0
    done = after.account()
    assert done.returncode == 1
    assert number(done.stdout, "recorded") == 1
    assert "data.jsonl: 1 lines that the ledger does not tell of" in done.stdout
    assert done.stdout.count("PROBLEM") == 1


@pytest.fixture
def ended(start: Start) -> Sensor:
    """A sensor that recorded ten sessions and has ended."""
    sensor = start("-q")
    for index in range(10):
        sensor.send(b"%d" % index)
    assert sensor.stop() == 0
    assert sensor.account().returncode == 0
    return sensor


@pytest.mark.parametrize(
    ("hand", "expected"),
    [
        (lambda lines: lines[:4] + lines[5:], r"data.jsonl: 1 lines, \d+ bytes are missing since"),
        (lambda lines: lines[:3], r"data.jsonl: 7 lines, \d+ bytes are missing since"),
        (lambda lines: [], r"data.jsonl: 10 lines, \d+ bytes are missing since"),
        (lambda lines: [lines[0] + lines[1] + b".", *lines[2:]], r"data.jsonl: has 9 lines where 10 were written"),
        (lambda lines: [*lines, lines[0]], r"data.jsonl: has \d+ bytes that no ledger line tells of"),
    ],
    ids=["one", "the last", "all", "joined", "added"],
)
def test_what_a_hand_has_changed_is_found(ended: Sensor, hand: object, expected: str) -> None:
    lines = ended.file.read_bytes().splitlines()
    ended.file.write_bytes(b"".join(line + b"\n" for line in hand(lines)))  # type: ignore[operator]
    done = ended.account()
    assert done.returncode == 1
    assert re.search(f"PROBLEM: {expected}", done.stdout), done.stdout
    assert done.stdout.count("PROBLEM") == 1


def test_what_a_hand_removed_is_found_also_after_more_was_written(ended: Sensor, start: Start) -> None:
    lines = ended.file.read_bytes().splitlines(keepends=True)
    ended.file.write_bytes(b"".join(lines[2:]))
    again = start("-q")
    again.send(b"more")
    assert again.stop() == 0
    assert re.search(r"PROBLEM: data.jsonl: \d+ bytes shorter at ", again.account().stdout)


def test_a_file_that_is_gone_is_named_and_one_that_logrotate_moved_is_found(ended: Sensor) -> None:
    ended.file.rename(ended.file.with_name("data.jsonl.1"))
    assert ended.account().returncode == 0
    (ended.folder / "data.jsonl.1").unlink()
    assert "data.jsonl: is gone, with 10 lines" in ended.account().stdout


def test_an_empty_file_that_is_gone_is_no_disagreement(start: Start) -> None:
    sensor = start("-q")
    assert sensor.stop() == 0
    sensor.file.unlink()
    assert sensor.account().returncode == 0


def test_since_leaves_out_what_ended_before(ended: Sensor, start: Start) -> None:
    ended.file.unlink()
    killed = start("-q", file="killed.jsonl")
    killed.kill()
    assert ended.account().stdout.count("PROBLEM") == 2
    now = datetime.now(timezone.utc).isoformat()
    after = start("-q", file="after.jsonl")
    after.send(b"x")
    assert after.stop() == 0
    done = tcppc("account", "--since", now, str(ended.folder))
    assert done.returncode == 0, done.stdout
    assert number(done.stdout, "recorded") == 1
    done = tcppc("account", "--since", "2999-01-01T00:00:00Z", str(ended.folder))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = tcppc("account", "--since", "yesterday", str(ended.folder))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_file_removed_after_the_stop_leaves_the_run_stopped(ended: Sensor) -> None:
    ledger = ended.folder / "ledger.jsonl"
    stop = json.loads(ledger.read_bytes().splitlines()[-1])
    keys = ("timestamp", "run", "sensor")
    removed = {key: stop[key] for key in keys} | {
        "event": "remove",
        "file": "data.jsonl",
        "size": ended.file.stat().st_size,
        "why": "keep_bytes",
    }
    with ledger.open("ab") as file:
        file.write(json.dumps(removed).encode() + b"\n")
    ended.file.unlink()
    done = ended.account()
    assert done.returncode == 0, done.stdout


def test_a_copy_beside_a_file_is_no_disagreement(ended: Sensor) -> None:
    ended.file.with_name("data.jsonl.bak").write_bytes(ended.file.read_bytes())
    done = ended.account()
    assert done.returncode == 0, done.stdout
    assert "1 files beside it are not counted" in done.stdout


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_compressed_files_are_counted_too(start: Start, tmp_path: Path, kind: str) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text(f'[files]\ncompress = "{kind}"\n', encoding="ascii")
    sensor = start("-q", "-c", str(settings), "-T", "1", file="d-%H%M%S.jsonl")
    ending = {"gzip": ".gz", "zstd": ".zst"}[kind]
    while len(list(tmp_path.glob(f"d-*{ending}"))) < 2:
        sensor.send(b"x")
    assert sensor.stop() == 0
    done = sensor.account()
    assert done.returncode == 0, done.stdout
    packed = max(tmp_path.glob(f"d-*{ending}"), key=lambda path: path.stat().st_size)  # one of them may hold nothing
    packed.write_bytes(packed.read_bytes()[:-10])
    done = sensor.account()
    assert done.returncode == 1
    # zstd's reader takes a cut for the end; the bytes are missing all the same.
    assert f"{packed}: is damaged after" in done.stdout or "bytes are missing since" in done.stdout


def test_files_that_keep_bytes_removed_are_no_disagreement(start: Start, tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text("[files]\nkeep_bytes = 1000\n", encoding="ascii")
    sensor = start("-q", "-c", str(settings), "-T", "1", file="d-%H%M%S.jsonl")
    while "Removed the oldest session file" not in sensor.log:
        sensor.send(b"x")
    assert sensor.stop() == 0
    done = sensor.account()
    assert done.returncode == 0, done.stdout
    assert "removed, as files.keep_bytes asks" in done.stdout


def test_damaged_lines_are_named_and_the_rest_is_added_up(ended: Sensor) -> None:
    ledger = ended.folder / "ledger.jsonl"
    ledger.write_bytes(b"\x1b]0;x\x07\n" + ledger.read_bytes() + b'{"timestamp":"20')
    done = ended.account()
    assert done.returncode == 1
    assert done.stdout.count("is no line of a ledger, passed over") == 2
    assert number(done.stdout, "recorded") == 10


def test_lines_of_another_sensor_are_told(ended: Sensor, start: Start) -> None:
    other = start("-q", "--sensor", "osaka")
    assert other.stop() == 0
    assert "note: lines of 2 sensors: osaka, " in other.account().stdout


def test_what_is_no_ledger_is_one_line(tmp_path: Path) -> None:
    for content, expected in (
        (None, "there is no "),
        (b"", "has no line of a ledger; expected"),
        (b"{}\n", "has no line"),
    ):
        if content is not None:
            (tmp_path / "ledger.jsonl").write_bytes(content)
        done = tcppc("account", str(tmp_path))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert expected in done.stderr


def test_quiet_says_nothing_while_all_is_well(ended: Sensor) -> None:
    done = tcppc("account", "-q", str(ended.folder))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    ended.file.unlink()
    done = tcppc("account", "-q", str(ended.folder))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "The sums do not agree.")


def test_a_long_count_shows_how_far_it_is_on_a_terminal(tmp_path: Path, ended: Sensor) -> None:
    with ended.file.open("ab") as file:
        file.truncate(1 << 31)  # a hole: long to read, no room taken
    controller, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "tcppc", "account", str(ended.folder)],
            stdout=subprocess.DEVNULL,
            stderr=terminal,
            cwd=Path(__file__).parent.parent,
        )
        os.close(terminal)
        seen = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while data := os.read(controller, 4096):
                seen += data
        process.wait(PATIENCE)
    finally:
        os.close(controller)
    assert re.search(rb"reading \S+ \[#+ *\] +\d+%", seen), seen
    assert seen.endswith(b"\r\x1b[K")


def test_a_ledger_line_is_json_with_the_contracts_keys(ended: Sensor) -> None:
    lines = [json.loads(line) for line in (ended.folder / "ledger.jsonl").read_bytes().splitlines()]
    assert [line["event"] for line in lines] == ["start", "open", "close", "stop"]
    assert list(lines[2]) == [
        "timestamp", "run", "sensor", "event", "file", "size", "first", "last", "accepted", "recorded", "open",
        "bytes_in", "lines", "bytes",
    ]  # fmt: skip


def test_a_start_that_fails_at_its_file_is_no_run_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").mkdir()
    sensor = Sensor(tmp_path)
    assert sensor.process.wait(30) == 1
    (tmp_path / "data.jsonl").rmdir()
    done = sensor.account()
    assert done.returncode == 0, done.stdout


def test_lines_taken_out_and_made_up_for_are_found_also_after_more_was_written(start: Start) -> None:
    sensor = start()
    for number in range(10):
        sensor.send(b"%d" % number)
    assert sensor.stop() == 0
    lines = sensor.file.read_bytes().splitlines(keepends=True)
    missing = sum(map(len, lines[5:]))
    sensor.file.write_bytes(b"".join(lines[:5]) + b'{"x":"' + b"A" * (missing + 50) + b'"}\n')
    again = start()
    again.send(b"more")
    assert again.stop() == 0
    done = again.account()
    assert done.returncode == 1
    assert "bytes added between" in done.stdout
    assert "has 7 lines where 11 were written; some were taken out" in done.stdout


@pytest.mark.parametrize("while_it_runs", [True, False])
def test_a_line_that_was_added_is_found_also_after_more_was_written(start: Start, while_it_runs: bool) -> None:
    sensor = start()
    sensor.send(b"one")
    sensor.records(1)
    if not while_it_runs:
        assert sensor.stop() == 0
    with sensor.file.open("ab") as file:
        file.write(b'{"forged":1}\n')
    if not while_it_runs:
        sensor = start()
    sensor.send(b"two")
    sensor.records(3)
    assert sensor.stop() == 0
    done = sensor.account()
    assert done.returncode == 1, done.stdout
    assert "13 bytes" in done.stdout


def test_many_files_are_looked_up_once(tmp_path: Path) -> None:
    """A year of hourly files: each folder is listed once, not once a file."""
    files = Files(tmp_path)
    for number in range(8760):
        files.of[f"{number}.jsonl"] = File(f"{number}.jsonl")
        (tmp_path / f"{number}.jsonl.gz").touch()
    listed = 0

    def counting(path: Path) -> list[str]:
        nonlocal listed
        listed += 1
        return ["17.jsonl.gz"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.listdir", counting)
        files.bytes_to_read()
        for file in files.of.values():
            files.found(file)
    assert files.found(files.of["17.jsonl"]) == [tmp_path / "17.jsonl.gz"]
    assert listed == 1


def test_two_readers_do_not_take_each_other_for_a_sensor(start: Start, tmp_path: Path) -> None:
    sensor = start()
    sensor.send(b"one")
    sensor.records(1)
    sensor.kill()
    with (tmp_path / "ledger.jsonl").open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert "never stopped" in sensor.account().stdout
        # And a sensor that starts meanwhile is seen once the reader has gone.
        again = start(patch="import tcppc.capture.ledger as ledger; ledger.FIRST_MARK_SECONDS = 0.1")
        fcntl.flock(reader, fcntl.LOCK_UN)
    again.send(b"two")
    wait_until(lambda: in_use(tmp_path / "ledger.jsonl"), "the lock")
    assert again.stop() == 0


def test_a_ledger_that_an_editor_replaced_is_held_again(start: Start, tmp_path: Path) -> None:
    sensor = start(patch="import tcppc.capture.ledger as ledger; ledger.FIRST_MARK_SECONDS = 0.1")
    ledger = tmp_path / "ledger.jsonl"
    other = tmp_path / "other"
    other.write_bytes(ledger.read_bytes())
    other.rename(ledger)
    assert not in_use(ledger)
    sensor.send(b"one")
    wait_until(lambda: in_use(ledger), "the sensor to hold the new file")
    assert sensor.stop() == 0


def test_damage_older_than_since_is_left_out(ended: Sensor, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    old = ledger.read_bytes()
    ledger.write_bytes(b'{"half a li\n' + old + b"\n")
    assert ended.account().returncode == 1
    assert tcppc("account", "--since", "1h", str(tmp_path)).returncode == 0


def test_a_name_that_comes_back_after_keep_bytes_removed_it_is_looked_at(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[files]\nfile_bytes = 4096\nkeep_bytes = 9000\n", encoding="ascii")
    sensor = start("-c", str(path))
    for _ in range(15):
        sensor.send(b"x" * 700)
    wait_until(lambda: not sensor.file.exists(), "the first file to be removed")
    assert sensor.stop() == 0
    assert sensor.account().returncode == 0, sensor.account().stdout
    again = start("-c", str(path))
    for _ in range(3):
        again.send(b"x" * 700)
    assert again.stop() == 0
    assert again.account().returncode == 0, again.account().stdout
    kept = again.file.read_bytes()
    again.file.write_bytes(kept[kept.index(b"\n") + 1 :])
    assert again.account().returncode == 1
    again.file.unlink()
    assert again.account().returncode == 1


def test_numbered_files_of_a_name_without_an_ending_are_each_their_own(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[files]\nfile_bytes = 4096\ncompress = "gzip"\n', encoding="ascii")
    sensor = start("-c", str(path), file="seen")

    def goes_on() -> bool:
        sensor.send(b"x" * 700)
        return (tmp_path / "seen.1.gz").exists() and not (tmp_path / "seen.1").exists()

    wait_until(goes_on, "the second one")
    assert sensor.stop() == 0
    done = sensor.account()
    assert done.returncode == 0, done.stdout
