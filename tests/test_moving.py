"""A file's content moved up: the same bytes, holes left holes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc.flows import moving

PIECE = st.tuples(st.integers(0, 100_000), st.binary(min_size=1, max_size=20_000))


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECE, min_size=1, max_size=8), st.integers(1, 150_000), st.booleans())
def test_the_same_bytes_further_up(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, bytes]], count: int, holes: bool
) -> None:
    path = tmp_path_factory.mktemp("moved") / "file"
    expected = bytearray()
    with path.open("wb+", buffering=0) as file, pytest.MonkeyPatch.context() as patch:
        for offset, data in pieces:
            os.pwrite(file.fileno(), data, offset)
            expected.extend(bytes(max(0, offset + len(data) - len(expected))))
            expected[offset : offset + len(data)] = data
        if not holes:  # as a file system without them says
            patch.setattr(moving, "_libc", NoHoles)
        moving.up(file.fileno(), count)
    assert path.read_bytes() == bytes(count) + bytes(expected)


class NoHoles:
    @staticmethod
    def fallocate(*_: object) -> int:
        return -1


def test_what_is_far_apart_takes_no_room_between(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb+", buffering=0) as file:
        for number in range(64):
            os.pwrite(file.fileno(), b"x", number * (16 << 20))
        moving.up(file.fileno(), 16 << 20)
        told = os.fstat(file.fileno())
    assert told.st_size == 64 * (16 << 20) + 1
    assert told.st_blocks * 512 < 2 << 20
