"""A write that hangs is noticed and told, and what waits behind it is counted as lost at the stop."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.harness import Sensor, payload, tcppc, wait_until

SOON = "import tcppc.sensor as s; s.STUCK_SECONDS = 0.5; import tcppc.oversight as o; o.STUCK_SECONDS = 0.5"
BIG = b"z" * 20_000


@pytest.fixture
def stalled(start: Start, tmp_path: Path) -> Iterator[tuple[Sensor, int]]:
    """A sensor whose data file is a FIFO with a reader that does not read, and that reader."""
    os.mkfifo(tmp_path / "data.jsonl")
    reader = os.open(tmp_path / "data.jsonl", os.O_RDONLY | os.O_NONBLOCK)
    yield start("-q", "--metrics", "127.0.0.1:0", patch=SOON), reader
    os.close(reader)


def fill(sensor: Sensor, count: int = 30) -> None:
    for _ in range(count):
        sensor.send(BIG)


def ledger(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_bytes().splitlines()]


def test_a_hang_is_told_while_it_lasts_in_log_ledger_and_health(stalled: tuple[Sensor, int], tmp_path: Path) -> None:
    sensor, _ = stalled
    fill(sensor)
    log = sensor.said("Writing session data hangs: ")
    assert re.search(r"writing to \S+data.jsonl has not returned for \d+ s", log)
    lines = wait_until(lambda: [line for line in ledger(tmp_path) if line["event"] == "thread"], "the ledger's line")
    assert (lines[0]["thread"], lines[0]["alive"]) == ("writer", False)
    assert "has not returned for" in lines[0]["why"]


def test_what_waits_behind_a_hang_is_lost_by_name_and_number_at_the_stop(
    stalled: tuple[Sensor, int], tmp_path: Path
) -> None:
    sensor, _ = stalled
    fill(sensor)
    sensor.said("Writing session data hangs: ")
    assert sensor.stop() == 1
    told = re.search(
        r"before the end: writing to \S+ has not returned for \d+ s: (\d+) sessions with (\d+) bytes are lost",
        sensor.log,
    )
    assert told
    lost = int(told[1])
    assert lost > 0
    assert int(told[2]) == lost * len(BIG)
    # What went into the pipe before it was full is there for its reader.
    recorded = 30 - lost
    assert f"{lost} dropped (stuck), {lost * len(BIG)} bytes in those dropped, 1 writer_stuck, {recorded} recorded" in (
        sensor.log
    )
    stop = ledger(tmp_path)[-1]
    total = sum(line.get("dropped", {}).get("stuck", 0) for line in ledger(tmp_path))
    assert (stop["event"], total, stop["open"]) == ("stop", lost, 0)
    assert stop["bytes_dropped"] == lost * len(BIG)
    done = tcppc("account", str(tmp_path))
    assert re.search(r"accepted +30 ", done.stdout)
    assert re.search(rf"{lost} +stuck", done.stdout)


def test_a_hang_that_ends_loses_nothing(stalled: tuple[Sensor, int], tmp_path: Path) -> None:
    sensor, reader = stalled
    fill(sensor)
    sensor.said("Writing session data hangs: ")
    held = bytearray()

    def drained() -> bool:
        with contextlib.suppress(BlockingIOError):
            held.extend(os.read(reader, 1 << 20))
        return held.count(b"\n") == 30

    wait_until(drained, "all lines from the pipe")
    sensor.said("Writing session data again")
    assert all(payload(json.loads(line)) == BIG for line in held.splitlines())
    assert sensor.stop() == 0
    assert [line["alive"] for line in ledger(tmp_path) if line["event"] == "thread"] == [False, True]


def test_the_stop_is_bounded_and_the_ledger_is_kept_in_the_state_folder_where_its_folder_hangs(
    start: Start, tmp_path: Path
) -> None:
    """No file system that hangs can be had for a test: what the ledger's thread calls never returns instead."""
    hang = "import tcppc.capture.ledger as l, time; l.Ledger._write = lambda self, lines: time.sleep(1000)"
    sensor = start(patch=hang)
    sensor.send(b"one")
    wait_until(lambda: sensor.lines(), "the record")
    begun = time.monotonic()
    sensor.process.send_signal(signal.SIGTERM)
    sensor.process.wait(60)
    assert time.monotonic() - begun < 30
    assert "lines of the ledger" in sensor.log
    away = tmp_path / "state" / "ledger-away.jsonl"
    assert str(away) in sensor.log
    kept = [json.loads(line) for line in away.read_bytes().splitlines()]
    assert [line["event"] for line in kept][-1] == "stop"
    assert {line["folder"] for line in kept} == {str(tmp_path)}
    assert kept[-1]["accepted"] + sum(line.get("accepted", 0) for line in kept[:-1]) == 1
    # The next start, of a folder that is well again, brings them home.
    again = start()
    assert again.stop() == 0
    events = [line["event"] for line in ledger(tmp_path)]
    assert events.count("start") == events.count("stop") == 2
    assert away.read_bytes() == b""
    assert again.account().returncode == 0


