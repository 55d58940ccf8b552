"""Captures to stream files, beside tcpflow's own."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc.flows import capture_files
from tcppc.flows.capture_files import Packet
from tcppc.flows.engine import Engine, Rules
from tcppc.flows.names import Template
from tcppc.flows.packets import Totals
from tcppc.flows.stream_files import StreamFiles
from tests.captures import ACK, PSH, SYN, enhanced, interface, option, pcap, section, tcp_packet
from tests.harness import tcppc

CLIENT, SERVER = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")
NAME = "010.000.000.001.01000-010.000.000.002.00080"
FIN, RST = 1, 4
BEGIN = 1_223_315_694_638_913_000


def frames(*segments: tuple[int, bytes, int], src: bytes = CLIENT, sport: int = 1000) -> list[tuple[int, bytes]]:
    """(sequence number, data, flags) each, a millisecond apart."""
    return [
        (BEGIN + number * 1_000_000, tcp_packet(src, sport, SERVER, 80, seq, data, flags))
        for number, (seq, data, flags) in enumerate(segments)
    ]


def flows(capture: Path, folder: Path, most_open: int = 100, **options: int) -> Totals:
    engine = Engine(StreamFiles(str(folder), Template(), most_open), Template(), Rules(**options))  # type: ignore[arg-type]
    with capture_files.open_capture(capture) as file:
        for packet in capture_files.packets(file, str(capture)):
            engine.packet(packet)
    return engine.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "report.xml"
    }


DATA = ACK | PSH
STORIES = {
    "in order": [(100, b"", SYN), (101, b"aaaa", DATA), (105, b"bbbb", DATA), (109, b"", FIN | ACK)],
    "a gap": [(100, b"", SYN), (101, b"aaaa", DATA), (110, b"bbbb", DATA)],
    "overlap": [(100, b"", SYN), (101, b"aaaaaa", DATA), (103, b"BBBBBB", DATA)],
    "retransmitted": [(100, b"", SYN), (101, b"aaaa", DATA), (101, b"aaaa", DATA), (105, b"b", DATA)],
    "out of order": [(100, b"", SYN), (105, b"bbbb", DATA), (101, b"aaaa", DATA), (109, b"cc", DATA)],
    "no SYN": [(5004, b"dddd", DATA), (5000, b"cccc", DATA), (5008, b"eeee", DATA)],
    "wraps": [((1 << 32) - 3, b"", SYN), ((1 << 32) - 2, b"ab", DATA), (0, b"cdef", DATA)],
    "FIN first": [(100, b"", SYN), (109, b"", FIN | ACK), (101, b"aaaa", DATA), (105, b"bbbb", DATA)],
    "RST": [(100, b"", SYN), (101, b"aaaa", RST | ACK), (100, b"", SYN), (101, b"again", DATA)],
    "ports used again": [
        (100, b"", SYN), (101, b"one", DATA), (104, b"", FIN | ACK), (9000, b"", SYN), (9001, b"two", DATA),
    ],
    "keep-alive": [(100, b"", SYN), (101, b"aaaa", DATA), (104, b"a", ACK), (105, b"bb", DATA)],
    "far away": [(100, b"", SYN), (101, b"aaaa", DATA), (101 + (20 << 20), b"far", DATA)],
    "bare ACKs": [(100, b"", ACK), (100, b"", FIN | ACK), (100, b"", RST)],
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
def test_the_same_files_and_bytes_as_tcpflow(tmp_path: Path, story: str) -> None:
    if not shutil.which("tcpflow"):
        pytest.skip("needs tcpflow")
    capture = tmp_path / "a.pcap"
    capture.write_bytes(pcap(frames(*STORIES[story])))
    words = ["tcpflow", "-r", str(capture), "-o", str(tmp_path / "theirs")]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    flows(capture, tmp_path / "ours")
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


def test_many_connections_interleaved_are_tcpflow_s_too(tmp_path: Path) -> None:
    if not shutil.which("tcpflow"):
        pytest.skip("needs tcpflow")
    lot = random.Random(7)
    queues = []
    for number in range(60):
        client = socket.inet_aton(f"10.0.1.{number}")
        pieces = [(100, b"", SYN)]
        at = 101
        for _ in range(lot.randrange(1, 12)):
            data = lot.randbytes(lot.randrange(2, 1400))
            pieces.append((at, data, DATA))
            at += len(data)
        if lot.random() < 0.5:
            late = lot.randrange(1, len(pieces))
            pieces.insert(late, pieces[-1])  # sent twice, once early
        queues.append([frame for _, frame in frames(*pieces, src=client, sport=2000 + number)])
    packets: list[tuple[int, bytes]] = []
    while queues:
        queue = lot.choice(queues)
        packets.append((BEGIN + len(packets) * 1000, queue.pop(0)))
        queues = [each for each in queues if each]
    capture = tmp_path / "a.pcap"
    capture.write_bytes(pcap(packets))
    words = ["tcpflow", "-r", str(capture), "-o", str(tmp_path / "theirs")]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    totals = flows(capture, tmp_path / "ours", most_open=7)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert totals.streams == 60
    assert len(os.listdir("/proc/self/fd")) < 100


def test_times_are_the_first_packet_s_and_a_second_run_makes_new_names(tmp_path: Path) -> None:
    capture = tmp_path / "a.pcap"
    capture.write_bytes(pcap(frames(*STORIES["in order"]), nanoseconds=True))
    flows(capture, tmp_path / "out")
    flows(capture, tmp_path / "out")
    times = (tmp_path / "out" / NAME).stat()
    assert (times.st_mtime_ns, times.st_atime_ns) == (BEGIN, BEGIN)
    assert contents(tmp_path / "out") == {NAME: b"aaaabbbb", f"{NAME}c1": b"aaaabbbb"}


def test_a_file_that_was_looked_into_again_is_closed_again(tmp_path: Path) -> None:
    """A segment of a stream that has ended comes again, and is compared with what is there."""
    begin = [(101, b"aaaa", DATA), (105, b"", FIN | ACK)]
    template = Template()
    engine = Engine(StreamFiles(str(tmp_path / "out"), template), template)
    before = len(os.listdir("/proc/self/fd"))
    for story in (begin, [(101, b"aaaa", DATA)]):
        for number, (instant, frame) in enumerate(frames(*story)):
            engine.packet(Packet(instant + number, 1, len(frame), frame))
        engine.settle()
    engine.finish()
    assert len(os.listdir("/proc/self/fd")) == before
    (path,) = (tmp_path / "out").iterdir()
    assert (path.stat().st_mtime_ns, path.stat().st_atime_ns) == (BEGIN, BEGIN)


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    capture = tmp_path / "a.pcap"
    capture.write_bytes(pcap(frames(*STORIES["in order"])))
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "out" / NAME).symlink_to(tmp_path / "precious")
    flows(capture, tmp_path / "out")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "out" / f"{NAME}c1").read_bytes() == b"aaaabbbb"


def test_no_byte_is_written_from_b_on(tmp_path: Path) -> None:
    capture = tmp_path / "a.pcap"
    capture.write_bytes(pcap(frames(*STORIES["out of order"])))
    flows(capture, tmp_path / "out", most_bytes=6)
    assert contents(tmp_path / "out") == {NAME: b"aaaabb"}


def test_a_gap_in_front_is_zeros_and_takes_no_room(tmp_path: Path) -> None:
    capture = tmp_path / "a.pcap"
    capture.write_bytes(pcap(frames((5000, b"cccccccc", DATA), (4990, b"aa", DATA))))
    flows(capture, tmp_path / "out")
    assert contents(tmp_path / "out") == {NAME: b"aa" + bytes(8) + b"cccccccc"}
    far, begin = (16 << 20) - 16, 1 << 30
    segments = [(begin, b"xx", DATA)] + [(begin + number * far, b"xx", DATA) for number in range(1, 64)]
    segments += [(begin + number * far + 8, b"xx", DATA) for number in range(63, -1, -1)]
    segments += [(begin - number * 3, b"zz", DATA) for number in range(1, 4)]
    capture.write_bytes(pcap(frames(*segments, sport=1001)))
    flows(capture, tmp_path / "far")
    (path,) = (tmp_path / "far").iterdir()
    assert path.stat().st_size == 63 * far + 10 + 9
    assert path.stat().st_blocks * 512 < 4 << 20


def test_shifts_are_bounded(tmp_path: Path) -> None:
    capture = tmp_path / "a.pcap"
    segments = [((1 << 20) - number * 10, b"0123456789", DATA) for number in range(1000)]
    capture.write_bytes(pcap(frames(*segments)))
    totals = flows(capture, tmp_path / "out")
    assert totals.bytes == 10_000
    assert 10 < totals.streams < 20  # one, and a new one after so many


def test_more_files_than_descriptors(tmp_path: Path) -> None:
    capture = tmp_path / "a.pcap"
    story = [frame for number in range(200) for frame in frames(*STORIES["in order"][:3], sport=1000 + number)]
    capture.write_bytes(pcap(sorted(story)))
    done = subprocess.run(
        ["prlimit", "--nofile=40", sys.executable, "-m", "tcppc", "flows", "-q", "-f", "1000", "-r", str(capture), "-o",
         str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert set(contents(tmp_path / "out").values()) == {b"aaaabbbb"}
    assert len(contents(tmp_path / "out")) == 200


def test_a_time_that_no_clock_has(tmp_path: Path) -> None:
    (frame,) = [frame for _, frame in frames((101, b"x", DATA))]
    seconds = interface(options=option("<", 9, b"\0"))
    (tmp_path / "a.pcapng").write_bytes(section() + seconds + enhanced(frame, (1 << 64) - 1))
    done = tcppc("flows", "-q", "-FT", "-r", str(tmp_path / "a.pcapng"), "-o", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(contents(tmp_path / "out")) == [f"2262-04-11T23:47:16Z{NAME}"]


def test_one_file_that_cannot_be_written_costs_the_others_nothing(tmp_path: Path) -> None:
    segments = [(101 + number * 1000, bytes(1000), DATA) for number in range(99)]
    other = frames((101, b"other", DATA), sport=1001)
    (tmp_path / "a.pcap").write_bytes(pcap([*frames(*segments), *other]))
    words = [sys.executable, "-m", "tcppc", "flows", "-q", "-r", str(tmp_path / "a.pcap"), "-o", str(tmp_path / "out")]
    done = subprocess.run(["prlimit", "--fsize=50000", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f"tcppc: {tmp_path}/out/{NAME}: File too large"
    assert len(done.stderr.splitlines()) == 2
    assert (tmp_path / "out" / NAME.replace("01000", "01001")).read_bytes() == b"other"
    assert "<error>" in (tmp_path / "out" / "report.xml").read_text()


def test_what_is_no_tcp_is_counted(tmp_path: Path) -> None:
    (frame,) = [frame for _, frame in frames((101, b"x", DATA))]
    broken = [frame[:12] + b"\x08\x06" + frame[14:], frame[:40], frame[:14] + b"\x41" + frame[15:]]
    broken.append(frame[:23] + b"\x11" + frame[24:])
    broken.append(frame[:46] + b"\xf0" + frame[47:])
    capture = tmp_path / "a.pcap"
    capture.write_bytes(pcap([(BEGIN, data) for data in broken]))
    totals = flows(capture, tmp_path / "out")
    assert dict(totals.passed_over) == {
        "without IP": 1,
        "with cut TCP headers": 1,
        "with broken IP headers": 1,
        "of other protocols": 1,
        "with broken TCP headers": 1,
    }
    assert contents(tmp_path / "out") == {}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=90), max_size=10), st.sampled_from([1, 101, 113, 105]))
def test_any_frames_end_in_files_below_the_folder(
    tmp_path_factory: pytest.TempPathFactory, data: list[bytes], link: int
) -> None:
    folder = tmp_path_factory.mktemp("flows")
    (folder / "a.pcap").write_bytes(pcap([(BEGIN, frame) for frame in data], link=link))
    flows(folder / "a.pcap", folder / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["a.pcap", "out"]


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap(frames(*STORIES["in order"])))
    (tmp_path / "b.pcap.gz").write_bytes(gzip.compress(pcap(frames(*STORIES["no SYN"], sport=1001))))
    words = (
        "flows",
        "-r",
        str(tmp_path / "a.pcap"),
        "-r",
        str(tmp_path / "b.pcap.gz"),
        "-o",
        str(tmp_path / "x" / "y"),
    )
    done = tcppc(*words)
    assert done.returncode == 0
    told = done.stderr.splitlines()
    assert told[0] == f"reportfilename: {tmp_path}/x/y/report.xml"
    assert told[1].startswith("7 packets, 2 streams, 20 bytes in ")
    assert contents(tmp_path / "x" / "y") == {NAME: b"aaaabbbb", NAME.replace("01000", "01001"): b"ccccddddeeee"}
    listed = tcppc("flows", "-q", "-l", "-Ft", "-o", str(tmp_path / "z"), str(tmp_path / "a.pcap"))
    assert (listed.returncode, listed.stderr) == (0, "")
    assert contents(tmp_path / "z") == {f"1223315694T{NAME}": b"aaaabbbb"}
    with (tmp_path / "a.pcap").open("rb") as capture:
        piped = subprocess.run(
            [sys.executable, "-m", "tcppc", "flows", "-q", "-r", "-", "-o", str(tmp_path / "p")],
            stdin=capture,
            check=False,
        )
    assert piped.returncode == 0
    assert contents(tmp_path / "p") == {NAME: b"aaaabbbb"}


def test_a_damaged_capture_gives_what_can_be_had_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "cut.pcap").write_bytes(pcap(frames(*STORIES["in order"]))[:-10])
    (tmp_path / "good.pcap").write_bytes(pcap(frames(*STORIES["no SYN"], sport=1001)))
    done = tcppc(
        "flows", "-l", "-o", str(tmp_path / "o"), *(str(tmp_path / name) for name in ("cut.pcap", "good.pcap"))
    )
    assert done.returncode == 1
    assert "cut.pcap: at byte 302: ends within a packet: 44 of 54 bytes" in done.stderr
    assert len(contents(tmp_path / "o")) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-i", "nosuch0"), "-i nosuch0: "),
        (("-i", "lo", "-r", "x"), "-i with -r: expected one of them"),
        (("-l",), "-l without captures"),
        (("-r", "x", "-S", "speed=1"), "-S 'speed=1': expected NAME=VALUE with one of tcp_timeout"),
        (("-r", "x", "-D"), "-D without -c or -C"),
        (("-r", "/no/such"), "/no/such: cannot be read: No such file or directory"),
        (("-r", "x", "tcp", "prot", "80"), "expression 'tcp prot 80': "),
        (("-r", "x", "-T", "%q"), "%q is no code"),
        (("-r", "x", "-F", "z"), "-F z: expected letters"),
        (("-r", "x", "-f", "0"), "expected a whole number from 1"),
    ],
)
def test_wrong_words_are_one_line(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = tcppc("flows", "-q", "-o", str(tmp_path), *words)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_disk_that_is_full_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap(frames(*STORIES["in order"])))
    program = (
        "import errno, os, sys\n"
        "def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "os.pwritev = os.writev = os.write = full\n"
        "from tcppc.cli import main\n"
        "sys.exit(main())"
    )
    words = ["flows", "-q", "-r", str(tmp_path / "a.pcap"), "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"tcppc: {tmp_path}/out/{NAME}: No space left on device\n"


@pytest.mark.parametrize(
    "story", [STORIES["in order"][:2], STORIES["in order"], [(109, b"cccc", DATA), (101, b"aaaabbbb", DATA)]]
)
def test_names_that_are_none_below_the_folder(tmp_path: Path, story: list[Any]) -> None:
    """Also of streams that have ended, or get bytes before their first, which are written in another way."""
    (tmp_path / "a.pcap").write_bytes(pcap(frames(*story)))
    for template in (".%V./%A", "%A/", "%V", "x" * 300):
        done = tcppc("flows", "-q", "-r", str(tmp_path / "a.pcap"), "-o", str(tmp_path / "in" / "out"), "-T", template)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 2
    assert {path.name for path in (tmp_path / "in").rglob("*")} == {"out", "report.xml"}


FORGED = [(50_000, b"", SYN), (105, b"bbbb", DATA), (109, b"cccc", DATA), (113, b"", FIN | ACK)]


@pytest.mark.parametrize(
    ("segments", "found"),
    [
        # A SYN that somebody forged ends nothing.
        ([(100, b"", SYN), (101, b"aaaa", DATA), *FORGED], [b"aaaabbbbcccc"]),
        # One of a new connection begins it, and what comes late for the old one is still the old one's.
        (
            [(100, b"", SYN), (101, b"aaaa", DATA), (50_000, b"", SYN), (50_001, b"new", DATA), (105, b"old", DATA)],
            [b"aaaaold", b"new"],
        ),
        # Nor before the first byte, nor twice.
        ([(100, b"", SYN), (70_000, b"", SYN), (101, b"hello", DATA), (106, b"world", DATA)], [b"helloworld"]),
        (
            [(100, b"", SYN), (101, b"a" * 500, DATA), (9_999_999, b"", SYN), (10_000_000, b"nnnn", DATA),
             (123_456_789, b"", SYN), (601, b"b" * 1500, DATA)],
            [b"a" * 500 + b"b" * 1500, b"nnnn"],
        ),
        # A FIN behind which bytes came is none.
        ([(100, b"", SYN), (101, b"aaaa", DATA), (103, b"", FIN | ACK), (105, b"bbbb", DATA)], [b"aaaabbbb"]),
        (
            [(100, b"", SYN), (111, b"a" * 10, DATA), (105, b"", FIN | ACK), (101, b"b" * 10, DATA)],
            [b"b" * 10 + b"a" * 10],
        ),
        # A SYN that was captured behind its bytes is theirs.
        ([(105, b"bbbb", DATA), (100, b"", SYN), (101, b"aaaa", DATA), (109, b"cccc", DATA)], [b"aaaabbbbcccc"]),
    ],
)  # fmt: skip
def test_what_tcpflow_or_we_had_wrong(
    tmp_path: Path, segments: list[tuple[int, bytes, int]], found: list[bytes]
) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap(frames(*segments)))
    flows(tmp_path / "a.pcap", tmp_path / "out")
    assert [data for _, data in sorted(contents(tmp_path / "out").items())] == found


def test_streams_beyond_the_bound_end_those_without_a_byte_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcppc.flows.engine.MOST_STREAMS", 64)
    real = frames((100, b"", SYN), (101, b"one", DATA))
    flood = [
        (BEGIN + at, tcp_packet(bytes([10, 9, at >> 8, at & 255]), 7, SERVER, 80, 1, b"", SYN)) for at in range(900)
    ]
    later = frames((104, b"two", DATA))
    (tmp_path / "a.pcap").write_bytes(pcap([*real, *flood, *later]))
    flows(tmp_path / "a.pcap", tmp_path / "out")
    assert contents(tmp_path / "out") == {NAME: b"onetwo"}
