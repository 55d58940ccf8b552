"""Records on standard output, whatever that is: a pipe, a file (new, appended to, or not empty), a terminal, closed."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import Sensor, tcppc, wait_until

BEFORE = "what was there before, without an end"


def redirected(words: str) -> tuple[str, ...]:
    return "sh", "-c", f'exec "$@" {words}', "sh"


def lines(path: Path) -> int:
    return path.read_bytes().count(b'"flow"')


def three_times(sensor: Sensor, out: Path) -> None:
    """Sessions that are written one by one, with a reload between."""
    for number in range(3):
        sensor.send(b"session")
        wait_until(lambda: lines(out) > number, "the record")  # noqa: B023
        sensor.signal(signal.SIGHUP)
        wait_until(lambda: sensor.log.count("Reloaded.") > number, "the reload")  # noqa: B023


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("how", [">", ">>", ">> there", "| cat >", "1<>"])
def test_records_reach_standard_output_whatever_it_is_and_however_often_it_is_reopened(
    name: str, how: str, start: Start, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    if "there" in how:
        out.write_text(BEFORE)
    to = out
    if how == "| cat >":
        os.mkfifo(to := tmp_path / "pipe")
        with out.open("wb") as file:
            cat = subprocess.Popen(["cat", str(to)], stdout=file)
    sensor = start("-q", "-w", name, file="", prefix=redirected(f"{how.split()[0].replace('|', '>')} '{to}'"))
    three_times(sensor, out)
    assert sensor.stop() == 0
    assert "3 accepted, 0 open, 3 recorded" in sensor.log
    assert "moved or removed" not in sensor.log
    if how == "| cat >":
        assert cat.wait(60) == 0
    found = out.read_bytes()
    assert lines(out) == 3
    assert found.startswith(BEFORE.encode()) == ("there" in how)
    account = tcppc("account", str(tmp_path / "state" / "stream"))
    assert account.returncode == 0, account.stdout + account.stderr


def test_records_reach_a_terminal(start: Start, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    sensor = start("-q", "-w", "-", file="", prefix=redirected(f">'{os.ttyname(theirs)}'"))
    sensor.send(b"session")
    assert b'"timestamp"' in os.read(ours, 65536)
    assert sensor.stop() == 0
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
@pytest.mark.parametrize("how", [">&-", "1</dev/null"])
def test_a_standard_output_that_takes_nothing_is_told_at_the_start(name: str, how: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*redirected(how), sys.executable, "-m", "tcppc", "-H", "127.0.0.1", "-p", "0", "-w", name],
        capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parent.parent,
        env=os.environ | {"STATE_DIRECTORY": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{name}: standard output is closed or cannot be written to" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_reload_from_a_file_to_standard_output(start: Start, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f'[tcppc]\ntcpFileFmt = "{tmp_path}/data.jsonl"\n')
    out = tmp_path / "out.jsonl"
    sensor = start("-q", "-c", str(tmp_path / "c.toml"), file="", prefix=redirected(f"> '{out}'"))
    sensor.send(b"in the file")
    wait_until(lambda: lines(tmp_path / "data.jsonl") == 1, "the record")
    (tmp_path / "c.toml").write_text('[tcppc]\ntcpFileFmt = "-"\n')
    sensor.signal(signal.SIGHUP)
    sensor.said("Reloaded.")
    sensor.send(b"on the stream")
    wait_until(lambda: lines(out) == 1, "the record")
    assert sensor.stop() == 0
