"""pcapng many packets at once is what it is packet by packet: files, counts, and what is wrong with it."""

from __future__ import annotations

import gzip
import io
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc.flows import batches, capture_files, windows
from tcppc.flows.capture_files import HEAD_BYTES, LATEST, CaptureError
from tcppc.flows.forms import windows_of
from tests.captures import block, enhanced, interface, option, section, tcp_packet
from tests.test_batches import SERVER, Telling
from tests.test_engine_of_flows import contents

CLIENT = bytes([10, 0, 0, 1])
BEGIN = 1_700_000_000 * 10**6


def packet(number: int, order: str = "<", of: int = 0, ticks: int = 0) -> bytes:
    frame = tcp_packet(CLIENT, 1000 + number % 3, SERVER, 80, 100 + 5 * number, b"%5d" % number)
    return enhanced(frame, ticks or BEGIN + number, of, order)


def resolution(power: int, order: str = "<") -> bytes:
    return option(order, 9, bytes([power]))


def simple(frame: bytes, order: str = "<") -> bytes:
    return block(order, 3, struct.pack(f"{order}I", len(frame)) + frame)


def outcome(folder: Path, data: bytes, name: str, how: Callable[[Path, Telling], None]) -> tuple[Any, ...]:
    path = folder / "it"
    path.write_bytes(data)
    engine, problem = Telling(folder / name), ""
    try:
        how(path, engine)
    except CaptureError as wrong:
        problem = str(wrong)
    engine.finish()
    return contents(folder / name), engine.told, engine.totals, problem


def one_by_one(path: Path, engine: Telling) -> None:
    with capture_files.open_capture(path) as file:
        for each in capture_files.packets(file, str(path)):
            engine.packet(each)


def at_once(path: Path, engine: Telling) -> None:
    with path.open("rb") as file:
        batches.read(file, str(path), engine)


def by_parts(path: Path, engine: Telling) -> None:
    with capture_files.open_capture(path) as file:
        batches.read_stream(file, str(path), engine)


def same(folder: Path, data: bytes) -> tuple[Any, ...]:
    assert batches.fits(data[:HEAD_BYTES])
    folder.mkdir(exist_ok=True)
    expected = outcome(folder, data, "one", one_by_one)
    assert outcome(folder, data, "many", at_once) == expected
    assert outcome(folder, gzip.compress(data, mtime=0), "parts", by_parts) == expected
    return expected


@pytest.fixture(autouse=True, params=[2, 1000])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_PACKETS", request.param)
    monkeypatch.setattr(batches, "STREAM_BYTES", request.param * 100)


@pytest.mark.parametrize("order", ["<", ">"])
def test_interfaces_with_clocks_of_their_own(tmp_path: Path, order: str) -> None:
    head = section(order) + interface(order) + interface(order, options=resolution(9, order)) + block(order, 4, b"")
    body = [packet(number, order) for number in range(5)]
    body += [packet(number, order, 1, (BEGIN + number) * 1000 + 7) for number in range(5, 9)]
    body.insert(3, block(order, 5, bytes(12)))
    _, told, totals, problem = same(tmp_path, head + b"".join(body))
    assert not problem
    assert totals.packets == 9
    assert told[0][1] == BEGIN * 1000


def test_packets_that_are_none_are_passed_over(tmp_path: Path) -> None:
    long = struct.pack("<IIIII", 0, 0, 5, 1000, 1000) + bytes(80)
    body = [
        packet(0),
        packet(1, of=1),
        block("<", 6, long),
        block("<", 6, bytes(12)),
        packet(2, ticks=1 << 63),
        packet(3),
    ]
    found = same(tmp_path, section() + interface() + b"".join(body))
    assert found[2].packets == 3
    assert max(each[2] for each in found[1]) == LATEST


@pytest.mark.parametrize(
    "odd",
    [
        simple(tcp_packet(CLIENT, 5, SERVER, 6, 7, b"simple")),
        interface(options=resolution(3)) + packet(7, of=1, ticks=BEGIN // 1000),
        interface(link=101),
        section(">") + interface(">") + packet(7, ">"),
        section(),  # without interfaces: its packets are none
        b"\x0a\x0d\x0d\x0a" + struct.pack("<I", 28) + b"nope",
    ],
)
def test_what_is_odd_is_read_packet_by_packet_from_there_on(tmp_path: Path, odd: bytes) -> None:
    found = same(tmp_path, section() + interface() + b"".join(map(packet, range(5))) + odd + packet(9) + packet(10))
    assert found[2].packets >= 5


class Broken(io.BytesIO):
    """A compressed file that is damaged behind its last whole block."""

    def read1(self, size: int | None = -1) -> bytes:
        found = super().read1(size)
        if not found:
            raise EOFError("it is damaged")
        return found


def test_damage_behind_what_is_odd_is_told(tmp_path: Path) -> None:
    data = section() + interface() + packet(1) + simple(b"odd") + packet(2)
    engine = Telling(tmp_path)
    with pytest.raises(CaptureError, match="it is damaged"):
        batches.read_stream(Broken(data), "it", engine)
    engine.finish()
    assert engine.totals.packets == 3


def test_wherever_it_is_cut(tmp_path: Path) -> None:
    data = section() + interface() + b"".join(map(packet, range(3))) + simple(b"odd") + packet(5)
    begin = len(section() + interface() + packet(0))
    ends = [*range(begin, begin + 21), *range(len(data) - 120, len(data))]
    problems = [same(tmp_path / str(end), data[:end])[-1] for end in ends]
    assert sum("ends within a block" in problem for problem in problems) >= len(ends) - 4


@pytest.mark.parametrize("size", [0, 8, 13, 1 << 30])
def test_a_block_that_is_none(tmp_path: Path, size: int) -> None:
    data = section() + interface() + packet(0) + packet(1)
    *_, problem = same(tmp_path, data + struct.pack("<II", 6, size) + bytes(40))
    assert problem.endswith(f"at byte {len(data) + 8}: a block of {size} bytes, which is none; the rest cannot be read")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        section()[:20],
        section(),
        section() + packet(0),
        section() + interface(link=105) + packet(0),
        section() + interface() + interface(link=101) + packet(0),
        section() + interface(options=resolution(12)) + packet(0),
        section() + interface(options=resolution(0x86)) + packet(0),
        section() + interface(options=option("<", 14, bytes([1, *bytes(7)]))) + packet(0),
        section() + simple(b"it") + packet(0),
        section() + section() + interface() + packet(0),
        section() + interface() + struct.pack("<II", 5, 13),
    ],
)
def test_what_is_left_to_the_other_way(head: bytes) -> None:
    assert windows_of(memoryview(head), head) is None


good = st.integers(0, 40).map(packet)
parts = st.lists(
    st.one_of(
        good, good, good, good, st.just(block("<", 5, b"")), st.just(interface()), st.just(section() + interface()),
        st.just(simple(b"what is this")), st.binary(max_size=30),
        st.just(section(">") + interface(">") + packet(3, ">")),
    ),
    max_size=12,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(parts, st.integers(0, 60), st.randoms(use_true_random=False))
def test_whatever_is_there(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[bytes], cut: int, lot: random.Random
) -> None:
    head = section() + interface() + packet(1)
    data = bytearray(head + b"".join(blocks))
    if cut > 40 and len(data) > len(head):
        data[lot.randrange(len(head), len(data))] ^= 1 << lot.randrange(8)
    else:
        data = data[: max(len(head), len(data) - cut)]
    same(tmp_path_factory.mktemp("forms"), bytes(data))
