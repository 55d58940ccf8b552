"""Streams whose segments came out of order, taken at once, are what they are packet by packet."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc.flows import batches, engine, late, windows
from tcppc.flows.engine import Apart, Engine, Rules
from tcppc.flows.forms import windows_of
from tcppc.flows.names import Named, Template
from tcppc.flows.stream_files import Pieces, StreamFile, StreamFiles
from tests.captures import ACK, PSH, SYN, enhanced, interface, pcap, section, tcp_packet
from tests.test_batches import DATA, FIN, RST, SERVER, both
from tests.test_engine_of_flows import BEGIN

CLIENT, OTHER = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 3])


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Also where it is not worth it; returns which of those streams were taken."""
    taken: list[bool] = []
    arrive = Engine.arrive

    def watched(self: Engine, key: Any, run: Any) -> Any:
        try:
            found = arrive(self, key, run)
        except Apart:
            if run.late:
                taken.append(False)
            raise
        if run.late:
            taken.append(True)
        return found

    monkeypatch.setattr(engine.Engine, "arrive", watched)
    monkeypatch.setattr(late, "WORTH_RUNS", 2)
    return taken


def capture(story: list[tuple[bytes, int, bytes, int]]) -> bytes:
    """Segments of streams to one port: (from, number, bytes, flags)."""
    return pcap(
        [
            (BEGIN + number * 1000, tcp_packet(src, 1000, SERVER, 80, seq & 0xFFFFFFFF, data, flags))
            for number, (src, seq, data, flags) in enumerate(story)
        ]
    )


def story(text: str, first: int = 101) -> list[tuple[bytes, int, bytes, int]]:
    """Each letter is a segment of four bytes, a small one the same with other bytes; SYN, FIN, RST are +, - and !, a
    bare ACK is a point."""
    found = []
    for letter in text:
        if letter in "+-!.":
            flags = {"+": SYN, "-": FIN | ACK, "!": RST, ".": ACK}[letter]
            found.append((CLIENT, first - 1 if letter == "+" else first + 4 * len(text), b"", flags))
        else:
            found.append((CLIENT, first + 4 * (ord(letter.upper()) - 65), letter.encode() * 4, DATA))
    return found


TAKEN = {
    "late": "ACDB", "twice": "ABBCDACDB", "a gap": "ACEDGHK", "bare": "..A.CDB..A.", "backwards at its end": "ADECB",
    "a gap within": "ABHGD", "all in order behind a gap": "ABCHIJ",
}  # fmt: skip
APART = {
    "before the first": "BCAD", "other bytes": "ACbBD", "begun late": "AC+BD", "ended": "ACD-B", "reset": "ADBC!B",
}  # fmt: skip


@pytest.mark.parametrize("first", [101, (1 << 32) - 10])
@pytest.mark.parametrize("text", TAKEN.values(), ids=TAKEN.keys())
def test_what_is_taken_at_once(tmp_path: Path, text: str, first: int, at_once: list[bool]) -> None:
    both(tmp_path, capture(story(text, first)))
    assert at_once == [True]


@pytest.mark.parametrize("text", APART.values(), ids=APART.keys())
def test_what_is_not(tmp_path: Path, text: str, at_once: list[bool]) -> None:
    both(tmp_path, capture(story(text)))
    assert True not in at_once


@pytest.mark.parametrize("window", [3, 4, 5, 7])
@pytest.mark.parametrize(
    "text", ["+" + text for text in TAKEN.values()] + ["+ABEDCGfEFH-", "+ACBDCEBHGIaA-DJ", "DEF.A"]
)
def test_from_window_to_window(tmp_path: Path, text: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_PACKETS", window)
    both(tmp_path, capture(story(text)))


def test_with_the_first_bytes_kept_all_goes_as_it_came(tmp_path: Path, at_once: list[bool]) -> None:
    (tmp_path / "a.pcap").write_bytes(capture(story("ADBCC")))
    engine_ = Engine(StreamFiles(str(tmp_path / "out"), Template()), Template(), Rules(first_wins=True))
    with (tmp_path / "a.pcap").open("rb") as file:
        batches.read(file, "it", engine_)
    engine_.finish()
    assert at_once == [False]
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"AAAABBBBCCCCDDDD"]


def test_too_far_is_another_stream(tmp_path: Path, at_once: list[bool]) -> None:
    made = story("ACB")
    made[1] = (CLIENT, 101 + (16 << 20) + 5, b"far", DATA)
    both(tmp_path, capture(made))
    assert at_once == [False]


@pytest.mark.parametrize("first", [[], [(CLIENT, 101, b"y", DATA)], [(CLIENT, 100, b"y", DATA)]])
def test_a_keep_alive_is_none_of_its_bytes(tmp_path: Path, first: list[Any]) -> None:
    both(tmp_path, capture([*first, *story("ACB"), (CLIENT, 101 + 7, b"x", DATA), *story("ED")]))


