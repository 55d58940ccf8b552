"""`tcppc nc`, beside the listeners that it takes the place of."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import PATIENCE, ended, payload, tcppc, wait_until

ROOT = Path(__file__).parent.parent
TABLE = re.findall(
    r"^\| ([\w-]+) \| `(.+)` \| `(.+)` \|$", (ROOT / "docs" / "migrating.md").read_text("utf-8"), re.MULTILINE
)
PROGRAMS = {"netcat-openbsd": ("nc ", "nc.openbsd "), "netcat-traditional": ("nc ", "nc.traditional ")}


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET6, kind) as sock:
        sock.bind(("::", 0))
        return int(sock.getsockname()[1])


def listens(port: int, udp: bool) -> bool:
    """Is a socket open on the port? By the kernel's tables: asking it would be a first connection."""
    for name in ("udp", "udp6") if udp else ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if int(local.rpartition(":")[2], 16) == port and (udp or state == "0A"):
                return True
    return False


class Shell:
    """A command line of one of the two columns, in a folder of its own."""

    def __init__(self, line: str, folder: Path, stdin: Any = subprocess.DEVNULL) -> None:
        self.udp = "UDP" in line if line.startswith("socat") else re.search(r" -\w*u", line) is not None
        self.port = free_port(socket.SOCK_DGRAM if self.udp else socket.SOCK_STREAM)
        self.folder = folder
        folder.mkdir()
        command = line.replace("12345", str(self.port)).replace("tcppc nc", f"{sys.executable} -m tcppc nc")
        if not re.search("[|;]", command):
            command = f"exec {command}"  # so that its exit code is the listener's
        self.process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            stdin=stdin,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        wait_until(lambda: listens(self.port, self.udp) or self.process.poll() is not None, f"{command} to listen")
        assert self.process.poll() is None, self.process.communicate()

    @property
    def out(self) -> bytes:
        path = self.folder / "out.bin"
        return path.read_bytes() if path.exists() else b""

    def send(self, data: bytes, host: str, looping: bool = False) -> None:
        """One whole session. What a shell loops is not there for a moment between two."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with socket.create_connection((host, self.port), timeout=PATIENCE) as sock:
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                    sock.recv(1)
                    return
            except ConnectionRefusedError:
                if not looping or time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def end(self) -> str:
        """End it and all it started; returns what it said on standard error."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        return self.process.communicate(timeout=PATIENCE)[1].decode()


Run = Callable[..., Shell]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    running: list[Shell] = []

    def begin(line: str, **options: Any) -> Shell:
        shell = Shell(line, tmp_path / f"shell-{len(running)}", **options)
        running.append(shell)
        return shell

    yield begin
    for shell in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.process.pid, signal.SIGKILL)
        shell.process.communicate()


def received(shell: Shell, line: str) -> bytes:
    """What stands in out.bin after the clients that the line is for."""
    host = "::1" if "6" in line.replace("12345", "") else "127.0.0.1"
    if shell.udp:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, shell.port))
            for data in (b"one\n", b"two\n"):
                sock.send(data)
                wait_until(lambda data=data: data in shell.out, "the datagram")  # type: ignore[misc]
    else:
        shell.send(b"one\n", host)
        if any(word in line for word in ("k", "fork", "while")):
            wait_until(lambda: b"one" in shell.out, "the first")
            shell.send(b"two\n", host, looping="while" in line)
            wait_until(lambda: b"two" in shell.out, "the second")
        else:
            assert shell.process.wait(PATIENCE) == 0
    shell.end()
    return shell.out


@pytest.mark.parametrize(("origin", "theirs", "ours"), TABLE, ids=[f"{row[0]}: {row[1]}" for row in TABLE])
def test_each_line_of_the_table_does_what_the_other_does(run: Run, origin: str, theirs: str, ours: str) -> None:
    theirs = theirs.replace(*PROGRAMS.get(origin, ("", "")))
    program = re.findall(r"(?:^|do )([\w.]+) -", theirs)[0]
    if not shutil.which(program):
        pytest.skip(f"needs {program} (Debian: {origin})")
    expected = received(run(theirs), theirs)
    assert expected in (b"one\n", b"one\ntwo\n")
    assert received(run(ours), ours.replace("tcppc", "")) == expected


def test_the_table_has_all_four() -> None:
    assert {row[0] for row in TABLE} == {"netcat-openbsd", "netcat-traditional", "ncat", "socat"}


