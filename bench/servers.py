"""One server under test: its command, its process, its clock and its memory.

Knows nothing about what is measured. Every process it starts is in a session of its own and is ended, with
its group, when the `with` block is left; nothing else is ever signalled.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

START_SECONDS = 15.0
STOP_SECONDS = 30.0
SETTLE_SECONDS = 0.5  # some servers open their file and their UDP socket only after they listen on TCP
TICKS = os.sysconf("SC_CLK_TCK")
# Below the range the kernel takes client ports from, so that no client of ours ever has the server's port.
PORTS = range(20000, 30000)


class BenchError(Exception):
    """What went wrong, in one line for the person who runs the benchmark."""


@dataclass(frozen=True)
class Contender:
    """One of the servers that are compared.

    `commands` maps a kind (`plain`, `log`, `tls`) to a command whose words may hold the placeholders {port},
    {file}, {cert} and {key}; a kind that is not there is not measured for this server.
    """

    name: str
    role: str  # "ours", "yardstick" or "peer"
    commands: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether a loss is an error."""
        return self.role == "ours"


def split_command(text: str, *placeholders: str) -> list[str]:
    """The words of a command as a shell would split it; a ValueError says which placeholder is missing."""
    words = shlex.split(text)
    for name in placeholders:
        if not any(f"{{{name}}}" in word for word in words):
            raise ValueError(f"the command has no {{{name}}}: {text}")
    return words


def free_port() -> int:
    """A port that nobody has, neither for TCP nor for UDP."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("0.0.0.0", port))
                udp.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise BenchError(f"no free port from {PORTS.start} to {PORTS.stop - 1}")


def is_bound(port: int, proto: str) -> bool:
    """Whether somebody listens on the port, told without a connection that would end up in the records."""
    state = "0A" if proto == "tcp" else "07"
    for name in (proto, f"{proto}6"):
        with contextlib.suppress(OSError), open(f"/proc/net/{name}", encoding="ascii") as table:
            for line in table:
                columns = line.split()
                if columns[1].endswith(f":{port:04X}") and columns[3] == state:
                    return True
    return False


class Server:
    """A running server: `with Server(command, folder, "tcp") as server`.

    `folder` is its own, and its working directory; its output goes to `log` in there, for its whole life.
    `proto`, tcp or udp, is what it is waited for to listen on.
    """

    def __init__(
        self, command: list[str], folder: Path, proto: str, certificate: tuple[Path, Path] | None = None
    ) -> None:
        self.folder = folder
        self._proto = proto
        self.port = free_port()
        self.file = folder / "sessions.jsonl"
        self.log = folder / "log"
        values = {"port": str(self.port), "file": str(self.file)}
        if certificate:
            values.update(cert=str(certificate[0]), key=str(certificate[1]))
        self._words = [fill(word, values) for word in command]
        self._process: subprocess.Popen[bytes] | None = None
        self.stopped = False  # by us
        self.died = False  # by itself

    def __enter__(self) -> Server:
        self.folder.mkdir(parents=True)
        # Our package is run from the tree this file is in, installed or not.
        tree = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [tree, os.environ.get("PYTHONPATH")]))
        try:
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env={**os.environ, "PYTHONPATH": path},
                    start_new_session=True,
                )
        except OSError as error:
            raise BenchError(f"cannot start {self._words[0]}: {error.strerror}") from error
        try:
            self._wait_until_bound()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.died = not self.stopped and not self.alive()
        self._end()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process is not None
        return self._process.pid

    def _wait_until_bound(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not is_bound(self.port, self._proto):
            if self._process.poll() is not None:
                raise BenchError(f"it ended at once, with code {self._process.returncode}")
            if time.monotonic() > deadline:
                raise BenchError(f"no {self._proto.upper()} on its port after {START_SECONDS:.0f} s")
            time.sleep(0.02)
        time.sleep(SETTLE_SECONDS)

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """SIGTERM, and its exit code; a server that does not heed it is an error."""
        assert self._process is not None
        if self._process.poll() is None:
            self.stopped = True
            self._process.terminate()
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise BenchError(f"it still runs {STOP_SECONDS:.0f} s after SIGTERM") from None

    def _end(self) -> None:
        """Nothing of it is left afterwards, whatever it does."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
        # The group also holds what a wrapper command started; it is the one we made for it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def cpu(self) -> float:
        """Seconds of CPU so far, user and system, of all threads, ended ones too, and of reaped children."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as stat:
            # The name, in parentheses, may hold spaces; behind it come the fields from the third on.
            columns = stat.read().rpartition(")")[2].split()
        own, children = int(columns[11]) + int(columns[12]), int(columns[13]) + int(columns[14])
        try:
            # The same time in ns, where stat counts in ticks of 10 ms: clock_getcpuclockid(3) of the process.
            seconds = time.clock_gettime((~self.pid << 3) | 2)
        except OSError:
            seconds = own / TICKS
        return seconds + children / TICKS

    def memory(self, key: str = "VmRSS") -> int:
        """VmRSS or VmHWM (its peak) in bytes."""
        with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
        raise BenchError(f"/proc/{self.pid}/status has no {key}")

    def reset_peak(self) -> None:
        """Make VmHWM the present VmRSS, where the kernel lets us; else it stays the peak since the start."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="ascii")

    def descriptors(self) -> int:
        """How many file descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def wait_idle(self, limit: float) -> None:
        """Return when it has used hardly any CPU for half a second, or after `limit` seconds."""
        deadline = time.monotonic() + limit
        before = self.cpu()
        while time.monotonic() < deadline:
            time.sleep(0.5)
            after = self.cpu()
            if after - before < 0.02:
                return
            before = after

    def last_lines(self, count: int = 8) -> list[str]:
        """The end of its output."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 8192))
            return [line[:300] for line in log.read().decode("utf-8", "replace").splitlines()[-count:]]
        return []

    def complained(self) -> bool:
        """Whether a Python traceback is in its output."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            return any(line.startswith(b"Traceback ") for line in log)
        return False


def fill(word: str, values: dict[str, str]) -> str:
    """The word with its placeholders filled in; other braces stay as they are."""
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", value)
    return word
