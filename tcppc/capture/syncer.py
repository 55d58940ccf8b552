"""Data files that were written: synced to the disk and closed, in a thread of their own.

fsync(2) of a busy disk takes seconds. The writer does not wait for it: what comes
behind a rotation is written meanwhile.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

# Files that wait to be synced, each with its descriptor; one more is closed without, which the log tells.
MOST_WAITING = 32


def sync_and_close(fd: int, path: str, say: Callable[[str], None]) -> None:
    """Nothing raises: what the disk says goes to the log."""
    try:
        os.fsync(fd)
    except OSError as problem:
        say(f"Failed to sync {path}: {problem.strerror}")
    os.close(fd)


class Syncer:
    """`say` logs; `count` is told of what could not be done, by name."""

    def __init__(self, say: Callable[[str], None], count: Callable[[str], object]) -> None:
        self._say = say
        self._count = count
        self._waiting: deque[tuple[int, str]] = deque()  # the first one is being synced
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def close(self, fd: int, path: str) -> None:
        """Sync this file and close it, later."""
        if not self._started():
            sync_and_close(fd, path, self._say)
            return
        with self._changed:
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append((fd, path))
                self._changed.notify_all()
                return
        self._count("files_not_synced")
        self._say(f"{path} is closed and not synced: the disk is behind with {MOST_WAITING} files.")
        os.close(fd)

    def _started(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="syncer", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the machine has no thread left
                return False
            self._thread = thread
        return True

    def wait(self, timeout: float) -> list[str]:
        """Wait up to `timeout` seconds; returns the files that are not on the disk yet."""
        until = time.monotonic() + timeout
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, max(0.0, until - time.monotonic()))
            return [path for _, path in self._waiting]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                fd, path = self._waiting[0]
            sync_and_close(fd, path, self._say)
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()
