"""Many packets at once are what they are one by one: the same files, bytes and counts."""

from __future__ import annotations

import errno
import gzip
import os
import random
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc.flows import batches, capture_files, stream_files, windows
from tcppc.flows.capture_files import CaptureError
from tcppc.flows.engine import Engine
from tcppc.flows.flow import Flow
from tcppc.flows.listener import Listener
from tcppc.flows.names import Template
from tcppc.flows.stream_files import StreamFiles
from tests.captures import ACK, PSH, SYN, pcap, tcp_packet
from tests.test_engine_of_flows import BEGIN, STORIES, contents, frames

SERVER = socket.inet_aton("10.0.0.2")
SERVER_6 = bytes([0x20, 1, 0x0D, 0xB8, *bytes(10), 0, 2])
NAME = "010.000.000.001.01000-010.000.000.002.00080"
FIN, RST, DATA = 1, 4, ACK | PSH


class Told(Listener):
    """Remembers each stream as it ends."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def ended(self, flow: Flow) -> None:
        stream = flow.stream
        self.told.append(
            (flow.named, flow.first, flow.last, flow.packets, flow.sent, flow.captured, stream.seen, stream.closed,
             stream.gaps, stream.out_of_order, stream.violations, flow.conflicts, flow.file.size, flow.asks,
             flow.partner and flow.partner.named.number)
        )  # fmt: skip


class Telling(Engine):
    def __init__(self, folder: Path) -> None:
        template = Template("%N-%S-%A.%a-%B.%b%c")
        listener = Told()
        super().__init__(StreamFiles(str(folder), template, 5), template, listeners=[listener])
        self.told = listener.told


def read(capture: Path, engine: Engine) -> None:
    with capture.open("rb") as file:
        batches.read(file, str(capture), engine)


def both(folder: Path, data: bytes, monkeypatch: pytest.MonkeyPatch | None = None) -> Telling:
    """Reads it both ways and holds one against the other; returns what the batches made."""
    capture = folder / "a.pcap"
    capture.write_bytes(data)
    one, many = Telling(folder / "one"), Telling(folder / "many")
    with capture_files.open_capture(capture) as file:
        for packet in capture_files.packets(file, str(capture)):
            one.packet(packet)
    read(capture, many)
    one.finish()
    many.finish()
    assert contents(folder / "many") == contents(folder / "one")
    assert many.told == one.told
    assert many.totals == one.totals
    times = [{path.name: path.stat().st_mtime_ns for path in (folder / name).iterdir()} for name in ("one", "many")]
    assert times[0] == times[1]
    return many


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("window", [1, 2, 1000])
def test_each_story(tmp_path: Path, story: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_PACKETS", window)
    both(tmp_path, pcap(frames(*STORIES[story]), ">" if window == 2 else "<", nanoseconds=window == 1))


def test_many_streams_with_all_that_may_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_PACKETS", 150)
    lot = random.Random(11)
    packets: list[tuple[int, bytes]] = []
    streams = []
    for number in range(80):
        server = SERVER if number % 3 else SERVER_6
        client = bytes([*server[:-2], 1, number])
        at = lot.randrange(1 << 32)
        queue = [(at, b"", SYN)] if lot.random() < 0.8 else []
        at += 1
        for _ in range(lot.randrange(12)):
            data = lot.randbytes(lot.randrange(2, 300))
            queue.append((at & 0xFFFFFFFF, data, DATA))
            at += len(data)
        if lot.random() < 0.5:
            queue.append((at & 0xFFFFFFFF, b"", lot.choice([FIN, RST]) | ACK))
        if lot.random() < 0.3 and len(queue) > 2:
            lot.shuffle(queue)
        way = (client, 2000 + number, server, 80) if lot.random() < 0.7 else (server, 80, client, 2000 + number)
        src, sport, dst, dport = way
        streams.append([tcp_packet(src, sport, dst, dport, seq, data, flags) for seq, data, flags in queue])
    while any(streams):
        queue_of = lot.choice([each for each in streams if each])
        frame = queue_of.pop(0)
        if lot.random() < 0.02:
            frame = frame[:12] + b"\x81\0\0\5" + frame[12:]  # tagged: another stream
        if lot.random() < 0.01:
            frame = frame[:12] + b"\x88\xa8\0\7" + frame[12:]  # and not plain
        if lot.random() < 0.02:
            frame = frame[:-3]  # cut
        packets.append((BEGIN + len(packets) * 1000, frame))
    made = both(tmp_path, pcap(packets))
    assert made.totals.streams > 60


segments = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(0, 40), st.binary(max_size=12), st.sampled_from([ACK, DATA, SYN, FIN | ACK, RST])
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=150)
@given(segments, st.integers(1, 30))
def test_any_segments(tmp_path_factory: pytest.TempPathFactory, made: list[Any], window: int) -> None:
    folder = tmp_path_factory.mktemp("batches")
    client = b"\x0a\0\0\1"
    ways = ((client, 1000, SERVER, 80), (SERVER, 80, client, 1000))
    packets = [
        (BEGIN + number * 1000, tcp_packet(*ways[way], seq, data, flags))
        for number, (way, seq, data, flags) in enumerate(made)
    ]
    if len(made) % 2:
        client_6 = SERVER_6[:-1] + b"\1"
        ways_6 = ((client_6, 1000, SERVER_6, 80), (SERVER_6, 80, client_6, 1000))
        others = [(BEGIN, tcp_packet(*ways_6[way], seq, data, flags)) for way, seq, data, flags in made]
        packets = [each for both in zip(packets, others, strict=True) for each in both]
    before = windows.WINDOW_PACKETS
    windows.WINDOW_PACKETS = window
    try:
        if packets:
            both(folder, pcap(packets))
    finally:
        windows.WINDOW_PACKETS = before


@settings(deadline=None, max_examples=80)
@given(segments, st.data())
def test_in_order_with_a_fault_here_and_there(
    tmp_path_factory: pytest.TempPathFactory, made: list[Any], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("batches")
    packets: list[tuple[int, bytes]] = []
    at = 100
    for number, (_, jump, payload, flags) in enumerate(made):
        at += jump if data.draw(st.integers(0, 9)) == 0 else 0
        packets.append((BEGIN + number, tcp_packet(b"\x0a\0\0\1", 1, SERVER, 2, at, payload, flags & ~SYN | ACK)))
        at += len(payload)
    if packets:
        both(folder, pcap(packets))


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (-10, "at byte 302: ends within a packet: 44 of 54 bytes"),
        (-60, "ends within a packet's header: 10 of 16 bytes"),
    ],
)
def test_a_damaged_file_gives_what_can_be_had(tmp_path: Path, cut: int, words: str) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap(frames(*STORIES["in order"]))[:cut])
    engine = Telling(tmp_path / "out")
    with pytest.raises(CaptureError) as problem:
        read(tmp_path / "a.pcap", engine)
    assert words in str(problem.value)
    engine.finish()
    assert list(contents(tmp_path / "out").values()) == [b"aaaabbbb"]


def test_which_files_fit() -> None:
    assert batches.fits(pcap([]))
    assert batches.fits(pcap([], ">", nanoseconds=True))
    assert batches.fits(pcap([], link=113))
    assert not batches.fits(pcap([], link=105))
    assert not batches.fits(pcap([])[:20])
    assert not batches.fits(b"\x1f\x8b" + bytes(40))


def test_streams_of_many_windows_have_their_first_packet_s_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few descriptors."""
    monkeypatch.setattr(windows, "WINDOW_PACKETS", 300)
    packets = [
        (
            BEGIN + number * 1000,
            tcp_packet(bytes([10, 1, 0, number % 50]), 1000, SERVER, 80, 101 + at, bytes([at]) * 20),
        )
        for number, at in ((round_ * 50 + each, round_ * 20) for round_ in range(12) for each in range(50))
    ]
    (tmp_path / "a.pcap").write_bytes(pcap(packets, nanoseconds=True))
    template = Template()
    engine = Engine(StreamFiles(str(tmp_path / "out"), template, 20), template)
    read(tmp_path / "a.pcap", engine)
    engine.finish()
    expected = b"".join(bytes([at]) * 20 for at in range(0, 240, 20))
    for number in range(50):
        path = tmp_path / "out" / f"010.001.000.{number:03d}.01000-010.000.000.002.00080"
        assert path.read_bytes() == expected
        assert path.stat().st_mtime_ns == BEGIN + number * 1000


