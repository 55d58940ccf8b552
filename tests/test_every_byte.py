"""Each byte that the kernel acknowledged to a client is in the record, however the socket API sent it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import socket
import ssl
import struct
import termios
import time
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.harness import ended, payload, tcppc, wait_until
from tests.netns import SENSOR, Net
from tests.test_real_traffic import captured
from tests.test_tls import lenient

# Strangers who send in every way: a seed, then connections one after the other, each a few random steps.
WAYS = r"""
import os, random, socket, ssl, struct, sys, time
host, port, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
lot = random.Random(seed)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_ciphers("ALL:@SECLEVEL=0")
context.minimum_version = ssl.TLSVersion.TLSv1_2

def data(most=3000):
    return lot.randbytes(lot.choice([1, 1, 2, 5, 100, 1448, most, 20 * most]))

def plain(sock):
    for _ in range(lot.randint(0, 6)):
        way = lot.randrange(9)
        if way == 0:
            sock.send(data(), socket.MSG_OOB)
        elif way == 1:
            sock.sendmsg([data(), b"", data()])
        elif way == 2:
            sock.send(data(), socket.MSG_MORE)
        elif way == 3:
            for byte in data(60)[:60]:
                sock.send(bytes([byte]))
        elif way == 4:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, lot.randrange(2))
            sock.sendall(data())
        elif way == 5:
            sock.sendall(data()); sock.send(b"!", socket.MSG_OOB); sock.sendall(data())
        elif way == 6:
            time.sleep(lot.random() / 20)
        else:
            sock.sendall(data())

