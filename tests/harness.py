"""A real sensor for tests: its own process, a free port, a folder of its own, real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, AnyStr

# How long a test waits for something that must happen; long, since nothing passes by waiting.
PATIENCE = 60.0
# RLIMIT_FSIZE stands in for a full disk: the next file must not follow.
FULL = "from tcppc.capture.writer import Writer; Writer._roll = lambda self, problem: False"


def wait_until(happened: Callable[[], Any], what: str) -> Any:
    """Poll until `happened()` is true and return it; AssertionError with `what` when patience ends."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := happened():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {PATIENCE:.0f} s in vain for {what}")


def reachable(folder: Path) -> None:
    """For another user too: pytest's folders are for its own alone."""
    for parent in folder.parents:
        if parent == Path(tempfile.gettempdir()):
            return
        parent.chmod(0o755)


# Does what a service manager does before it starts a program with sockets: descriptors from 3 on, and who is meant.
PASS_DESCRIPTORS = """
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split(",")]
for number, descriptor in enumerate(high, 3):
    os.dup2(descriptor, number)
os.closerange(3 + len(high), 200)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high))}
os.execvp(sys.argv[2], sys.argv[2:])
"""


@contextlib.contextmanager
def ended(process: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """A process of one test: where that fails, it is killed, so that nobody waits for it forever."""
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


class Sensor:
    """`python -m tcppc` with -w DIR/data.jsonl (or `file`) on a free port of 127.0.0.1 (or `hosts`)."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        hosts: tuple[str, ...] = ("127.0.0.1",),
        file: str = "data.jsonl",
        prefix: tuple[str, ...] = (),
        preexec: Callable[[], None] | None = None,
        port: int = 0,
        passed: Sequence[socket.socket | int] = (),
        patch: str = "",
    ) -> None:
        self.folder = folder
        self.file = folder / file
        self._log_path = folder / f"log-{time.monotonic_ns()}"
        descriptors = tuple(item if isinstance(item, int) else item.fileno() for item in passed)
        if descriptors:
            prefix = (*prefix, sys.executable, "-c", PASS_DESCRIPTORS, ",".join(map(str, descriptors)))
        # `patch` is Python to run first: how a test shortens what takes an hour.
        program = (
            ["-c", f"import sys; {patch}; from tcppc.cli import main; sys.exit(main())"] if patch else ["-m", "tcppc"]
        )
        arguments = [*prefix, sys.executable, *program, "-p", str(port)]
        for host in hosts:
            arguments += ["-H", host]
        if file:
            arguments += ["-w", str(folder / file)]
        environment = os.environ | {"STATE_DIRECTORY": str(folder / "state"), "PYTHONDONTWRITEBYTECODE": "1"}
        self._arguments = [*arguments, *flags]
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                self._arguments,
                stderr=log,
                stdout=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                env=environment,
                preexec_fn=preexec,
                pass_fds=descriptors,
                cwd=Path(__file__).parent.parent,
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text(encoding="utf-8", errors="backslashreplace")

    def started(self) -> Sensor:
        """Wait until it serves all that it is to serve."""
        self.said("Start T" if "-disable-udp-server" in self._arguments else "Start UDP server.")
        return self

    def said(self, text: str) -> str:
        """Wait for a log line with this text; returns the log."""

        def found() -> bool:
            if text in self.log:
                return True
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode} before it said {text!r}:\n{self.log}")
            return False

        wait_until(found, f"the log line {text!r} in:\n{self.log}")
        return self.log

    @property
    def port(self) -> int:
        found = re.search(r"Listen: \S+:(\d+)\n", self.said("Listen: "))
        assert found
        return int(found[1])

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection((host, self.port), timeout=PATIENCE)

    def send(self, data: bytes, host: str = "127.0.0.1") -> None:
        """One whole session: send, end, wait for the sensor's end."""
        # A session that the sensor refuses or ends early is one too.
        with self.connect(host) as sock, contextlib.suppress(OSError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass

    def datagram(self, data: bytes, host: str = "127.0.0.1") -> int:
        """Send one; returns the source port."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(data, (host, self.port))
            return int(sock.getsockname()[1])

    def lines(self) -> list[bytes]:
        """All whole lines of the data file as it is now."""
        if not self.file.exists():
            return []
        return self.file.read_bytes().split(b"\n")[:-1]

    def records(self, count: int) -> list[dict[str, Any]]:
        """Wait for at least `count` records and return all."""
        wait_until(lambda: len(self.lines()) >= count, f"{count} records in {self.file}; log:\n{self.log[-3000:]}")
        return [json.loads(line) for line in self.lines()]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        self.check_the_books()
        return code

    def check_the_books(self) -> None:
        """What every test that stops a sensor also holds: each accepted session ended in exactly one count, and all
        memory was given back."""
        found = re.search(r" Sessions: (\d+) accepted, (\d+) open, (.*?)(\d+) recorded\.", self.log)
        if found is None:
            return  # it logs into a file of its own, or had not started
        accepted, still_open, others, recorded = int(found[1]), int(found[2]), found[3], int(found[4])
        dropped = sum(map(int, re.findall(r"(\d+) dropped", others)))
        assert accepted == recorded + still_open + dropped, found[0]
        assert "bytes held" not in others, found[0]
        self.check_the_ledger(accepted, recorded, dropped)

    def check_the_ledger(self, *expected: int) -> None:
        """The ledger of this run, where it could be written, adds up to what the log says."""
        ledger = self.file.parent / "ledger.jsonl"
        lines = [json.loads(line) for line in ledger.read_bytes().splitlines()] if ledger.exists() else []
        run = [line for line in lines if line["run"] == lines[-1]["run"] and "accepted" in line]
        if run and run[-1]["event"] == "stop":
            dropped = sum(sum(line.get("dropped", {}).values()) for line in run)
            assert expected == (*(sum(line[name] for line in run) for name in ("accepted", "recorded")), dropped), run

    def account(self) -> subprocess.CompletedProcess[str]:
        """`tcppc account` of its folder."""
        return tcppc("account", str(self.file.parent))

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)

    def cpu_seconds(self) -> float:
        """User and system time so far (proc(5), fields 14 and 15)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))


def payload(record: dict[str, Any]) -> bytes:
    """All payloads of a record, joined."""
    return b"".join(b64decode(piece["data"]) for piece in record["payloads"])


def tcppc(*arguments: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tcppc", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
