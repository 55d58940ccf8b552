"""The books never agree where something is missing, and always where nothing is: states, damage, streams."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.harness import ended, tcppc, wait_until
from tests.ledgers import LINE, Ledger, counts
from tests.test_account import number

AGREE = "The sums agree."
NOT = "The sums do not agree."


def verdict(screen: str) -> str:
    return screen.splitlines()[-1]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def test_what_is_not_yet_written_is_a_state_of_its_own_while_a_sensor_runs(ledger: Ledger) -> None:
    ledger.killed(told=2, untold=3, accepted=5, open=1)
    with ledger.held():
        code, screen = ledger.account()
    assert code == 0, screen
    assert (number(screen, "accepted"), number(screen, "recorded"), number(screen, "open")) == (5, 2, 1)
    assert re.search(r"waiting +2  accepted and not yet written, by the last line of the sensor that runs\n", screen)
    assert f"data.jsonl: 3 lines, {3 * len(LINE)} bytes more were written after the sensor's last line" in screen
    assert verdict(screen) == (
        "The sums agree so far: 1 session is open, 2 sessions are not yet written, "
        "3 lines are newer than the ledger's last."
    )
    code, screen = ledger.account()  # and nobody runs any more
    assert (code, verdict(screen)) == (1, NOT)
    assert "with 1 sessions open, 2 not yet written; what it had not written by its end is lost" in screen
    assert re.search(r"cut off +3  open or not yet written when their run ended\n", screen)


def test_right_after_traffic_a_sensor_that_runs_says_what_its_file_has_beyond_the_ledger(start: Start) -> None:
    sensor = start("-q")
    for _ in range(2):
        sensor.send(b"x")
    sensor.records(2)
    done = sensor.account()
    assert done.returncode == 0, done.stdout
    assert verdict(done.stdout) != AGREE or number(done.stdout, "recorded") == 2
    assert sensor.stop() == 0
    assert verdict(sensor.account().stdout) == AGREE


def test_in_a_run_that_stopped_the_same_difference_is_a_problem(ledger: Ledger) -> None:
    ledger.start()
    ledger.close(3, accepted=5)
    ledger.stop()
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (1, NOT)
    assert "2 accepted sessions are in no count" in screen


@pytest.mark.parametrize("runs", [True, False])
def test_more_recorded_than_accepted_is_a_problem_also_while_it_runs(ledger: Ledger, runs: bool) -> None:
    ledger.start()
    ledger.close(3, event="mark", accepted=1)
    if not runs:
        ledger.close()
        ledger.stop()
        code, screen = ledger.account()
    else:
        with ledger.held():
            code, screen = ledger.account()
    assert (code, verdict(screen)) == (1, NOT)
    assert screen.count("2 more sessions are recorded, dropped or open than were accepted") == 1


HELD = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, 2); print('held', flush=True); sys.stdin.read()"


def test_a_killed_run_is_not_taken_for_the_sensor_that_has_not_written_a_line_yet(ledger: Ledger) -> None:
    """Its disk is full: it holds the ledger, and no line of it is there."""
    ledger.ago = 3600
    ledger.killed()
    with ended(
        subprocess.Popen([sys.executable, "-c", HELD, str(ledger.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        code, screen = ledger.account()
        other.communicate(b"")
    assert (code, verdict(screen)) == (1, NOT)
    assert "never stopped" in screen
    assert "note: a sensor runs here that has written no line into this ledger yet" in screen


Hand = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
TWO_FILES = ("start", "open", "mark", "close", "open", "mark", "close", "stop")


def two_files(ledger: Ledger) -> None:
    ledger.start("d-1.jsonl")
    ledger.close(2, "d-1.jsonl", "mark")
    ledger.close(1, "d-1.jsonl")
    ledger.open("d-2.jsonl")
    ledger.close(3, "d-2.jsonl", "mark")
    ledger.close(1, "d-2.jsonl")
    ledger.stop()


def test_the_ledger_that_hands_change_below_is_sound(ledger: Ledger) -> None:
    two_files(ledger)
    assert [line["event"] for line in ledger.lines] == list(TWO_FILES)
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (0, AGREE), screen


@pytest.mark.parametrize("at", range(len(TWO_FILES)), ids=[f"{at} {event}" for at, event in enumerate(TWO_FILES)])
def test_any_line_of_the_ledger_that_is_gone_is_noticed(ledger: Ledger, at: int) -> None:
    two_files(ledger)
    del ledger.lines[at]
    ledger.write()
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (1, NOT), screen


@pytest.mark.parametrize("at", range(len(TWO_FILES)), ids=[f"{at} {event}" for at, event in enumerate(TWO_FILES)])
def test_any_line_of_the_ledger_that_is_there_twice_is_noticed(ledger: Ledger, at: int) -> None:
    two_files(ledger)
    ledger.lines.insert(at, ledger.lines[at])
    ledger.write()
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (1, NOT), screen


@pytest.mark.parametrize("kept", range(1, len(TWO_FILES)))
@pytest.mark.parametrize("end", ["head", "tail"])
def test_a_ledger_that_was_cut_anywhere_is_noticed(ledger: Ledger, kept: int, end: str) -> None:
    two_files(ledger)
    ledger.lines = ledger.lines[-kept:] if end == "head" else ledger.lines[:kept]
    ledger.write()
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (1, NOT), screen


@pytest.mark.parametrize("at", range(len(TWO_FILES)))
def test_a_line_without_anything_in_it_that_is_gone_is_noticed_too(ledger: Ledger, at: int) -> None:
    """A size tells nothing of a file that was empty, or of counts that are no bytes."""
    ledger.start("d-1.jsonl")
    ledger.close(0, "d-1.jsonl", "mark", accepted=4, dropped={"disk": 4})
    ledger.close(0, "d-1.jsonl")
    ledger.open("d-2.jsonl")
    ledger.close(0, "d-2.jsonl", "mark", accepted=1, open=1)
    ledger.close(0, "d-2.jsonl", dropped={"error": 1})
    ledger.stop()
    assert ledger.account()[0] == 0
    event = ledger.lines.pop(at)["event"]
    ledger.write()
    code, screen = ledger.account()
    # A mark that had counts of its own kind alone is the one line that nothing else tells of: docs/ledger.md says so.
    assert code == 1 or (event == "mark" and at == 2), screen


def test_a_run_with_a_start_line_only_is_one_that_was_killed(ledger: Ledger) -> None:
    ledger.whole()
    ledger.begin_run()
    ledger.add("start", version="1")
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (1, NOT)
    assert screen.count("never stopped") == 1


def test_lost_lines_of_the_ledger_are_a_problem(ledger: Ledger) -> None:
    ledger.start()
    ledger.close(3, errors={"ledger_lines_lost": 7})
    ledger.stop()
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (1, NOT)
    assert "7 lines of its ledger were lost, and what they counted is missing" in screen


def test_sessions_that_are_in_no_line_are_a_problem(ledger: Ledger) -> None:
    ledger.start()
    ledger.close(3, accepted=9, recorded=9)
    ledger.stop()
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (1, NOT)
    assert "9 sessions are recorded in 3 lines" in screen


def test_files_that_no_line_tells_of_are_noted(ledger: Ledger) -> None:
    """The ledger's head was cut off at a run's beginning, or a run's lines are all gone: what is left is sound."""
    ledger.whole(name="d-20261120.jsonl")
    for day in range(5):
        ledger.file(f"d-2026112{day + 1}.jsonl.gz").write_bytes(b"")
    ledger.file("recovered.jsonl").write_bytes(LINE)
    code, screen = ledger.account()
    assert code == 0, screen
    assert (
        "note: no line of the ledger tells of d-20261121.jsonl.gz, d-20261122.jsonl.gz, d-20261123.jsonl.gz and 2"
        in (screen)
    )
    assert "recovered" not in screen


