"""Lines of the ledger: whatever they hold, they are taken or refused, and what is shown is bounded."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tcppc.account import Account
from tcppc.cli import accounting
from tcppc.ledger_lines import MOST_LINE, add, find, known, read, read_lines
from tests.ledgers import Ledger

# What a line may say, from what is right to what nobody means.
STAMPS = st.sampled_from(
    [
        "2026-11-28T09:52:06.837019845Z", "2026-11-28T09:52:06+23:59", "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59", "1970-01-01T00:00:00Z", "2026-11-28T09:52:06", "",
        "2026-11-28T09:52:06,1" + "2" * 90,
    ]
)  # fmt: skip
TEXTS = st.text(max_size=5) | st.sampled_from(
    ["a", "b", "data.jsonl", "../data.jsonl", "/dev/zero", ".", "", "a\0b", "\ud800", "x" * 5000, "\x1b]0;x\x07", "a/b"]
)
COUNTS = st.integers(-3, 3) | st.integers() | st.just(1 << 62) | st.just(10**400) | st.floats()
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | COUNTS | TEXTS | STAMPS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CAUSES = st.dictionaries(TEXTS, COUNTS, max_size=3)
FILES = st.lists(st.fixed_dictionaries({"file": TEXTS}, optional={"size": COUNTS, "lines": COUNTS}), max_size=2)
EVENTS = st.sampled_from(
    ["start", "open", "close", "mark", "remove", "listener", "thread", "acknowledge", "recover", "stop", "new", ""]
)
RIGHT = {
    "timestamp": STAMPS, "run": st.sampled_from("ab"), "sensor": TEXTS, "event": EVENTS, "file": TEXTS,
    "stream": st.booleans(), "listener": TEXTS, "thread": TEXTS, "alive": st.booleans(), "why": TEXTS, "by": TEXTS,
    "refused": CAUSES, "dropped": CAUSES, "errors": CAUSES, "truncated": CAUSES, "files": FILES,
} | dict.fromkeys(
    ["size", "open", "lines", "bytes", "accepted", "recorded", "bytes_in", "sessions", "lost", "bytes_dropped"],
    st.integers(0, 9) | COUNTS,
)  # fmt: skip
LINES = st.fixed_dictionaries({}, optional=RIGHT) | st.dictionaries(st.sampled_from(list(RIGHT)), ANYTHING) | ANYTHING
# Lines of the right kinds, with what nobody means as their values.
SOUND = st.fixed_dictionaries(
    RIGHT
    | {"timestamp": st.just("2026-11-28T09:52:06Z"), "event": EVENTS.filter(bool)}
    | dict.fromkeys(
        ["refused", "dropped", "errors", "truncated"], st.dictionaries(TEXTS, st.integers(0, 9), max_size=3)
    )
    | {"files": st.lists(st.fixed_dictionaries({"file": TEXTS, "size": st.integers(0, 9), "lines": st.just(1)}))}
    | dict.fromkeys(
        ["size", "open", "lines", "bytes", "accepted", "recorded", "bytes_in", "sessions", "lost", "bytes_dropped"],
        st.integers(0, 9) | st.just((1 << 62) - 1),
    )
)


def screen(data: bytes, folder: Path) -> list[str]:
    """What account says of a ledger of these bytes."""
    (folder / "ledger.jsonl").write_bytes(data)
    sums = Account(folder)
    for number, values in read_lines(io.BytesIO(data)):
        if values is None:
            sums.damage(number)
        else:
            sums.add(values)
    sums.close()
    sums.check()
    json.dumps(accounting._object(sums))
    return [accounting._shown(line) for line in accounting._screen(sums)] if sums.runs else []


def is_bounded(lines: list[str]) -> bool:
    most = 3 * (accounting.MOST_LINES + 1) + 4 * (accounting.MOST_LINES + 2) + 10
    return len(lines) <= most and all(len(line) <= accounting.MOST_SHOWN + 3 and line.isprintable() for line in lines)


def test_any_bytes_are_added_up_or_passed_over_and_the_screen_is_bounded(tmp_path: Path) -> None:
    @given(st.binary(max_size=300))
    @settings(deadline=None)
    def holds(data: bytes) -> None:
        assert is_bounded(screen(data, tmp_path))

    holds()


def test_any_values_are_added_up_or_passed_over_and_the_screen_is_bounded(tmp_path: Path) -> None:
    @given(st.lists(LINES | SOUND, max_size=12), st.sampled_from([b"\n", b"\n\n", b"", b"\r\n"]))
    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def holds(lines: list[Any], between: bytes) -> None:
        data = b"".join(json.dumps(line).encode() + between for line in lines)
        assert is_bounded(screen(data, tmp_path))

    holds()


def test_lines_that_are_right_are_taken_with_their_counts(tmp_path: Path) -> None:
    @given(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    @settings(deadline=None)
    def holds(sessions: list[int]) -> None:
        for path in tmp_path.iterdir():
            path.unlink()
        ledger = Ledger(tmp_path)
        for each in sessions:
            ledger.whole(each)
        sums = Account(tmp_path)
        for _, values in read(ledger.path):
            assert values is not None
            assert known(values)
            sums.add(values)
        sums.close()
        sums.check()
        assert (sums.total("recorded"), sums.agrees(), sums.notes) == (sum(sessions), True, [])

    holds()


def test_a_screen_of_a_large_and_damaged_ledger_is_bounded(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for _ in range(50):
        ledger.killed(
            0, 0, name="x" * 100 + ".jsonl", dropped={f"cause {number} {'y' * 900}": 1 for number in range(40)}
        )
        ledger.add("later", file="z" * 5000)
        ledger.lines[-1]["sensor"] = "s" * 5000
    data = ledger.path.read_bytes() + b"no line\n" * 500 + b"x" * (3 * MOST_LINE) + b"\n"
    lines = screen(data, tmp_path)
    assert is_bounded(lines)
    assert any("more like these" in line for line in lines)
    assert any("more causes" in line for line in lines)


def test_a_line_that_is_too_long_is_one_damaged_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.whole()
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    data = lines[0] + b"x" * (2 * MOST_LINE + 7) + b"\n" + b"".join(lines[1:])
    found = list(read_lines(io.BytesIO(data)))
    assert [values is None for _, values in found] == [False, True, False, False, False]
    assert [number for number, _ in found] == [1, 2, 3, 4, 5]


def test_lines_are_added_whole_by_several_at_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.whole()
    with ledger.path.open("ab") as file:
        file.write(b'{"half')
    lines = [{"event": "acknowledge", "why": "x" * 3000}] * 3
    with ledger.held():  # as a sensor does
        threads = [threading.Thread(target=add, args=(ledger.path, lines)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = ledger.path.read_bytes().splitlines()
    assert found[4] == b'{"half'
    assert [json.loads(line) for line in found[5:] if line] == lines * 8


def test_lines_are_added_to_a_ledger_that_is_there_only(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        add(tmp_path / "ledger.jsonl", [{"event": "acknowledge"}])
    assert os.listdir(tmp_path) == []


def test_the_ledger_is_found_in_the_folder_or_above_it(tmp_path: Path) -> None:
    deep = tmp_path / "2026" / "11"
    deep.mkdir(parents=True)
    assert find(deep) is None or not str(find(deep)).startswith(str(tmp_path))
    Ledger(tmp_path).whole()
    assert find(deep) == tmp_path / "ledger.jsonl"
    assert find(tmp_path / "nowhere") == tmp_path / "ledger.jsonl"
