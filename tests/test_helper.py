"""The second process: what it returns, how it fails, and that nobody waits for it forever."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from tcppc.flows.helper import Helper


def test_each_part_is_done_once_by_either() -> None:
    for taken in (0, 3, 100):
        helper = Helper()
        helper.start(lambda number: (os.getpid(), number), 100)
        own = [number for number, _ in zip(range(taken), helper.left(), strict=False)] if taken else []
        for number in helper.left() if taken == 100 else ():
            own.append(number)
        found = helper.result()
        assert sorted([*own, *found]) == list(range(100))
        assert all(pid != os.getpid() and number == key for key, (pid, number) in found.items())


def test_its_errors_are_told_with_their_file() -> None:
    helper = Helper()
    helper.start(lambda number: open("/no/such/file").read(), 1)  # noqa: SIM115
    with pytest.raises(FileNotFoundError) as problem:
        helper.result()
    assert problem.value.filename == "/no/such/file"


def test_one_that_is_killed_is_an_error() -> None:
    helper = Helper()
    helper.start(lambda number: os.kill(os.getpid(), signal.SIGKILL), 1)
    with pytest.raises(OSError, match="ended early") as problem:
        helper.result()
    assert problem.value.errno == errno.EIO


def test_who_wants_to_stop_is_heard_behind_the_work() -> None:
    """A signal that comes while it is waited for, or while it is started, breaks neither side."""
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        helper, parent = Helper(), os.getpid()

        def work(number: int) -> str:
            os.kill(parent, signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            return "done"

        helper.start(work, 1)
        assert helper.result() == {0: "done"}
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_descriptor_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    helper = Helper()
    for _ in range(5):
        helper.start(lambda number: number, 3)
        list(helper.left())
        helper.result()
    assert os.listdir("/proc/self/fd") == before