@pytest.mark.parametrize("taken", [0, 2])
def test_bytes_that_were_missing_when_keep_bytes_removed_a_file_stay_missing(ledger: Ledger, taken: int) -> None:
    ledger.start("d-1.jsonl")
    ledger.close(5, "d-1.jsonl")
    ledger.open("d-2.jsonl")
    ledger.add("remove", file="d-1.jsonl", size=(5 - taken) * len(LINE), why="keep_bytes")
    ledger.close(1, "d-2.jsonl")
    ledger.stop()
    ledger.file("d-1.jsonl").unlink()
    code, screen = ledger.account()
    assert "note: d-1.jsonl: removed, as files.keep_bytes asks: 5 lines\n" in screen
    assert code == bool(taken), screen
    assert (f"d-1.jsonl: {taken * len(LINE)} bytes shorter when it was removed" in screen) == bool(taken)


def test_two_sensors_in_one_folder_are_told(start: Start, tmp_path: Path) -> None:
    first = start("-q", "--sensor", "one")
    # As on a file system without locks, where the second one is not refused.
    unseen = "from tcppc.capture.ledger import Ledger; Ledger.claim = lambda self: None; "
    unseen += "import tcppc.capture.files as f; f._taken = lambda fd: True"
    second = start("-q", "--sensor", "two", patch=unseen)
    for sensor in (first, second, first):
        sensor.send(b"x")
    first.records(3)
    both = wait_until(lambda: "2 runs" in (said := second.account().stdout) and said, "both in the ledger")
    assert "never stopped" in both
    assert first.stop() == 0
    assert second.stop() == 0
    done = second.account()
    assert "wrote here at the same time" in done.stdout
    lines = (tmp_path / "data.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "data.jsonl").write_bytes(b"".join(lines[1:]))
    assert second.account().returncode == 1


def test_bytes_changed_in_a_file_that_grows_are_noticed_while_the_sensor_runs(ledger: Ledger) -> None:
    ledger.start()
    ledger.close(4, event="mark")
    ledger.file().write_bytes(b'{"joined":' + b"1" * (4 * len(LINE) - 12) + b"}\n" + LINE * 9)
    with ledger.held():
        code, screen = ledger.account()
    assert (code, verdict(screen)) == (1, NOT)
    assert f"has 1 lines in its first {4 * len(LINE)} bytes where 4 were written; it was changed" in screen


def test_bytes_added_after_a_killed_run_are_no_longer_excused_once_a_later_one_closed_the_file(ledger: Ledger) -> None:
    ledger.killed()
    ledger.whole()
    assert ledger.account()[1].count("PROBLEM") == 1
    with ledger.file().open("ab") as file:
        file.write(LINE)
    _, screen = ledger.account()
    assert f"data.jsonl: has {len(LINE)} bytes that no ledger line tells of" in screen


def test_a_thread_that_was_stuck_and_a_listener_that_was_dead_are_notes(ledger: Ledger) -> None:
    ledger.start()
    why = "write(2) to data.jsonl has not returned for 12 s"
    ledger.add("thread", thread="writer", alive=False, why=why)
    ledger.add("thread", thread="writer", alive=True)
    ledger.add("listener", listener="udp 0.0.0.0:12345", alive=False)
    ledger.add("listener", listener="udp 0.0.0.0:12345", alive=True)
    ledger.add("thread", thread="keeper", alive=False)
    ledger.close(1)
    ledger.stop()
    stamps = [line["timestamp"] for line in ledger.lines]
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (0, AGREE), screen
    assert f"note: the writer was stuck between {stamps[2]} and {stamps[3]}: {why}\n" in screen
    assert f"note: the listener udp 0.0.0.0:12345 did not answer between {stamps[4]} and {stamps[5]}\n" in screen
    assert f"note: the keeper was stuck between {stamps[6]} and the end of its run, after {stamps[-1]}\n" in screen


def test_a_writer_that_never_came_back_leaves_its_file_open_and_its_sessions_dropped(ledger: Ledger) -> None:
    ledger.start()
    ledger.close(2, event="mark")
    ledger.add("thread", thread="writer", alive=False, why="write(2) to data.jsonl has not returned for 12 s")
    ledger.data(1)  # what the write had put there all the same
    ledger.add("stop", **(counts(0) | {"accepted": 30}), dropped={"stuck": 28, "stop": 2}, bytes_dropped=600_000)
    code, screen = ledger.account()
    assert code == 0, screen
    assert re.search(r"dropped +30  in no file, 600,000 bytes\n", screen)
    assert (number(screen, "stuck"), number(screen, "stop")) == (28, 2)
    assert "data.jsonl: 1 lines that the ledger does not tell of" in screen


def test_what_the_last_line_of_a_held_up_run_counts_is_in_the_file_it_left_open(ledger: Ledger) -> None:
    ledger.start()
    ledger.close(2, event="mark")
    ledger.add("thread", thread="writer", alive=False, why="write(2) to data.jsonl has not returned for 12 s")
    written = ledger.data(3)
    del written["size"]
    ledger.add("stop", **(written | {"accepted": 10}), dropped={"stuck": 7})
    code, screen = ledger.account()
    assert code == 0, screen
    assert "does not tell of" not in screen
    ledger.file().write_bytes(ledger.file().read_bytes()[8:])
    code, screen = ledger.account()
    assert code == 1
    assert "1 lines, 8 bytes are missing" in screen


def test_a_writer_that_came_back_explains_no_line_that_is_gone(ledger: Ledger) -> None:
    ledger.start()
    ledger.add("thread", thread="writer", alive=False, why="write(2) has not returned")
    ledger.add("thread", thread="writer", alive=True)
    ledger.data(3)
    ledger.stop()
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (1, NOT)
    assert "no line tells of data.jsonl's end: what it counted is missing" in screen


def test_an_event_of_a_newer_version_is_passed_over_with_a_note(ledger: Ledger) -> None:
    ledger.start()
    for _ in range(2):
        ledger.add("weather", sun=True)
    ledger.lines.append({"event": "moon"})
    ledger.close(1)
    ledger.stop()
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (0, AGREE), screen
    assert "note: 2 lines of an event that this version does not know are passed over: weather\n" in screen
    assert "damage" not in screen
    assert "PROBLEM" not in screen


def test_an_event_of_a_newer_version_that_has_counts_is_no_agreement(ledger: Ledger) -> None:
    ledger.start()
    ledger.close(1, event="pause")
    ledger.close(0, bytes=len(LINE), lines=1)
    ledger.stop()
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (1, NOT), screen
    assert "a line has counts of an event that this version does not know: pause" in screen


def stream(ledger: Ledger, **keys: Any) -> None:
    """What a sensor writes whose data file is a FIFO: its size is always 0."""
    ledger.add("start", version="1")
    ledger.add("open", file="data.jsonl", size=0, **keys)
    ledger.add("mark", file="data.jsonl", **(counts(2) | {"size": 0}), **keys)
    ledger.add("close", file="data.jsonl", **(counts(1) | {"size": 0}), **keys)
    ledger.stop()


STREAM = f"note: data.jsonl: a stream: 3 lines, {3 * len(LINE)} bytes were written to it, they cannot be counted here\n"


@pytest.mark.parametrize("told", [{"stream": True}, {}], ids=["told", "old ledger"])
@pytest.mark.parametrize("there", ["fifo", "socket", "nothing", "link to a FIFO"])
def test_a_stream_is_never_opened_never_gone_and_gives_one_answer(
    ledger: Ledger, there: str, told: dict[str, bool]
) -> None:
    stream(ledger, **told)
    path = ledger.file()
    if there == "fifo":
        os.mkfifo(path)
    elif there == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    elif there == "link to a FIFO":
        os.mkfifo(ledger.file("elsewhere"))
        path.symlink_to("elsewhere")
    answers = {ledger.account() for _ in range(2)}
    code, screen = answers.pop()
    assert not answers
    assert (code, verdict(screen)) == (0, AGREE), screen
    assert STREAM in screen


def test_a_fifo_gives_the_same_kind_of_answer_before_and_after_its_first_mark(start: Start, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.jsonl")
    with os.fdopen(os.open(tmp_path / "data.jsonl", os.O_RDWR | os.O_NONBLOCK), "rb") as reader:
        sensor = start("-q", patch="import tcppc.capture.ledger as ledger; ledger.FIRST_MARK_SECONDS = 1")
        sensor.send(b"x")
        before = sensor.account()
        wait_until(lambda: b'"mark"' in (tmp_path / "ledger.jsonl").read_bytes(), "the mark")
        after = sensor.account()
        assert sensor.stop() == 0
        done = sensor.account()
        size = len(os.read(reader.fileno(), 1 << 16))
    for each in (before, after, done):
        assert each.returncode == 0, each.stdout
        assert re.search(
            r"note: data.jsonl: a stream: [01] lines, \d+ bytes were written to it, they cannot", each.stdout
        )
    assert f"a stream: 1 lines, {size} bytes were written to it" in done.stdout
    assert verdict(done.stdout) == AGREE


@pytest.mark.parametrize("name", ["stdout", "fd/1"])
def test_standard_output_is_not_looked_for_in_what_account_has_as_its_own(ledger: Ledger, name: str) -> None:
    path = os.path.relpath(f"/dev/{name}", ledger.folder)
    ledger.add("start", version="1")
    ledger.add("open", file=path, size=0)
    ledger.add("close", file=path, **(counts(3) | {"size": 3 * len(LINE)}))
    ledger.stop()
    piped = ledger.account()
    with ledger.file("out").open("wb") as out:
        subprocess.run(
            [sys.executable, "-m", "tcppc", "account", str(ledger.folder)],
            stdout=out, check=True, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
    assert piped[0] == 0, piped[1]
    assert "a stream: 3 lines" in piped[1]
    assert ledger.file("out").read_text(encoding="utf-8") == piped[1]


@pytest.mark.parametrize("kind", ["a folder", "a FIFO", "a socket"])
def test_what_stands_in_the_place_of_a_data_file_is_named(ledger: Ledger, kind: str) -> None:
    ledger.whole(3)
    ledger.file().unlink()
    if kind == "a folder":
        ledger.file().mkdir()
    elif kind == "a FIFO":
        os.mkfifo(ledger.file())
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(ledger.file()))
    code, screen = ledger.account()
    assert (code, verdict(screen)) == (1, NOT)
    assert f"PROBLEM: data.jsonl: is {kind} now, in place of a file with 3 lines, {3 * len(LINE)} bytes\n" in screen


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_a_ledger_that_is_no_file_is_one_line_and_nobody_waits_for_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    (tmp_path / "data.jsonl").write_bytes(LINE)
    for words in (("account", str(tmp_path)), ("recover", str(tmp_path))):
        done = tcppc(*words)
        assert done.returncode == 2, done.stdout
        assert done.stderr.count("\n") == 1
        assert str(path) in done.stderr
    assert not stat.S_ISREG(path.stat().st_mode)


def test_json_has_all_that_the_screen_says(ledger: Ledger) -> None:
    ledger.whole(3)
    killed = ledger.killed(2, 1, accepted=4, open=1, dropped={"disk": 1}, bytes_dropped=9)
    code, screen = ledger.account("--json")
    found = json.loads(screen)
    assert code == 1
    assert (found["agrees"], found["verdict"], found["running"]) == (False, NOT, None)
    assert found["totals"] == {
        "accepted": 7, "recorded": 5, "dropped": 1, "open": 0, "waiting": 0, "cut_off": 1, "lines": 5,
        "bytes": 5 * len(LINE), "bytes_in": 5, "bytes_dropped": 9,
    }  # fmt: skip
    assert found["causes"]["dropped"]["disk"]["count"] == 1
    assert [(run["run"] == killed, run["ended"], run["recorded"]) for run in found["runs"]] == [
        (False, "stopped", 3),
        (True, "killed", 2),
    ]
    assert (found["files_checked"], found["unread"], len(found["problems"]), len(found["notes"])) == (1, [], 1, 1)
    assert ledger.account("--json", "-q", "--since", "1h")[1] == screen
    ledger.folder = ledger.folder / "well"
    ledger.folder.mkdir()
    ledger.path = ledger.folder / "ledger.jsonl"
    ledger.lines.clear()
    ledger.whole()
    assert ledger.account("--json", "-q") == (0, "")
    assert json.loads(ledger.account("--json")[1])["agrees"] is True


def test_files_that_a_sensor_compresses_and_removes_while_we_read_are_no_disagreement(
    start: Start, tmp_path: Path
) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text('[files]\nfile_bytes = 4096\nkeep_bytes = 4000\ncompress = "gzip"\n', encoding="ascii")
    sensor = start("-q", "-c", str(settings))
    for _ in range(10):
        for _ in range(20):
            sensor.send(b"x" * 500)
        done = sensor.account()
        assert done.returncode == 0, done.stdout
    assert sensor.stop() == 0
    done = sensor.account()
    assert done.returncode == 0, done.stdout
