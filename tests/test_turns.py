"""Two who take the windows of a capture in turns have what one has who makes them all."""

from __future__ import annotations

import mmap
import os
import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tcppc.flows import sharing, turns, windows
from tcppc.flows.capture_files import CaptureError
from tcppc.flows.forms import windows_of
from tcppc.flows.libpcap import Filter
from tcppc.flows.sharing import Line
from tcppc.flows.turns import Turns
from tcppc.flows.windows import Windows
from tests.captures import pcap, tcp_packet

BEGIN = 1_700_000_000 * 10**9
SERVER = bytes([10, 0, 0, 2])


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(windows, "WINDOW_PACKETS", 10)
    memory = mmap.mmap(-1, turns.BYTES)
    ends = [Line(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    yield [Turns(number, ends[number], memory) for number in range(2)]
    for end in ends:
        end.hang_up()


def capture(count: int, seed: int = 1) -> bytes:
    """Some tagged, some cut: not all are plain."""
    lot = random.Random(seed)
    packets = []
    for number in range(count):
        frame = tcp_packet(bytes([10, 0, 1, 1]), 1000 + number % 7, SERVER, 80, number, lot.randbytes(lot.randrange(9)))
        if lot.random() < 0.2:
            frame = frame[: lot.randrange(60)]
        packets.append((BEGIN + number * 1000, frame))
    return pcap(packets)


def windows_(data: bytes, wanted: Filter | None = None) -> Windows:
    found = windows_of(memoryview(data), data, wanted)
    assert found
    return found


def never() -> bool:
    return False


def after(calls: int) -> Callable[[], bool]:
    left = iter([False] * calls)
    return lambda: next(left, True)


def seen(each: Any) -> list[Any]:
    """As lists: what they stand in may be used again."""
    found = []
    for walk, window in each:
        columns = (*window[:-1], *vars(window.plain).values()) if window else ()
        found.append((walk.after, walk.problem, [column.tolist() for column in columns]))
    return found


def by_both(both: list[Turns], data: bytes, wanted: str = "", stops: Any = (never, never)) -> list[list[Any]]:
    """What each of them has of it."""

    def of(number: int) -> list[Any]:
        made = windows_(data, Filter(wanted) if wanted else None)
        return seen(both[number].windows(made, stops[number]))

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(of, range(2)))


def by_one(data: bytes, wanted: str = "") -> list[Any]:
    made = windows_(data, Filter(wanted) if wanted else None)
    return seen(made.each(made.begin, never))


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 95, 100])
@pytest.mark.parametrize("wanted", ["", "port 1003", "port 99"])
def test_several_captures_one_behind_the_other(both: list[Turns], count: int, wanted: str) -> None:
    for number in range(5):
        data = capture(count, number)
        assert by_both(both, data, wanted) == [by_one(data, wanted)] * 2
    assert not both[0].over
    assert not both[1].over


@pytest.mark.parametrize("cut", [1, 20, 400, 700])
def test_a_damaged_capture_is_damaged_for_both(both: list[Turns], cut: int) -> None:
    data = capture(60)
    for damaged in (data[:-cut], data[:-cut] + b"\xff" * (cut + 40)):
        expected = by_one(damaged)
        assert expected[-1][1]
        assert by_both(both, damaged) == [expected] * 2


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("calls", [0, 1, 2, 4])
def test_where_one_stops_both_have_the_same(both: list[Turns], number: int, calls: int) -> None:
    data = capture(100)
    stops = [never, never]
    stops[number] = after(calls)
    one, other = by_both(both, data, stops=stops)
    assert one == other == by_one(data)[: 2 * calls + number]
    assert both[1 - number].over
    assert not both[number].over


def test_one_that_is_gone_is_told(both: list[Turns], monkeypatch: pytest.MonkeyPatch) -> None:
    data = capture(100)
    made = [windows_(data) for _ in range(2)]
    first = both[0].windows(made[0], never)
    monkeypatch.setattr(both[1], "_give", lambda *_: both[1]._line.hang_up())
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(seen, both[1].windows(made[1], never))
        with pytest.raises(sharing.Ended, match="ended early"):
            seen(first)
        with pytest.raises(sharing.Ended):
            later.result()


def test_one_that_is_stopped_while_it_makes_a_window(both: list[Turns], monkeypatch: pytest.MonkeyPatch) -> None:
    data = capture(100)
    made = [windows_(data) for _ in range(2)]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(both[0], "_give", interrupted)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(seen, both[1].windows(made[1], never))
        with pytest.raises(KeyboardInterrupt):
            seen(both[0].windows(made[0], never))
        both[0].leave()
        assert later.result() == []
    assert both[1].over


def test_the_same_file_as_long_as_the_first_found_it(both: list[Turns], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    one, other = os.stat(tmp_path / "a"), os.stat(tmp_path / "b")

    def agreed(files: tuple[os.stat_result | None, os.stat_result | None]) -> list[Any]:
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(both[at].agreed, "it", files[at], 500 - at) for at in range(2)]
            return [each.exception() or each.result() for each in asked]

    assert agreed((one, one)) == [499, 499]
    assert agreed((None, None)) == [0, 0]
    assert [type(each) for each in agreed((one, None))] == [CaptureError] * 2
    assert not both[0].over
    problems = agreed((one, other))
    assert [type(each) for each in problems] == [CaptureError] * 2
    assert str(problems[0]) == "it: was replaced by another file while it was read"
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(both[0].leave)
        assert both[1].agreed("it", one, 500) == 0
        leaving.result()
    assert both[1].over
