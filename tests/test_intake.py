from __future__ import annotations

import threading
import time

from tcppc.capture import intake
from tcppc.records import Session


def session(number: int = 0) -> Session:
    return Session("tcp", "192.0.2.1", number, "192.0.2.2", 2, 1)


def test_nothing_is_lost_or_turned_round_between_many_threads_and_one() -> None:
    queue = intake.Intake()
    got: list[intake.Item] = []

    def put(source: int) -> None:
        for number in range(2000):
            queue.put(session(source * 10_000 + number))

    threads = [threading.Thread(target=put, args=(source,)) for source in range(4)]
    for thread in threads:
        thread.start()
    while len(got) < 8000:
        queue.wait(1)
        got += queue.take(500)
    for thread in threads:
        thread.join()
    ports = [item.sport for item in got if isinstance(item, Session)]
    for source in range(4):
        assert [port for port in ports if port // 10_000 == source] == [source * 10_000 + n for n in range(2000)]


def test_a_sleeping_writer_is_woken_at_once() -> None:
    queue = intake.Intake()
    timer = threading.Timer(0.05, queue.put, [session()])
    timer.start()
    begin = time.monotonic()
    queue.wait(30)
    assert time.monotonic() - begin < 15
    assert len(queue) == 1
    timer.join()


def test_log_lines_that_wait_are_bounded_and_counted() -> None:
    queue = intake.Intake()
    for _ in range(intake.MOST_EVENTS + 10):
        queue.tell(session(), intake.ESTABLISHED)
    assert len(queue) == intake.MOST_EVENTS + 1
    assert queue.events_lost == 9
    queue.put(session())
    assert len(queue) == intake.MOST_EVENTS + 2  # a session is never refused here


def test_log_lines_that_wait_hold_little_memory_and_tell_how_much_came() -> None:
    """A writer that hangs must not keep in memory what the sessions have put out of it."""
    made = intake.Intake()
    one = session()
    for number in range(20_000):
        made.tell(one, number, bytes(65536) if number % 2 else b"short")
    waiting = [item for item in made.take(30_000) if isinstance(item, intake.Event)]
    assert len(waiting) == 20_000
    assert sum(len(event.data) for event in waiting) < 18 << 20
    assert {event.size for event in waiting} == {5, 65536}
    assert all(event.data == b"short" for event in waiting if event.size == 5)
