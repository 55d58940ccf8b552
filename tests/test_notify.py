"""What a service manager is told, by a real socket in its place."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcppc.notify import Notifier
from tests.conftest import Start
from tests.harness import PATIENCE


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def heard(manager: socket.socket, text: str) -> str:
    """Datagrams until one has `text`."""
    while text not in (told := manager.recv(4096).decode("utf-8")):
        pass
    return told


def test_ready_reload_and_stop_are_told_in_their_order(start: Start, manager: socket.socket) -> None:
    sensor = start()
    told = heard(manager, "READY=1")
    assert "STATUS=0 sessions open, 0 accepted, 0.0/s, 0 recorded" in told
    sensor.signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in heard(manager, "RELOADING=1")
    heard(manager, "READY=1")
    sensor.signal(signal.SIGTERM)
    heard(manager, "STOPPING=1")
    assert sensor.stop() == 0


def test_the_watchdog_is_fed(start: Start, manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    sensor = start()
    sensor.send(b"x")
    sensor.records(1)
    while "1 accepted" not in (told := heard(manager, "WATCHDOG=1")):
        pass
    assert "STATUS=0 sessions open, 1 accepted, " in told


def test_a_manager_that_went_away_costs_nothing(start: Start, manager: socket.socket, tmp_path: Path) -> None:
    (tmp_path / "notify").unlink()
    sensor = start()
    sensor.send(b"still")
    sensor.records(1)
    assert sensor.stop() == 0


def test_nobody_asked_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not Notifier().wanted
    assert not Notifier().tell("READY=1")


@pytest.mark.parametrize(("pid", "seconds"), [("own", 5.0), ("1", 0.0)])
def test_the_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch, pid: str, seconds: float) -> None:
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    assert Notifier().watchdog_seconds == seconds


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0tcppc-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@tcppc-test-{os.getpid()}")
        assert Notifier().tell("READY=1")
        assert sock.recv(100) == b"READY=1"
