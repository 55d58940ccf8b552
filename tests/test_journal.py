"""The undo log of blocks: written, read back, damaged, grown large."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.actions import journal
from tcppc.actions.journal import Entry, Journal
from tcppc.clock import Zone

FOUR, SIX = ip_network("198.51.100.7"), ip_network("2001:db8::/64")
NOW = 1_780_000_000_000_000_000
HOUR = 3_600_000_000_000


def made(folder: Path) -> Journal:
    return Journal(folder / "state", Zone("UTC"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = made(tmp_path)
    assert list(log.entries()) == []
    entries = [
        Entry("block", NOW, FOUR, "host", NOW + HOUR, "scanners", "scan", "x"),
        Entry("block", NOW, SIX, "all", NOW + HOUR, "me", "", 'a "why"'),
    ]
    log.write(entries)
    log.write([])
    assert list(log.entries()) == entries
    assert log.path.stat().st_mode & 0o777 == 0o640


def test_what_is_in_force(tmp_path: Path) -> None:
    log = made(tmp_path)
    log.write(
        [
            Entry("block", NOW, FOUR, "host", NOW + HOUR),
            Entry("block", NOW, FOUR, "all", NOW + HOUR),
            Entry("unblock", NOW + 1, FOUR, "host"),
            Entry("block", NOW, SIX, "host", NOW + 5),
        ]
    )
    assert set(log.in_force(NOW + 1)) == {(FOUR, "all"), (SIX, "host")}
    assert set(log.in_force(NOW + 10)) == {(FOUR, "all")}
    assert log.in_force(NOW + HOUR) == {}


def test_half_a_line_costs_no_other(tmp_path: Path) -> None:
    log = made(tmp_path)
    log.write([Entry("block", NOW, FOUR, "host", NOW + HOUR)])
    with log.path.open("ab") as file:
        file.write(b'{"timestamp":"20')
    log.write([Entry("block", NOW, SIX, "host", NOW + HOUR)])
    assert set(log.in_force(NOW)) == {(FOUR, "host"), (SIX, "host")}


def test_one_that_grew_large_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = made(tmp_path)
    log.write(Entry("block", NOW, FOUR, "host", NOW + HOUR) for _ in range(100))
    log.write([Entry("block", NOW, SIX, "host", NOW + 1)])
    log.trim(NOW + 2)
    assert len(list(log.entries())) == 101
    monkeypatch.setattr(journal, "MOST_BYTES", 1000)
    log.trim(NOW + 2)
    assert list(log.entries()) == [Entry("block", NOW, FOUR, "host", NOW + HOUR)]
    assert log.path.with_name("blocks.jsonl.1").exists()


@given(st.binary(max_size=200))
def test_any_line_is_an_entry_or_none(line: bytes) -> None:
    assert journal._parse(line) is None