def test_large_streams_of_a_bad_network(tmp_path: Path, at_once: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_PACKETS", 512)
    lot = random.Random(3)
    made: list[tuple[float, tuple[bytes, int, bytes, int]]] = []
    for number, src in enumerate((CLIENT, OTHER, bytes([10, 0, 0, 4]))):
        at = (1 << 32) - 20_000 * number
        for place in range(1500):
            data = lot.randbytes(lot.randrange(1, 60))
            segment = (src, at, data, DATA)
            at += len(data)
            made.append((place + (lot.random() < 0.05) * 40, segment))
            if lot.random() < 0.02:
                made.append((place + lot.randrange(200), segment))
            if lot.random() < 0.001:
                made.append((place + 60, (src, at - 9, b"something else", DATA)))
    made.sort(key=lambda each: each[0])
    both(tmp_path, capture([segment for _, segment in made]))
    assert at_once.count(True) > 10


segment = st.tuples(
    st.sampled_from([CLIENT, OTHER]),
    st.integers(0, 12),
    st.integers(0, 4),
    st.sampled_from([DATA] * 12 + [ACK, SYN, FIN | ACK, RST, PSH]),
    st.sampled_from([b"abcdefghijklmnopq"] * 8 + [b"ABCDEFGHIJKLMNOPQ"]),
)


@settings(deadline=None, max_examples=400)
@given(st.lists(segment, min_size=4, max_size=30), st.integers(4, 40), st.sampled_from([101, (1 << 32) - 5]))
def test_any_order(tmp_path_factory: pytest.TempPathFactory, made: list[Any], window: int, first: int) -> None:
    folder = tmp_path_factory.mktemp("late")
    before = windows.WINDOW_PACKETS
    windows.WINDOW_PACKETS = window
    try:
        both(
            folder,
            capture([(src, first + at, text[at : at + size], flags) for src, at, size, flags, text in made]),
        )
    finally:
        windows.WINDOW_PACKETS = before


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(1, 6), min_size=4, max_size=30).flatmap(
        lambda sizes: st.tuples(st.just(sizes), st.permutations(range(len(sizes))), st.lists(st.integers(0, 60)))
    ),
    st.integers(4, 40),
    st.booleans(),
)
def test_pieces_of_one_text_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, made: Any, window: int, lowest_first: bool
) -> None:
    sizes, order, again = made
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    text = bytes(range(200))
    segments_ = [(CLIENT, 900 + ends[at] - sizes[at], text[ends[at] - sizes[at] : ends[at]], DATA) for at in order]
    for at in again:
        segments_.insert(at % len(segments_), segments_[at // 2 % len(segments_)])
    if lowest_first:
        segments_.insert(0, (CLIENT, 890, b"the lowest", DATA))
    before = windows.WINDOW_PACKETS
    windows.WINDOW_PACKETS = window
    try:
        both(tmp_path_factory.mktemp("late"), capture(segments_))
    finally:
        windows.WINDOW_PACKETS = before


class Counted(list[int]):
    """How often something in it was looked at."""

    looks = 0

    def __getitem__(self, at: Any) -> Any:
        self.looks += 1 if isinstance(at, int) else len(super().__getitem__(at))
        return super().__getitem__(at)


def test_a_segment_that_comes_again_costs_no_look_at_all_others(tmp_path: Path) -> None:
    count = 5000
    begins = Counted(range(0, 4 * count, 4))
    data = bytes(range(250)) * 80
    run = Pieces(memoryview(data), begins, [begin + 4 for begin in begins], 0, count, 4 * count)
    files = StreamFiles(str(tmp_path), Template())
    file = StreamFile(Named(CLIENT, 1, SERVER, 2))
    files.put(file, 0, run, run.size)
    begins.looks = 0
    for at in range(0, 4 * count, 4):
        assert files.stored(file, at, 4) == data[at : at + 4]
        files.put(file, at, Pieces.of(b"%4d" % (at // 4)), 4)
    assert begins.looks < 3 * count
    assert b"".join(files.content(file)) == b"".join(b"%4d" % each for each in range(count))
    files.close(file)


@given(
    st.lists(st.binary(max_size=5), max_size=12), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=9)
)
def test_ranges_of_pieces(pieces: list[bytes], steps: list[tuple[int, int]]) -> None:
    whole = b"".join(pieces)
    ends = list(itertools.accumulate(map(len, pieces)))
    run = Pieces(memoryview(whole), [0, *ends][:-1], ends, 0, len(ends), len(whole))
    bounds = list(itertools.accumulate(itertools.chain(*steps)))
    ranges = list(zip(bounds[::2], bounds[1::2], strict=True))
    assert list(run.each(ranges)) == [whole[low:high] for low, high in ranges]
    for low, high in ranges:
        assert run.some(low, high - low) == whole[low:high]


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_bytes_that_differ_are_counted(one: bytes, other: bytes) -> None:
    assert engine._different(one, other) == sum(a != b for a, b in zip(one, other, strict=False))


def test_a_window_of_large_packets_is_not_much_larger_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_BYTES", 300_000)
    monkeypatch.setattr(windows, "WINDOW_PACKETS", 50)
    large, small = (BEGIN, bytes(70_000)), (BEGIN, bytes(60))
    for data in (
        pcap([large] * 20 + [small] * 120 + [large, small] * 30),
        section() + interface() + enhanced(large[1], BEGIN) * 20 + enhanced(small[1], BEGIN) * 180,
    ):
        of = windows_of(memoryview(data), data)
        assert of
        found = [len(walk.offsets) for walk, _ in of.each(of.begin, lambda: False)]
        assert sum(found) == 200
        assert found[0] == 5
        assert max(found) == 50
