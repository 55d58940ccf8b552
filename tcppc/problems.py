"""What may go wrong that is nobody's bug: each of these is one line for a person, and an exit code."""

from __future__ import annotations

from collections.abc import Callable


class Misuse(Exception):  # noqa: N818 - a family of errors, no error of its own
    """What was wrong with arguments or configuration: exit code 2."""


class Few:
    """Tells the first lines of many, and how many more there were: what one reads, and nothing that grows with them."""

    def __init__(self, tell: Callable[[str], object], most: int = 20) -> None:
        self.count = 0
        self._tell = tell
        self._most = most

    def __call__(self, line: str) -> None:
        self.count += 1
        if self.count <= self._most:
            self._tell(line)

    def over(self) -> None:
        """That was all of them."""
        if self.count > self._most:
            self._tell(f"… {self.count - self._most:,} more like these")


class Failure(Exception):  # noqa: N818
    """What went wrong at run time: exit code 1."""


# CPython tells nothing but this of a thread that pthread_create(3) refused.
_CANNOT = "can't start new thread"
NO_THREAD = (
    "no thread can be started: expected ulimit -u, TasksMax= or pids.max above the sessions that are wanted, and a "
    "container runtime that lets clone3(2) through"
)


def is_lack_of_threads(problem: BaseException) -> bool:
    """Did the machine give no thread? Then NO_THREAD says what would be right."""
    return isinstance(problem, RuntimeError) and _CANNOT in str(problem)
