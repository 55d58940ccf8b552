"""How long a session may last and be idle, by the monotonic clock: a clock that is set neither cuts nor prolongs it."""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

from tcppc.capture.sockets import set_receive_timeout

# The socket's time-out is rounded to microseconds and may end a little early.
SLACK_NS = 1_000_000


class Stopped(Exception):  # noqa: N818 - it is how a session ends, not an error
    """The session has ended; `args[0]` is its `closed`."""


class Deadline:
    """One session's. Times are nanoseconds: `timeout` of one read, `duration` of all."""

    __slots__ = ("_sock", "end", "review", "timeout")

    def __init__(self, sock: Any, timeout: int, duration: int) -> None:
        self._sock = sock
        self.timeout = timeout
        self.end = monotonic_ns() + duration
        self.review = self.end - timeout  # from then on reads must wait less than the idle timeout
        if timeout > duration:
            self.shorten()

    def shorten(self) -> None:
        """The longest duration ends before the idle timeout would: read no longer than it. Stopped where it is over."""
        left = self.end - monotonic_ns()
        if left <= 0:
            raise Stopped("limit")
        set_receive_timeout(self._sock, min(left, self.timeout) / 1e9)

    def over(self) -> bool:
        return monotonic_ns() >= self.end - SLACK_NS

    def within(self, nanoseconds: int) -> int:
        """The instant (monotonic) that is so far away, or the end if that comes first."""
        return min(monotonic_ns() + nanoseconds, self.end)

    def wait(self, seconds: float) -> None:
        """The next reads wait so long, and not beyond the end."""
        left = (self.end - monotonic_ns()) / 1e9
        set_receive_timeout(self._sock, max(0.001, min(seconds, left)))