def test_many_connections_at_once_each_in_whole_pieces(run: Run) -> None:
    shell = run("tcppc nc -lk 12345 > out.bin")
    with contextlib.ExitStack() as stack:
        socks = [
            stack.enter_context(socket.create_connection(("127.0.0.1", shell.port), timeout=PATIENCE))
            for _ in range(50)
        ]
        for round_ in range(4):
            for number, sock in enumerate(socks):
                sock.sendall(b"%02d %d %s\n" % (number, round_, b"x" * 1000))
    lines = wait_until(lambda: shell.out.count(b"\n") == 200 and shell.out.splitlines(), "all lines")
    assert sorted(lines) == sorted(b"%02d %d %s" % (n, r, b"x" * 1000) for n in range(50) for r in range(4))


def test_without_k_it_ends_after_the_first_and_nobody_else_gets_in(run: Run) -> None:
    shell = run("tcppc nc -l 12345 > out.bin")
    with socket.create_connection(("127.0.0.1", shell.port), timeout=PATIENCE) as sock:
        wait_until(lambda: not listens(shell.port, False), "the listener to close")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", shell.port), timeout=PATIENCE)
        sock.sendall(b"first")
    assert shell.process.wait(PATIENCE) == 0
    assert shell.out == b"first"


def test_session_records_stand_beside_the_bytes(run: Run) -> None:
    shell = run("tcppc nc -lkv 12345 -o sessions.jsonl > out.bin")
    shell.send(b"one", "127.0.0.1")
    shell.send(b"", "::1")
    with socket.create_connection(("127.0.0.1", shell.port), timeout=PATIENCE) as still_open:
        still_open.sendall(b"open")
        wait_until(lambda: shell.out == b"oneopen", "the bytes")
        said = shell.end()
    assert shell.process.returncode == 0
    records = [json.loads(line) for line in (shell.folder / "sessions.jsonl").read_bytes().splitlines()]
    found = [(record["flow"]["src"], record["closed"], payload(record)) for record in records]
    assert found == [("127.0.0.1", "peer", b"one"), ("::1", "peer", b""), ("127.0.0.1", "shutdown", b"open")]
    listening = rf"Listening on 0\.0\.0\.0 {shell.port}\nListening on :: {shell.port}\n"
    assert re.match(listening + r"Connection received on 127\.0\.0\.1 \d+\n", said)
    assert tcppc("check", "--records", str(shell.folder / "sessions.jsonl")).returncode == 0


def test_datagrams_are_recorded_too(run: Run) -> None:
    shell = run("tcppc nc -luk -s 127.0.0.1 -p 12345 -o sessions.jsonl > out.bin")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"datagram", ("127.0.0.1", shell.port))
    wait_until(lambda: shell.out == b"datagram", "the datagram")
    shell.end()
    (record,) = [json.loads(line) for line in (shell.folder / "sessions.jsonl").read_bytes().splitlines()]
    assert (record["flow"]["proto"], payload(record)) == ("udp", b"datagram")


def test_udp_without_k_is_of_the_first_sender(run: Run) -> None:
    shell = run("tcppc nc -lu -w 1 12345 > out.bin")
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        for sock, data in ((one, b"A1"), (other, b"B1"), (one, b"A2")):
            sock.sendto(data, ("127.0.0.1", shell.port))
    assert shell.process.wait(PATIENCE) == 0  # after a second without a datagram
    assert shell.out == b"A1A2"


def test_standard_input_goes_to_the_first_client(run: Run) -> None:
    shell = run("printf '220 ready\\r\\n' | tcppc nc -l 12345 > out.bin")
    with socket.create_connection(("127.0.0.1", shell.port), timeout=PATIENCE) as sock:
        assert sock.recv(100) == b"220 ready\r\n"
        sock.sendall(b"QUIT")
    assert shell.process.wait(PATIENCE) == 0
    assert shell.out == b"QUIT"


def test_an_idle_connection_ends_after_w_seconds(run: Run) -> None:
    shell = run("tcppc nc -lk -w 0.2 12345 -o sessions.jsonl > out.bin")
    with socket.create_connection(("127.0.0.1", shell.port), timeout=PATIENCE) as sock:
        sock.sendall(b"and then nothing")
        assert sock.recv(1) == b""
    shell.end()
    assert json.loads((shell.folder / "sessions.jsonl").read_bytes())["closed"] == "timeout"


