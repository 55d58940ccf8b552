"""What the main thread looks at each second: does the writer get on, do helper threads do their work, does memory come
back, is one gateway in front?

A write that hangs is seen here, since the writer's own thread cannot say it: in the log, the status line, the metrics
and the ledger.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import time
from collections.abc import Callable
from ipaddress import ip_address

from tcppc.sensor import STUCK_SECONDS, Sensor

LOOK_SECONDS = 1.0
SAY_AGAIN_SECONDS = 60.0
# For so long all sessions must have come from one private address before it is taken for a gateway that hides who they
# are of; and so many, since a host that is alone with its sensor may well try it now and then.
GATEWAY_SECONDS = 3600.0
GATEWAY_SESSIONS = 10
# Memory that sessions held goes back to the machine once so much of it is free, and not more often than that.
TRIM_BYTES = 16 << 20
TRIM_SECONDS = 10.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE_PIECE_BYTES = 1 << 20


class WriterWatch:
    """Tells that the writer is stuck, and that it goes on."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._since = 0.0  # since when it is stuck (monotonic seconds); 0: it is not
        self._said = 0.0

    def look(self) -> None:
        sensor = self._sensor
        sensor.writer.alive()
        seconds, where = sensor.writer.stuck()
        now = time.monotonic()
        if seconds < STUCK_SECONDS:
            if self._since:
                sensor.log(f"Writing session data again: the call had not returned for {now - self._since:.0f} s.")
                if sensor.ledger:
                    sensor.ledger.thread("writer", True)
                self._since = 0.0
            return
        sensor.books.scarce = "disk"
        waiting = f"{sensor.writer.waiting()} lines wait, {sensor.books.held} bytes are held in memory"
        if not self._since:
            self._since, self._said = now - seconds, now
            sensor.books.error("writer_stuck")
            if sensor.ledger:
                sensor.ledger.thread("writer", False, f"writing to {where} has not returned for {seconds:.0f} s")
        elif now - self._said < SAY_AGAIN_SECONDS:
            return
        self._said = now
        sensor.log(
            f"Writing session data hangs: writing to {where} has not returned for {seconds:.0f} s: its disk, or who "
            f"reads a pipe, takes nothing; {waiting}."
        )


class CopierWatch:
    """Tells that copies hang, and that they are made again."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._since = 0.0  # since when they hang (monotonic seconds); 0: they do not
        self._said = 0.0

    def look(self) -> None:
        sensor = self._sensor
        seconds, where = sensor.copier.stuck()
        now = time.monotonic()
        if seconds < STUCK_SECONDS:
            if self._since:
                sensor.log(f"Writing captures again: the call had not returned for {now - self._since:.0f} s.")
                self._since = 0.0
                if sensor.ledger:
                    sensor.ledger.thread("copier", True)
            return
        why = f"writing to captures {where} has not returned for {seconds:.0f} s"
        if not self._since:
            self._since, self._said = now - seconds, now
            if sensor.ledger:
                sensor.ledger.thread("copier", False, why)
        elif now - self._said < SAY_AGAIN_SECONDS:
            return
        self._said = now
        waiting = sensor.copier.waiting()
        sensor.log(f"Writing captures hangs: {why}: its disk takes nothing; {waiting} sessions wait to be copied.")


class ThreadWatch:
    """Starts helper threads that could not be started, and has the ledger tell of those that failed."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._restarts: dict[str, int] = {}
        self._failed: set[str] = set()

    def look(self) -> None:
        for thread in self._sensor.supervised():
            thread.look()
            if thread.restarts != self._restarts.get(thread.name, 0):
                self._restarts[thread.name] = thread.restarts
                self._failed.add(thread.name)
                self._tell(thread.name, False, thread.last)
            elif thread.name in self._failed and thread.well:
                self._failed.remove(thread.name)
                self._tell(thread.name, True)

    def _tell(self, name: str, alive: bool, why: str = "") -> None:
        if self._sensor.ledger:
            self._sensor.ledger.thread(name, alive, why)


class MemoryWatch:
    """Gives the machine back what sessions held: the C library keeps what was freed otherwise."""

    def __init__(self, held: Callable[[], int]) -> None:
        self._held = held
        self._most = 0
        self._last = 0  # held at the last trim
        self._dirty = False
        self._next = 0.0

    def look(self) -> None:
        held, now = self._held(), time.monotonic()
        self._most = max(self._most, held)
        self._dirty = self._dirty or self._most - held >= TRIM_BYTES
        if self._dirty and now >= self._next:
            # Once more after the last one, for what has gone since.
            self._dirty = held != self._last
            self._next, self._most, self._last = now + TRIM_SECONDS, held, held
            if trim := _malloc_trim():
                trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return None
    return found


def keep_little_free_memory() -> None:
    """Have glibc give large pieces back when they are freed. Otherwise one large record raises its thresholds for good
    (mallopt(3): they follow the largest piece ever freed), and what sessions held stays with the process: 84 MB after
    four sessions of 12 MiB, 45 with this."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, LARGE_PIECE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, LARGE_PIECE_BYTES)


class GatewayWatch:
    """Warns where something in front of the sensor, such as a container's port forwarding, hides all sources."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._next = time.monotonic() + GATEWAY_SECONDS
        self._warned: str | bytes = ""

    def look(self) -> None:
        """Once each GATEWAY_SECONDS: was there one source only, and a private one?"""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + GATEWAY_SECONDS
        key, sessions = self._sensor.books.turn_sources()
        if not key or sessions < GATEWAY_SESSIONS or key == self._warned:
            return
        address = ip_address(key.ljust(16, b"\0") if isinstance(key, bytes) else key)
        if address.is_private:
            self._warned = key
            self._sensor.log(
                f"All {sessions} sessions of the last {GATEWAY_SECONDS / 60:.0f} minutes came from {address}, a "
                "private address: something in front of this sensor hides who they are of. Give a container the host's "
                "network, or let a load balancer speak the PROXY protocol (capture.proxy_protocol)."
            )
