"""thp's own files."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tcppc.capture.books import Books
from tcppc.capture.captures import Captures
from tcppc.clock import Zone
from tcppc.records import Session
from tcppc.sections import Limits
from tests.conftest import Start
from tests.harness import tcppc, wait_until

START = 0x5DD4A1F1 * 10**9 + 0xC3A20 * 1000


def session(start: int = START, seconds: float = 12, data: bytes = b"x" * 42) -> Session:
    made = Session("tcp", "198.51.100.7", 53484, "192.0.2.10", 23, start, [(start, data)] if data else [], len(data))
    made.end, made.closed = start + round(seconds * 1e9), "peer"
    return made


def captures(folder: Path, logtype: str = "single") -> Captures:
    path = str(folder / "captures")
    return Captures(path, logtype, str(folder / "sessions"), Zone("UTC"), Books(Limits()), lambda line: None)


def test_a_line_a_session(tmp_path: Path) -> None:
    captures(tmp_path).add([session()])
    assert (tmp_path / "captures").read_text(encoding="ascii") == (
        f"Nov 20 02:16:29 SID=5DD4A1F1C3A20.silent PID={os.getpid()} SRC=198.51.100.7 SPT=53484 ET=00:00:12 BYTES=42\n"
    )


def test_several_lines_a_session(tmp_path: Path) -> None:
    captures(tmp_path, "multi").add([session(seconds=3723), session(START + 10**9, seconds=0.4, data=b"")])
    assert (tmp_path / "captures").read_text(encoding="ascii") == (
        f"\nNov 20 02:16:17 start thp SID 5DD4A1F1C3A20.silent, UNIX pid {os.getpid()} source 198.51.100.7\n"
        "Nov 20 03:18:20 end thp SID 5DD4A1F1C3A20.silent\n\t- elapsed time 01:02:03\n\t- total 42 bytes\n"
        f"\nNov 20 02:16:18 start thp SID 5DD4A1F2C3A20.silent, UNIX pid {os.getpid()} source 198.51.100.7\n"
        "Nov 20 02:16:19 end thp SID 5DD4A1F2C3A20.silent\n\t- total 0 bytes\n"
    )


def test_two_sessions_of_one_microsecond_are_two_files(tmp_path: Path) -> None:
    made = captures(tmp_path)
    made.add([session(data=b"one"), session(data=b"two"), session(data=b"")])
    files = {path.name: path.read_bytes() for path in (tmp_path / "sessions").iterdir()}
    assert files == {"5DD4A1F1C3A20.silent": b"one", "5DD4A1F1C3A21.silent": b"two"}


def test_nothing_that_stands_there_is_written_over_or_followed(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    folder.mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    (folder / "5DD4A1F1C3A20.silent").symlink_to(tmp_path / "precious")
    said: list[str] = []
    books = Books(Limits())
    Captures("", "single", str(folder), Zone("UTC"), books, said.append).add([session()])
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert books.errors["captures_failed"] == 1
    assert len(said) == 1
    assert "Failed to write captures" in said[0]


@pytest.mark.parametrize("logtype", ["single", "multi"])
def test_a_sensor_keeps_them_beside_its_records(start: Start, tmp_path: Path, logtype: str) -> None:
    log, folder = tmp_path / "thp" / "captures", tmp_path / "thp" / "sessions"
    flags = ("--captures", str(log), "--logtype", logtype, "--session-dir", str(folder), "--persona", "shell")
    sensor = start(*flags)
    sensor.send(b"id\n")
    sensor.datagram(b"datagram")
    sensor.records(2)
    wait_until(
        lambda: log.exists() and log.read_text("ascii").count("SID") == (2 if logtype == "single" else 4), "them"
    )
    names = re.findall(r"SID[= ]([0-9A-F]+\.\w+)", log.read_text(encoding="ascii"))
    assert {name.partition(".")[2] for name in names} == {"shell", "silent"}
    (kept,) = folder.iterdir()  # thp has no datagrams
    assert kept.read_bytes() == b"id\n"
    assert kept.name in names
    assert sensor.stop() == 0


def test_a_folder_that_cannot_be_written_costs_no_record(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    sensor = start("--session-dir", str(tmp_path / "file" / "sessions"))
    sensor.send(b"kept")
    assert len(sensor.records(1)) == 1
    sensor.said("Failed to write captures")
    assert sensor.stop() == 0
    assert "1 captures_failed" in sensor.log


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-w", "d.jsonl", "--captures", "./d.jsonl"), "--captures) ./d.jsonl: expected a file of its own"),
        (("--captures", "/tmp"), "--captures) /tmp: expected a file of its own"),
        (("-w", "d/x.jsonl", "--captures", "d/ledger.jsonl"), "expected a file of its own"),
        (("--session-dir", "/dev/null"), "--session-dir) /dev/null: expected a folder"),
    ],
)
def test_files_that_are_others_are_refused(flags: tuple[str, ...], words: str) -> None:
    done = tcppc("check", *flags)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_one_file_that_cannot_be_written_costs_no_other(tmp_path: Path) -> None:
    kept = captures(tmp_path)
    sessions = [
        Session("tcp", "192.0.2.1", 1, "192.0.2.2", 2, 1_780_000_000_000_000_000 + number * 1000, [(0, b"x")], 1)
        for number in range(4)
    ]
    (tmp_path / "sessions").mkdir()
    taken = kept._sid(sessions[1])
    kept._used.clear()
    (tmp_path / "sessions" / taken).write_bytes(b"there already")
    kept.add(sessions)
    assert len(list((tmp_path / "sessions").iterdir())) == 4
    assert (tmp_path / "captures").read_text().count("SID=") == 4


def test_a_session_that_is_not_all_in_memory_is_copied_whole(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    sensor = start("-q", "--session-dir", str(folder))
    sent = os.urandom(3 << 20)
    sensor.send(sent)
    sensor.records(1)
    assert sensor.stop() == 0
    (kept,) = folder.iterdir()
    assert kept.read_bytes() == sent


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def link(path: Path) -> None:
    path.with_name("precious").write_bytes(b"precious")
    path.symlink_to(path.with_name("precious"))


def link_to_a_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("pipe"))


def device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


OTHERS: dict[Callable[[Path], None], str] = {
    fifo: "a FIFO stands there; expected a regular file",
    folder: "a folder stands there; expected a regular file",
    link: "a symbolic link stands there; expected a regular file",
    link_to_a_fifo: "a symbolic link stands there; expected a regular file",
    device: "a device stands there; expected a regular file",
}


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.__name__)
def test_what_is_no_regular_file_is_neither_followed_nor_waited_for(
    start: Start, tmp_path: Path, other: Callable[[Path], None]
) -> None:
    """It came while the sensor ran; a start refuses it."""
    log = tmp_path / "thp" / "captures"
    sensor = start("--captures", str(log))
    sensor.send(b"first")
    wait_until(log.exists, "the log")
    log.unlink()
    other(log)
    sensor.send(b"second")
    sensor.said(f"Failed to write captures: {log}: {OTHERS[other]} (1 times so far)")
    sensor.send(b"third")
    assert len(sensor.records(3)) == 3
    if other is link:
        assert (tmp_path / "thp" / "precious").read_bytes() == b"precious"
    if other is folder:
        log.rmdir()
    else:
        log.unlink()
    sensor.send(b"fourth")
    wait_until(lambda: log.exists() and "SID=" in log.read_text(), "the log again")
    assert sensor.stop() == 0
    other_once_more = log.with_name("captures-2")
    if other is not link_to_a_fifo:
        other(other_once_more)
        done = tcppc("check", "--captures", str(other_once_more))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "expected a file of its own" in done.stderr


def test_a_log_that_is_full_makes_way_for_a_new_one(start: Start, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[files]\ncaptures_bytes = 1000\n", encoding="ascii")
    log = tmp_path / "captures"
    sensor = start("-q", "-c", str(tmp_path / "c.toml"), "--captures", str(log))
    for number in range(60):
        sensor.send(b"x" * number)
        sensor.records(number + 1)
    assert sensor.stop() == 0
    assert {path.name for path in tmp_path.glob("captures*")} == {"captures", "captures.1"}
    lines = [line for name in ("captures.1", "captures") for line in (tmp_path / name).read_text().splitlines()]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.glob("captures*"))
    assert [int(line.rpartition("BYTES=")[2]) for line in lines] == list(range(60))[-len(lines) :]


@pytest.mark.parametrize("other", [fifo, folder, link], ids=lambda other: other.__name__)
def test_a_full_log_replaces_nothing_but_a_log(tmp_path: Path, other: Callable[[Path], None]) -> None:
    said: list[str] = []
    made = Captures(str(tmp_path / "captures"), "single", "", Zone("UTC"), Books(Limits()), said.append, 200)
    other(tmp_path / "captures.1")
    for number in range(5):
        made.add([session(START + number)])
    full = f"{tmp_path}/captures.1: no regular file; {tmp_path}/captures is full and cannot be moved there"
    assert said == [f"Failed to write captures: {full} (1 times so far); the data file has them."]
    assert (tmp_path / "captures").stat().st_size <= 200
    assert other is not link or (tmp_path / "precious").read_bytes() == b"precious"


LIMITED = """
import resource, sys
from tcppc.capture.books import Books
from tcppc.capture.captures import Captures
from tcppc.clock import Zone
from tcppc.records import Session
from tcppc.sections import Limits
resource.setrlimit(resource.RLIMIT_FSIZE, (250, 250))
made = Captures("captures", "single", "sessions", Zone("UTC"), Books(Limits()), print, 0)
for number in range(4):
    made.add([Session("tcp", "192.0.2.1", 1, "192.0.2.2", 2, number * 1000, [(0, b"x" * 100 * number)], 1)])
"""


def test_a_file_size_limit_is_named_and_leaves_no_half_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.stdout == (
        "Failed to write captures: sessions/03.silent: the file size limit (ulimit -f) is 250 bytes (1 times so far); "
        "the data file has them.\n"
    )
    assert [line[-8:] for line in (tmp_path / "captures").read_text().splitlines()] == [" BYTES=1"] * 3
    assert sorted(path.stat().st_size for path in (tmp_path / "sessions").iterdir()) == [0, 100, 200]