def test_an_error_of_the_disk_is_that_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.pcap").write_bytes(pcap(frames(*STORIES["in order"])))
    engine = Telling(tmp_path / "out")
    failing = SimpleNamespace(**vars(os) | {"write": full, "writev": full, "pwritev": full})
    monkeypatch.setattr(stream_files, "os", failing)
    with pytest.raises(OSError, match="No space left") as problem:
        read(tmp_path / "a.pcap", engine)
    assert str(problem.value.filename).startswith(str(tmp_path / "out"))


def test_a_capture_with_the_length_of_its_frame_check_sequence() -> None:
    assert batches.fits(pcap([], link=0x44000001))


def test_a_run_that_is_split_comes_in_its_packets_turns(tmp_path: Path) -> None:
    client, other = (socket.inet_aton(f"10.0.0.{number}") for number in (1, 3))
    story: list[Any] = [(client, 101, b"aaaa", RST | ACK), (client, 105, b"", ACK), (other, 1, b"first", DATA)]
    story += [(client, 5000, b"", SYN), (client, 101, b"xxxx", DATA), (client, 105, b"yyyy", DATA)]
    story += [(client, 101, b"aaaa", RST | ACK), (client, 105, b"late", DATA)]
    story += [(SERVER, 9, b"between", DATA), (client, 109, b"more", DATA), (client, 113, b"", SYN)]
    packets = [
        (BEGIN + number, tcp_packet(src, 1000 + (src == SERVER), SERVER, 80, *segment))
        for number, (src, *segment) in enumerate(story)
    ]
    both(tmp_path, pcap(packets))


