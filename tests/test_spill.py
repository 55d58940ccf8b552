"""The spill file: no place is given out twice, what is freed is used again, and a write that fails leaves nothing."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.capture import spill
from tcppc.capture.books import Books
from tcppc.capture.spill import BLOCK, Places, Spill
from tcppc.sections import Limits

MIB = 1 << 20


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 8), st.integers(0, 1000))))
def test_any_order_of_taking_and_giving_overlaps_nowhere_and_ends_empty(steps: list[tuple[bool, int, int]]) -> None:
    places = Places()
    held: list[tuple[int, int]] = []
    most = 0
    for give, blocks, which in steps:
        if give and held:
            places.give(*held.pop(which % len(held)))
        else:
            size = blocks * BLOCK
            begin = places.take(size)
            assert all(begin + size <= other or other + room <= begin for other, room in held)
            held.append((begin, size))
        used = max((begin + size for begin, size in held), default=0)
        assert places.end == used
        most = max(most, sum(size for _, size in held))
    for piece in held:
        places.give(*piece)
    assert places.end == 0


def test_what_is_freed_is_used_again_while_others_stay() -> None:
    places = Places()
    first, _ = places.take(100), places.take(10)
    for _ in range(1000):
        places.give(first, 100)
        first = places.take(100)
    assert places.end == 110


def made(folder: Path, most: int = 1 << 30) -> tuple[Spill, Books, list[str]]:
    said: list[str] = []
    books = Books(Limits(), 100)
    return Spill(folder, most, books, said.append), books, said


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()])
def test_a_write_that_fails_leaves_nothing_charged_and_nothing_placed(
    problem: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, books, said = made(tmp_path)
    kept = found.put([(1, b"kept", -1)], None, None)
    assert kept

    def half(fd: int, parts: list[bytes], offset: int) -> None:
        os.pwrite(fd, b"x" * BLOCK, offset)
        raise problem

    with monkeypatch.context() as patch:
        patch.setattr(spill, "_write", half)
        for _ in range(20):
            assert found.put([(2, b"y" * MIB, -1)], None, None) is None
    assert books.stowed == BLOCK
    assert len(said) == 1
    again = found.put([(3, b"z" * BLOCK, -1)], None, None)
    assert again
    assert (list(kept), list(again)) == ([(1, b"kept", -1)], [(3, b"z" * BLOCK, -1)])
    assert os.fstat(found._fd).st_size <= 4 * BLOCK
    kept.free()
    again.free()
    assert (books.stowed, os.fstat(found._fd).st_size) == (0, 0)


def test_a_file_at_its_limit_is_one_again_that_takes_something_once_there_is_room(tmp_path: Path) -> None:
    """RLIMIT_FSIZE, for real."""
    found, books, _ = made(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, before[1]))
    try:
        pieces: list[Any] = [found.put([(1, bytes(3 * MIB), -1)], None, None) for _ in range(4)]
        assert [piece is not None for piece in pieces] == [True, True, False, False]
        pieces[0].free()
        later = found.put([(2, bytes(3 * MIB), -1)], None, None)
        assert later
        assert sum(len(data) for _, data, _ in later) == 3 * MIB
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    later.free()
    pieces[1].free()
    assert books.stowed == 0