def test_when_nobody_reads_standard_output_it_ends_with_one_line(run: Run) -> None:
    shell = run("set -o pipefail; tcppc nc -lk 12345 | head -c 3 > out.bin")
    with contextlib.suppress(OSError):
        for _ in range(100):
            shell.send(b"x" * 100_000, "127.0.0.1")
            if shell.process.poll() is not None:
                break
    assert shell.process.wait(PATIENCE) == 1
    said = shell.end()
    assert re.fullmatch(
        r"tcppc: standard output takes nothing more: Broken pipe(; missing on .+: \d+ bytes of .+)?\n", said
    )
    assert shell.out == b"xxx"


def test_a_disk_for_standard_output_that_is_full_ends_it_with_one_line(run: Run) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    shell = run("tcppc nc -l 12345 > /dev/full")
    with contextlib.suppress(OSError):
        shell.send(b"x", "127.0.0.1")
    assert shell.process.wait(PATIENCE) == 1
    words = "No space left on device; missing on standard output: 1 byte of 1 connection"
    assert shell.end() == f"tcppc: standard output takes nothing more: {words}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["12345"], "expected -l"),
        (["-l"], "expected a port"),
        (["-l", "-4", "-6", "12345"], "-4 and -6 contradict each other"),
        (["-l", "-p", "1", "2"], "the port is given twice, as -p 1 and as 2"),
        (["-l", "-p", "1", "127.0.0.1", "2"], "the port is given twice"),
        (["-l", "-s", "127.0.0.1", "127.0.0.2", "1"], "the address is given twice"),
        (["-l", "99999"], "expected a port from 0 to 65535"),
        (["-l", "nosuchservice"], "expected a port from 0 to 65535 or a service's name"),
        (["-l", "-w", "x", "1"], "expected a duration"),
        (["-l", "a", "b", "c"], "expected a port, as in"),
        (["-l", "-e", "/bin/sh", "1"], "unrecognized arguments"),
        (["-4", "-l", "::1", "1"], "has no address of the family"),
    ],
)
def test_arguments_that_contradict_each_other_are_one_line(arguments: list[str], expected: str) -> None:
    done = tcppc("nc", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert expected in done.stderr


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = tcppc("nc", "-l", "127.0.0.1", str(taken.getsockname()[1]))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot listen: 127.0.0.1:" in done.stderr
    assert "Address already in use" in done.stderr


@pytest.mark.parametrize("line", ["tcppc nc -lk 12345", "tcppc nc -l 12345", "tcppc nc -lu 12345"])
def test_a_signal_ends_it_whenever_it_comes(run: Run, line: str) -> None:
    """Also in the moment before it begins to wait, which once was for ever."""
    for _ in range(10):
        shell = run(line)
        shell.end()
        assert shell.process.returncode in (0, -signal.SIGTERM)  # before or after it took the signal for itself


def test_closed_standard_descriptors_are_nobodys(run: Run) -> None:
    """`<&-` and `2>&-`, as scripts and daemons have them."""
    for _ in range(5):
        shell = run("tcppc nc -l 12345 <&- > out.bin")
        shell.send(b"one", "127.0.0.1")
        assert shell.process.wait(PATIENCE) == 0
        assert shell.out == b"one"
    shell = run("tcppc nc -lkv 12345 > out.bin 2>&-")
    shell.send(b"one", "127.0.0.1")
    wait_until(lambda: shell.out == b"one", "the bytes alone")


def test_a_timeout_that_no_kernel_takes_is_refused() -> None:
    done = tcppc("nc", "-l", "-w", "9999999", "127.0.0.1", "12345")
    assert done.returncode == 2
    assert "expected a duration from 0 to" in done.stderr


def test_a_percent_sign_in_o_is_a_percent_sign(run: Run) -> None:
    shell = run("tcppc nc -l 12345 -o 'n%b.jsonl' > out.bin")
    shell.send(b"one", "127.0.0.1")
    assert shell.process.wait(PATIENCE) == 0
    assert (shell.folder / "n%b.jsonl").exists()


def test_standard_output_that_does_not_wait_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    out, into = os.pipe2(os.O_NONBLOCK)
    command = [sys.executable, "-m", "tcppc", "nc", "-l", "127.0.0.1", str(port)]
    with ended(subprocess.Popen(command, stdout=into, stdin=subprocess.DEVNULL, cwd=ROOT)) as process:
        os.close(into)
        wait_until(lambda: listens(port, False), "it to listen")
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            sock.sendall(b"x" * 300_000)
        time.sleep(0.5)
        heard = 0
        os.set_blocking(out, True)
        while data := os.read(out, 65536):
            heard += len(data)
        assert (heard, process.wait(PATIENCE)) == (300_000, 0)
    os.close(out)
