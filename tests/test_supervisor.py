"""Threads of the sensor that come back, whatever ends them."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcppc.capture import supervisor
from tcppc.capture.supervisor import Supervised, unwell
from tests.conftest import Start
from tests.harness import PATIENCE, Sensor, wait_until
from tests.netns import Net

# Raised in a method while a file is there, which is removed by it. No `except Exception` on the way stops a SystemExit.
FAULT = """
import os, {module} as module, tcppc.capture.supervisor as supervisor
{more}
supervisor.FIRST_PAUSE_SECONDS = 1.5
real = module.{name}
def failing(*args, **named):
    if os.path.exists({marker!r}):
        os.unlink({marker!r})
        raise SystemExit("injected")
    return real(*args, **named)
module.{name} = failing
"""
KINDS = {
    "keeper": ("tcppc.capture.keep", "Keeper._take", "module.LOOK_SECONDS = 0.1"),
    "probe": ("tcppc.capture.probe", "Prober._look", "module.PAUSE_SECONDS = 0.1"),
    "metrics": ("tcppc.httpd", "_Turns.turn", ""),
    "actions": ("tcppc.actions.engine", "Engine._tell_digests", "module.TICK_SECONDS = 0.1"),
    "action 0": ("tcppc.actions.engine", "Engine._do", ""),
    "blocks": ("tcppc.actions.blocks", "Blocker._follow", "module.FOLLOW_SECONDS = 0.1"),
    "watch lo": ("tcppc.watch.watcher", "Watch._round", "module.WAIT_SECONDS = 0.1"),
}
CONFIG = """
[tcppc]
timeout = 5
[watch]
interface = "lo"
[actions]
concurrency = 1
[[action]]
command = "true"
[[action]]
on = "scan"
block = 60
"""


def patch(thread: str, marker: Path) -> str:
    module, name, more = KINDS[thread]
    strange = "import tcppc.actions.allow as a; a.Allowed._why = lambda self, address: ''"
    return f"exec({FAULT.format(module=module, name=name, more=more, marker=str(marker))!r}); {strange}"


def page(sensor: Sensor, net: Net, path: str) -> tuple[int, str]:
    """As seen on its own host."""
    found = re.search(r"Metrics: (http://\S+)/metrics", sensor.said("Metrics: http"))
    assert found
    text = net.sensor.run("curl", "-s", "-w", "\n%{http_code}", f"{found[1]}{path}")
    body, _, code = text.rpartition("\n")
    return int(code), body


def outages(folder: Path) -> list[tuple[str, bool, str]]:
    """By the ledger."""
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_bytes().splitlines()]
    return [(line["thread"], line["alive"], line.get("why", "")) for line in lines if line["event"] == "thread"]


@pytest.mark.parametrize("thread", KINDS)
def test_each_kind_of_thread_comes_back(start: Start, net: Net, tmp_path: Path, thread: str) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    marker = tmp_path / "marker"
    flags = ("-c", str(tmp_path / "c.toml"), "--metrics", "127.0.0.1:2112")
    sensor = start(*flags, port=12345, prefix=net.sensor.prefix, patch=patch(thread, marker))
    sensor.said("Watch: lo")
    touch = "import socket; socket.create_connection(('127.0.0.1', 12345)).close()"
    wait_until(lambda: page(sensor, net, "/healthz") == (200, "ok\n"), "all to be well")
    for times in (1, 2):
        marker.touch()
        net.sensor.python(touch)
        pause = 1.5 * times
        said = f"Thread {thread}: SystemExit: injected "
        sensor.said(f"; it starts again in {pause:g} s ({times} times so far).")
        assert said in sensor.log
        if thread != "metrics":
            code, text = page(sensor, net, "/healthz")
            assert code == 503
            assert re.fullmatch(rf"thread {thread}: SystemExit: injected \(<string>:\d+\)\n", text)
            metrics = page(sensor, net, "/metrics")[1]
            assert f'tcppc_thread_up{{thread="{thread}"}} 0.0' in metrics
            assert "tcppc_healthy 0.0" in metrics
        wait_until(lambda: page(sensor, net, "/healthz") == (200, "ok\n"), "all to be well again")
    metrics = page(sensor, net, "/metrics")[1]
    assert f'tcppc_thread_up{{thread="{thread}"}} 1.0' in metrics
    assert f'tcppc_thread_restarts_total{{thread="{thread}"}} 2.0' in metrics
    assert 'tcppc_errors_total{name="thread_restarts"} 2.0' in metrics
    assert not marker.exists()
    wait_until(lambda: outages(tmp_path)[-1] == (thread, True, ""), "the ledger to tell of it")
    assert sensor.stop() == 0
    assert "2 thread_restarts" in sensor.log
    assert "Traceback" not in sensor.log
    failed = {(name, why[:20]) for name, alive, why in outages(tmp_path) if not alive}
    assert failed == {(thread, "SystemExit: injected")}


def test_a_thread_that_waits_to_be_started_again_holds_no_stop_up(start: Start, net: Net, tmp_path: Path) -> None:
    (tmp_path / "marker").touch()
    more = patch("keeper", tmp_path / "marker") + "; import tcppc.capture.supervisor as s; s.FIRST_PAUSE_SECONDS = 60"
    sensor = start("--metrics", "127.0.0.1:2112", prefix=net.sensor.prefix, patch=more)
    sensor.said("it starts again in 60 s")
    begun = time.monotonic()
    assert sensor.stop() == 0
    assert time.monotonic() - begun < 10


def test_the_status_line_names_it_and_the_watchdog_is_fed_all_the_same(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart by the watchdog would cost the sessions that are open, and mend nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        sensor = start(patch=patch("keeper", tmp_path / "marker"))
        (tmp_path / "marker").touch()
        while "NOT WELL" not in (told := manager.recv(4096).decode("utf-8")):
            pass
        status, _, watchdog = told.partition("\n")
        assert re.fullmatch(
            r"STATUS=0 sessions .* recorded; NOT WELL: thread keeper: SystemExit: injected \(.*\)", status
        )
        assert watchdog == "WATCHDOG=1"
        while "NOT WELL" in manager.recv(4096).decode("utf-8"):
            pass
        assert sensor.stop() == 0


# A new thread is refused to whom is named so. Others, such as those of the sessions, are none of ours.
NO_THREAD = """
import os, threading
real = threading.Thread.start
def start(self):
    if self.name == "keeper" and os.path.exists({marker!r}):
        raise RuntimeError("can't start new thread")
    real(self)
