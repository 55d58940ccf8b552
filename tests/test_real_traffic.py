"""Traffic of real programs, captured by dumpcap: tcpflow, tshark and `tcppc flows` see the same bytes in it."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tcppc.flows import capture_files
from tcppc.flows.capture_files import Packet
from tcppc.flows.capture_writer import header, record
from tests.harness import tcppc, wait_until
from tests.netns import SENSOR, Net
from tests.test_engine_of_flows import contents

# A web server with keep-alive, chunks and bodies of many sizes.
WEB = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        size = int(self.path.strip("/") or 0)
        self.send_response(200)
        if size % 2:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, size, 999):
                part = os.urandom(min(999, size - at))
                self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(part), part))
            self.wfile.write(b"0\\r\\n\\r\\n")
        else:
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(os.urandom(size))
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer.address_family = 10
http.server.ThreadingHTTPServer(("::", 8080), Handler).serve_forever()
"""
# As iperf does: as much as goes, both ways at once.
BULK = """
import os, socket, sys, threading
def pump(sock, size):
    def send():
        data = os.urandom(65536)
        left = size
        while left > 0:
            sock.sendall(data[:left])
            left -= 65536
        sock.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send)
    sender.start()
    while sock.recv(65536):
        pass
    sender.join()
    sock.close()
if sys.argv[1] == "serve":
    server = socket.create_server(("::", 5201), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        threading.Thread(target=pump, args=(server.accept()[0], int(sys.argv[2]))).start()
else:
    socks = [socket.create_connection((sys.argv[1], 5201)) for _ in range(3)]
    threads = [threading.Thread(target=pump, args=(sock, int(sys.argv[2]))) for sock in socks]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
"""
LOSS = "table inet loss {{ chain out {{ type filter hook output priority 0; numgen random mod {} 0 drop; }}; }}"


def captured(net: Net, path: Path, traffic: Callable[[], object]) -> Path:
    """What dumpcap sees at the server while it happens."""
    dumpcap = net.sensor.start("dumpcap", "-q", "-P", "-B", "128", "-i", "veth0", "-w", str(path))
    wait_until(lambda: len(net.sensor.run("cat", "/proc/net/packet").splitlines()) > 1 and path.exists(), "dumpcap")
    traffic()
    size = -1
    while path.stat().st_size != size:  # it writes what it has, from time to time
        size = path.stat().st_size
        wait_until(lambda: net.sensor.run("sleep", "0.6") == "", "dumpcap's buffers")
    dumpcap.send_signal(2)
    dumpcap.wait(30)
    return path


def curl(net: Net) -> None:
    net.sensor.start(sys.executable, "-c", WEB)
    wait_until(lambda: ":8080" in net.sensor.run("ss", "-Hltn"), "the web server")
    for host in (SENSOR[0], f"[{SENSOR[1]}]"):
        urls = [f"http://{host}:8080/{size}" for size in (0, 1, 10, 999, 1460, 20_001, 300_000)]
        net.attacker.run(
            "curl", "-sS", "-o", "/dev/null", *(word for url in urls for word in ("-o", "/dev/null", url)), urls[0]
        )
        net.attacker.run("curl", "-sS", "--data-binary", "@-", urls[0], text="posted " * 5000)


def bulk(net: Net, size: int = 1_000_000) -> None:
    net.sensor.start(sys.executable, "-c", BULK, "serve", str(size))
    wait_until(lambda: ":5201" in net.sensor.run("ss", "-Hltn"), "the server")
    for host in SENSOR:
        net.attacker.run(sys.executable, "-c", BULK, host, str(size))


def lossy(net: Net) -> None:
    for host in (net.attacker, net.sensor):
        host.run("nft", "-f", "-", text=LOSS.format(60))
    bulk(net, 600_000)


