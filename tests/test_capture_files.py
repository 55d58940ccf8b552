"""Captures of every kind, whole and damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import struct
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.flows import capture_files
from tcppc.flows.capture_files import CaptureError, Packet
from tests.captures import block, enhanced, interface, option, pcap, section

FRAMES = [(1_780_000_000_123_456_000, b"first packet"), (1_780_000_001_000_001_000, b"second")]
WANTED = [Packet(instant, 1, len(data), data) for instant, data in FRAMES]


def read(data: bytes) -> list[Packet]:
    return list(capture_files.packets(capture_files.unpacked(io.BufferedReader(io.BytesIO(data)), "x"), "x"))


def until(data: bytes) -> tuple[list[Packet], str]:
    """What could be read, and why the rest could not."""
    found: list[Packet] = []
    try:
        for packet in capture_files.packets(io.BytesIO(data), "x"):
            found.append(packet)
    except CaptureError as problem:
        return found, str(problem)
    return found, ""


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_pcap_in_both_orders_and_units(order: str, nanoseconds: bool) -> None:
    assert read(pcap(FRAMES, order, nanoseconds)) == WANTED


def test_the_nanoseconds_are_kept() -> None:
    assert read(pcap([(1_780_000_000_123_456_789, b"x")], nanoseconds=True))[0].instant == 1_780_000_000_123_456_789


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_with_several_interfaces_and_sections(order: str) -> None:
    nano, binary = option(order, 9, b"\x09"), option(order, 9, bytes([0x80 | 10]))
    data = section(order) + interface(order, 1) + interface(order, 113, nano) + interface(order, 228, binary)
    data += enhanced(b"us", 1_780_000_000_123_456, 0, order)
    data += block(order, 5, b"statistics, of no interest")
    data += enhanced(b"ns", 1_780_000_000_123_456_789, 1, order)
    data += enhanced(b"1/1024", 1_780_000_000 * 1024 + 512, 2, order)
    data += section() + interface("<", 101, option("<", 14, struct.pack("<q", 100))) + enhanced(b"offset", 5_000_000)
    data += block("<", 3, struct.pack("<I", 6) + b"simple")
    assert read(data) == [
        Packet(1_780_000_000_123_456_000, 1, 2, b"us"),
        Packet(1_780_000_000_123_456_789, 113, 2, b"ns"),
        Packet(1_780_000_000_500_000_000, 228, 6, b"1/1024"),
        Packet(105_000_000_000, 101, 6, b"offset"),
        Packet(0, 101, 6, b"simple"),
    ]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_compressed_captures(pack: object) -> None:
    assert callable(pack)
    assert read(pack(pcap(FRAMES))) == WANTED


def test_zstandard() -> None:
    import zstandard

    assert read(zstandard.ZstdCompressor().compress(pcap(FRAMES))) == WANTED


@pytest.mark.parametrize(
    ("data", "count", "words"),
    [
        (b"", 0, "x: at byte 0: ends within a capture's first four bytes: 0 of 4 bytes"),
        (b"GET / HTTP/1.1", 0, "x: is no capture: begins with 47 45 54 20; expected pcap or pcapng"),
        (pcap(FRAMES)[:20], 0, "ends within the file's header"),
        (pcap(FRAMES)[:-1], 1, "x: at byte 73: ends within a packet: 5 of 6 bytes"),
        (pcap(FRAMES)[:60], 1, "ends within a packet's header: 8 of 16 bytes"),
        (pcap(FRAMES) + struct.pack("<IIII", 1, 1, 0xFFFFFFFF, 1), 2, "a packet of 4294967295 bytes, which is none"),
        (section() + interface() + enhanced(b"whole", 1) + b"\6\0\0\0\5\0\0\0", 1, "a block of 5 bytes, which is none"),
        (section() + interface() + enhanced(b"whole", 1)[:-6], 0, "ends within a block"),
        (section()[:8] + b"abcd", 0, "a section whose byte order is 61 62 63 64"),
    ],
)
def test_a_damaged_capture_gives_what_can_be_had_and_says_where_it_ends(data: bytes, count: int, words: str) -> None:
    found, problem = until(data)
    assert len(found) == count
    assert words in problem


def test_a_compressed_capture_that_is_cut() -> None:
    data = gzip.compress(pcap([(1, bytes(range(256)) * 20)] * 50))
    with pytest.raises(CaptureError, match=r"cannot be read on|ends within"):
        read(data[: len(data) // 2])


def test_packets_of_interfaces_that_are_not_there_are_passed_over() -> None:
    assert read(section() + enhanced(b"x", 1) + interface() + enhanced(b"y", 1, 7) + enhanced(b"z", 1)) == [
        Packet(1000, 1, 1, b"z")
    ]


@given(st.binary(max_size=300), st.sampled_from([b"", section(), section(">"), pcap(FRAMES), pcap(FRAMES, ">")[:24]]))
def test_any_bytes_end_as_packets_or_with_a_line(data: bytes, before: bytes) -> None:
    found, problem = until(before + data)
    assert "\n" not in problem
    assert all(len(packet.data) <= packet.size for packet in found)


@given(st.data())
def test_whole_captures_cut_anywhere(data: st.DataObject) -> None:
    text = section() + interface() + b"".join(enhanced(payload, instant) for instant, payload in FRAMES)
    found, _ = until(text[: data.draw(st.integers(0, len(text)))])
    assert [packet.data for packet in found] == [payload for _, payload in FRAMES][: len(found)]


@pytest.mark.parametrize("kind", ["pcap", "nsecpcap", "pcapng"])
def test_what_wireshark_writes(tmp_path: Path, kind: str) -> None:
    if not shutil.which("editcap"):
        pytest.skip("needs editcap")
    (tmp_path / "a").write_bytes(pcap(FRAMES))
    subprocess.run(["editcap", "-F", kind, str(tmp_path / "a"), str(tmp_path / "b")], check=True, timeout=60)
    with capture_files.open_capture(tmp_path / "b") as file:
        assert list(capture_files.packets(file, "b")) == WANTED


def test_a_pipe_whose_first_write_is_short() -> None:
    reading, writing = os.pipe()
    packed = lzma.compress(pcap(FRAMES))
    os.write(writing, packed[:3])

    def rest() -> None:
        os.write(writing, packed[3:])
        os.close(writing)

    threading.Timer(0.2, rest).start()
    with os.fdopen(reading, "rb") as file:
        assert list(capture_files.packets(capture_files.unpacked(file, "pipe"), "pipe")) == WANTED


def test_xz_of_several_streams_with_padding_and_with_a_bound_on_memory(tmp_path: Path) -> None:
    data = pcap(FRAMES)
    several = lzma.compress(data[:50]) + bytes(8) + lzma.compress(data[50:])
    assert (
        list(capture_files.packets(capture_files.unpacked(io.BufferedReader(io.BytesIO(several)), "a"), "a")) == WANTED
    )
    large = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]
    greedy = lzma.compress(data, filters=large)
    with pytest.raises(CaptureError, match="cannot be read on"):
        list(capture_files.packets(capture_files.unpacked(io.BufferedReader(io.BytesIO(greedy)), "a"), "a"))
