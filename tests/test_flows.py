"""`tcppc flows` as its user types it: beside tcpflow where that does the same."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import pty
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tcppc as tcppc_package
from tcppc import cli
from tests.captures import ACK, ETHERNET, PSH, SYN, enhanced, interface, option, pcap, section, tcp_packet
from tests.harness import ended, payload, tcppc, wait_until
from tests.netns import Net
from tests.test_engine_of_flows import BEGIN, contents
from tests.test_sessions import datagram

CLIENT, SERVER = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")
ASKED = "010.000.000.001.01000-010.000.000.002.00080"
ANSWERED = "010.000.000.002.00080-010.000.000.001.01000"
DATA, FIN, RST = ACK | PSH, 1, 4
DFXML = "{http://www.forensicswiki.org/wiki/Category:Digital_Forensics_XML}"
TCPFLOW = "{http://afflib.org/tcpflow/}"


def heard(seq: int, data: bytes = b"", flags: int = DATA) -> bytes:
    return tcp_packet(CLIENT, 1000, SERVER, 80, seq, data, flags)


def said(seq: int, data: bytes = b"", flags: int = DATA) -> bytes:
    return tcp_packet(SERVER, 80, CLIENT, 1000, seq, data, flags)


ARP = ETHERNET + b"\x08\x06" + bytes(28)
STORY = [
    heard(100, flags=SYN), said(500, flags=SYN | ACK), heard(101, flags=ACK), heard(101, b"GET / HTTP/1.0\r\n"),
    heard(117, b"Host: x\r\n\r\n"), said(501, b"\x00\x01tab\there \x1b[2J\xff" * 9), said(501, b"\x00\x01tab"),
    heard(127, b"\n"), said(650, b"x"), heard(128, b"late", ACK | FIN), said(651, b"", ACK | FIN),
    heard(133, b"after"), datagram(True, b"udp"), ARP,
]  # fmt: skip


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap([(BEGIN + number * 1_000_000, frame) for number, frame in enumerate(STORY)]))
    return path


def theirs(*words: str | Path, code: int = 0) -> bytes:
    """What tcpflow says on standard output."""
    done = subprocess.run(["tcpflow", *words], capture_output=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def ours(*words: str | Path) -> str:
    done = tcppc("flows", "-q", *map(str, words))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "options",
    ["-c", "-C", "-c -B", "-c -0", "-c -g", "-C -g", "-c -D", "-C -D", "-c -J", "-c -B -0 -g", "-C -D -g", "-c -s"],
)
def test_the_console_is_tcpflow_s_to_the_byte(tmp_path: Path, capture: Path, options: str) -> None:
    expected = theirs("-X", tmp_path / "r", *options.split(), "-r", capture)
    words = [sys.executable, "-m", "tcppc", "flows", "-q", *options.split(), "-r", str(capture)]
    got = subprocess.run(words, capture_output=True, timeout=60, check=True, cwd=tmp_path)
    assert got.stdout == expected
    assert len(expected) > 190
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pcap", "r"]  # no file, no report of ours


def test_the_console_in_order_without_doubles(tmp_path: Path) -> None:
    frames = [
        heard(100, flags=SYN),
        heard(105, b"cdef"),
        heard(101, b"ab"),
        heard(101, b"ab"),
        heard(103, b"xx"),
        heard(120, b"end"),
    ]
    (tmp_path / "a.pcap").write_bytes(pcap([(BEGIN + number, frame) for number, frame in enumerate(frames)]))
    assert ours("-C", "-0", "--in-order", "-r", tmp_path / "a.pcap") == "abxxcdefend"


def test_findx_and_captures_of_streams_are_tcpflow_s(tmp_path: Path, capture: Path) -> None:
    theirs("-I", "-r", capture, "-o", tmp_path / "t")
    ours("-I", "-r", capture, "-o", tmp_path / "o")
    expected = contents(tmp_path / "t")
    assert contents(tmp_path / "o") == expected
    assert sum(name.endswith(".findx") for name in expected) == 3
    ours("-K", "-w", tmp_path / "rest.pcap", "-r", capture, "-o", tmp_path / "k")
    parts = sorted(str(path) for path in (tmp_path / "k").glob("*.pcap"))
    assert [Path(part).name for part in parts] == [f"{ASKED}.pcap", f"{ASKED}c1.pcap", f"{ANSWERED}.pcap"]
    counts = [
        int(subprocess.check_output(["capinfos", "-Mrc", part]).split()[-1])
        for part in [*parts, str(tmp_path / "rest.pcap")]
    ]
    assert counts == [6, 1, 5, 1]  # all packets but ARP's, once


def test_the_report_has_what_tcpflow_s_has(tmp_path: Path, capture: Path) -> None:
    theirs("-e", "md5", "-FM", "-r", capture, "-o", tmp_path / "t")
    ours("-FM", "--hash", "sha256", "-r", capture, "-o", tmp_path / "o")
    old = {}
    for each in ET.parse(tmp_path / "t" / "report.xml").iter("fileobject"):
        old[Path(each.findtext("filename") or "").name] = dict(each.findall("tcpflow")[0].attrib)
    root = ET.parse(tmp_path / "o" / "report.xml").getroot()
    found = {}
    for each in root.iter(f"{DFXML}fileobject"):
        name = Path(each.findtext(f"{DFXML}filename") or "").name
        content = (tmp_path / "o" / name).read_bytes()
        assert each.findtext(f"{DFXML}filesize") == str(len(content))
        hashes = {one.get("type"): one.text for one in each.iter(f"{DFXML}hashdigest")}
        assert hashes == {"MD5": hashlib.md5(content).hexdigest(), "SHA256": hashlib.sha256(content).hexdigest()}
        (told,) = each.findall(f"{TCPFLOW}tcpflow")
        found[name] = {key: value for key, value in told.attrib.items() if key in old[name]}
        assert [(gap.get("offset"), gap.get("len")) for gap in told] == ([("144", "5")] if name == ANSWERED else [])
    assert found == old
    assert len(found) == 3


# What DFXML's schema (2.0.0-beta.0) says of the elements that a report uses: which follow one another, in which order.
ORDER = {
    "dfxml": ["metadata", "creator", "source", "fileobject*", "rusage", "other*"],
    "creator": ["program", "version", "build_environment", "execution_environment", "library*"],
    "build_environment": ["compiler", "library*"],
    "source": ["image_filename*"],
    "fileobject": ["filename", "error", "filesize", "byte_runs", "hashdigest*", "other*"],
    "byte_runs": ["byte_run*"],
    "rusage": ["utime", "stime", "maxrss", "minflt", "majflt", "nswap", "inblock", "oublock", "clocktime"],
}


def test_the_report_is_as_the_schema_says(tmp_path: Path, capture: Path) -> None:
    evil = tmp_path / "a&b<c>'\"\x01\x1b.pcap"
    shutil.copy(capture, evil)
    ours("-a", "-r", evil, "-r", capture, "-o", tmp_path / "o & <p>")
    root = ET.parse(tmp_path / "o & <p>" / "report.xml").getroot()
    assert root.tag == f"{DFXML}dfxml"
    assert root.get("version")
    for element in root.iter():
        order = ORDER.get(element.tag.removeprefix(DFXML))
        if order:
            tags = [each.tag.removeprefix(DFXML) if each.tag.startswith(DFXML) else "other" for each in element]
            pattern = "".join(f"(?:{tag.rstrip('*')} )" + ("*" if tag.endswith("*") else "?") for tag in order)
            assert re.fullmatch(pattern, "".join(f"{tag} " for tag in tags)), (element.tag, tags)
    numbers = {each.tag.removeprefix(TCPFLOW): each.text for each in root if each.tag.startswith(TCPFLOW)}
    assert numbers["total_packets"] == str(2 * len(STORY))
    assert {each.get("why") for each in root.iter(f"{TCPFLOW}passed_over")} == {"of other protocols", "without IP"}
    assert root.findtext(f"{DFXML}creator/{DFXML}execution_environment/{DFXML}command_line", "").count(" -r ") == 2


def test_where_the_report_goes(tmp_path: Path, capture: Path) -> None:
    assert ours("-FX", "-X", "-", "-r", capture, "-o", tmp_path / "x").startswith("<?xml version='1.0'")
    assert contents(tmp_path / "x") == {}
    ours("-S", "enable_report=NO", "-r", capture, "-o", tmp_path / "n")
    assert not (tmp_path / "n" / "report.xml").exists()
    (tmp_path / "l").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "l" / "report.xml").symlink_to(tmp_path / "precious")
    assert tcppc("flows", "-q", "-r", str(capture), "-o", str(tmp_path / "l")).returncode == 1
    assert (tmp_path / "precious").read_text() == "precious"


def test_streams_go_on_in_later_files_and_none_begin(tmp_path: Path) -> None:
    first = [heard(100, flags=SYN), heard(101, b"one ")]
    later = [heard(105, b"two"), tcp_packet(CLIENT, 1001, SERVER, 80, 1, b"new", DATA)]
    for name, frames in (("a", first), ("b", later)):
        (tmp_path / name).write_bytes(pcap([(BEGIN, frame) for frame in frames]))
    ours("-r", tmp_path / "a", "-R", tmp_path / "b", "-o", tmp_path / "o")
    assert contents(tmp_path / "o") == {ASKED: b"one two"}


@pytest.mark.parametrize("large", [False, True])
def test_an_expression_says_which_packets(tmp_path: Path, capture: Path, large: bool) -> None:
    if large:  # many packets at once
        frames = [
            tcp_packet(CLIENT, port, SERVER, 80, 101 + at * 1400, bytes(1400), DATA)
            for at in range(2000)
            for port in (5, 6)
        ]
        capture.write_bytes(pcap([(BEGIN + number, frame) for number, frame in enumerate(frames)]))
    expression = ["src", "port", "5"] if large else ["src", "host", "10.0.0.2", "and", "tcp"]
    ours("-r", capture, "-o", tmp_path / "o", *expression)
    theirs("-r", capture, "-o", tmp_path / "t", *expression)
    assert contents(tmp_path / "o") == contents(tmp_path / "t")
    assert len(contents(tmp_path / "o")) == 1


def tunnelled(inner: bytes, kind: str) -> bytes:
    """IP packet `inner` as an Ethernet frame around IPv4 around it."""
    heads = {
        "ipip": (4, b""), "gre": (47, b"\x00\x00\x08\x00"), "gre with a key": (47, b"\x30\x00\x08\x00" + bytes(8)),
        "vxlan": (17, struct.pack("!HHHH", 9, 4789, 0, 0) + b"\x08" + bytes(7) + ETHERNET + b"\x08\x00"),
    }  # fmt: skip
    protocol, head = heads[kind]
    body = head + inner
    outer = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0, b"\1\1\1\1", b"\2\2\2\2")
    return ETHERNET + b"\x08\x00" + outer + body


@pytest.mark.parametrize("kind", ["ipip", "gre", "gre with a key", "vxlan"])
def test_tunnels(tmp_path: Path, kind: str) -> None:
    twice = tunnelled(tunnelled(heard(105, b"efgh")[14:], kind)[14:], "ipip")
    frames = [tunnelled(heard(101, b"abcd")[14:], kind), twice]
    (tmp_path / "a.pcap").write_bytes(pcap([(BEGIN, frame) for frame in frames]))
    ours("--tunnels", "-r", tmp_path / "a.pcap", "-o", tmp_path / "o")
    assert contents(tmp_path / "o") == {ASKED: b"abcd", f"{ASKED}c1": b"efgh"}  # another tunnel
    ours("-r", tmp_path / "a.pcap", "-o", tmp_path / "without")
    assert contents(tmp_path / "without") == {}


def test_networks_in_tunnels_are_told_apart(tmp_path: Path) -> None:
    """The same addresses and ports in two VXLANs, and the answers of one of them."""
    frames = [tunnelled(heard(101, b"five")[14:], "vxlan"), tunnelled(heard(101, b"sixx")[14:], "vxlan")]
    frames[1] = frames[1].replace(b"\x08" + bytes(7) + ETHERNET, b"\x08\0\0\0\0\0\6\0" + ETHERNET)
    (tmp_path / "a.pcap").write_bytes(pcap([(BEGIN, frame) for frame in frames]))
    ours("--tunnels", "-r", tmp_path / "a.pcap", "-o", tmp_path / "o")
    assert contents(tmp_path / "o") == {ASKED: b"five", f"{ASKED}c1": b"sixx"}


def test_what_a_kernel_sends_has_no_wrong_checksum(tmp_path: Path, net: Net) -> None:
    """Also where the network card was to complete it."""
    live = net.sensor.start(sys.executable, "-m", "tcppc", "flows", "-i", "veth0", "-K", "-o", str(tmp_path / "k"))
    assert live.stdout
    assert live.stdout.readline() == "tcppc: listening on veth0\n"
    net.sensor.start("nc", "-l", "-p", "7777", "-N")
    wait_until(lambda: ":7777" in net.sensor.run("ss", "-Hltn"), "nc")
    net.attacker.run("nc", "-N", "198.51.100.1", "7777", text="hello")
    live.send_signal(signal.SIGTERM)
    assert live.wait(30) == 0
    (part,) = (tmp_path / "k").glob("*-198.051.100.001.07777.pcap")
    done = tcppc("flows", "--checksums", "-r", str(part), "-o", str(tmp_path / "o"))
    assert "packets, 1 streams, 5 bytes" in done.stderr
    assert "wrong checksums" not in done.stderr


def test_wrong_checksums(tmp_path: Path) -> None:
    def summed(data: bytes) -> int:
        return 0xFFFF - int.from_bytes(data, "big") % 0xFFFF

    frame = heard(101, b"data")
    pseudo = CLIENT + SERVER + struct.pack("!II", 24, 6)
    good = frame[:50] + struct.pack("!H", summed(pseudo + frame[34:])) + frame[52:]
    partial = frame[:50] + struct.pack("!H", int.from_bytes(pseudo, "big") % 0xFFFF) + frame[52:]
    wrong = frame[:50] + b"\x12\x34" + frame[52:]
    (tmp_path / "a.pcap").write_bytes(pcap([(BEGIN, each) for each in (good, partial, wrong, good[:-2])]))
    done = tcppc("flows", "--checksums", "-r", str(tmp_path / "a.pcap"), "-o", str(tmp_path / "o"))
    assert "4 packets" in done.stderr
    assert "; 1 packets with wrong checksums" in done.stderr
    assert "<tcpflow:wrong_checksums>1<" in (tmp_path / "o" / "report.xml").read_text()


def test_idle_streams_end(tmp_path: Path) -> None:
    frames = [(BEGIN, heard(101, b"one")), (BEGIN + 10 * 10**9, heard(104, b"two"))]
    frames += [
        (BEGIN, datagram(True, b"a")),
        (BEGIN + 50 * 10**9, datagram(True, b"b")),
        (BEGIN + 200 * 10**9, datagram(True, b"c")),
    ]
    (tmp_path / "a.pcap").write_bytes(pcap(frames))
    ours("--udp", "-S", "tcp_timeout=5s", "-r", tmp_path / "a.pcap", "-o", tmp_path / "o")
    name = "010.000.000.001.05000-010.000.000.002.00053"
    assert contents(tmp_path / "o") == {
        ASKED: b"one",
        f"{ASKED}c1": b"two",
        f"{name}.udp": b"ab",
        f"{name}c1.udp": b"c",
    }


def large_capture(path: Path, count: int = 16_000) -> None:
    """Over 16 MiB: two processes share it. Many connections, some out of order, some tagged, some fragments."""
    lot = random.Random(11)
    packets: list[tuple[int, bytes]] = []
    at: dict[int, int] = {}
    for number in range(count):
        port = 2000 + lot.randrange(300)
        seq = at.setdefault(port, 101)
        data = lot.randbytes(16) * (1_200_000 // count)
        ends = (bytes([10, 1, 0, port % 7]), SERVER) if port % 5 else (bytes([0x20, *bytes(14), port % 7]), bytes(16))
        frame = tcp_packet(ends[0], port, ends[1], 80, seq, data, DATA)
        if lot.random() < 0.02:
            frame = frame[:12] + b"\x81\0\0\5" + frame[12:]
        else:
            at[port] = seq + len(data) if lot.random() < 0.95 else seq
        packets.append((BEGIN + number * 1000, frame))
    if path.suffix == ".pcapng":
        odd = section() + interface(options=option("<", 9, b"\x09"))  # from here on it is read packet by packet
        blocks = [enhanced(frame, instant // 1000) for instant, frame in packets[:-9]]
        blocks += [odd, *(enhanced(frame, instant) for instant, frame in packets[-9:])]
        path.write_bytes(section() + interface() + b"".join(blocks))
    else:
        path.write_bytes(pcap(packets))


# A single window, and three of them.
@pytest.mark.parametrize(("count", "name"), [(16_000, "a.pcap"), (150_000, "a.pcap"), (150_000, "a.pcapng")])
def test_two_processes_make_what_one_makes(tmp_path: Path, count: int, name: str) -> None:
    large_capture(tmp_path / name, count)
    if name == "a.pcapng":
        large_capture(tmp_path / "a.pcap", count)
        ours("-r", tmp_path / "a.pcap", "-o", tmp_path / "plain")
    told = {}
    for place, prefix in (("two", "nice -n 0"), ("one", "taskset -c 0")):
        words = [
            *prefix.split(),
            sys.executable,
            "-m",
            "tcppc",
            "flows",
            "-FM",
            "-r",
            str(tmp_path / name),
            "-o",
            str(tmp_path / place),
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        told[place] = re.sub(r" in .*? s", "", done.stderr.splitlines()[-1])
    assert told["two"] == told["one"]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    times = [{path.name: path.stat().st_mtime_ns for path in (tmp_path / place).glob("0*")} for place in ("two", "one")]
    assert times[0] == times[1]
    for packed, pack in (
        ("a.gz", gzip.compress),
        ("a.xz", lambda data: lzma.compress(data, preset=0)),
        ("a.bz2", bz2.compress),
    ):
        (tmp_path / packed).write_bytes(pack((tmp_path / name).read_bytes()))
        ours("-r", tmp_path / packed, "-o", tmp_path / f"of {packed}")
        assert contents(tmp_path / f"of {packed}") == contents(tmp_path / "one")
        if name == "a.pcapng":
            assert contents(tmp_path / f"of {packed}") == contents(tmp_path / "plain")
    reports = []
    for place in ("two", "one"):
        text = (tmp_path / place / "report.xml").read_text().replace(str(tmp_path / place), "")
        objects = re.findall("<fileobject>.*?</fileobject>", text, re.DOTALL)
        reports.append(sorted(re.sub(" connection='[0-9]+'", "", each) for each in objects))
        connections = re.findall("connection='([0-9]+)'", text)
        assert len(set(connections)) == len(connections)  # each of these has one direction
        ET.fromstring(text)
    assert reports[0] == reports[1]


def test_a_small_capture_before_a_large_one_is_read_by_both_processes(tmp_path: Path) -> None:
    large_capture(tmp_path / "a.pcap")
    lot = random.Random(5)
    small = [(BEGIN + at, tcp_packet(CLIENT, 9, SERVER, 80, 1 + 4 * at, lot.randbytes(4), DATA)) for at in range(9000)]
    (tmp_path / "b.pcap").write_bytes(pcap(small))
    (tmp_path / "c.pcap").write_bytes(pcap([]))
    captures = [part for name in "cbca" for part in ("-r", str(tmp_path / f"{name}.pcap"))]
    ours(*captures, "-o", tmp_path / "o")
    ours("-r", tmp_path / "a.pcap", "-o", tmp_path / "p")
    found = contents(tmp_path / "o")
    name = next(name for name in found if ".00009-" in name)
    assert found.pop(name) == b"".join(frame[54:] for _, frame in small)
    assert found == contents(tmp_path / "p")


@pytest.mark.parametrize(
    ("who", "number", "words"),
    [
        ("second", signal.SIGKILL, "tcppc: the second process ended early; half of the streams are lost (status 9)"),
        ("second", signal.SIGTERM, "tcppc: stopped before the end of the captures; what was read is written"),
        ("first", signal.SIGINT, "tcppc: stopped before the end of the captures; what was read is written"),
    ],
)
def test_one_of_two_processes_is_ended(tmp_path: Path, who: str, number: int, words: str) -> None:
    large_capture(tmp_path / "a.pcap", 150_000)
    captures = [part for _ in range(8) for part in ("-r", str(tmp_path / "a.pcap"))]
    command = [sys.executable, "-m", "tcppc", "flows", "-q", *captures, "-o", str(tmp_path / "o")]
    with ended(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (found := children.read_text().split()):
            assert process.poll() is None
        while not list((tmp_path / "o").glob("010*")):
            assert process.poll() is None
        os.kill(int(found[0]) if who == "second" else process.pid, number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()) == (1, [words])


GONE = """
import os, sys
from tcppc.cli import main
from tcppc.flows import sources
first, begin = os.getpid(), sources.Source.__init__
def gone(self, name):
    if name.endswith("gone.pcap") and os.getpid() != first:
        raise FileNotFoundError(2, "No such file or directory", name)
    begin(self, name)
