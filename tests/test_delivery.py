"""What had come to `tcppc nc` when it ended is written and recorded, or counted in a line; and the end has a bound."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import PATIENCE, payload, wait_until
from tests.test_nc import ROOT, free_port, listens

# What a whole end may take: the bound that docs/migrating.md promises, and the machine's pace.
BOUND = 20.0
# Less than the window that a connection begins with: all of it is acknowledged, whoever reads it when.
PIECE = 40_000


class Netcat:
    """`tcppc nc` on 127.0.0.1. Nobody reads its standard output before `rest` does, where `out` is a pipe."""

    def __init__(self, folder: Path, *flags: str, out: str = "", patch: str = "", merged: bool = False) -> None:
        self.udp = "-u" in flags
        self.port = free_port(socket.SOCK_DGRAM if self.udp else socket.SOCK_STREAM)
        self.file = folder / "s.jsonl"
        self.path = folder / "out.bin"
        program = (
            ["-c", f"import sys; {patch}; from tcppc.cli import main; sys.exit(main())"] if patch else ["-m", "tcppc"]
        )
        into: Any = subprocess.PIPE if out == "pipe" else self.path.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, *program, "nc", "-l", *flags, "127.0.0.1", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=into,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            cwd=folder,
        )
        wait_until(lambda: listens(self.port, self.udp), "it to listen")
        wait_until(self._heeds_signals, "it to take signals for itself")

    def _heeds_signals(self) -> bool:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & caught >> (signal.SIGINT - 1) & 1)

    def kept(self) -> list[bytes]:
        lines = self.file.read_bytes().splitlines() if self.file.exists() else []
        return [payload(json.loads(line)) for line in lines]

    def connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def freeze(self) -> None:
        """What is sent from now on lies in the kernel."""
        self.process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(") ")[2][0] == "T", "it to stop")

    def end(self, number: int = signal.SIGTERM) -> None:
        """The signal waits for it where it is frozen. Nobody reads what it writes meanwhile."""
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.send_signal(signal.SIGCONT)
        self.process.wait(PATIENCE)
        assert time.monotonic() - begun < BOUND

    def rest(self) -> tuple[bytes, str]:
        """What it wrote to standard output (a pipe or the file), and its lines on standard error."""
        out, said = self.process.communicate(timeout=PATIENCE)
        return out if out is not None else self.path.read_bytes(), (said or b"").decode()


Run = Callable[..., Netcat]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    running: list[Netcat] = []

    def begin(*flags: str, **options: Any) -> Netcat:
        running.append(Netcat(tmp_path, *flags, **options))
        return running[-1]

    yield begin
    for netcat in running:
        with contextlib.suppress(ProcessLookupError):
            netcat.process.kill()
        netcat.process.communicate()


def told(said: str, place: str) -> tuple[int, int]:
    """(bytes, connections or datagrams) that the one line says are missing there; (0, 0) where it does not."""
    assert said.count("\n") <= 1, said
    found = re.search(rf"{place}: (\d+) bytes? of (\d+) ", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stalled_reader_of_standard_output_costs_no_record_and_what_it_misses_is_told(run: Run, number: int) -> None:
    netcat = run("-k", "-o", "s.jsonl", out="pipe")
    for _ in range(5):
        with netcat.connected() as sock:
            sock.sendall(b"x" * PIECE)
    netcat.end(number)
    out, said = netcat.rest()
    assert [len(data) for data in netcat.kept()] == [PIECE] * 5
    missing, connections = told(said, "missing on standard output")
    assert (len(out) + missing, netcat.process.returncode) == (5 * PIECE, 1)
    assert connections in (4, 5)
    assert "s.jsonl" not in said


def test_a_stalled_reader_is_told_of_where_there_are_no_records(run: Run) -> None:
    netcat = run("-k", out="pipe")
    with netcat.connected() as sock:
        sock.sendall(b"x" * 5 * PIECE)
        netcat.end()
    out, said = netcat.rest()
    assert len(out) < 5 * PIECE
    assert (told(said, "missing on standard output")[1], netcat.process.returncode) == (1, 1)


def test_a_reader_that_is_slow_gets_all_at_the_end(run: Run) -> None:
    netcat = run("-k", out="pipe")
    for _ in range(5):
        with netcat.connected() as sock:
            sock.sendall(b"x" * PIECE)
    netcat.process.send_signal(signal.SIGTERM)
    out, said = netcat.rest()
    assert (len(out), said, netcat.process.returncode) == (5 * PIECE, "", 0)


def test_datagrams_that_lie_in_the_socket_at_the_end_are_read(run: Run) -> None:
    netcat = run("-u", "-k", "-o", "s.jsonl")
    netcat.freeze()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        for number in range(3000):
            sock.sendto(b"%04d" % number, ("127.0.0.1", netcat.port))
    netcat.end()
    out, said = netcat.rest()
    expected = [b"%04d" % number for number in range(3000)]
    assert (netcat.kept(), out, said, netcat.process.returncode) == (expected, b"".join(expected), "", 0)


def test_datagrams_behind_a_stalled_reader_are_recorded_and_told(run: Run) -> None:
    netcat = run("-u", "-k", "-o", "s.jsonl", out="pipe")
    netcat.freeze()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        for _ in range(200):
            sock.sendto(b"x" * 1000, ("127.0.0.1", netcat.port))
    netcat.end()
    out, said = netcat.rest()
    missing, datagrams = told(said, "missing on standard output")
    assert (len(netcat.kept()), len(out) + missing, netcat.process.returncode) == (200, 200_000, 1)
    assert datagrams >= missing // 1000


def test_datagrams_that_are_left_when_the_time_is_over_are_counted(run: Run) -> None:
    netcat = run("-u", "-k", "-o", "s.jsonl", patch="from tcppc import nc; nc.TAKE_SECONDS = 0.0")
    netcat.freeze()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        for number in range(300):
            sock.sendto(b"%04d" % number, ("127.0.0.1", netcat.port))
    netcat.end()
    out, said = netcat.rest()
    unread, datagrams = told(said, "never read")
    assert (len(netcat.kept()) + datagrams, len(out) + unread) == (300, 1200)
    assert netcat.process.returncode == (1 if datagrams else 0)


def test_datagrams_that_the_kernel_had_no_room_for_are_counted(run: Run) -> None:
    netcat = run("-u", "-k", "-o", "s.jsonl", patch="from tcppc import ears; ears.UDP_BUFFER_BYTES = 1")
    netcat.freeze()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        for _ in range(2000):
            sock.sendto(b"x" * 1000, ("127.0.0.1", netcat.port))
    netcat.end()
    found = re.search(r"lost by the kernel, whose buffer was full: (\d+) datagrams", netcat.rest()[1])
    assert found
    assert (len(netcat.kept()) + int(found[1]), netcat.process.returncode) == (2000, 1)


def test_what_clients_in_the_backlog_have_sent_is_taken_at_the_end(run: Run) -> None:
    netcat = run("-k", "-o", "s.jsonl")
    netcat.freeze()
    with contextlib.ExitStack() as stack:
        for number in range(300):
            stack.enter_context(netcat.connected()).sendall(b"%03d" % number + b"x" * 97)
        netcat.end()
    out, said = netcat.rest()
    assert sorted(data[:3] for data in netcat.kept()) == [b"%03d" % number for number in range(300)]
    assert (len(out), said, netcat.process.returncode) == (30_000, "", 0)


def test_the_backlog_behind_a_stalled_reader_is_recorded(run: Run) -> None:
    netcat = run("-k", "-o", "s.jsonl", out="pipe")
    netcat.freeze()
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(netcat.connected()).sendall(b"x" * 10_000)
        netcat.end()
    out, said = netcat.rest()
    missing, _ = told(said, "missing on standard output")
    assert ([len(data) for data in netcat.kept()], len(out) + missing) == ([10_000] * 30, 300_000)
    assert netcat.process.returncode == 1


def test_connections_that_are_left_in_the_backlog_are_counted(run: Run) -> None:
    netcat = run("-k", "-o", "s.jsonl", patch="from tcppc import nc; nc.TAKE_SECONDS = 0.0")
    netcat.freeze()
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(netcat.connected()).sendall(b"x")
        netcat.end()
    found = re.search(r"never read: (\d+) connections?\n", netcat.rest()[1])
    left = int(found[1]) if found else 0
    assert (len(netcat.kept()) + left, netcat.process.returncode) == (40, 1 if left else 0)


def test_without_k_the_first_in_the_backlog_is_taken_and_no_other(run: Run) -> None:
    netcat = run("-o", "s.jsonl")
    netcat.freeze()
    with netcat.connected() as one, netcat.connected() as other:
        one.sendall(b"one")
        other.sendall(b"other")
        netcat.end()
    assert (netcat.rest(), netcat.kept(), netcat.process.returncode) == ((b"one", ""), [b"one"], 0)


def test_records_that_no_disk_takes_are_told(run: Run) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    netcat = run("-k", "-o", "/dev/full")
    with netcat.connected() as sock:
        sock.sendall(b"four")
        wait_until(lambda: netcat.path.read_bytes() == b"four", "the bytes")
        netcat.end()
    last = netcat.rest()[1].splitlines()[-1]
    assert (last, netcat.process.returncode) == ("tcppc: missing in /dev/full: 4 bytes of 1 connection", 1)


def test_what_a_bound_cuts_from_a_record_is_told(run: Run) -> None:
    patch = "from dataclasses import replace; from tcppc import delivery; L = delivery.Limits"
    netcat = run("-o", "s.jsonl", patch=f"{patch}; delivery.Limits = lambda: replace(L(), session_bytes=10)")
    with netcat.connected() as sock:
        sock.sendall(b"x" * 25)
    assert netcat.process.wait(PATIENCE) == 1
    assert netcat.rest() == (b"x" * 25, "tcppc: cut in s.jsonl: 15 bytes of 1 connection\n")


def test_standard_error_that_nobody_reads_holds_nothing_up(run: Run) -> None:
    """`2>&1 |` somebody who stalls, with a line for each connection."""
    netcat = run("-k", "-v", "-o", "s.jsonl", out="pipe", merged=True)
    for _ in range(3):
        with netcat.connected() as sock:
            sock.sendall(b"x" * PIECE)
    netcat.end()
    assert ([len(data) for data in netcat.kept()], netcat.process.returncode) == ([PIECE] * 3, 1)


def test_a_thread_that_fails_is_told_and_costs_itself_alone(run: Run) -> None:
    patch = "from tcppc.capture.recorder import Recorder as R; k = R.keep"
    fault = 'R.keep = lambda self, data, now: 1 / 0 if b"bad" in data else k(self, data, now)'
    netcat = run("-k", "-o", "s.jsonl", patch=f"{patch}; {fault}")
    for data in (b"one", b"bad", b"two"):
        with netcat.connected() as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                sock.recv(1)
    netcat.end()
    assert netcat.kept() == [b"one", b"", b"two"]
    assert netcat.rest()[1].startswith("tcppc: A connection failed: ZeroDivisionError: ")
    assert netcat.process.returncode == 1