def nmap(net: Net) -> None:
    net.sensor.start(sys.executable, "-c", WEB)
    net.sensor.start("nc", "-lk", "-p", "7777")
    wait_until(lambda: ":7777" in net.sensor.run("ss", "-Hltn"), "nc")
    for words in ("-sS -p 7700-7780", "-sV --version-intensity 2 -p 8080", "-sF -p 7777", "-sT -p 7770-7780"):
        net.attacker.run("nmap", "-n", "-Pn", *words.split(), SENSOR[0])


def shaken(path: Path) -> Path:
    """The same capture with packets doubled, and late: what a network does that no rule of nft can do."""
    lot = random.Random(5)
    with capture_files.open_capture(path) as file:
        packets = list(capture_files.packets(file, str(path)))
    places = [(number + (lot.random() < 0.05) * lot.uniform(1, 8), packet) for number, packet in enumerate(packets)]
    places += [(number + lot.uniform(0, 9), packet) for number, packet in enumerate(packets) if lot.random() < 0.03]
    ordered: list[Packet] = [packet for _, packet in sorted(places, key=lambda each: each[0])]
    made = path.with_suffix(".shaken.pcap")
    made.write_bytes(header(1, False) + b"".join(record(packet, False) for packet in ordered))
    return made


def followed(path: Path) -> dict[tuple[str, str], bytes]:
    """tshark's opinion: (from, to) and the bytes of each stream."""
    numbers = set(
        subprocess.check_output(["tshark", "-r", path, "-T", "fields", "-e", "tcp.stream"], text=True).split()
    )
    found: dict[tuple[str, str], bytes] = {}
    for number in numbers:
        said = subprocess.check_output(["tshark", "-r", path, "-q", "-z", f"follow,tcp,raw,{number}"], text=True)
        lines = said.splitlines()
        nodes = [line.split(": ", 1)[1] for line in lines if line.startswith("Node ")]
        data = [line for line in lines if line and set(line) <= set("\t0123456789abcdef")]
        for way, key in ((False, (nodes[0], nodes[1])), (True, (nodes[1], nodes[0]))):
            content = bytes.fromhex("".join(line.strip() for line in data if line.startswith("\t") == way))
            if content:
                found[key] = found.get(key, b"") + content
    return found


def node(address: str, port: str) -> str:
    """As tshark writes it."""
    if ":" in address:
        return f"[{address}]:{int(port)}"
    return f"{'.'.join(str(int(part)) for part in address.split('.'))}:{int(port)}"


def by_nodes(files: dict[str, bytes]) -> dict[tuple[str, str], bytes]:
    """Streams of the same ends, one behind the other."""
    found: dict[tuple[str, str], bytes] = {}
    for name, content in sorted(files.items()):
        ends = [end.rpartition(".") for end in name.partition("c")[0].split("-")]
        key = (node(ends[0][0], ends[0][2]), node(ends[1][0], ends[1][2]))
        found[key] = found.get(key, b"") + content
    return found


@pytest.mark.parametrize("traffic", [curl, bulk, lossy, nmap])
def test_three_opinions_of_real_traffic(net: Net, tmp_path: Path, traffic: Callable[[Net], None]) -> None:
    for tool in ("tcpflow", "tshark", "dumpcap"):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}")
    whole = captured(net, tmp_path / "a.pcap", lambda: traffic(net))
    for capture in (whole, shaken(whole)):
        folders = [tmp_path / f"{who}-{capture.stem}" for who in ("ours", "theirs")]
        done = tcppc("flows", "-q", "-r", str(capture), "-o", str(folders[0]))
        assert (done.returncode, done.stderr) == (0, "")
        subprocess.run(["tcpflow", "-q", "-r", capture, "-o", folders[1]], check=True, capture_output=True, timeout=100)
        ours, theirs = contents(folders[0]), contents(folders[1])
        differing = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
        equal = len(ours | theirs) - len(differing)
        print(f"\n| {traffic.__name__} {capture.name} | {len(ours)} | {equal} | {differing} |")
        assert differing == []
        assert len(ours) > 1
        if capture is whole:
            seen = followed(capture)
            mine = by_nodes(ours)
            assert {key: len(data) for key, data in mine.items()} == {key: len(data) for key, data in seen.items()}
            assert mine == seen