def secure(sock):
    context.maximum_version = lot.choice([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    way = lot.randrange(7)
    if way == 0:  # a hello that no server understands, and more behind it
        sock.sendall(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00" + data())
        return
    inside, outside = ssl.MemoryBIO(), ssl.MemoryBIO()
    tunnel = context.wrap_bio(inside, outside)
    while True:
        try:
            tunnel.do_handshake()
            break
        except ssl.SSLWantReadError:
            hello = outside.read()
            if way == 1:
                sock.sendall(hello[: lot.randrange(1, len(hello))])  # cut within the hello
                return
            sock.sendall(hello)
            if way == 2:
                sock.sendall(data())  # garbage where the key exchange should be
                return
            inside.write(sock.recv(65536))
    for _ in range(lot.randint(0, 4)):
        tunnel.write(data())
        sock.sendall(outside.read())
    if way == 3:  # a record that is cut off
        tunnel.write(b"never read")
        sock.sendall(outside.read()[:-3])
    elif way == 4:  # in the clear, within the tunnel
        sock.sendall(outside.read() + b"GET / HTTP/1.1\r\n\r\n" + data())
    elif way >= 5:
        try:
            tunnel.unwrap()
        except ssl.SSLError:
            pass
        sock.sendall(outside.read() + (data() if way == 5 else b""))
    else:
        sock.sendall(outside.read())

for number in range(count):
    sock = socket.create_connection((host, port))
    try:
        lot.choice([plain, plain, secure])(sock)
        end = lot.randrange(4)
        if end == 0:  # a reset with all of it on its way, or read already
            time.sleep(lot.choice([0, 0, 0.1]))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif end == 1:
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(10)
            while sock.recv(65536):
                pass
    except OSError:
        pass
    sock.close()
"""


def wire(record: dict[str, Any]) -> int:
    """How many bytes the record says that the client sent on the wire."""
    tls = record.get("tls", {})
    sizes = [len(b64decode(piece["data"])) for piece in record["payloads"]]
    if "bytes" not in tls:
        return sum(sizes)
    return int(tls["bytes"]) + sum(sizes[tls.get("after", len(sizes)) :])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("flags", [(), ("--record", "events"), ("--persona", "auto"), ("--persona", "shell")])
def test_every_way_to_send_is_whole_in_the_record(
    start: Start, net: Net, tmp_path: Path, seed: int, flags: tuple[str, ...]
) -> None:
    sensor = start("-q", *flags, hosts=("0.0.0.0",), port=2323, prefix=net.sensor.prefix)
    path = captured(net, tmp_path / "c.pcap", lambda: net.attacker.python(WAYS, SENSOR[0], "2323", str(seed), "60"))
    assert sensor.stop() == 0
    if "events" in flags:
        assert tcppc("recover", str(sensor.file), "-o", str(tmp_path / "out.jsonl")).returncode == 0
    file = tmp_path / "out.jsonl" if "events" in flags else sensor.file
    records = [json.loads(line) for line in file.read_bytes().splitlines()]
    seen = tcppc("flows", "-q", "--json", "-", "-FX", "-r", str(path), "-o", str(tmp_path / "flows"))
    ours = {record["community_id"]: record for record in records}
    theirs = [json.loads(line) for line in seen.stdout.splitlines()]
    theirs = [record for record in theirs if record["flow"]["dport"] == 2323]
    assert len(records) == len(ours) == len(theirs) == 60
    for other in theirs:
        record = ours[other["community_id"]]
        assert wire(record) == len(payload(other)), (record["flow"], record["closed"], record.get("tls"))
        assert "truncated" not in record
        if "tls" not in record:
            assert payload(record) == payload(other)


def test_urgent_bytes_stay_in_their_place_in_nc_too(start: Start, tmp_path: Path) -> None:
    import subprocess
    import sys

    with ended(
        subprocess.Popen(
            [sys.executable, "-m", "tcppc", "nc", "-lv", "-o", str(tmp_path / "r.jsonl"), "127.0.0.1", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd=Path(__file__).parent.parent,
        )
    ) as process:
        assert process.stderr
        port = int(process.stderr.readline().split()[-1])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"abc")
            sock.send(b"d", socket.MSG_OOB)
            sock.sendall(b"ef")
        out, _ = process.communicate(timeout=30)
    assert out == b"abcdef"
    assert payload(json.loads((tmp_path / "r.jsonl").read_bytes())) == b"abcdef"


@pytest.mark.parametrize("header", [b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n", b"PROXY TC", b"PROXY nonsense\r\n"])
@pytest.mark.parametrize("bound", ["sessions = 1\nsessions_per_source = 1", "sessions = 1000"])
def test_what_stands_behind_a_proxy_header_is_whole_also_where_a_bound_refuses(
    start: Start, tmp_path: Path, header: bytes, bound: str
) -> None:
    (tmp_path / "c.toml").write_text(
        f'[capture]\nproxy_protocol = ["127.0.0.0/8"]\n[limits]\n{bound}\n', encoding="ascii"
    )
    sensor = start("-q", "-c", str(tmp_path / "c.toml"))
    body = bytes(range(256)) * 100
    with contextlib.ExitStack() as stack:
        refused = "sessions = 1\n" in bound
        if refused:
            first = stack.enter_context(sensor.connect())
            first.sendall(b"PROXY UNKNOWN\r\nheld")
            time.sleep(0.3)  # for it to be the one session
            sensor.process.send_signal(signal.SIGSTOP)  # so that all of it is there when it is accepted
        with sensor.connect() as sock:
            sock.sendall(header + body)
            if refused:
                sensor.process.send_signal(signal.SIGCONT)
                wait_until(lambda: len(sensor.lines()) == 1, "the refused one")
    record = next(record for record in sensor.records(2 if refused else 1) if record["bytes"] > 100)
    whole = header.startswith(b"PROXY TCP4")
    assert payload(record) == (body if whole else header + body)
    assert record["bytes"] == len(payload(record))
    assert sensor.stop() == 0


def test_a_reply_that_fails_leaves_what_the_client_said_behind_it(start: Start) -> None:
    """It resets while the persona speaks: all that came before the reset is read."""
    sensor = start("-q", "--persona", "shell")
    socks = [sensor.connect() for _ in range(20)]
    for sock in socks:
        sock.sendall(b"id\n")
    wait_until(lambda: all(sock.recv(1, socket.MSG_PEEK) for sock in socks), "the first answers")
    sensor.process.send_signal(signal.SIGSTOP)
    for number, sock in enumerate(socks):
        for line in range(50):
            sock.sendall(b"echo %d %d\n" % (number, line))
        wait_until(lambda sock=sock: not unacknowledged(sock), "the kernel to have all of it")  # type: ignore[misc]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    sensor.process.send_signal(signal.SIGCONT)
    for record in sensor.records(20):
        assert payload(record).endswith(b" 49\n")
        assert payload(record).count(b"\n") == 51
        assert record["closed"] == "reset"
    assert sensor.stop() == 0


def unacknowledged(sock: socket.socket) -> int:
    """SIOCOUTQ: bytes that the other kernel has not acknowledged."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), "little")


@pytest.mark.parametrize("how", ["duration", "idle", "shutdown", "reader"])
def test_what_the_kernel_had_when_the_sensor_ended_a_session_is_in_the_record(
    start: Start, tmp_path: Path, how: str
) -> None:
    limits = {"duration": "duration = 1", "idle": "duration = 600", "shutdown": "", "reader": ""}[how]
    (tmp_path / "c.toml").write_text(
        f"[tcppc]\ntimeout = {1 if how in ('idle', 'reader') else 60}\n[limits]\n{limits}\n", encoding="ascii"
    )
    flags = ("--persona", "shell") if how == "reader" else ()
    sensor = start("-q", "-c", str(tmp_path / "c.toml"), *flags)
    with sensor.connect() as sock:
        sent = 0
        sock.settimeout(0.05)
        until = time.monotonic() + 4
        if how == "idle":
            sock.sendall(b"x" * 1000)
            sent = 1000
        while how != "idle" and time.monotonic() < until:
            if how == "shutdown" and sent > 1_000_000 and sensor.process.poll() is None:
                sensor.process.send_signal(signal.SIGTERM)
            try:
                sent += sock.send(b"cat /etc/passwd\n" * 100 if how == "reader" else bytes(20_000))
            except TimeoutError:
                continue
            except OSError:
                break
        acknowledged = wait_until(lambda: (sensor.lines() and acked(sock, sent)) or None, "the record")
    (record,) = sensor.records(1)
    assert record["bytes"] == acknowledged
    assert record["closed"] in ("limit", "timeout", "shutdown", "reset")
    if sensor.process.poll() is None:
        sensor.stop()


def acked(sock: socket.socket, sent: int) -> int:
    """tcpi_bytes_acked of linux/tcp.h counts the SYN, and the FIN where there is one: what the other kernel took."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return min(sent, int(struct.unpack_from("=Q", info, 120)[0]) - 1)


def test_bytes_behind_the_goodbye_of_tls_are_payloads_in_the_clear(start: Start) -> None:
    sensor = start("-q")
    with sensor.connect() as sock:
        tls = lenient().wrap_socket(sock)
        tls.sendall(b"inside")
        with contextlib.suppress(ssl.SSLError, OSError):
            tls.unwrap()
        raw = socket.socket(fileno=tls.detach())
        raw.sendall(b"behind the goodbye")
        raw.close()
    (record,) = sensor.records(1)
    assert payload(record) == b"insidebehind the goodbye"
    assert record["tls"]["after"] == 1
    assert record["closed"] == "peer"
    assert sensor.stop() == 0


def test_a_failed_handshake_keeps_all_that_was_sent(start: Start) -> None:
    sensor = start("-q")
    said = bytes.fromhex("16030100050100000100") + bytes(14_000)
    with sensor.connect() as sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while sock.recv(65536):
                pass
    (record,) = sensor.records(1)
    assert payload(record) == said
    assert record["bytes"] == len(said)
    assert record["tls"]["error"]
    assert sensor.stop() == 0


@pytest.mark.parametrize("size", [0, 1, 512, 1472, 1473, 8192, 65507])
def test_datagrams_of_all_sizes_are_whole(start: Start, size: int) -> None:
    sensor = start("-q")
    sensor.datagram(bytes(size))
    (record,) = sensor.records(1)
    assert (record["bytes"], len(payload(record))) == (size, size)
    assert "truncated" not in record
    assert sensor.stop() == 0


def secured(sock: socket.socket, tunnel: ssl.SSLObject, inside: ssl.MemoryBIO, outside: ssl.MemoryBIO) -> None:
    """Shake hands."""
    while True:
        try:
            tunnel.do_handshake()
            break
        except ssl.SSLWantReadError:
            sock.sendall(outside.read())
            inside.write(sock.recv(65536))
    sock.sendall(outside.read())


@pytest.mark.parametrize("last", ["more", "a goodbye", "more and a goodbye"])
def test_what_came_in_tls_before_a_reset_met_a_reply_is_plain_text(start: Start, last: str) -> None:
    """While a persona thinks, more comes and the client goes away: sending its answer fails."""
    slow = "import time; from tcppc.capture.answering import Answering; real = Answering.answer; "
    slow += "Answering.answer = lambda self, data: (time.sleep(1), real(self, data))[1]"
    sensor = start("-q", "--persona", "http", patch=slow)
    inside, outside = ssl.MemoryBIO(), ssl.MemoryBIO()
    tunnel = lenient().wrap_bio(inside, outside)
    with sensor.connect() as sock:
        secured(sock, tunnel, inside, outside)
        tunnel.write(b"GET / HTTP/1.0\r\n\r\n")
        sock.sendall(outside.read())
        time.sleep(0.3)
        if "more" in last:
            tunnel.write(b"more")
        if "goodbye" in last:
            with contextlib.suppress(ssl.SSLError):
                tunnel.unwrap()
        sock.sendall(outside.read())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    (record,) = sensor.records(1)
    assert payload(record) == b"GET / HTTP/1.0\r\n\r\n" + (b"more" if "more" in last else b"")
    assert "after" not in record["tls"]
    assert sensor.stop() == 0


def test_what_stands_behind_a_persona_s_last_word_inside_tls_is_plain_text(start: Start) -> None:
    sensor = start("-q", "--persona", "http")
    inside, outside = ssl.MemoryBIO(), ssl.MemoryBIO()
    tunnel = lenient().wrap_bio(inside, outside)
    with sensor.connect() as sock:
        secured(sock, tunnel, inside, outside)
        tunnel.write(b"GET / HTTP/1.0\r\n\r\n")  # which ends the talk
        tunnel.write(b"and more in the same segment")
        sock.sendall(outside.read())
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
    (record,) = sensor.records(1)
    assert payload(record) == b"GET / HTTP/1.0\r\n\r\nand more in the same segment"
    assert "after" not in record["tls"]
    assert sensor.stop() == 0
