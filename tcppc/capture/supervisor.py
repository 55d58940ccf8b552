"""Threads that come back: what raises in one is said, counted, and its work is started again.

Each helper thread of the sensor (keeper, prober, metrics, actions, blocks, watches) is one `Supervised`. The state is
written by its own thread alone; others only read it. `_lock` guards the start, so that no work ever has two threads.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

# The pause before it is started again, doubled each time, and for how long it must run before the first pause is
# enough again.
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
WELL_AFTER_SECONDS = 300.0
# As much of an exception's text as a log line shows: there may be a stranger's bytes in it.
SHOWN_CHARACTERS = 300


def described(problem: BaseException) -> str:
    """An exception as one line for people, with the place where it was raised."""
    text = f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
    text = text[:SHOWN_CHARACTERS].encode("unicode_escape").decode("ascii")
    frames = traceback.extract_tb(problem.__traceback__)
    return f"{text} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else text


class Supervised:
    """A daemon thread that does `work` until `stop`; `say` logs, `count` is Books.error.

    `work` returns once its owner has called `stop` here and told it to end. Where it raises, or returns before that,
    it is called again after a pause. Nothing here raises.
    """

    def __init__(
        self, name: str, work: Callable[[], None], say: Callable[[str], None], count: Callable[[str], object]
    ) -> None:
        self.name = name
        self.restarts = 0  # how often it had to be started again
        self.trouble = ""  # why it does not run, while it does not
        self.last = ""  # why it did not the last time
        self._work = work
        self._say = say
        self._count = count
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._wanted = False
        self._pause = 0.0
        self._due = 0.0  # when a thread that could not be started is tried again

    @property
    def alive(self) -> bool:
        """Does its thread run, or wait to be started again?"""
        return self._thread is not None and self._thread.is_alive()

    @property
    def well(self) -> bool:
        """Is its work done? So it is before the start too."""
        return not self._wanted or (self.alive and not self.trouble)

    def start(self) -> None:
        """Begin. Where the machine has no thread left, that is told, and `look` tries again."""
        with self._lock:
            self._wanted = True
            self._start()

    def look(self) -> None:
        """Start it where it has no thread: from time to time, from another thread."""
        with self._lock:
            if self._wanted and not self._end.is_set() and not self.alive and time.monotonic() >= self._due:
                self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        try:
            thread.start()
        except RuntimeError as problem:
            self._failed(problem, "cannot be started: ")
            self._due = time.monotonic() + self._pause
            return
        self._thread, self.trouble = thread, ""

    def stop(self) -> None:
        """It is not started again. What makes `work` return is its owner's."""
        self._end.set()

    def join(self, timeout: float) -> bool:
        """Wait for its end, up to `timeout` seconds; True where it has ended."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.alive

    def _run(self) -> None:
        while True:
            begun = time.monotonic()
            try:
                self.trouble = ""
                self._work()
                if self._end.is_set():
                    return
                raise RuntimeError("it ended by itself")
            except BaseException as problem:  # SystemExit too: it would end the thread without a word
                if time.monotonic() - begun >= WELL_AFTER_SECONDS:
                    self._pause = 0.0
                self._failed(problem)
            if self._end.wait(self._pause):
                return

    def _failed(self, problem: BaseException, how: str = "") -> None:
        """Say it, count it, and make the next pause longer. Also where memory is out."""
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS) or FIRST_PAUSE_SECONDS
        self.trouble = self.last = "it failed"
        with contextlib.suppress(Exception):  # no memory for a text: the thread's return matters more
            self.trouble = self.last = f"{how}{described(problem)}"
        self.restarts += 1
        with contextlib.suppress(Exception):  # nor for a line: `restarts` has it
            self._count("thread_restarts")
            then = "it was to end" if self._end.is_set() else f"it starts again in {self._pause:g} s"
            self._say(f"Thread {self.name}: {self.trouble}; {then} ({self.restarts} times so far).")


def unwell(threads: Iterable[Supervised]) -> list[str]:
    """What is wrong with those that do not do their work, a line each."""
    return [f"thread {thread.name}: {thread.trouble or 'has ended'}" for thread in threads if not thread.well]