threading.Thread.start = start
import tcppc.capture.probe as probe, tcppc.capture.supervisor as supervisor
probe.PAUSE_SECONDS, supervisor.FIRST_PAUSE_SECONDS = 0.2, 0.1
"""


def test_where_no_thread_can_be_started_that_is_told_and_tried_again(start: Start, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    sensor = start("--metrics", "127.0.0.1:0", patch=f"exec({NO_THREAD.format(marker=str(marker))!r})")
    sensor.said("Thread keeper: cannot be started: RuntimeError: can't start new thread (")
    found = re.search(r"Metrics: (http://\S+)/metrics", sensor.said("Metrics: http"))
    assert found
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{found[1]}/healthz", timeout=20)
    assert caught.value.code == 503
    assert b"thread keeper: cannot be started: " in caught.value.read()
    marker.unlink()

    def well() -> bool:
        try:
            with urllib.request.urlopen(f"{found[1]}/healthz", timeout=20) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False

    wait_until(well, "the keeper to be started")
    assert sensor.stop() == 0


class Told:
    """What a thread says and counts."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.counted: Counter[str] = Counter()

    def count(self, name: str) -> int:
        self.counted[name] += 1
        return self.counted[name]

    def thread(self, work: Callable[[], None]) -> Supervised:
        return Supervised("test", work, self.lines.append, self.count)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_SECONDS", 0.04)
    return Told()