sources.Source.__init__ = gone
sys.exit(main())
"""


def test_a_capture_that_is_there_for_one_of_two_processes_costs_itself_alone(tmp_path: Path) -> None:
    large_capture(tmp_path / "a.pcap")
    for name in ("gone.pcap", "b.pcap"):
        (tmp_path / name).write_bytes(pcap([(BEGIN, tcp_packet(CLIENT, 7, SERVER, 80, 1, name.encode(), DATA))]))
    captures = [part for name in ("a", "gone", "b") for part in ("-r", str(tmp_path / f"{name}.pcap"))]
    words = [sys.executable, "-c", GONE, "flows", "-q", *captures, "-o", str(tmp_path / "o")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = f"tcppc: {tmp_path / 'gone.pcap'}: was replaced by another file while it was read"
    assert (done.returncode, done.stderr.splitlines()) == (1, [said])
    ours("-r", tmp_path / "a.pcap", "-r", tmp_path / "b.pcap", "-o", tmp_path / "p")
    assert contents(tmp_path / "o") == contents(tmp_path / "p")
    ET.parse(tmp_path / "o" / "report.xml")


def test_interrupted_twice_says_so(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from tcppc.cli import main\n"
        "from tcppc.flows.engine import Engine\n"
        "def finish(*_): os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)\n"
        "Engine.finish = finish\n"
        "sys.exit(main())"
    )
    (tmp_path / "a.pcap").write_bytes(pcap([(BEGIN, tcp_packet(CLIENT, 7, SERVER, 80, 1, b"x", DATA))]))
    words = [sys.executable, "-c", program, "flows", "-q", "-r", str(tmp_path / "a.pcap"), "-o", str(tmp_path / "o")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = "tcppc: interrupted twice: ended at once; the report, and files of streams, are not whole"
    assert (done.returncode, done.stderr.splitlines()) == (1, [said])


def test_a_large_file_that_is_damaged_from_its_beginning_is_one_line(tmp_path: Path) -> None:
    for name, head in (
        ("a.zst", b"\x28\xb5\x2f\xfd"),
        ("a.gz", b"\x1f\x8b"),
        ("a.xz", b"\xfd7zXZ\0"),
        ("a.bz2", b"BZh"),
    ):
        (tmp_path / name).write_bytes(head + b"\xaa\x55" * 400_000)
        done = tcppc("flows", "-q", "-r", str(tmp_path / name), "-o", str(tmp_path / "o"))
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert f"{name}: at byte 0: cannot be " in done.stderr


def test_standard_input_goes_on_where_it_stands(tmp_path: Path) -> None:
    large_capture(tmp_path / "a.pcap")
    (tmp_path / "b").write_bytes(b"header of somebody's" + (tmp_path / "a.pcap").read_bytes())
    with (tmp_path / "b").open("rb", buffering=0) as file:
        file.seek(20)
        words = [sys.executable, "-m", "tcppc", "flows", "-q", "-r", "-", "-o", str(tmp_path / "o")]
        subprocess.run(words, stdin=file, check=True)
    ours("-r", tmp_path / "a.pcap", "-o", tmp_path / "p")
    assert contents(tmp_path / "o") == contents(tmp_path / "p")


def test_fragments_that_came_to_nothing_are_told(tmp_path: Path) -> None:
    def piece(number: int, at: int, more: bool) -> bytes:
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 36, number, more << 13 | at // 8, 64, 6, 0, CLIENT, SERVER)
        return ETHERNET + b"\x08\x00" + head + bytes(16)

    frames = [piece(1, 0, True), piece(2, 0, True), piece(2, 8, False)]
    (tmp_path / "a.pcap").write_bytes(pcap([(BEGIN, frame) for frame in frames]))
    done = tcppc("flows", "-r", str(tmp_path / "a.pcap"), "-o", str(tmp_path / "o"))
    assert "; 1 datagrams lacked fragments, 1 had overlapping ones" in done.stderr
    assert "<tcpflow:datagrams_lacking_fragments>1<" in (tmp_path / "o" / "report.xml").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_all_that_was_read_is_there(tmp_path: Path, capture: Path, number: int) -> None:
    words = [sys.executable, "-m", "tcppc", "flows", "-r", "-", "-o", str(tmp_path / "o")]
    with ended(subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=False)) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(capture.read_bytes()[:-9])
        process.stdin.flush()
        assert process.stderr.readline().startswith(b"reportfilename: ")
        time.sleep(0.5)  # it waits for more
        process.send_signal(number)
        assert process.wait(30) == 1
        assert b"stopped before the end" in process.stderr.read()
    assert ASKED in contents(tmp_path / "o")
    assert ET.parse(tmp_path / "o" / "report.xml").getroot().findtext(f"{TCPFLOW}total_packets") == str(len(STORY) - 1)


def test_a_bar_for_people_alone(tmp_path: Path) -> None:
    large_capture(tmp_path / "a.pcap")
    primary, secondary = pty.openpty()
    program = (
        "import tcppc.cli.progress as p; p.PAUSE_SECONDS = 0; from tcppc.cli import main; import sys; sys.exit(main())"
    )
    words = [sys.executable, "-c", program, "flows", "-r", str(tmp_path / "a.pcap"), "-o", str(tmp_path / "o"), "-I"]
    process = subprocess.Popen(words, stderr=secondary)
    os.close(secondary)
    shown = b""
    while True:
        try:
            more = os.read(primary, 65536)
        except OSError:  # the terminal's other end is closed
            break
        if not more:
            break
        shown += more
    os.close(primary)
    assert process.wait(30) == 0
    assert re.search(rb"packets to streams \[#+ *\] +\d+% [\d.]+ MB/s, \d:\d\d left", shown)


PLUG_IN = """
class Evil(Exception):
    def __str__(self):
        raise RuntimeError("gotcha")

