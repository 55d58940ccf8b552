"""-a: bodies of HTTP in files beside their streams, through the command."""

from __future__ import annotations

import gzip
import hashlib
import random
import socket
import subprocess
from pathlib import Path

import brotli
import pytest
import zstandard

from tcppc.flows import batches, capture_files, windows
from tcppc.flows.engine import Engine
from tcppc.flows.http_bodies import Bodies
from tcppc.flows.names import Template
from tcppc.flows.stream_files import StreamFiles
from tests.captures import ACK, PSH, SYN, pcap, tcp_packet
from tests.harness import tcppc
from tests.test_engine_of_flows import BEGIN

CLIENT, SERVER = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")
ASKED = "010.000.000.001.01000-010.000.000.002.00080"
ANSWERED = "010.000.000.002.00080-010.000.000.001.01000"
DATA, MS = ACK | PSH, 1_000_000


def capture(path: Path, asked: list[bytes], answered: list[bytes]) -> Path:
    """A connection in which what is asked comes first, a packet each, a millisecond apart."""
    frames = [
        tcp_packet(CLIENT, 1000, SERVER, 80, 100, b"", SYN),
        tcp_packet(SERVER, 80, CLIENT, 1000, 500, b"", SYN | ACK),
    ]
    seq = 101
    for data in asked:
        frames.append(tcp_packet(CLIENT, 1000, SERVER, 80, seq, data, DATA))
        seq += len(data)
    seq = 501
    for data in answered:
        frames.append(tcp_packet(SERVER, 80, CLIENT, 1000, seq, data, DATA))
        seq += len(data)
    path.write_bytes(pcap([(BEGIN + number * MS, frame) for number, frame in enumerate(frames)]))
    return path


