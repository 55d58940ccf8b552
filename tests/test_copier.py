"""Copies that hang cost neither the data file nor the stop anything, and are told and counted."""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tcppc.capture.books import Books
from tcppc.capture.captures import Captures
from tcppc.capture.copier import MEMORY_PART, SPILL_PART, Copier
from tcppc.capture.spill import Spill
from tcppc.clock import Zone
from tcppc.config import Config
from tcppc.log import Log
from tcppc.records import Session
from tcppc.sections import Limits
from tcppc.sensor import sinks
from tests.conftest import Start
from tests.harness import wait_until
from tests.test_stuck import SOON, ledger

# A file system that hangs is rarely to be had for a test: what writes the copies waits for a file to go instead.
HELD = (
    "import os, time; from tcppc.capture.captures import Captures; real, real_keep = Captures._append, Captures._keep; "
    "hold = lambda self: [time.sleep(0.02) for _ in iter(lambda: os.path.exists(self._hold), False)]; "
    "Captures._hold = {path!r}; "
    "Captures._append = lambda self, *a: (hold(self), real(self, *a))[1]; "
    "Captures._keep = lambda self, *a: (hold(self), real_keep(self, *a))[1]"
)


def held(folder: Path) -> tuple[Path, str]:
    """(what makes copies hang while it is there, the patch for that)."""
    path = folder / "hold"
    path.touch()
    return path, HELD.format(path=str(path))


def test_copies_that_hang_cost_no_record_and_the_stop_is_whole(start: Start, tmp_path: Path) -> None:
    _, patch = held(tmp_path)
    sensor = start("--captures", str(tmp_path / "captures"), patch=patch)
    for number in range(8):
        sensor.send(b"%d" % number)
    assert len(sensor.records(8)) == 8
    begun = time.monotonic()
    assert sensor.stop() == 0
    assert time.monotonic() - begun < 10
    assert re.search(r"8 captures_failed, 8 recorded\.", sensor.log)
    assert re.search(
        rf"Failed to write captures: writing to captures {tmp_path}/captures has not returned for \d+ s: "
        r"8 sessions are not copied \(8 times so far\); the data file has them\.",
        sensor.log,
    )
    assert "lost" not in sensor.log
    done = sensor.account()
    assert done.returncode == 0, done.stdout
    assert "does not tell of" not in done.stdout


