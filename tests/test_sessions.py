"""Connections of a capture as session records: the bytes of the stream files, with times, replies and what was said."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc.flows import capture_files, sessions
from tcppc.flows.engine import Engine
from tcppc.flows.flow import Flow
from tcppc.flows.listener import Listener
from tcppc.flows.names import Template
from tcppc.flows.packets import Reading
from tcppc.flows.sessions import Piece, Sessions, assembled
from tcppc.flows.stream_files import StreamFiles
from tcppc.records import Session
from tests.captures import ACK, ETHERNET, PSH, SYN, pcap, tcp_packet
from tests.test_engine_of_flows import BEGIN

CLIENT, SERVER = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")
DATA, FIN, RST = ACK | PSH, 1, 4
MS = 1_000_000


def heard(seq: int, data: bytes = b"", flags: int = DATA) -> bytes:
    return tcp_packet(CLIENT, 1000, SERVER, 80, seq, data, flags)


def said(seq: int, data: bytes = b"", flags: int = DATA) -> bytes:
    return tcp_packet(SERVER, 80, CLIENT, 1000, seq, data, flags)


def datagram(client: bool, data: bytes) -> bytes:
    src, dst, ports = (CLIENT, SERVER, (5000, 53)) if client else (SERVER, CLIENT, (53, 5000))
    inner = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(inner), 1, 0, 64, 17, 0, src, dst)
    return ETHERNET + b"\x08\0" + head + inner


def read(folder: Path, frames: list[bytes], *more: Listener, most_bytes: int = 1 << 20) -> list[Session]:
    capture = folder / "a.pcap"
    capture.write_bytes(pcap([(BEGIN + number * MS, frame) for number, frame in enumerate(frames)], nanoseconds=True))
    found: list[Session] = []
    template = Template()
    listeners = [Sessions(found.append, most_bytes), *more]
    engine = Engine(
        StreamFiles(str(folder / "out"), template), template, reading=Reading(udp=True), listeners=listeners
    )
    with capture_files.open_capture(capture) as file:
        for packet in capture_files.packets(file, "a"):
            engine.packet(packet)
    engine.finish()
    return found


HANDSHAKE = [heard(100, flags=SYN), said(500, flags=SYN | ACK), heard(101, flags=ACK)]


def test_what_the_client_sent_and_what_came_back(tmp_path: Path) -> None:
    frames = [*HANDSHAKE, said(501, b"220 hi\r\n"), heard(101, b"USER x\r\n"), said(509, b"331\r\n")]
    frames += [heard(109, b"", FIN | ACK), said(514, b"", FIN | ACK)]
    (session,) = read(tmp_path, frames)
    assert (session.proto, session.src, session.sport, session.dst, session.dport) == (
        "tcp",
        "10.0.0.1",
        1000,
        "10.0.0.2",
        80,
    )
    assert (session.start, session.end, session.closed) == (BEGIN, BEGIN + 7 * MS, "peer")
    assert (session.payloads, session.bytes, session.truncated) == ([(BEGIN + 4 * MS, b"USER x\r\n")], 8, False)
    assert session.spoken
    assert session.spoken.replies == [(BEGIN + 3 * MS, b"220 hi\r\n", -1), (BEGIN + 5 * MS, b"331\r\n", 0)]


@pytest.mark.parametrize(
    ("end", "closed"),
    [([heard(101, b"", RST)], "reset"), ([said(501, b"", FIN | ACK)], "shutdown"), ([], "")],
)
def test_how_it_ended(tmp_path: Path, end: list[bytes], closed: str) -> None:
    (session,) = read(tmp_path, [*HANDSHAKE, *end])
    assert session.closed == closed
    assert bool(session.end) == bool(closed)


def test_nobody_was_connected(tmp_path: Path) -> None:
    half_open = [heard(100, flags=SYN), said(500, flags=SYN | ACK), heard(101, flags=RST)]
    assert read(tmp_path, half_open) == []


def test_the_server_s_side_alone_and_the_client_s(tmp_path: Path) -> None:
    (session,) = read(tmp_path, [said(500, flags=SYN | ACK), said(501, b"220 hi\r\n")])
    assert (session.src, session.sport, session.payloads) == ("10.0.0.1", 1000, [])
    assert session.spoken
    (other,) = read(tmp_path, [heard(100, flags=SYN), heard(101, b"x")])
    assert (other.src, other.spoken) == ("10.0.0.1", None)


def test_ports_that_are_used_again_are_two_sessions(tmp_path: Path) -> None:
    frames = [*HANDSHAKE, heard(101, b"one"), said(501, b"uno"), heard(104, b"", FIN | ACK), said(504, b"", FIN | ACK)]
    frames += [heard(9000, flags=SYN), said(7000, flags=SYN | ACK), heard(9001, b"two"), said(7001, b"due")]
    first, second = read(tmp_path, frames)
    for session, data, reply in ((first, b"one", b"uno"), (second, b"two", b"due")):
        assert [each for _, each in session.payloads] == [data]
        assert session.spoken
        assert [each for _, each, _ in session.spoken.replies] == [reply]


def test_a_payload_has_the_time_at_which_it_could_be_read(tmp_path: Path) -> None:
    (session,) = read(tmp_path, [*HANDSHAKE, heard(105, b"bbbb"), heard(109, b"cccc"), heard(101, b"aaaa")])
    assert session.payloads == [(BEGIN + 5 * MS, each) for each in (b"aaaa", b"bbbb", b"cccc")]


def test_a_gap_is_left_out_and_told(tmp_path: Path) -> None:
    (session,) = read(tmp_path, [*HANDSHAKE, heard(101, b"aaaa"), heard(110, b"bbbb")])
    assert [data for _, data in session.payloads] == [b"aaaa", b"bbbb"]
    assert (session.bytes, session.truncated) == (8, False)


def test_beyond_the_bound_bytes_are_counted_alone(tmp_path: Path) -> None:
    (session,) = read(tmp_path, [*HANDSHAKE, heard(101, b"0123456789"), heard(111, b"more")], most_bytes=6)
    assert [data for _, data in session.payloads] == [b"012345"]
    assert (session.bytes, session.truncated) == (14, True)


def test_datagrams_are_sessions_with_their_answers(tmp_path: Path) -> None:
    frames = [
        datagram(True, b"q1"),
        datagram(False, b"a1"),
        datagram(True, b"q2"),
        datagram(True, b""),
        datagram(False, b"a3"),
    ]
    found = read(tmp_path, frames)
    assert [(session.proto, session.payloads[0][1], session.bytes) for session in found] == [
        ("udp", b"q1", 2), ("udp", b"q2", 2), ("udp", b"", 0),
    ]  # fmt: skip
    assert [bool(session.spoken) for session in found] == [True, False, True]
    assert (tmp_path / "out" / "010.000.000.001.05000-010.000.000.002.00053.udp").read_bytes() == b"q1q2"


def test_much_waits_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST_WAITING_BYTES", 10)
    monkeypatch.setattr("tcppc.flows.engine.MOST_WAITING_BYTES", 10)
    (session,) = read(tmp_path, [*HANDSHAKE, *(heard(101 + at * 10, bytes([at]) * 10) for at in range(50))])
    assert b"".join(data for _, data in session.payloads) == b"".join(bytes([at]) * 10 for at in range(50))


class Content(Listener):
    """What the files hold, gaps left out."""

    def __init__(self, folder: Path) -> None:
        self.found: list[bytes] = []
        self._folder = folder

    def ended(self, flow: Flow) -> None:
        path = self._folder / "out" / Template().path(flow.named, max(0, flow.file.count))
        data = bytearray(path.read_bytes()) if flow.file.count >= 0 else bytearray()
        for at, size in reversed(flow.stream.gaps):
            del data[at : at + size]
        self.found.append(bytes(data))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=9)), min_size=1, max_size=15))
def test_any_segments_are_the_file_s_bytes(tmp_path_factory: pytest.TempPathFactory, made: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("sessions")
    content = Content(folder)
    found = read(folder, [heard(1000 + at, data) for at, data in made], content)
    assert sorted(b"".join(data for _, data in session.payloads) for session in found) == sorted(content.found)
    for session in found:
        times = [instant for instant, _ in session.payloads]
        assert times == sorted(times)


@given(st.lists(st.builds(Piece, st.integers(0, 9), st.integers(-20, 20), st.binary(max_size=6)), max_size=12))
def test_any_pieces_are_each_byte_once(pieces: list[Piece]) -> None:
    expected: dict[int, int] = {}
    for _, at, data in pieces:
        expected |= {at + number: byte for number, byte in enumerate(data)}
    found = assembled(iter(pieces))
    assert {at + number: byte for _, at, data in found for number, byte in enumerate(data)} == expected
    assert sum(len(data) for _, _, data in found) == len(expected)
