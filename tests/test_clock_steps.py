"""A clock that is set years forward or back cuts no session and prolongs none, however it is read."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import Sensor, payload
from tests.test_tls import lenient

YEARS = 5 * 365 * 86400


def stepping(flag: Path, seconds: int) -> str:
    """The wall clock is `seconds` off once the file `flag` is there."""
    return (
        "import os, time; real_ns, real = time.time_ns, time.time; "
        f"off = lambda: {seconds} if os.path.exists({str(flag)!r}) else 0; "
        "time.time_ns = lambda: real_ns() + off() * 10**9; time.time = lambda: real() + off()"
    )


WAYS = {
    "plain": ("", b"hello"),
    "a persona": ('[personas]\ndefault = "shell"\n', b"uname\n"),
    "TLS": ("", b""),
    "TLS that is not answered": ('[capture]\nstate_dir = "/dev/null/none"\n', bytes.fromhex("16030100050100000100")),
    "after truncation": ("[limits]\nsession_bytes = 3\n", b"hello"),
    "behind a PROXY header": (
        '[capture]\nproxy_protocol = ["127.0.0.0/8"]\n',
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\nhello",
    ),
    "within a PROXY header": ('[capture]\nproxy_protocol = ["127.0.0.0/8"]\n', b"PROXY TCP4 192"),
}


def begun(sensor: Sensor, way: str) -> socket.socket:
    """A session that has said its first words and was heard."""
    sock = sensor.connect()
    if way == "TLS":
        sock = lenient().wrap_socket(sock)
        sock.sendall(b"hello")
    else:
        sock.sendall(WAYS[way][1])
    time.sleep(0.3)  # for it to be read; nothing passes by waiting
    return sock


def started(start: Start, tmp_path: Path, way: str, limits: str, seconds: int) -> tuple[Sensor, Path]:
    text = WAYS[way][0]
    text = text.replace("[limits]\n", f"[limits]\n{limits}\n") if "[limits]" in text else f"{text}[limits]\n{limits}\n"
    (tmp_path / "c.toml").write_text(text, encoding="ascii")
    flag = tmp_path / "stepped"
    return start("-q", "-c", str(tmp_path / "c.toml"), patch=stepping(flag, seconds)), flag


@pytest.mark.parametrize("seconds", [YEARS, -YEARS])
@pytest.mark.parametrize("way", list(WAYS))
def test_a_clock_that_steps_cuts_no_session(start: Start, tmp_path: Path, way: str, seconds: int) -> None:
    sensor, flag = started(start, tmp_path, way, "duration = 600", seconds)
    sock = begun(sensor, way)
    flag.touch()
    for _ in range(3):
        sock.sendall(b"and more\n")
        time.sleep(0.1)
    if isinstance(sock, ssl.SSLSocket):
        sock.unwrap()
    sock.close()
    (record,) = sensor.records(1)
    assert record["closed"] in ("peer", "reset")
    if way not in ("after truncation", "within a PROXY header"):
        assert payload(record).endswith(b"and more\n" * 3)
    assert sensor.stop() == 0


@pytest.mark.parametrize("way", list(WAYS))
def test_a_clock_that_steps_back_prolongs_no_session(start: Start, tmp_path: Path, way: str) -> None:
    sensor, flag = started(start, tmp_path, way, "duration = 2", -YEARS)
    sock = begun(sensor, way)
    flag.touch()
    sock.settimeout(0.2)
    until = time.monotonic() + 30
    ended = False
    while not ended and time.monotonic() < until:
        try:
            sock.sendall(b".")  # never idle
            ended = not sock.recv(65536)
        except (TimeoutError, ssl.SSLWantReadError):
            continue
        except OSError:
            ended = True
    assert ended
    sock.close()
    (record,) = sensor.records(1)
    assert record["closed"] in ("limit", "reset", "error")
    assert sensor.stop() == 0
