"""Leader and followers: one thread a connection, without a thread started for each.

A few idle threads block in accept() themselves. The one that gets a connection serves it, and before that
starts a successor where no idle thread is left; when it has finished it goes back to accept(), or ends where
enough others are idle. So a busy sensor hands nothing over and starts nothing, and each open connection still
has its own thread.

Shared state, all guarded by `_lock`: `_idle`, `_live`, `_stopping`. `_ended` is told when a thread ends.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Connection = TypeVar("Connection")

# More idle acceptors than this fight for the interpreter lock, fewer start a thread a connection. Measured with
# 40,000 sessions of 64 bytes, 200 at a time, CPU a session: 1 idle 250 µs, 2 47 µs, 3 53 µs, 4 58 µs.
MOST_IDLE = 2


class Crew(Generic[Connection]):
    """The threads of one listening socket.

    `accept()` blocks for a connection and returns it, or None for "ask again"; it must return soon after
    `stop()`. `serve(connection)` has it to its end. `refuse(connection)` is called instead where no thread
    can be started to take serve's place at accept. None of them may raise; what does is a bug and goes to `failed`.
    """

    def __init__(
        self,
        name: str,
        accept: Callable[[], Connection | None],
        serve: Callable[[Connection], None],
        refuse: Callable[[Connection], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.name = name
        self._accept = accept
        self._serve = serve
        self._refuse = refuse
        self._failed = failed
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._idle = 0
        self._live = 0
        self._stopping = False

    def start(self) -> None:
        """Start the first acceptor; RuntimeError where the machine has no thread left."""
        with self._lock:
            self._idle += 1
            self._live += 1
        self._start_thread()

    def _start_thread(self) -> None:
        # Not threading.Thread: its object, event and bootstrap frames cost each open connection memory, and
        # start() waits for the new thread. `_live` counts the threads, and join() waits for it to be zero.
        try:
            _thread.start_new_thread(self._work, ())
        except BaseException:
            with self._lock:
                self._idle -= 1
                self._live -= 1
            raise

    def _work(self) -> None:
        while True:
            try:
                connection = self._accept()
            except Exception as problem:  # a bug; without this the listener would lose its last thread
                self._failed(problem)
                connection = None
            if connection is None:
                with self._lock:
                    if self._stopping:
                        self._idle -= 1
                        break
                continue
            with self._lock:
                self._idle -= 1
                alone = self._idle == 0 and not self._stopping
                if alone:
                    self._idle += 1
                    self._live += 1
            if alone:
                try:
                    self._start_thread()
                except RuntimeError:
                    self._refuse_and_return(connection)
                    continue
            try:
                self._serve(connection)
            except Exception as problem:
                self._failed(problem)
            del connection
            with self._lock:
                if self._stopping or self._idle >= MOST_IDLE:
                    break
                self._idle += 1
        with self._ended:
            self._live -= 1
            self._ended.notify_all()

    def _refuse_and_return(self, connection: Connection) -> None:
        try:
            self._refuse(connection)
        except Exception as problem:
            self._failed(problem)
        with self._lock:
            self._idle += 1

    def accepting(self) -> bool:
        """Is a thread in accept(), or about to be?"""
        with self._lock:
            return self._idle > 0

    def stop(self) -> None:
        """Nobody goes back to accept(); the owner has to wake those that are in it."""
        with self._lock:
            self._stopping = True

    def join(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for all threads to end; returns how many have not."""
        with self._ended:
            self._ended.wait_for(lambda: not self._live, timeout)
            return self._live
