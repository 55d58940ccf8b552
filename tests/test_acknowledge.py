"""`tcppc account --acknowledge`: what somebody has understood is a problem no more, what comes later is one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import tcppc
from tests.ledgers import LINE, Ledger

WHY = ("--acknowledge", "--why", "power cut")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def last(ledger: Ledger) -> dict[str, object]:
    found: dict[str, object] = json.loads(ledger.path.read_bytes().splitlines()[-1])
    return found


def go_on(ledger: Ledger) -> None:
    """Have `ledger` add behind what others have added."""
    ledger.lines = [json.loads(line) for line in ledger.path.read_bytes().splitlines()]


def cut(path: Path, size: int) -> None:
    os.truncate(path, path.stat().st_size - size)


def test_a_run_that_was_killed_is_acknowledged_for_good(start: Start) -> None:
    sensor = start("-q")
    sensor.send(b"written")
    sensor.records(1)
    with sensor.connect() as sock:
        sock.sendall(b"never written")
        sensor.kill()
    assert sensor.account().returncode == 1
    done = tcppc("account", *WHY, str(sensor.folder))
    assert done.returncode == 0, done.stdout
    assert "acknowledged by" in done.stdout
    assert done.stdout.splitlines()[-1] == "The sums agree, but for what is explained above."
    after = start("-q")
    after.send(b"later")
    assert after.stop() == 0
    done = after.account()
    assert done.returncode == 0, done.stdout
    assert ": power cut\n" in done.stdout
    assert tcppc("account", "-q", str(sensor.folder)).stdout == ""


def test_the_line_says_who_why_and_what_stood_there(ledger: Ledger) -> None:
    run = ledger.killed(2, 1)
    assert ledger.account(*WHY)[0] == 0
    line = last(ledger)
    assert (line["event"], line["run"], line["sensor"], line["why"]) == ("acknowledge", run, "tokyo-1", "power cut")
    assert line["by"]
    assert line["files"] == [{"file": "data.jsonl", "size": 3 * len(LINE), "lines": 3}]


def test_a_sensor_that_runs_and_holds_the_lock_does_not_hinder_it_and_is_not_acknowledged(start: Start) -> None:
    killed = start("-q")
    killed.send(b"x")
    killed.records(1)
    killed.kill()
    sensor = start("-q")
    sensor.send(b"y")
    done = tcppc("account", *WHY, str(sensor.folder))
    assert done.returncode == 0, done.stdout
    lines = [json.loads(line) for line in (sensor.folder / "ledger.jsonl").read_bytes().splitlines()]
    assert [line["run"] for line in lines if line["event"] == "acknowledge"] == [lines[0]["run"]]
    sensor.kill()
    done = sensor.account()
    assert done.returncode == 1
    assert done.stdout.count("PROBLEM") == 1


def test_what_is_acknowledged_covers_nothing_that_comes_later(ledger: Ledger) -> None:
    ledger.killed()
    assert ledger.account(*WHY)[0] == 0
    go_on(ledger)
    ledger.killed()
    code, screen = ledger.account()
    assert code == 1
    assert screen.count("PROBLEM") == 1
    assert ledger.account(*WHY)[0] == 0
    # A run that goes on was not dead: what becomes of it then is another matter.
    go_on(ledger)
    ledger.close(1, event="mark")
    assert ledger.account()[0] == 1


@pytest.mark.parametrize("later_run", [False, True])
def test_bytes_that_a_power_cut_took_are_explained_and_those_taken_later_are_not(
    ledger: Ledger, later_run: bool
) -> None:
    """The disk had less than the ledger, which is synced line by line, says."""
    ledger.killed(told=9, untold=0)
    cut(ledger.file(), 4 * len(LINE))
    if later_run:
        ledger.whole(2)
    code, screen = ledger.account()
    assert code == 1
    assert f"{4 * len(LINE)} bytes" in screen
    code, screen = ledger.account(*WHY)
    assert code == 0, screen
    if later_run:
        assert f"data.jsonl: {4 * len(LINE)} bytes shorter at" in screen
    go_on(ledger)
    ledger.whole(3)
    code, screen = ledger.account()
    assert code == 0, screen
    cut(ledger.file(), len(LINE))
    code, screen = ledger.account()
    assert code == 1
    assert f"1 lines, {len(LINE)} bytes are missing" in screen or f"{len(LINE)} bytes are missing" in screen


def test_the_tail_that_no_line_told_of_is_held_from_then_on(ledger: Ledger) -> None:
    ledger.killed(2, 3)
    assert ledger.account(*WHY)[0] == 0
    cut(ledger.file(), len(LINE))
    code, screen = ledger.account()
    assert code == 1
    assert f"1 lines, {len(LINE)} bytes are missing" in screen


def test_a_file_that_was_lost_with_the_killed_run_is_explained(ledger: Ledger) -> None:
    ledger.whole(3, "d-1.jsonl")
    ledger.killed(name="d-2.jsonl")
    ledger.file("d-2.jsonl").unlink()
    assert ledger.account()[1].count("PROBLEM") == 2
    code, screen = ledger.account(*WHY)
    assert code == 0, screen
    assert "note: d-2.jsonl: is gone; acknowledged by" in screen
    ledger.file("d-1.jsonl").unlink()
    assert "PROBLEM: d-1.jsonl: is gone" in ledger.account()[1]


def test_files_that_a_hand_has_changed_are_acknowledged_by_naming_the_run_that_wrote_them(ledger: Ledger) -> None:
    ledger.whole(5, "d-1.jsonl")
    ledger.killed(name="d-2.jsonl")
    cut(ledger.file("d-1.jsonl"), 2 * len(LINE))
    code, screen = ledger.account(*WHY)  # of runs alone
    assert code == 1
    assert screen.count("PROBLEM") == 1
    assert "PROBLEM: d-1.jsonl: 2 lines" in screen
    named = re.search(
        r"note: not acknowledged: d-1.jsonl: .*--acknowledge --run (\S+) covers the files of its run too\n", screen
    )
    assert named
    code, screen = ledger.account(*WHY, "--run", named[1])
    assert code == 0, screen
    cut(ledger.file("d-1.jsonl"), len(LINE))
    assert ledger.account()[0] == 1


def test_one_run_is_named_by_its_id_or_its_start(ledger: Ledger) -> None:
    first = ledger.killed(name="d-1.jsonl")
    began = ledger.lines[0]["timestamp"]
    second = ledger.killed(name="d-2.jsonl")
    code, screen = ledger.account("--acknowledge", "--run", began)
    assert (code, screen.count("PROBLEM")) == (1, 1)
    assert last(ledger)["run"] == first
    code, _ = ledger.account("--acknowledge", "--run", second)
    assert code == 0
    before = ledger.path.read_bytes()
    done = tcppc("account", "--acknowledge", "--run", "yesterday", str(ledger.folder))
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert "not 'yesterday'" in done.stderr
    assert ledger.path.read_bytes() == before


def test_other_problems_of_a_run_are_acknowledged_too(ledger: Ledger) -> None:
    ledger.start()
    ledger.close(3, accepted=9, open=2)
    ledger.stop(open=2)
    ledger.whole()
    ledger.lines.pop(-3)  # its file's beginning
    ledger.add("start", version="1")
    code, screen = ledger.account()
    assert (code, screen.count("PROBLEM")) == (1, 4), screen
    code, screen = ledger.account(*WHY)
    assert code == 0, screen
    assert screen.count("; acknowledged by") == 4


def test_half_a_line_that_a_crash_left_in_the_ledger_is_acknowledged_with_its_run(ledger: Ledger) -> None:
    run = ledger.killed()
    with ledger.path.open("ab") as file:
        file.write(b'{"timestamp":"20')
    assert "is no line of a ledger" in ledger.account()[1]
    code, screen = ledger.account(*WHY)
    assert code == 0, screen
    assert last(ledger)["run"] == run
    assert "is no line of a ledger, passed over: its counts are missing; acknowledged by" in screen
    with ledger.path.open("ab") as file:
        file.write(b'{"timestamp":"20')
    assert ledger.account()[0] == 1


def test_history_of_a_file_that_a_sensor_has_open_is_acknowledged_without_a_size(ledger: Ledger) -> None:
    ledger.killed(told=9, untold=0)
    cut(ledger.file(), 4 * len(LINE))
    ledger.begin_run()
    ledger.start()
    ledger.close(2, event="mark")
    ledger.data(1)
    with ledger.held():
        assert ledger.account()[0] == 1
        code, screen = ledger.account(*WHY)
        assert code == 0, screen
    assert last(ledger)["files"] == [{"file": "data.jsonl"}]
    go_on(ledger)
    ledger.close(0, accepted=1, recorded=1, lines=1, bytes=len(LINE))
    ledger.stop()
    code, screen = ledger.account()
    assert code == 0, screen


def test_what_is_acknowledged_of_a_sensor_that_runs_does_not_cover_how_it_ends(ledger: Ledger) -> None:
    ledger.start()
    ledger.close(2, event="mark", errors={"ledger_lines_lost": 1})
    with ledger.held():
        assert ledger.account()[0] == 1
        code, screen = ledger.account(*WHY)
        assert code == 0, screen
    code, screen = ledger.account()
    assert (code, screen.count("PROBLEM")) == (1, 1)
    assert "never stopped" in screen
    code, screen = ledger.account(*WHY)
    assert code == 0, screen


def test_where_nothing_is_a_problem_nothing_is_written(ledger: Ledger) -> None:
    ledger.whole()
    before = ledger.path.read_bytes()
    code, screen = ledger.account(*WHY)
    assert (code, screen.splitlines()[-1]) == (0, "The sums agree.")
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--run", "x"), "--run and --why go with --acknowledge"),
        (("--why", "x"), "--run and --why go with --acknowledge"),
        (("--acknowledge", "--why", "a\x1bb"), "text without control characters"),
        (("--acknowledge", "--why", "x" * 501), "--why: expected 500 characters at most, not 501"),
    ],
)
def test_wrong_flags_are_one_line(ledger: Ledger, flags: tuple[str, ...], said: str) -> None:
    ledger.killed()
    before = ledger.path.read_bytes()
    done = tcppc("account", *flags, str(ledger.folder))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr
    assert ledger.path.read_bytes() == before


def test_compressed_files_are_acknowledged_by_what_is_in_them(ledger: Ledger) -> None:
    import gzip

    ledger.killed(2, 1)
    data = ledger.file().read_bytes()
    ledger.file("data.jsonl.gz").write_bytes(gzip.compress(data))
    ledger.file().unlink()
    assert ledger.account(*WHY)[0] == 0
    assert last(ledger)["files"] == [{"file": "data.jsonl", "size": 3 * len(LINE), "lines": 3}]
    ledger.file("data.jsonl.gz").write_bytes(gzip.compress(data[len(LINE) :]))
    assert ledger.account()[0] == 1
