"""The sensor knocks at its own listeners from time to time: one that died in silence is found out.

A probe is told by its source, a socket of this very process that is bound first: no stranger can have that address and
port. It is counted nowhere and recorded nowhere; what it finds is logged, counted (`listener_dead`) and in the ledger.
A knock waits behind all that strangers send, and a flood may push it out of the buffer: a listener that took anything
meanwhile (`progress`) is busy, and not dead.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tcppc.capture.supervisor import Supervised

PAUSE_SECONDS = 60.0
# A flood may hold up a knock: it is tried again after a while, and only so many in vain make a listener dead.
AGAIN_SECONDS = 5.0
DEAD_AFTER = 3
ANSWER_SECONDS = 10.0
LATE_SECONDS = 300.0
DATAGRAMS = 5  # tried one after the other within ANSWER_SECONDS: a full buffer may take one
_NONCE_BYTES = 16

Source = tuple[str, int]


class Awaited:
    """Probes under way: source to (what it sends, what to set when it came); and those that nobody waits for any more
    and that may still come, from behind a flood. Dict operations are atomic."""

    def __init__(self) -> None:
        self._events: dict[Source, tuple[bytes, threading.Event]] = {}
        self._late: dict[Source, float] = {}  # when each is forgotten (monotonic seconds)

    def __bool__(self) -> bool:
        return bool(self._events)

    def expect(self, source: Source, nonce: bytes = b"") -> threading.Event:
        event = threading.Event()
        self._events[source] = nonce, event
        return event

    def forget(self, source: Source, late: bool = False) -> None:
        """Nobody waits for it any more; `late`: it may come all the same, and is no stranger's then."""
        now = time.monotonic()
        for each, until in list(self._late.items()):
            if until < now:
                self._late.pop(each, None)
                self._events.pop(each, None)
        if late:
            self._late[source] = now + LATE_SECONDS
        else:
            self._events.pop(source, None)

    def came(self, source: Source, data: bytes = b"") -> bool:
        """Is it a probe's?"""
        nonce, event = self._events.get(source, (b"", None))
        if event is None or data != nonce:
            return False
        if not nonce and self._late.pop(source, 0.0):  # a connection comes once; its port may be another's then
            self._events.pop(source, None)
        event.set()
        return True


class Listener(Protocol):
    """What is probed: a server."""

    awaited: Awaited
    progress: int

    @property
    def name(self) -> str: ...

    @property
    def address_family(self) -> int: ...

    @property
    def server_address(self) -> Any: ...


def _near(listener: Listener, port: int) -> tuple[Any, ...]:
    """The address to call a listener at, and to call from; a link-local one with its zone."""
    host, _, *zone = listener.server_address
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, *zone


def knock_tcp(listener: Listener) -> bool:
    """Is a connection accepted? OSError where it cannot be tried."""
    with socket.socket(socket.AddressFamily(listener.address_family), socket.SOCK_STREAM) as sock:
        sock.bind(_near(listener, 0))
        source = sock.getsockname()[:2]
        accepted = listener.awaited.expect(source)
        waits = False  # is it in the back-log?
        try:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect(_near(listener, listener.server_address[1]))
            waits = not accepted.wait(ANSWER_SECONDS)
            return not waits
        except (TimeoutError, ConnectionRefusedError):
            return False
        finally:
            listener.awaited.forget(source, late=waits)


def knock_udp(listener: Listener) -> bool:
    """Is a datagram read? OSError where it cannot be tried."""
    with socket.socket(socket.AddressFamily(listener.address_family), socket.SOCK_DGRAM) as sock:
        sock.bind(_near(listener, 0))
        source, nonce = sock.getsockname()[:2], os.urandom(_NONCE_BYTES)
        read = listener.awaited.expect(source, nonce)
        sent = 0
        try:
            while sent < DATAGRAMS:
                sent += 1
                sock.sendto(nonce, _near(listener, listener.server_address[1]))
                if read.wait(ANSWER_SECONDS / DATAGRAMS):
                    return True
            return False
        finally:
            listener.awaited.forget(source, late=sent > 1 or not read.is_set())


class Prober:
    """The thread that knocks. `found(kind, name, alive)` is called where a listener that answered before does so no
    more, and where it does so again; `say` logs; `also` is what is looked at as often; `count` is Books.error."""

    def __init__(
        self,
        tcp: Sequence[Listener],
        udp: Sequence[Listener],
        say: Callable[[str], None],
        found: Callable[[str, str, bool], None],
        also: Callable[[], None] = lambda: None,
        count: Callable[[str], object] = lambda name: None,
    ) -> None:
        self._listeners = [("TCP", listener) for listener in tcp] + [("UDP", listener) for listener in udp]
        self._say = say
        self._found = found
        self._also = also
        self._alive: dict[tuple[str, str], bool] = {}
        self._unable: set[tuple[str, str]] = set()
        self._failed: dict[tuple[str, str], int] = {}  # knocks in vain, one after the other
        self._end = threading.Event()
        self.thread = Supervised("probe", self._run, say, count)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.thread.stop()
        self._end.set()

    def well(self) -> bool:
        """Does each listener answer, as far as is known?"""
        return all(self._alive.values())

    def dead(self) -> int:
        """How many do not."""
        return len(self.not_answering())

    def not_answering(self) -> list[tuple[str, str]]:
        """Those that do not: kind and name."""
        return [key for key, alive in list(self._alive.items()) if not alive]

    def _run(self) -> None:
        while not self._end.wait(min(PAUSE_SECONDS, AGAIN_SECONDS) if self._failed else PAUSE_SECONDS):
            for kind, listener in self._listeners:
                self._look(kind, listener)
            self._also()

    def _look(self, kind: str, listener: Listener) -> None:
        key = kind, listener.name
        progress = listener.progress
        try:
            alive = knock_tcp(listener) if kind == "TCP" else knock_udp(listener)
            alive = alive or listener.progress != progress
        except OSError as problem:
            if key not in self._unable and not self._end.is_set():
                self._unable.add(key)
                self._say(f"Probe of {kind} {key[1]}: cannot be done: {problem.strerror or problem}; going on without.")
            return
        if self._end.is_set():
            return
        before = self._alive.get(key)
        if before is None and not alive:
            # Passed sockets may be of a network that this process has no part in: then nothing is known of them.
            if key not in self._unable:
                self._unable.add(key)
                self._say(f"Probe of {kind} {key[1]}: no answer from here; is its loopback traffic filtered?")
            return
        if alive:
            self._failed.pop(key, None)
        elif before:
            self._failed[key] = self._failed.get(key, 0) + 1
            if self._failed[key] < DEAD_AFTER:
                return
        self._alive[key] = alive
        if before is not None and before != alive:
            self._found(*key, alive)