@pytest.mark.parametrize(
    ("problem", "shown"),
    [
        (ValueError("of \x1b[2J\n two lines"), r"ValueError: of \x1b[2J\n two lines"),
        (MemoryError(), "MemoryError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(3), "SystemExit: 3"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x" * 5000), "UnicodeDecodeError: 'utf-8' codec"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_raised_is_one_line_and_the_work_goes_on(told: Told, problem: BaseException, shown: str) -> None:
    ended, calls = threading.Event(), []

    def work() -> None:
        calls.append(1)
        if len(calls) < 6:
            raise problem
        ended.wait(20)

    thread = told.thread(work)
    assert thread.well  # before its start too
    thread.start()
    wait_until(lambda: len(calls) == 6 and thread.well, "the sixth call")
    pauses = [re.search(r"; it starts again in (\S+) s \((\d) times so far\)\.$", line) for line in told.lines]
    assert [match and match.groups() for match in pauses] == [
        ("0.01", "1"), ("0.02", "2"), ("0.04", "3"), ("0.04", "4"), ("0.04", "5"),
    ]  # fmt: skip
    for line in told.lines:
        assert line.startswith(f"Thread test: {shown}")
        assert "(test_supervisor.py:" in line
        assert line.isprintable()
        assert len(line) < 500
    assert told.counted == {"thread_restarts": 5}
    thread.stop()
    ended.set()
    assert thread.join(20)


def test_after_it_ran_well_the_first_pause_is_enough(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "WELL_AFTER_SECONDS", 0.2)
    calls, ended = [], threading.Event()

    def work() -> None:
        calls.append(1)
        if len(calls) == 3:
            time.sleep(0.3)
        if len(calls) == 4:
            ended.wait(20)
            return
        raise ValueError

    thread = told.thread(work)
    thread.start()
    wait_until(lambda: len(calls) == 4, "the fourth call")
    assert [re.findall(r"in (\S+) s", line) for line in told.lines] == [["0.01"], ["0.02"], ["0.01"]]
    thread.stop()
    ended.set()
    assert thread.join(20)


def test_work_that_returns_before_its_time_is_done_again(told: Told) -> None:
    calls: list[int] = []
    thread = told.thread(lambda: calls.append(1))
    thread.start()
    wait_until(lambda: len(calls) >= 2, "the second call")
    thread.stop()
    assert thread.join(20)
    assert told.lines[0].startswith("Thread test: RuntimeError: it ended by itself")


def test_not_even_a_log_that_fails_ends_it(told: Told) -> None:
    calls, ended = [], threading.Event()

    def say(line: str) -> None:
        raise MemoryError

    def work() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise MemoryError
        ended.wait(20)

    thread = Supervised("test", work, say, told.count)
    thread.start()
    wait_until(lambda: len(calls) == 3, "the third call")
    assert thread.restarts == 2
    thread.stop()
    ended.set()
    assert thread.join(20)


def test_what_fails_while_it_stops_is_told_and_not_started_again(told: Told) -> None:
    go, calls = threading.Event(), []

    def work() -> None:
        calls.append(1)
        go.wait(20)
        raise ValueError("late")

    thread = told.thread(work)
    thread.start()
    thread.stop()
    go.set()
    assert thread.join(20)
    assert len(calls) == 1
    assert "; it was to end (" in told.lines[0]


def test_while_it_waits_it_is_not_well(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 20)

    def work() -> Any:
        raise ValueError("broken")

    thread = told.thread(work)
    thread.start()
    wait_until(lambda: not thread.well, "the fault")
    assert thread.alive
    (line,) = unwell([thread])
    assert line.startswith("thread test: ValueError: broken")
    thread.stop()
    assert thread.join(20)
