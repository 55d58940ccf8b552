"""The second process: what it returns, how it fails, and that nobody waits for it forever."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from tcppc.flows.helper import Helper


def test_what_it_returns_and_does() -> None:
    helper = Helper()
    for number in range(3):
        helper.start(lambda number=number: (os.getpid(), number))  # type: ignore[misc]
        pid, answer = helper.result()
        assert answer == number
        assert pid != os.getpid()


def test_its_errors_are_told_with_their_file() -> None:
    helper = Helper()
    helper.start(lambda: open("/no/such/file").read())  # noqa: SIM115
    with pytest.raises(FileNotFoundError) as problem:
        helper.result()
    assert problem.value.filename == "/no/such/file"


def test_one_that_is_killed_is_an_error() -> None:
    helper = Helper()
    helper.start(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(OSError, match="ended early") as problem:
        helper.result()
    assert problem.value.errno == errno.EIO


def test_who_wants_to_stop_is_heard_behind_the_work() -> None:
    """A signal that comes while it is waited for, or while it is started, breaks neither side."""
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        helper, parent = Helper(), os.getpid()

        def work() -> str:
            os.kill(parent, signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            return "done"

        helper.start(work)
        assert helper.result() == "done"
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