def response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def bodies(folder: Path) -> dict[str, bytes]:
    return {
        path.name.replace("-HTTPBODY-", " "): path.read_bytes() for path in folder.iterdir() if "HTTPBODY" in path.name
    }


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("window", [7, 1000])
def test_bodies_and_their_times_many_packets_at_once(
    tmp_path: Path, seed: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of packets that come late and again, too."""
    monkeypatch.setattr(windows, "WINDOW_PACKETS", window)
    lot = random.Random(seed)
    talk = (
        (CLIENT, 1000, b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(9))),
        (SERVER, 80, b"".join(response(lot.randbytes(lot.randrange(1, 300)), f"A: {number}") for number in range(9))),
    )
    frames: list[tuple[float, bytes]] = []
    for begin, (src, sport, text) in enumerate(talk):
        other = (SERVER, 80) if begin == 0 else (CLIENT, 1000)
        at = 0
        while at < len(text):
            part = text[at : at + lot.randrange(2 if at else 20, 90)]
            frame = tcp_packet(src, sport, *other, 101 + at, part, DATA)
            when = begin * 30 + len(frames) + 0.5
            frames.append((when + (at > 0) * (lot.random() < seed / 20) * 6, frame))
            frames += [(when + 9, frame)] * (lot.random() < seed / 40)
            at += len(part)
    frames.sort(key=lambda each: each[0])
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap([(BEGIN + number * MS, frame) for number, (_, frame) in enumerate(frames)]))
    found = []
    for way in ("one", "many"):
        files = StreamFiles(str(tmp_path / way), Template())
        engine = Engine(files, Template(), listeners=[Bodies(files)])
        with path.open("rb") as file:
            if way == "many":
                assert engine.takes_runs
                batches.read(file, "it", engine)
            else:
                for packet in capture_files.packets(file, "it"):
                    engine.packet(packet)
        engine.finish()
        found.append({each.name: (each.read_bytes(), each.stat().st_mtime_ns) for each in (tmp_path / way).iterdir()})
    assert found[0] == found[1]
    assert len(found[0]) == 11


def test_bodies_of_both_directions_by_their_codings(tmp_path: Path) -> None:
    page = b"<p>hello</p>" * 99
    asked = [b"POST /up HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"]
    asked += [b"HEAD / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n" * 4]
    answered = [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        response(gzip.compress(page, mtime=0), "Content-Encoding: GZip", "Content-Type: TEXT/HTML"),
    ]
    answered += [b"HTTP/1.1 200 OK\r\nContent-Length: 777\r\n\r\n"]
    answered += [response(brotli.compress(page), "content-encoding: br", "Content-Type: text/plain; charset=x")]
    answered += [response(zstandard.ZstdCompressor().compress(page), "Content-Encoding: zstd")]
    answered += [b"HTTP/1.1 304 Not Modified\r\n\r\n", response(b"<plain>", "Content-Encoding: identity")]
    file = capture(tmp_path / "a.pcap", asked, answered)
    done = tcppc("flows", "-q", "-a", "--hash", "sha256", "-r", str(file), "-o", str(tmp_path / "o"))
    assert (done.returncode, done.stderr) == (0, "")
    assert bodies(tmp_path / "o") == {
        f"{ASKED} 001.json": b"{}", f"{ANSWERED} 002.html": page, f"{ANSWERED} 004.txt": page, f"{ANSWERED} 005": page,
        f"{ANSWERED} 007": b"<plain>",
    }  # fmt: skip
    found = tmp_path / "o" / f"{ANSWERED}-HTTPBODY-004.txt"
    assert found.stat().st_mtime_ns == BEGIN + 8 * MS  # of the packet that brought it, not of the stream
    told = (tmp_path / "o" / "report.xml").read_text()
    at = (tmp_path / "o" / ANSWERED).read_bytes().index(brotli.compress(page))
    assert f"<byte_run file_offset='{at}' len='{len(brotli.compress(page))}'" in told
    assert f"<hashdigest type='SHA256'>{hashlib.sha256(page).hexdigest()}</hashdigest>" in told
    raw = tcppc("flows", "-q", "-e", "http", "-Z", "-r", str(file), "-o", str(tmp_path / "z"))
    assert raw.returncode == 0
    assert bodies(tmp_path / "z")[f"{ANSWERED} 002.html"] == gzip.compress(page, mtime=0)
    # A second run into the same folder leaves the first one's.
    again = tcppc("flows", "-q", "-a", "-r", str(file), "-o", str(tmp_path / "o"))
    assert again.returncode == 0
    assert bodies(tmp_path / "o")[f"{ANSWERED}c1 004.txt"] == page


def test_the_same_names_and_bytes_as_tcpflow(tmp_path: Path) -> None:
    kinds = ["text/html", "image/jpeg; q=1", "application/x-unknown", "video/mp4", ""]
    answered = [response(f"body {number}".encode(), f"Content-Type: {kind}") for number, kind in enumerate(kinds)]
    answered += [response(gzip.compress(b"zipped"), "Content-Encoding: gzip", "Content-Type: text/css"), response(b"")]
    answered += [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        response(b"last"),
    ]
    file = capture(tmp_path / "a.pcap", [b"GET / HTTP/1.1\r\n\r\n" * len(answered)], answered)
    subprocess.run(
        ["tcpflow", "-e", "http", "-r", file, "-o", tmp_path / "t"], check=True, capture_output=True, timeout=60
    )
    assert tcppc("flows", "-q", "-e", "http", "-r", str(file), "-o", str(tmp_path / "o")).returncode == 0
    assert bodies(tmp_path / "o") == bodies(tmp_path / "t")
    assert len(bodies(tmp_path / "o")) == 8


def test_a_bomb_stays_small_and_what_is_broken_stays_as_it_is(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(300 << 20))
    answered = [response(bomb, "Content-Encoding: gzip"), response(b"no gzip", "Content-Encoding: gzip")]
    file = capture(
        tmp_path / "a.pcap", [], [data[at : at + 60000] for data in answered for at in range(0, len(data), 60000)]
    )
    done = tcppc("flows", "-a", "-X", str(tmp_path / "r"), "-r", str(file), "-o", str(tmp_path / "o"))
    assert done.returncode == 0
    assert "2 messages are broken, or could not be inflated" in done.stderr
    found = {path.name[-3:]: path.stat().st_size for path in (tmp_path / "o").glob("*HTTPBODY*")}
    assert found == {"001": 256 << 20, "002": 7}
    assert (tmp_path / "o" / f"{ANSWERED}-HTTPBODY-002").read_bytes() == b"no gzip"


def test_on_the_console_decoded(tmp_path: Path) -> None:
    answered = [response(gzip.compress(b"<p>hello</p>\x1b[2J"), "Content-Encoding: gzip")]
    file = capture(tmp_path / "a.pcap", [b"GET /x HTTP/1.1\r\nHost: y\r\n\r\n"], answered)
    done = tcppc("flows", "-q", "-c", "-e", "http", "-r", str(file))
    assert done.stdout.splitlines()[:3] == [f"{ASKED}: GET /x HTTP/1.1", "Host: y", ""]
    assert "<p>hello</p>.[2J" in done.stdout
    assert "\x1b" not in done.stdout
    assert list(Path.cwd().glob("*HTTPBODY*")) == []


@pytest.mark.parametrize("scanner", ["netviz", "python"])
def test_scanners_that_cannot_be_had(tmp_path: Path, scanner: str) -> None:
    done = tcppc("flows", "-e", scanner, "-r", str(capture(tmp_path / "a.pcap", [], [])), "-o", str(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_body_goes_on_behind_what_the_capture_lost(tmp_path: Path) -> None:
    """As on a fast link: packets of 60 kB, several in a row."""
    body = bytes(range(256)) * 10_000
    text = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    sizes = range(0, len(text), 60_000)
    lost = {10, 11, 12, 13, 20, 21, 22}
    frames = [tcp_packet(SERVER, 80, CLIENT, 1000, 500, b"", SYN | ACK)]
    frames += [
        tcp_packet(SERVER, 80, CLIENT, 1000, 501 + at, text[at : at + 60_000], DATA)
        for number, at in enumerate(sizes)
        if number not in lost
    ]
    (tmp_path / "a.pcap").write_bytes(pcap([(BEGIN + number, frame) for number, frame in enumerate(frames)]))
    done = tcppc("flows", "-q", "-e", "http", "-r", str(tmp_path / "a.pcap"), "-o", str(tmp_path / "o"))
    assert done.returncode == 0
    parts = [bytes(60_000) if number in lost else text[at : at + 60_000] for number, at in enumerate(sizes)]
    found = bodies(tmp_path / "o")
    assert list(found) == [f"{ANSWERED} 001"]
    assert found[f"{ANSWERED} 001"] == b"".join(parts)[-len(body) :], "which is too long to be shown"


def test_a_gap_that_no_lost_packet_makes_ends_the_body(tmp_path: Path) -> None:
    far = (16 << 20) - 10
    head = b"HTTP/1.1 200 OK\r\n\r\nfirst"
    frames = [
        tcp_packet(SERVER, 80, CLIENT, 1000, 500, b"", SYN | ACK),
        tcp_packet(SERVER, 80, CLIENT, 1000, 501, head, DATA),
    ]
    frames += [tcp_packet(SERVER, 80, CLIENT, 1000, 501 + number * far, b"x", DATA) for number in range(1, 50)]
    (tmp_path / "a.pcap").write_bytes(pcap([(BEGIN + number, frame) for number, frame in enumerate(frames)]))
    done = tcppc("flows", "-q", "-e", "http", "-r", str(tmp_path / "a.pcap"), "-o", str(tmp_path / "o"))
    assert done.returncode == 0
    assert bodies(tmp_path / "o") == {f"{ANSWERED} 001": b"first"}
