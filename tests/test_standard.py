"""Standard output and error as who starts a command left them: one line at most, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import PATIENCE, Sensor, ended

ROOT = Path(__file__).parent.parent
COMMANDS = ("--help", "--version", "check", "personas", "actions --tokens", "show DATA", "account DIR", "recover DATA")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sensor = Sensor(folder, "-q").started()
    sensor.send(b"x" * 20_000)
    sensor.records(1)
    assert sensor.stop() == 0
    return sensor.file


def run(command: str, data: Path, redirected: str, unbuffered: bool = False) -> subprocess.CompletedProcess[str]:
    words = command.replace("DATA", str(data)).replace("DIR", str(data.parent)).split()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirected}', "sh", sys.executable, "-m", "tcppc", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=ROOT,
        env=environment | ({"PYTHONUNBUFFERED": "1"} if unbuffered else {}),
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("redirected", "said"),
    [(">/dev/full", "No space left on device"), (">&-", "it is closed")],
)
def test_output_that_takes_nothing_is_one_line(command: str, redirected: str, said: str, data: Path) -> None:
    done = run(command, data, redirected)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"tcppc: standard output: {said}"
    assert len(done.stderr.splitlines()) <= 1 + (command == "recover DATA"), done.stderr
    assert run(command, data, redirected, unbuffered=True).stderr == done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_went_away_ends_the_command_without_a_word(command: str, data: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = command.replace("DATA", str(data)).replace("DIR", str(data.parent)).split()
    done = subprocess.run(
        [sys.executable, "-m", "tcppc", *words], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT
    )
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == "" or done.stderr.startswith("tcppc: 1 sessions whole")


@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-"])
@pytest.mark.parametrize(("command", "code"), [("bogus", 2), ("check -p http", 2), ("recover DATA", 0), ("check", 0)])
def test_errors_that_nobody_takes_change_no_exit_code(redirected: str, command: str, code: int, data: Path) -> None:
    done = run(command, data, redirected)
    assert done.returncode == code
    assert bool(done.stdout) == (code == 0)


def test_all_three_closed_are_no_descriptors_of_ours(data: Path) -> None:
    done = run("recover DATA -o OUT".replace("OUT", str(data.parent / "out.jsonl")), data, "<&- >&- 2>&-")
    assert done.returncode == 0
    assert (data.parent / "out.jsonl").read_bytes() == data.read_bytes()


def test_what_was_printed_before_an_error_is_written(data: Path) -> None:
    done = run(f"account DIR {data.parent / 'none'}", data, "")
    assert "The sums agree." in done.stdout
    assert done.returncode == 2
    assert done.stderr.startswith("tcppc: there is no ")


@pytest.mark.parametrize("redirected", [">/dev/full", ">&-"])
def test_hints_that_nobody_takes_do_not_end_the_sensor(redirected: str, start: Start) -> None:
    sensor = start("--hints", prefix=("sh", "-c", f'exec "$@" {redirected}', "sh"))
    sensor.said("--hints: standard output: ")
    sensor.send(b"still there")
    sensor.records(1)
    assert sensor.stop() == 0


def test_an_output_that_was_made_non_blocking_is_waited_for(data: Path) -> None:
    """As a shell's or ssh's pipe may be, which others share."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    words = [sys.executable, "-m", "tcppc", "show", "--max", "1MiB", *[str(data)] * 20]
    with ended(subprocess.Popen(words, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT)) as process:
        os.close(writer)
        with open(reader, "rb") as pipe:
            shown = pipe.read()
        assert process.stderr
        assert (process.wait(PATIENCE), process.stderr.read()) == (0, b"")
    assert shown.count(b"x" * 1000) > 0
    assert len(shown) > 20 * 20_000


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        [
            "sh",
            "-c",
            'cd gone && rmdir ../gone && exec "$@"',
            "sh",
            sys.executable,
            "-m",
            "tcppc",
            "-p",
            "0",
            "-w",
            "d.jsonl",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "tcppc: the working folder was removed: expected one that is there; cd to another one"
    )
