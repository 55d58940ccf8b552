"""A killed run whose event lines `tcppc recover` has made sessions of is explained in the ledger, and no other."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

from tests.conftest import Start
from tests.harness import Sensor, tcppc, wait_until

EVENTS = ("-q", "--record", "events")


def killed(start: Start, *flags: str, **options: Any) -> Sensor:
    """A sensor that was killed after one session ended, while another one went on."""
    sensor = start(*flags, **options)
    before = sensor.file.read_bytes() if sensor.file.exists() else b""
    sensor.send(b"whole")
    sensor.datagram(b"datagram")
    wait_until(lambda: sensor.file.read_bytes().count(b'"closed"') > before.count(b'"closed"'), "the end")
    with sensor.connect() as sock:
        sock.sendall(b"cut")
        if "events" in flags:
            wait_until(lambda: b'"Y3V0"' in sensor.file.read_bytes()[len(before) :], "the payload")
        else:
            wait_until(lambda: b"ZGF0YWdyYW0=" in sensor.file.read_bytes()[len(before) :], "the datagram")
        sensor.kill()
    return sensor


def explained(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_bytes().splitlines()]
    return [line for line in lines if line["event"] == "recover"]


def test_a_killed_run_of_event_lines_is_explained_once_its_sessions_are_brought_back(
    start: Start, tmp_path: Path
) -> None:
    sensor = killed(start, *EVENTS)
    assert sensor.account().returncode == 1
    output = tmp_path / "out" / "sessions.jsonl"
    output.parent.mkdir()
    done = tcppc("recover", str(tmp_path), "-o", str(output))
    assert done.returncode == 0, done.stderr
    assert "is explained now: 3 sessions of it, 1 of them lost" in done.stderr
    (line,) = explained(tmp_path)
    assert (line["sessions"], line["lost"], line["files"][0]["file"]) == (3, 1, "data.jsonl")
    done = sensor.account()
    assert done.returncode == 0, done.stdout
    assert "note: the run of " in done.stdout
    assert "; tcppc recover brought 3 sessions back at " in done.stdout
    assert "PROBLEM" not in done.stdout
    # Again, and beside a sensor that runs: nothing is said twice.
    after = start(*EVENTS)
    done = tcppc("recover", str(tmp_path), "-o", str(output))
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert len(explained(tmp_path)) == 1
    assert after.stop() == 0
    assert after.account().returncode == 0
    # What a hand takes later is missing.
    lines = sensor.file.read_bytes().splitlines(keepends=True)
    sensor.file.write_bytes(b"".join(lines[:-1]))
    assert after.account().returncode == 1


def test_a_run_that_wrote_whole_sessions_only_is_not_explained_by_recover(start: Start, tmp_path: Path) -> None:
    sensor = killed(start, "-q")
    done = tcppc("recover", str(tmp_path))
    assert done.returncode == 0
    assert "stays unexplained: there are no event lines of it (record = sessions)" in done.stderr
    assert explained(tmp_path) == []
    assert sensor.account().returncode == 1


def test_each_run_is_explained_by_its_own_event_lines_alone(start: Start, tmp_path: Path) -> None:
    killed(start, "-q")
    killed(start, *EVENTS)
    sensor = killed(start, "-q")
    done = tcppc("recover", str(sensor.file))
    assert done.returncode == 0
    assert (done.stderr.count("is explained now"), done.stderr.count("stays unexplained")) == (1, 2)
    runs = list(
        dict.fromkeys(json.loads(line)["run"] for line in (tmp_path / "ledger.jsonl").read_bytes().splitlines())
    )
    assert [line["run"] for line in explained(tmp_path)] == [runs[1]]
    assert sensor.account().stdout.count("PROBLEM") == 2


def test_a_run_whose_mode_was_changed_by_a_reload_is_not_explained(start: Start, tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text('[files]\nrecord = "events"\n', encoding="ascii")
    sensor = start("-q", "-c", str(settings))
    sensor.send(b"with lines of its own")
    settings.write_text("", encoding="ascii")
    sensor.signal(signal.SIGHUP)
    sensor.said("Reloaded.")
    sensor.send(b"a line alone")
    wait_until(lambda: b"YSBsaW5lIGFsb25l" in sensor.file.read_bytes(), "the second one")
    with sensor.connect() as sock:
        sock.sendall(b"in memory")
        sensor.kill()
    done = tcppc("recover", str(sensor.file))
    assert done.returncode == 0
    assert "stays unexplained: not all of its sessions have event lines" in done.stderr
    assert sensor.account().returncode == 1


def test_a_recovery_that_did_not_read_all_files_of_the_run_explains_nothing(start: Start, tmp_path: Path) -> None:
    sensor = start(*EVENTS, "-T", "1", file="d-%H%M%S.jsonl")

    def goes_on() -> bool:
        sensor.send(b"x")
        files = sorted(tmp_path.glob("d-*.jsonl"))
        return len(files) >= 3 and files[-1].stat().st_size > 0

    wait_until(goes_on, "the third file")
    sensor.kill()
    files = sorted(tmp_path.glob("d-*.jsonl"))
    done = tcppc("recover", str(files[-1]))
    assert f"stays unexplained: its file {files[0].name} is not among those that were read" in done.stderr
    assert explained(tmp_path) == []
    emptied = max(files[:-1], key=lambda path: path.stat().st_size)
    lines = emptied.read_bytes()
    emptied.write_bytes(b"")
    done = tcppc("recover", str(tmp_path))
    assert re.search(
        r"stays unexplained: by its last line in the ledger it had \d+ sessions, and \d+ were found", done.stderr
    )
    assert explained(tmp_path) == []
    emptied.write_bytes(lines)
    done = tcppc("recover", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(explained(tmp_path)) == 1
    done = sensor.account()
    assert done.returncode == 0, done.stdout


def test_a_recovery_that_failed_explains_nothing(start: Start, tmp_path: Path) -> None:
    sensor = killed(start, *EVENTS)
    damaged = tmp_path / "x.jsonl.gz"
    damaged.write_bytes(b"\x1f\x8b no gzip")
    done = tcppc("recover", str(tmp_path))
    assert done.returncode == 1
    assert explained(tmp_path) == []
    damaged.unlink()
    done = tcppc("recover", str(sensor.file), "-o", "/dev/full")
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert explained(tmp_path) == []


def test_a_run_of_which_sessions_are_missing_is_not_explained_though_all_that_is_there_came_back(
    start: Start, tmp_path: Path
) -> None:
    """Event lines, then a reload to whole records: of a session that was open at the kill there is no line at all."""
    path = tmp_path / "c.toml"
    path.write_text('[files]\nrecord = "events"\n', encoding="ascii")
    sensor = start(
        "-c", str(path), patch="import tcppc.capture.ledger as l; l.FIRST_MARK_SECONDS = l.MARK_SECONDS = 0.1"
    )
    sensor.send(b"with event lines")
    path.write_text('[files]\nrecord = "sessions"\n', encoding="ascii")
    sensor.signal(signal.SIGHUP)
    sensor.said("Reloaded.")
    with sensor.connect() as sock:
        sock.sendall(b"x" * 80)
        marks = tmp_path / "ledger.jsonl"
        wait_until(lambda: json.loads(marks.read_text().splitlines()[-1]).get("open") == 1, "a mark")
        sensor.kill()
    done = tcppc("recover", str(sensor.file), "-o", str(tmp_path / "found" / "r.jsonl"))
    assert "is explained now" not in done.stderr
    assert sensor.account().returncode == 1
