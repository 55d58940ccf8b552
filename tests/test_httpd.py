"""An operator's pages answer whoever else is connected."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import Sensor, wait_until

IN_TIME = 2.0


def port_of(sensor: Sensor) -> int:
    found = re.search(r"Metrics: http://127\.0\.0\.1:(\d+)/metrics", sensor.said("Metrics: http"))
    assert found
    return int(found[1])


def ask(port: int, request: bytes, host: str = "127.0.0.1", seconds: float = 20) -> bytes:
    """The whole answer."""
    with socket.create_connection((host, port), timeout=seconds) as sock:
        sock.sendall(request)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    return answer


def healthy_in_time(port: int) -> None:
    begun = time.monotonic()
    answer = ask(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", seconds=IN_TIME)
    assert time.monotonic() - begun < IN_TIME
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nok\n")


class Crowd:
    """Connections that are held open, from one or from several sources."""

    def __init__(self, port: int, count: int, sources: int, said: bytes = b"", buffer: int = 0) -> None:
        self.socks = []
        for number in range(count):
            sock = socket.socket()
            if buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            sock.bind((f"127.0.0.{1 + number % sources}", 0))
            sock.settimeout(20)
            sock.connect(("127.0.0.1", port))
            if said:
                with contextlib.suppress(OSError):  # closed already, to make room for the next ones
                    sock.sendall(said)
            self.socks.append(sock)

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


@pytest.mark.parametrize("sources", [1, 50])
@pytest.mark.parametrize("count", [16, 100, 1000])
@pytest.mark.parametrize(
    ("said", "buffer"),
    [(b"", 0), (b"GET /healthz HTTP/1.1\r\nX: ", 0), (b"GET /metrics HTTP/1.1\r\n\r\n", 1024)],
    ids=["silent", "half a request", "answer not read"],
)
def test_connections_that_dawdle_never_keep_health_from_answering(
    start: Start, count: int, sources: int, said: bytes, buffer: int
) -> None:
    sensor = start("-q", "--metrics", "127.0.0.1:0")
    port = port_of(sensor)
    crowd = Crowd(port, count, sources, said, buffer)
    for _ in range(3):
        healthy_in_time(port)
    crowd.close()
    healthy_in_time(port)
    assert sensor.threads() < 30
    assert sensor.stop() == 0
    assert "Traceback" not in sensor.log


def test_connections_that_say_a_byte_now_and_then_are_ended(start: Start) -> None:
    sensor = start("-q", "--metrics", "127.0.0.1:0")
    with socket.create_connection(("127.0.0.1", port_of(sensor)), timeout=0.1) as sock:
        begun = time.monotonic()
        ended = False
        while not ended and time.monotonic() - begun < 20:
            try:
                sock.sendall(b"G")
                ended = not sock.recv(1)
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended
        assert time.monotonic() - begun < 10
    assert sensor.stop() == 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /healthz HTTP/1.0\n\n", b"200 OK"),
        (b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /healthz HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405 Method Not Allowed"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405 Method Not Allowed"),
        (b"\x00\xff\x1b[2J\r\n\r\n", b"400 Bad Request"),
        (b"GET /healthz\r\n\r\n", b"400 Bad Request"),
        (b"GET " + b"/" * 20000 + b" HTTP/1.1\r\n\r\n", b"431 Request Header Fields Too Large"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400 Bad Request"),
    ],
)
def test_every_request_has_an_answer_that_ends(start: Start, request_: bytes, status: bytes) -> None:
    sensor = start("-q", "--metrics", "127.0.0.1:0")
    answer = ask(port_of(sensor), request_)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"HTTP/1.1 " + status
    assert b"Connection: close" in head
    if request_.startswith(b"HEAD"):
        assert body == b""
    else:
        assert f"Content-Length: {len(body)}".encode() in head
    assert sensor.stop() == 0


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_who_ends_its_side_after_the_request_is_answered(start: Start, path: str) -> None:
    sensor = start("-q", "--metrics", "127.0.0.1:0")
    with socket.create_connection(("127.0.0.1", port_of(sensor)), timeout=20) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK")
    assert sensor.stop() == 0


def test_scrapes_without_end_leave_the_processor_to_the_capture(start: Start) -> None:
    sensor = start("-q", "--metrics", "127.0.0.1:0")
    port = port_of(sensor)
    begun, used, made = time.monotonic(), sensor.cpu_seconds(), 0
    while time.monotonic() - begun < 3:
        made += ask(port, b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert made > 10
    assert sensor.cpu_seconds() - used < 0.4 * (time.monotonic() - begun)
    assert sensor.stop() == 0


def test_a_request_in_pieces_is_one(start: Start) -> None:
    sensor = start("-q", "--metrics", "127.0.0.1:0")
    with socket.create_connection(("127.0.0.1", port_of(sensor)), timeout=20) as sock:
        for piece in (b"GET /hea", b"lthz HTTP/1.1\r\nHost: x\r", b"\n\r", b"\n"):
            sock.sendall(piece)
            time.sleep(0.05)
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK")
    assert sensor.stop() == 0


def test_health_answers_while_descriptors_are_out_again_and_again(start: Start, tmp_path: Path) -> None:
    """More connections than there are descriptors, and then none: it neither spins nor ends."""
    sensor = start("-q", "--metrics", "127.0.0.1:0", "-R", "100")
    port = port_of(sensor)
    held = [sensor.connect() for _ in range(120)]
    used = sensor.cpu_seconds()
    time.sleep(1)
    assert sensor.cpu_seconds() - used < 0.7
    for sock in held:
        sock.close()
    wait_until(lambda: ask(port, b"GET /healthz HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200"), "an answer")
    assert sensor.stop() == 0
