"""conf/tcppc.init with a real sensor."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import lacking
from tests.harness import ended, payload, wait_until

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "conf" / "tcppc.init"


class Service:
    """The script with its files in a folder of its own, whose name has a space in it."""

    def __init__(self, folder: Path, user: str, python: str = sys.executable, path: Path = ROOT) -> None:
        self.folder = folder / "the sensor"
        self.data = self.folder / "data"
        self.data.mkdir(parents=True)
        self.log = self.folder / "log"
        self.pidfile = self.folder / "pid"
        self.config = self.folder / "tcppc.toml"
        self.config.write_text('[tcppc]\nhost = "127.0.0.1"\nport = 0\ntcpFileFmt = "d.jsonl"\n', encoding="ascii")
        program = self.folder / "tcppc"
        program.write_text(
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(path))} exec {python} -m tcppc "$@"\n', encoding="ascii"
        )
        program.chmod(0o755)
        settings = {
            "PROGRAM": program, "CONFIG": self.config, "PIDFILE": self.pidfile, "LOG": self.log, "DATA": self.data,
            "RUN_AS": user,
        }  # fmt: skip
        self.defaults = self.folder / "defaults"
        lines = [f"{name}={shlex.quote(str(value))}\n" for name, value in settings.items()]
        self.defaults.write_text("".join(lines), encoding="ascii")

    def __call__(self, action: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", SCRIPT, action],
            env=os.environ | {"TCPPC_DEFAULTS": str(self.defaults)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @property
    def pid(self) -> int:
        return int(self.pidfile.read_text(encoding="ascii"))

    @property
    def port(self) -> int:
        return int(re.findall(r"Listen: 127\.0\.0\.1:(\d+)", self.log.read_text(encoding="utf-8"))[-1])

    def send(self, data: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as sock:
            sock.sendall(data)

    def records(self) -> list[bytes]:
        return [payload(json.loads(line)) for line in (self.data / "d.jsonl").read_bytes().splitlines()]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path, "no-such-user")
    yield made
    if made.pidfile.exists() and made("status").returncode == 0:
        os.kill(made.pid, signal.SIGKILL)


def test_start_status_stop(service: Service) -> None:
    assert (service("status").returncode, service("status").stdout) == (3, "tcppc does not run\n")
    assert service("start").returncode == 0
    status = service("status")
    assert (status.returncode, status.stdout) == (0, f"tcppc runs, pid {service.pid}\n")
    service.send(b"while it runs")
    assert service("stop").returncode == 0
    assert service.records() == [b"while it runs"]
    assert service("status").returncode == 3
    assert service("stop").returncode == 0


def test_a_second_start_leaves_the_first_alone(service: Service) -> None:
    assert service("start").returncode == 0
    pid = service.pid
    again = service("start")
    assert (again.returncode, again.stdout) == (0, f"tcppc runs already, pid {pid}\n")
    assert service.pid == pid


def test_restart_is_another_process_and_loses_nothing(service: Service) -> None:
    assert service("try-restart").returncode == 0
    assert service("status").returncode == 3
    service("start")
    pid = service.pid
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as sock:
        sock.sendall(b"open at the restart")
        wait_until(lambda: "Received: " in service.log.read_text(encoding="utf-8"), "the payload")
        assert service("restart").returncode == 0
    assert service.pid != pid
    assert service.records() == [b"open at the restart"]


@pytest.mark.parametrize("action", ["reload", "force-reload"])
def test_reload_reads_the_configuration(service: Service, action: str) -> None:
    assert service(action).returncode == 7
    service("start")
    service.config.write_text(service.config.read_text(encoding="ascii") + "timeout = 7\n", encoding="ascii")
    assert service(action).returncode == 0
    wait_until(lambda: "Reloaded." in service.log.read_text(encoding="utf-8"), "the reload")


def test_a_wrong_configuration_is_told_and_starts_nothing(service: Service) -> None:
    service.config.write_text("[tcppc]\nport = 99999\n", encoding="ascii")
    done = service("start")
    assert done.returncode == 6
    assert "expected a whole number from 0 to 65535" in done.stderr
    assert not service.pidfile.exists()


def test_a_sensor_that_ends_at_once_is_a_failed_start_with_its_reason(service: Service) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        text = service.config.read_text(encoding="ascii").replace("port = 0", f"port = {taken.getsockname()[1]}")
        service.config.write_text(text, encoding="ascii")
        done = service("start")
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert not service.pidfile.exists()


def test_a_pid_that_is_another_programs_by_now_is_never_signalled(service: Service) -> None:
    with ended(subprocess.Popen(["sleep", "60"])) as other:
        service.pidfile.write_text(f"{other.pid}\n", encoding="ascii")
        assert service("status").returncode == 1
        assert service("reload").returncode == 7
        assert service("stop").returncode == 0
        assert other.poll() is None
        other.kill()
    for content in ("", "x\n", "-1\n", "1\n"):
        service.pidfile.write_text(content, encoding="ascii")
        assert service("status").returncode == 1


def test_anything_else_is_a_usage_line(service: Service) -> None:
    done = service("begin")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_as_root_it_runs_as_its_user_and_gives_its_two_capabilities_back(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("changing the user needs root and setpriv (util-linux)")
    # pytest's own folders are closed to other users, and so may be this project's and this Python's.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    service = Service(folder, "nobody", lacking.open_python(), lacking.copied_packages(folder))
    try:
        done = service("start")
        assert done.returncode == 0, done.stderr + service.log.read_text(encoding="utf-8")
        status = Path(f"/proc/{service.pid}/status").read_text(encoding="ascii")
        assert re.findall(r"^Uid:\s+(\d+)", status, re.MULTILINE) == [str(pwd.getpwnam("nobody").pw_uid)]
        both = f"{1 << 12 | 1 << 10:016x}"  # CAP_NET_ADMIN, CAP_NET_BIND_SERVICE (linux/capability.h)
        assert re.findall(r"^Cap(?:Eff|Bnd):\s+(\w+)", status, re.MULTILINE) == [f"{0:016x}", both]
        log = service.log.read_text(encoding="utf-8")
        assert "Capabilities: none kept, all others given back." in log
        assert "IP_TRANSPARENT" not in log  # it was set before
        service.send(b"as nobody")
        assert service("stop").returncode == 0
        assert service.records() == [b"as nobody"]
    finally:
        if service.pidfile.exists():
            os.kill(service.pid, signal.SIGKILL)
        shutil.rmtree(folder)


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_shells_take_it(shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    subprocess.run([shell, "-n", SCRIPT], check=True)


def test_logrotate_takes_the_note_for_it(tmp_path: Path) -> None:
    if not shutil.which("logrotate"):
        pytest.skip("needs logrotate")
    note = tmp_path / "tcppc"
    shutil.copy(ROOT / "conf" / "tcppc.logrotate", note)
    note.chmod(0o644)
    done = subprocess.run(["logrotate", "-d", note], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
