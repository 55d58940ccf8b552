"""The queue between the capturing threads and the writer.

Any thread puts, one thread takes. What is in it is bounded in bytes by the books: a session is charged before
it comes here. Events, which only make log lines, are bounded in number, and what is over is counted.
A deque's append and popleft are atomic, so that putting costs no lock; the writer is woken only where it sleeps.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, NamedTuple

from tcppc.log import SHOWN_BYTES
from tcppc.records import Session, Step
from tcppc.sightings import Sighting

# Log lines that may wait; a writer that is this far behind has better things to do than to talk. Of more than
# MOST_WHOLE the bytes are shown in part, so that all of them hold 41 MB at most.
MOST_EVENTS = 100_000
MOST_WHOLE = 4096
PART_BYTES = 64
MEMORY_TRIES = 50
MEMORY_PAUSE_SECONDS = 0.1


class Event(NamedTuple):
    """Something to say in the log, as it was when it happened: the session may change before it is said.

    `number` is the count of payloads with this one, or ESTABLISHED or SECURED; `data` is the beginning of
    `size` bytes; `open` is how many sessions there are.
    """

    session: Session
    proto: str
    number: int
    data: bytes
    size: int
    open: int


ESTABLISHED = -1
SECURED = -2

Line = Session | Step | Sighting  # what becomes a line in the data file
Item = Line | Event


class Intake:
    """Sessions and events on their way to the writer."""

    def __init__(self, talkative: bool = True, steps: bool = False) -> None:
        self.talkative = talkative  # are events wanted, for the log?
        self.steps = steps  # are steps wanted, for event lines?
        self.events_lost = 0
        self._items: deque[Item] = deque()
        self._asleep = False
        self._wake = threading.Event()

    def adopt(self, talkative: bool, steps: bool) -> None:
        """For sessions from now on."""
        self.talkative, self.steps = talkative, steps

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        """Hand over a session that has ended, a datagram, a step of a session, or what the watch saw. Out of memory it
        waits for some; MemoryError where there is none for long."""
        try:
            self._items.append(item)
        except MemoryError:
            self._put_later(item)
        if self._asleep:
            self._wake.set()

    def _put_later(self, item: Item) -> None:
        for _ in range(MEMORY_TRIES):
            time.sleep(MEMORY_PAUSE_SECONDS)  # the writer gives some back meanwhile
            try:
                self._items.append(item)
                return
            except MemoryError:
                continue
        self._items.append(item)

    def tell(self, session: Session, count: int, data: bytes = b"", open_sessions: int = 0) -> None:
        """Hand over an event; only where `talkative`."""
        if len(self._items) > MOST_EVENTS:
            self.events_lost += 1  # approximate under races, which is good enough for log lines
            return
        shown = data[: SHOWN_BYTES if len(self._items) < MOST_WHOLE else PART_BYTES]
        self.put(Event(session, session.proto, count, shown, len(data), open_sessions))

    def wake(self) -> None:
        """End the writer's sleep now."""
        self._wake.set()

    def wait(self, timeout: float) -> None:
        """Sleep until there is something, `wake` is called or `timeout` seconds have passed."""
        self._asleep = True
        # Whoever put before the line above did not see a sleeper: look again before sleeping.
        if not self._items:
            self._wake.wait(timeout)
        self._asleep = False
        self._wake.clear()

    def take(self, most: int) -> list[Item]:
        """Up to `most` items in the order they came."""
        items = self._items
        count = min(most, len(items))
        # Room first: no memory is asked for once the first one has been taken out.
        taken: list[Any] = [None] * count
        for number in range(count):
            taken[number] = items.popleft()
        return taken

    def give_back(self, taken: list[Item]) -> None:
        """What `take` gave could not be dealt with: it is the first again."""
        self._items.extendleft(reversed(taken))
