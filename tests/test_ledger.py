"""The ledger's lines, as they come into the file."""

from __future__ import annotations

import json
import os
import resource
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tcppc.capture import ledger as ledger_module
from tcppc.capture.books import Books
from tcppc.capture.ledger import Ledger, in_use
from tcppc.clock import Zone
from tcppc.sections import Limits
from tests.conftest import Start
from tests.harness import wait_until


class Desk:
    def __init__(self, folder: Path, pattern: str = "d-%Y.jsonl") -> None:
        self.books = Books(Limits())
        self.said: list[str] = []
        self.ledger = Ledger(str(folder / pattern), Zone("UTC"), "tokyo-1", self.books, self.said.append)
        self.path = folder / "ledger.jsonl"

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]


def test_a_line_has_the_counts_since_the_line_before(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.ledger.begin()
    desk.ledger.opened(str(tmp_path / "d-2026.jsonl"), 0)
    for _ in range(3):
        desk.books.enter("198.51.100.7")
    desk.books.drop("disk")
    desk.ledger.closed(str(tmp_path / "d-2026.jsonl"), 77, 1, 2_000_000_000)
    desk.books.enter("198.51.100.7")
    desk.books.drop("disk", 2)
    desk.ledger.end()
    start, opened, closed, stop = desk.lines()
    assert (start["event"], start["sensor"]) == ("start", "tokyo-1")
    assert (opened["event"], opened["file"], opened["size"]) == ("open", "d-2026.jsonl", 0)
    assert (closed["accepted"], closed["open"], closed["dropped"], closed["size"]) == (3, 3, {"disk": 1}, 77)
    assert (closed["first"], closed["last"]) == ("1970-01-01T00:00:00.000000001Z", "1970-01-01T00:00:02.000000000Z")
    assert (stop["event"], stop["accepted"], stop["open"], stop["dropped"]) == ("stop", 1, 4, {"disk": 2})
    assert len({line["run"] for line in desk.lines()}) == 1


def test_it_stands_in_the_last_folder_without_directives(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "%Y/%m/d.jsonl")
    desk.ledger.opened(str(tmp_path / "2026/05/d.jsonl"), 5)
    assert desk.lines()[0]["file"] == "2026/05/d.jsonl"


def test_lines_that_the_disk_does_not_take_wait_and_come_in_order(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.ledger.begin()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # room for half a line
        wait_until(lambda: desk.path.exists() and len(desk.lines()) == 1, "the first line")
        resource.setrlimit(resource.RLIMIT_FSIZE, (desk.path.stat().st_size + 40, hard))
        desk.ledger.opened(str(tmp_path / "a"), 1)
        desk.ledger.opened(str(tmp_path / "b"), 2)
        wait_until(lambda: desk.said, "the failure to be told")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [line.split(":")[0] for line in desk.said] == ["Failed to write the ledger"]
    desk.ledger.end()
    assert [line.get("file", line["event"]) for line in desk.lines()] == ["start", "a", "b", "stop"]


def test_lines_that_wait_are_bounded_and_those_lost_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MOST_WAITING", 10)
    (tmp_path / "ledger.jsonl").mkdir()
    desk = Desk(tmp_path)
    for _ in range(15):
        desk.ledger.opened(str(tmp_path / "d"), 0)
    desk.ledger.end()
    assert desk.books.errors == {"ledger_lines_lost": 6}
    assert desk.said[-1] == "10 lines of the ledger could not be written and are lost (there is no state folder)."


def test_a_half_line_of_a_crash_is_ended_first(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(b'{"timestamp":"20')
    ledger = Desk(tmp_path).ledger
    ledger.begin()
    ledger.end()
    half, whole, stop, empty = (tmp_path / "ledger.jsonl").read_bytes().split(b"\n")
    assert (half, json.loads(whole)["event"], empty) == (b'{"timestamp":"20', "start", b"")
    assert json.loads(stop)["event"] == "stop"


def test_a_mark_says_from_time_to_time_how_things_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("tcppc.capture.ledger.time.monotonic", lambda: now)
    desk = Desk(tmp_path)
    marks = []
    while now < 7000:
        now += 1
        desk.books.enter("198.51.100.7")
        before = desk.path.exists() and len(desk.lines())
        desk.ledger.mark(str(tmp_path / "d"), 0, 0, 0)
        if desk.path.exists() and len(desk.lines()) > before:
            marks.append(now - 1000)
    assert marks[:6] == [2, 8, 26, 80, 242, 728]
    assert [later - earlier for earlier, later in pairwise(marks[5:])] == [600] * (len(marks) - 6)
    assert sum(line["accepted"] for line in desk.lines()) == marks[-1]
    now += 1000
    desk.ledger.mark(str(tmp_path / "d"), 0, 0, 0)
    now += 1000
    desk.ledger.mark(str(tmp_path / "d"), 0, 0, 0)  # nothing happened since: no line
    assert len(desk.lines()) == len(marks) + 1


def test_who_reads_it_sees_whether_its_sensor_runs(start: Start) -> None:
    sensor = start()
    ledger = sensor.folder / "ledger.jsonl"
    assert in_use(ledger)
    sensor.kill()
    assert not in_use(ledger)


def test_its_name_is_not_taken_for_a_data_file(start: Start, tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text('[files]\ncompress = "gzip"\n', encoding="ascii")
    (tmp_path / "Sunday.jsonl").write_bytes(b"{}\n")
    sensor = start("-c", str(settings), file="%A.jsonl")
    sensor.said("Start UDP server.")
    assert sensor.stop() == 0
    assert (tmp_path / "ledger.jsonl").exists()
    refused = start("-w", str(tmp_path / "ledger.jsonl"), wait=False, file="")
    assert refused.process.wait(30) == 2
    assert "ledger.jsonl is the ledger's name; expected another" in refused.log
    assert os.listdir(tmp_path).count("ledger.jsonl.gz") == 0