def test_names_are_given_in_the_order_of_the_streams_bytes(tmp_path: Path) -> None:
    """Of two streams of the same ends the small one may wait, and the one that is far along is written now."""
    client = socket.inet_aton("10.0.0.1")
    story: list[Any] = [(28, b"", SYN), (4294965326, b"first", SYN), (16_773_322, b"far", DATA)]
    packets = [(BEGIN + at, tcp_packet(client, 1000, SERVER, 80, *segment)) for at, segment in enumerate(story)]
    (tmp_path / "a.pcap").write_bytes(pcap(packets))
    template = Template()
    engine = Engine(StreamFiles(str(tmp_path / "out"), template), template)
    read(tmp_path / "a.pcap", engine)
    engine.finish()
    assert (tmp_path / "out" / NAME).read_bytes() == b"first"
    assert (tmp_path / "out" / f"{NAME}c1").stat().st_size == 16_773_293 + 3


@pytest.mark.parametrize("part", [1000, 5000, 1 << 24])
@pytest.mark.parametrize("cut", [0, 1, 9, 300])
def test_a_compressed_file_part_by_part_is_what_it_is_plain(
    tmp_path: Path, part: int, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the capture within is cut, and where the packed one is."""
    monkeypatch.setattr(batches, "STREAM_BYTES", part)
    lot = random.Random(part + cut)
    stories = [frames(*STORIES[story], sport=2000 + number) for number, story in enumerate(list(STORIES) * 2)]
    packets: list[Any] = []
    while stories:
        story = lot.choice(stories)
        packets.append((BEGIN + len(packets) * 1000, story.pop(0)[1] + lot.randbytes(lot.randrange(40))))
        stories = [each for each in stories if each]
    data = pcap(packets)
    for name, content in (
        ("inner", gzip.compress(data[: len(data) - cut])),
        ("outer", gzip.compress(data)[: -cut or None]),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        said = []
        engines = [Telling(tmp_path / f"{name}-{kind}") for kind in ("one", "many")]
        for engine, by_batch in zip(engines, (False, True), strict=True):
            with capture_files.open_capture(path) as file:
                try:
                    if by_batch:
                        batches.read_stream(file, name, engine)
                    else:
                        for packet in capture_files.packets(file, name):
                            engine.packet(packet)
                    said.append("")
                except CaptureError as problem:
                    said.append(str(problem))
            engine.finish()
        assert bool(said[0]) == bool(said[1]) == bool(cut)
        assert contents(tmp_path / f"{name}-many") == contents(tmp_path / f"{name}-one")
        assert engines[1].told == engines[0].told
        if name == "inner":
            assert said[1] == said[0]