def found(data):
    if data.startswith(b"\\0"):
        raise Evil
    if data.startswith(b"GET"):
        return f"<{len(data)} bytes>"
    if data.startswith(b"late"):
        raise ValueError("no \\x1b such thing")
"""


def test_a_function_of_python(tmp_path: Path, capture: Path) -> None:
    (tmp_path / "plug_in_of_test.py").write_text(PLUG_IN.replace("late", "after"))
    settings = ["-S", f"py_path={tmp_path}", "-S", "py_module=plug_in_of_test", "-S", "py_function=found"]
    done = tcppc("flows", "-e", "python", *settings, "-r", str(capture), "-o", str(tmp_path / "o"))
    assert done.returncode == 0
    assert "plug-ins failed 2 times" in done.stderr
    root = ET.parse(tmp_path / "o" / "report.xml").getroot()
    assert [(each.get("scanner"), each.text) for each in root.iter(f"{TCPFLOW}result")] == [("python", "<31 bytes>")]
    errors = sorted(str(each.text) for each in root.iter(f"{TCPFLOW}error"))
    assert errors == ["Evil: which cannot be shown: RuntimeError", "ValueError: no \ufffd such thing"]
    for wrong, words in (
        (settings[:2], "-S py_module"),
        (["-S", "py_module=no_such", "-S", "py_function=f"], "cannot be loaded"),
    ):
        done = tcppc("flows", "-e", "python", *wrong, "-r", str(capture), "-o", str(tmp_path / "w"))
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert words in done.stderr


def test_an_installed_plug_in(tmp_path: Path, capture: Path) -> None:
    info = tmp_path / "lib" / "scan_of_test-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scan-of-test\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tcppc.scanners]\nfirst = scan_of_test:scan\n")
    (tmp_path / "lib" / "scan_of_test.py").write_text(
        "def scan(flow, stream):\n"
        "    return {'from': f'{flow.src}:{flow.sport}', 'first': stream.read(3).hex(), 'proto': flow.proto}\n"
    )
    words = [sys.executable, "-m", "tcppc", "flows", "-q", "-e", "first", "-r", str(capture), "-o", str(tmp_path / "o")]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'lib'}:{Path(__file__).parent.parent}"}
    subprocess.run(words, check=True, env=environment)
    root = ET.parse(tmp_path / "o" / "report.xml").getroot()
    assert '{"from": "10.0.0.1:1000", "first": "474554", "proto": "tcp"}' in [
        each.text for each in root.iter(f"{TCPFLOW}result")
    ]


def test_the_first_bytes_may_win(tmp_path: Path) -> None:
    frames = [heard(105, b"BBBB"), heard(103, b"xxxxxxxx"), heard(101, b"yyyyy"), heard(120, b"end")]
    (tmp_path / "a.pcap").write_bytes(pcap([(BEGIN + number, frame) for number, frame in enumerate(frames)]))
    record = ["--json", str(tmp_path / "j")]
    for words, expected in (
        (["--first-wins"], b"yyxxBBBBxx" + bytes(9) + b"end"),
        ([], b"yyyyyxxxxx" + bytes(9) + b"end"),
    ):
        folder = tmp_path / f"o{len(words)}"
        ours(*words, *record, "-r", tmp_path / "a.pcap", "-o", folder)
        assert contents(folder) == {ASKED: expected}
        assert payload(json.loads((tmp_path / "j").read_text())) == expected.replace(b"\0", b"")
        assert "overlapping_bytes_that_differ='" in (folder / "report.xml").read_text()


def test_who_is_told_of_files(tmp_path: Path, capture: Path) -> None:
    theirs_told = theirs("-S", "tcp_alert_fd=1", "-r", capture, "-o", tmp_path / "x")
    shutil.rmtree(tmp_path / "x")
    told = ours("-S", "tcp_alert_fd=1", "-r", capture, "-o", tmp_path / "x")
    assert sorted(told.splitlines()) == sorted(theirs_told.decode().splitlines())
    assert told.splitlines()[0] == f"open\t{tmp_path}/x/{ASKED}"
    told = ours("-S", "tcp_cmd=echo 'of a' stream", "-r", capture, "-o", tmp_path / "y")
    assert sorted(told.splitlines())[0] == f"of a stream {tmp_path}/y/{ASKED}"
    for setting in ("tcp_alert_fd=77", "tcp_alert_fd=x", "tcp_cmd='", "tcp_cmd="):
        done = tcppc("flows", "-q", "-S", setting, "-r", str(capture), "-o", str(tmp_path / "z"))
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), setting
    done = tcppc(
        "flows", "-FM", "-a", "-S", "tcp_cmd=rm", "-S", "http_cmd=rm", "-r", str(capture), "-o", str(tmp_path / "rm")
    )
    assert done.returncode == 0  # who is told may take the files away
    assert contents(tmp_path / "rm") == {}
    assert len(list(ET.parse(tmp_path / "rm" / "report.xml").getroot().iter(f"{DFXML}hashdigest"))) == 3


def test_captures_are_not_written_over_and_nothing_is_idle_in_silence(tmp_path: Path, capture: Path) -> None:
    before = capture.read_bytes()
    for words in (("-w", str(capture)), ("-X", str(capture)), ("--json", str(capture))):
        done = tcppc("flows", "-q", "-r", str(capture), "-o", str(tmp_path / "o"), *words)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert capture.read_bytes() == before
    done = tcppc("flows", "-FX", "-I", "-e", "http", "-B", "-r", str(capture), "-X", "/dev/stdout")
    assert done.returncode == 0
    assert done.stderr.count("it does nothing here") == 3
    assert done.stdout.startswith("<?xml")
    full = tcppc("flows", "-q", "-r", str(capture), "-FX", "-X", "/dev/full")
    assert (full.returncode, full.stderr) == (
        1,
        "tcppc: an output (-X, --json, -w or the console): No space left on device\n",
    )


def test_a_terminal_s_interrupt_reaches_both_processes(tmp_path: Path) -> None:
    frame = tcp_packet(CLIENT, 1, SERVER, 2, 1, b"x", DATA)
    packets = [
        struct.pack("<IIII", 1, 0, len(frame), len(frame)) + frame[:26] + struct.pack("!I", n) + frame[30:]
        for n in range(300_000)
    ]
    (tmp_path / "a.pcap").write_bytes(pcap([]) + b"".join(packets))
    words = [sys.executable, "-m", "tcppc", "flows", "-r", str(tmp_path / "a.pcap"), "-o", str(tmp_path / "o")]
    with ended(subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)) as process:
        assert process.stderr
        assert process.stderr.readline().startswith("reportfilename: ")
        wait_until(lambda: len(os.listdir(tmp_path / "o")) > 1000, "files")
        os.killpg(process.pid, signal.SIGINT)
        said_last = process.stderr.read().splitlines()
        assert process.wait(30) == 1
    assert said_last[0] == "tcppc: stopped before the end of the captures; what was read is written"
    root = ET.parse(tmp_path / "o" / "report.xml").getroot()
    assert len(root.findall(f"{DFXML}fileobject")) == len(contents(tmp_path / "o"))


def test_who_gives_up_rights_need_not_read_the_program(tmp_path: Path) -> None:
    """Also not what only a large capture needs."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    program = tmp_path / "program"
    shutil.copytree(Path(tcppc_package.__file__).parent, program / "tcppc")
    program.chmod(0o700)
    place = Path("/tmp") / f"tcppc-of-nobody-{os.getpid()}"
    place.mkdir(mode=0o755)
    try:
        shutil.chown(place, "nobody", "nogroup")
        large_capture(place / "a.pcap")
        words = [sys.executable, "-m", "tcppc", "flows", "-q", "-FM", "-U", "nobody", "-r", str(place / "a.pcap")]
        done = subprocess.run(
            [*words, "-o", str(place / "o")], cwd=program, capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert len(list((place / "o").iterdir())) > 300
    finally:
        shutil.rmtree(place)


def test_rights_are_given_up(tmp_path: Path, capture: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    place = Path("/tmp") / f"tcppc-of-nobody-{os.getpid()}"
    place.mkdir()
    try:
        shutil.chown(place, "nobody", "nogroup")
        capture.chmod(0o600)
        tmp_path.chmod(0o755)
        ours("-U", "nobody", "-r", capture, "-o", place / "o")
        assert {path.owner() for path in (place / "o").iterdir()} == {"nobody"}
    finally:
        shutil.rmtree(place)
    assert "there is no such user" in tcppc("flows", "-U", "nobody-at-all", "-r", str(capture)).stderr


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_whatever_a_capture_holds_nobody_stumbles(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes of a good capture changed, cut out and doubled, in its own headers and in the packets'; all who listen."""
    folder = tmp_path_factory.mktemp("fuzz")
    whole = bytearray(pcap([(BEGIN + number, frame) for number, frame in enumerate(STORY)]))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(4, len(whole) - 1))
        match data.draw(st.integers(0, 3)):
            case 0:
                whole[at] = data.draw(st.integers(0, 255))
            case 1:
                whole[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
            case 2:
                del whole[at : at + data.draw(st.integers(1, 60))]
            case _:
                whole[at:at] = whole[at : at + data.draw(st.integers(1, 60))]
        if len(whole) < 30:
            break
    (folder / "a").write_bytes(whole)
    words = [
        "flows",
        "-q",
        "-r",
        str(folder / "a"),
        "-o",
        str(folder / "o" / "p"),
        "-a",
        "-I",
        "--udp",
        "--tunnels",
        "--checksums",
    ]
    assert cli.main([*words, "--json", str(folder / "j"), "-w", str(folder / "w"), "--hash", "sha1"]) in (0, 1)
    assert {path.name for path in folder.iterdir()} <= {"a", "o", "j", "w"}
    assert [path.name for path in (folder / "o").iterdir()] in (["p"], [])
    ET.parse(folder / "o" / "p" / "report.xml")
    for line in (folder / "j").read_text().splitlines():
        payload(json.loads(line))
