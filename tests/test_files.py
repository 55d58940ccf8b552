"""File names, rotation and whole lines: on a real disk, with a clock that the test moves."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.capture import files
from tcppc.clock import Zone


class Clock:
    """What files.py takes for the time of day."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: float) -> None:
        self.now = now
        monkeypatch.setattr("tcppc.capture.files.time.time", lambda: self.now)


def utc(*when: int) -> float:
    return datetime(*when, tzinfo=timezone.utc).timestamp()  # type: ignore[misc,arg-type]


def open_file(
    folder: Path, pattern: str, interval: int = 0, offset: int = 0, zone: str = "UTC", most: int = 0
) -> files.DataFile:
    said: list[str] = []
    closed: list[str] = []
    file = files.DataFile(
        files.Naming(f"{folder}/{pattern}", interval, offset, Zone(zone), most), said.append, closed.append
    )
    file.said, file.closed_files = said, closed  # type: ignore[attr-defined]
    return file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_begins_at_the_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, utc(2026, 5, 1, 11, 59, 59))
    file = open_file(tmp_path, "d-%H%M.jsonl", 3600)
    file.turn()
    file.write(b"before\n")
    clock.now += 1
    file.turn()
    file.write(b"after\n")
    assert (tmp_path / "d-1159.jsonl").read_bytes() == b"before\n"
    assert (tmp_path / "d-1200.jsonl").read_bytes() == b"after\n"


# tcppc-go compares now % interval with the offset as it was given: one not below the interval never came true.
@pytest.mark.parametrize("offset", [600, 600 + 3600, 600 + 7 * 3600, 600 - 3600])
def test_an_offset_counts_modulo_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    clock = Clock(monkeypatch, utc(2026, 5, 1, 12, 9, 59))
    file = open_file(tmp_path, "d-%H%M.jsonl", 3600, offset)
    file.turn()
    clock.now += 1
    file.turn()
    assert names(tmp_path) == ["d-1209.jsonl", "d-1210.jsonl"]


@given(st.integers(1, 86400), st.integers(-200_000, 200_000), st.floats(0, 4e9))
def test_the_next_boundary_is_ahead_and_less_than_an_interval_away(interval: int, offset: int, now: float) -> None:
    naming = files.Naming("x", interval, offset, Zone("UTC"))
    boundary = naming.next_boundary(now)
    assert boundary is not None
    assert now < boundary <= now + interval + 1e-6
    assert (boundary - offset) % interval == 0
    assert naming.period(boundary) == naming.period(now) + 1


def test_the_hour_that_comes_twice_goes_on_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, utc(2026, 10, 25, 0, 30))  # 02:30 summer time in Berlin
    file = open_file(tmp_path, "d-%Y%m%d%H.jsonl", 3600, zone="Europe/Berlin")
    file.turn()
    file.write(b"first two o'clock\n")
    clock.now += 3600  # 02:30 again
    file.turn()
    file.write(b"second two o'clock\n")
    assert names(tmp_path) == ["d-2026102502.jsonl"]
    assert (tmp_path / "d-2026102502.jsonl").read_bytes() == b"first two o'clock\nsecond two o'clock\n"
    assert file.closed_files == []  # type: ignore[attr-defined]


def test_the_hour_that_is_left_out_makes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, utc(2026, 3, 29, 0, 59, 59))
    file = open_file(tmp_path, "d-%H.jsonl", 3600, zone="Europe/Berlin")
    file.turn()
    clock.now += 1
    file.turn()
    assert names(tmp_path) == ["d-01.jsonl", "d-03.jsonl"]


@pytest.mark.parametrize("jump", [-7200, -86400 * 400, 7200, 86400 * 400])
def test_a_clock_that_jumps_opens_the_file_of_its_new_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    clock = Clock(monkeypatch, utc(2026, 5, 1, 12, 30))
    file = open_file(tmp_path, "d-%Y%m%d%H.jsonl", 3600)
    file.turn()
    file.write(b"before\n")
    clock.now += jump
    file.turn()
    file.write(b"after\n")
    assert len(names(tmp_path)) == 2
    clock.now -= jump
    file.turn()
    file.write(b"back\n")
    assert (tmp_path / "d-2026050112.jsonl").read_bytes() == b"before\nback\n"


def test_a_half_line_of_a_crash_is_ended_before_new_lines(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'{"whole":1}\n{"half":')
    file = open_file(tmp_path, "d.jsonl")
    file.turn()
    file.write(b'{"new":2}\n')
    assert (tmp_path / "d.jsonl").read_bytes() == b'{"whole":1}\n{"half":\n{"new":2}\n'


def test_a_file_that_reaches_its_bound_is_followed_by_a_numbered_one(tmp_path: Path) -> None:
    file = open_file(tmp_path, "d.jsonl", most=10)
    for number in range(5):
        file.turn()
        file.write(b"line %d\n" % number)
    assert names(tmp_path) == ["d.1.jsonl", "d.2.jsonl", "d.jsonl"]
    again = open_file(tmp_path, "d.jsonl", most=10)
    again.turn()
    assert again.path.endswith("d.2.jsonl")  # a restart goes on where it was


@pytest.mark.parametrize("how", ["unlink", "rename", "rmtree"])
def test_a_file_that_went_away_is_made_anew(tmp_path: Path, how: str) -> None:
    import shutil

    file = open_file(tmp_path, "deep/er/d.jsonl")
    file.turn()
    file.write(b"one\n")
    path = tmp_path / "deep" / "er" / "d.jsonl"
    if how == "unlink":
        path.unlink()
    elif how == "rename":
        path.rename(tmp_path / "moved")
    else:
        shutil.rmtree(tmp_path / "deep")
    file.turn()
    file.write(b"two\n")
    assert path.read_bytes() == b"two\n"
    if how == "rename":
        assert (tmp_path / "moved").read_bytes() == b"one\n"


def test_reopen_goes_on_in_a_new_file_after_logrotate(tmp_path: Path) -> None:
    file = open_file(tmp_path, "d.jsonl")
    file.turn()
    file.write(b"one\n")
    (tmp_path / "d.jsonl").rename(tmp_path / "d.jsonl.1")
    file.reopen()
    file.turn()
    file.write(b"two\n")
    assert (tmp_path / "d.jsonl.1").read_bytes() == b"one\n"
    assert (tmp_path / "d.jsonl").read_bytes() == b"two\n"


@given(
    st.lists(st.binary(min_size=1, max_size=30).filter(lambda line: b"\n" not in line), min_size=1, max_size=8),
    st.integers(0, 200),
)
def test_what_a_full_disk_cuts_off_is_taken_back_to_a_whole_line(lines: list[bytes], room: int) -> None:
    import os
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        file = open_file(Path(folder), "d.jsonl")
        file.turn()
        really = os.write
        patch.setattr("tcppc.capture.files.os.write", lambda fd, data: really(fd, data[:room]) if data[:room] else 0)
        blob = b"".join(line + b"\n" for line in lines)
        try:
            written = file.write(blob)
        except OSError:
            written = 0
        content = (Path(folder) / "d.jsonl").read_bytes()
        patch.undo()
        assert content == blob[:written]
        assert content == b"" or content.endswith(b"\n")
        file.write(blob[written:])
        assert (Path(folder) / "d.jsonl").read_bytes() == blob
