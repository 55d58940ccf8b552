from __future__ import annotations

import queue
import threading

import pytest

from tcppc.capture.threads import MOST_IDLE, Crew
from tests.harness import wait_until


class Office:
    """A crew whose connections are numbers from a queue; serving one waits until it is let go."""

    def __init__(self) -> None:
        self.arrivals: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.served: list[int] = []
        self.refused: list[int] = []
        self.problems: list[BaseException] = []
        self.gate = threading.Event()
        self.crew: Crew[int] = Crew("test", self.arrivals.get, self.serve, self.refused.append, self.problems.append)

    def serve(self, number: int) -> None:
        if number < 0:
            raise ValueError(number)
        self.gate.wait(10)
        self.served.append(number)

    def stop(self) -> int:
        self.crew.stop()
        for _ in range(50):
            self.arrivals.put(None)
        return self.crew.join(10)


def test_each_connection_has_its_thread_and_idle_ones_are_few() -> None:
    office = Office()
    office.crew.start()
    for number in range(40):
        office.arrivals.put(number)
    wait_until(lambda: office.crew._live == 41, "forty at work and one in accept")
    office.gate.set()
    wait_until(lambda: len(office.served) == 40, "all to be served")
    wait_until(lambda: office.crew._live <= MOST_IDLE, "the others to end")
    assert office.stop() == 0
    assert sorted(office.served) == list(range(40))


def test_a_bug_in_serving_costs_one_connection_and_is_told() -> None:
    office = Office()
    office.gate.set()
    office.crew.start()
    for number in (1, -1, 2, -2, 3):
        office.arrivals.put(number)
    wait_until(lambda: len(office.served) == 3, "the good ones")
    wait_until(lambda: len(office.problems) == 2, "the bad ones to be told")
    assert office.stop() == 0


def test_where_no_thread_can_be_started_connections_are_refused_and_accept_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    office = Office()
    office.crew.start()

    def none_left(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("_thread.start_new_thread", none_left)
        for number in range(5):
            office.arrivals.put(number)
        wait_until(lambda: len(office.refused) == 5, "all to be refused")
    office.gate.set()
    office.arrivals.put(99)
    wait_until(lambda: office.served == [99], "service to go on")
    assert office.stop() == 0