def test_the_status_of_the_health_check_is_bad_while_writing_hangs(start: Start, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.jsonl")
    reader = os.open(tmp_path / "data.jsonl", os.O_RDONLY | os.O_NONBLOCK)
    soon = "import tcppc.sensor as s; s.WRITER_STUCK_SECONDS = 0.5"
    sensor = start("-q", "--metrics", "127.0.0.1:0", patch=soon)
    found = re.search(r"Metrics: http://(\S+)/metrics", sensor.said("Metrics: "))
    assert found
    address = found[1]

    def code() -> int:
        try:
            with urllib.request.urlopen(f"http://{address}/healthz", timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as problem:
            return problem.code

    wait_until(lambda: code() == 200, "health before")
    fill(sensor)
    wait_until(lambda: code() == 503, "bad health while it hangs")
    os.close(reader)


def test_a_sink_that_raises_writes_no_line_twice_and_upsets_no_count(start: Start, tmp_path: Path) -> None:
    patch = (
        "from tcppc.capture.captures import Captures; "
        "Captures.add = lambda self, sessions: (_ for _ in ()).throw(KeyError('a bug'))"
    )
    sensor = start("--captures", str(tmp_path / "captures"), patch=patch)
    for number in range(20):
        sensor.send(b"%d" % number)
    assert len(sensor.records(20)) == 20
    assert sensor.stop() == 0
    assert len(sensor.lines()) == 20
    assert "Sink captures: KeyError: 'a bug'" in sensor.log
    assert "20 accepted, 0 open, " in sensor.log
    assert "20 recorded." in sensor.log
    assert re.search(r"[1-9]\d* sink_captures", sensor.log)
    assert sensor.account().returncode == 0


@pytest.mark.parametrize("problem", ["SystemExit(3)", "KeyboardInterrupt()", "MemoryError()", "LookupError('a bug')"])
def test_a_writer_thread_that_meets_anything_goes_on_and_says_so(start: Start, problem: str) -> None:
    patch = (
        "import itertools; from tcppc.capture.writer import Writer; real = Writer._sort; n = itertools.count(); "
        f"Writer._sort = lambda self: (_ for _ in ()).throw({problem}) if next(n) in (3, 4, 9) else real(self)"
    )
    sensor = start(patch=patch)
    for number in range(50):
        sensor.send(b"%d" % number)
    assert len(sensor.records(50)) == 50
    assert sensor.stop() == 0
    assert f"Writer: {problem.split('(')[0]}" in sensor.log


def test_a_writer_thread_that_is_gone_is_started_again_with_all_that_waits(start: Start) -> None:
    patch = (
        "import itertools; from tcppc.capture.writer import Writer; real = Writer._run; n = itertools.count(); "
        "Writer._run = lambda self: None if next(n) == 0 else real(self)"
    )
    sensor = start(patch=patch)
    for number in range(5):
        sensor.send(b"%d" % number)
    assert len(sensor.records(5)) == 5
    sensor.said("The writer's thread had ended; it runs again.")
    assert sensor.stop() == 0


def test_a_large_record_that_gets_on_slowly_is_not_stuck(start: Start, tmp_path: Path) -> None:
    slow = (
        "import time, tcppc.capture.files as f; real = f.write_all; "
        "f.write_all = lambda *a: (time.sleep(0.2), real(*a))[1]"
    )
    sensor = start("-q", patch=f"{SOON}; {slow}")
    big = os.urandom(12 << 20)  # sixteen pieces, and three seconds
    sensor.send(big)
    (record,) = sensor.records(1)
    assert payload(record) == big
    assert sensor.stop() == 0
    assert "hangs" not in sensor.log