def test_a_hang_of_copies_is_told_by_name_and_is_none_of_the_writer_s(start: Start, tmp_path: Path) -> None:
    hold, patch = held(tmp_path)
    soon = f"{SOON}; s.WRITER_STUCK_SECONDS = 3; {patch}"
    sensor = start("-q", "--metrics", "127.0.0.1:0", "--captures", str(tmp_path / "captures"), patch=soon)
    found = re.search(r"Metrics: http://(\S+)/metrics", sensor.said("Metrics: "))
    assert found

    def health() -> str:
        try:
            with urllib.request.urlopen(f"http://{found[1]}/healthz", timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as problem:
            return problem.read().decode()

    sensor.send(b"first")
    sensor.said("Writing captures hangs: ")
    told = wait_until(lambda: [said] if (said := health()) != "ok\n" else [], "bad health")[0]
    assert re.fullmatch(rf"copier: writing to captures {tmp_path}/captures has not returned for \d+ s\n", told)
    sensor.send(b"second")
    sensor.records(2)
    hold.unlink()
    sensor.said("Writing captures again: ")
    wait_until(lambda: health() == "ok\n", "good health")
    assert sensor.stop() == 0
    assert "Writing session data hangs" not in sensor.log
    assert "captures_failed" not in sensor.log
    assert [(line["thread"], line["alive"]) for line in ledger(tmp_path) if line["event"] == "thread"] == [
        ("copier", False),
        ("copier", True),
    ]


def test_copies_that_hung_are_made_in_order_once_the_disk_is_back(start: Start, tmp_path: Path) -> None:
    hold, patch = held(tmp_path)
    log, folder = tmp_path / "captures", tmp_path / "sessions"
    sensor = start("-q", "--captures", str(log), "--session-dir", str(folder), patch=patch)
    large = os.urandom(3 << 20)  # most of it is in the spill file
    sensor.send(large)
    for number in range(20):
        sensor.send(b"x" * number)
        sensor.records(number + 2)
    hold.unlink()
    assert sensor.stop() == 0
    assert [int(line.rpartition("BYTES=")[2]) for line in log.read_text().splitlines()] == [3 << 20, *range(20)]
    assert large in [path.read_bytes() for path in folder.iterdir()]


def test_a_session_that_finds_no_room_is_not_copied_and_is_counted(start: Start, tmp_path: Path) -> None:
    _, patch = held(tmp_path)
    patch += "; import tcppc.capture.copier as c; c.MEMORY_PART = 1 << 18"  # of 256 MiB, so one at a time
    sensor = start("-q", "--captures", str(tmp_path / "captures"), patch=patch)
    for number in range(12):
        sensor.send(b"%d" % number)
        sensor.records(number + 1)
    sensor.said("Failed to write captures: ")
    assert sensor.stop() == 0
    assert sensor.log.count("Failed to write captures: ") == 2  # when it begins, and at the end
    assert "12 captures_failed, 12 recorded." in sensor.log


def test_a_reload_while_copies_hang_loses_none(start: Start, tmp_path: Path) -> None:
    hold, patch = held(tmp_path)
    settings = tmp_path / "c.toml"
    settings.write_text(f'[files]\ncaptures = "{tmp_path}/one"\n', encoding="ascii")
    sensor = start("-q", "-c", str(settings), patch=patch)
    sensor.send(b"of one")
    sensor.records(1)
    settings.write_text(f'[files]\ncaptures = "{tmp_path}/two"\n', encoding="ascii")
    sensor.signal(signal.SIGHUP)
    sensor.said("Reloaded.")
    sensor.send(b"of the second")
    sensor.records(2)
    hold.unlink()
    assert sensor.stop() == 0
    assert (tmp_path / "one").read_text().endswith("BYTES=6\n")
    assert (tmp_path / "two").read_text().endswith("BYTES=13\n")


class Still(Captures):
    """Never gets to a session."""

    def add(self, sessions: Sequence[Session]) -> None:
        time.sleep(1000)


def still(books: Books) -> tuple[Copier, Captures]:
    return Copier(books, lambda line: None), Still("log", "single", "", Zone("UTC"), books, lambda line: None)


def session(charge: int = 1 << 20) -> Session:
    return Session("tcp", "192.0.2.1", 1, "192.0.2.2", 2, 1, charge=charge)


def test_what_waits_for_its_copy_is_bounded_by_bytes() -> None:
    books = Books(Limits(memory=256 << 20))
    copier, captures = still(books)
    copier.hurry()
    taken = [copier.put(captures, [session() for _ in range(10)]) for _ in range(6)]
    assert taken == [10, 10, 10, (256 // MEMORY_PART) - 30, 0, 0]
    assert books.errors["captures_failed"] == 60 - 256 // MEMORY_PART
    assert copier.waiting() == 256 // MEMORY_PART
    copier.stop(0.1)
    assert books.errors["captures_failed"] == 60


class Slow(Captures):
    """Gets on, slowly."""

    def add(self, sessions: Sequence[Session]) -> None:
        time.sleep(0.02)


def test_a_flood_waits_for_copies_that_get_on_and_for_none_that_hang() -> None:
    books = Books(Limits(memory=256 << 20))
    copier = Copier(books, lambda line: None)
    slow = Slow("log", "single", "", Zone("UTC"), books, lambda line: None)
    assert sum(copier.put(slow, [session(4 << 20)]) for _ in range(40)) == 40
    copier.stop(10)
    assert "captures_failed" not in books.errors
    copier, captures = still(books)
    begun = time.monotonic()
    taken = [copier.put(captures, [session(4 << 20)]) for _ in range(40)]
    assert sum(taken) == 256 // MEMORY_PART // 4
    assert time.monotonic() - begun < 5
    books.held = 200 << 20  # memory that others need
    copier = Copier(books, lambda line: None)
    assert sum(copier.put(slow, [session(8 << 20)]) for _ in range(12)) < 12
    copier.stop(10)


def test_what_waits_in_the_spill_file_is_no_source_s_and_bounded(tmp_path: Path) -> None:
    books = Books(Limits(spill=64 << 20))
    copier, captures = still(books)
    spill = Spill(tmp_path, 64 << 20, books, lambda line: None)
    _, source = books.enter("192.0.2.1")
    counts = []
    for _ in range(6):
        large = session()
        large.source = source
        large.stowed = spill.put([(1, b"x" * ((4 << 20) - 4096), -1)], None, source)
        assert large.stowed is not None
        counts.append(copier.put(captures, [large]))
        if not counts[-1]:
            large.free()
    assert counts == [1] * (64 // SPILL_PART // 4) + [0] * (6 - 64 // SPILL_PART // 4)
    assert source.stowed == 0
    assert books.stowed == sum(counts) * (4 << 20)


def test_where_no_copies_are_asked_for_nobody_is_told_of_sessions(tmp_path: Path) -> None:
    books = Books(Limits())
    copier = Copier(books, lambda line: None)
    assert sinks(Config(), books, Log(Zone("UTC"), str(tmp_path / "log"), lambda lines: None), copier) == []
    assert (copier.used, copier.thread.alive) == (False, False)
