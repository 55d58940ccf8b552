"""The books: what strangers may use, what they do use, and what became of every session.

One lock guards every number here. Each accepted session ends in exactly one of `recorded` and `dropped`, or is
still `open` or on its way to the writer; what a bound refuses or cuts and what the kernel lost is counted by its
cause. A refused session is recorded too (closed: limit), so `refused` is a reason, not a loss.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tcppc.records import Session
from tcppc.sections import Limits

# What a session costs beside its payload bytes, and a payload beside its own. tracemalloc on CPython 3.11 says 522
# bytes (the Session, its addresses, numbers and place in the queue) and 136 (tuple, integer, bytes header); rounded up.
SESSION_CHARGE = 1024
PAYLOAD_CHARGE = 160
# A payload's step on its way to the writer costs 104 more (a tuple of five, sys.getsizeof), and the queue its place.
STEP_CHARGE = 128
SIGHTINGS_SHARE = 4


def source_key(address: str) -> str | bytes:
    """Who counts as one source: an IPv4 address, or the /64 of an IPv6 address."""
    return socket.inet_pton(socket.AF_INET6, address)[:8] if ":" in address else address


class Books:
    """Bounds and counts, shared by the servers and the writer."""

    def __init__(self, limits: Limits, threads: int = 1 << 20) -> None:
        self.lock = self._lock = threading.Lock()
        self.open = 0
        self.accepted = 0
        self.datagrams = 0  # of them
        self.recorded = 0  # sessions that are in the data file, or were logged where there is none
        self.bytes_in = 0  # received in those
        self.payloads = 0
        self.ended: Counter[tuple[str, str]] = Counter()  # recorded ones by proto and how they closed
        self.ports: Counter[tuple[str, int]] = Counter()  # recorded ones by transport and port touched
        self.lines = 0  # written to data files
        self.bytes_written = 0
        self.held = 0  # bytes of the memory bound in use
        self.held_sightings = 0  # of them, by what the watch saw
        self.refused: Counter[str] = Counter()  # sessions: sessions, source, memory, threads
        self.dropped: Counter[str] = Counter()  # sessions that reached no file: disk, memory, error
        self.errors: Counter[str] = Counter()  # accept errors by name, kernel_udp_drops, log lines lost
        self.scarce = "memory"  # why memory is out, where it is: "disk" while the disk takes nothing
        self.truncated: Counter[str] = (
            Counter()
        )  # sessions that a bound cut: session_bytes, session_payloads, memory, disk
        self.lone: str | bytes | None = None  # the only source since `turn_sources`; "" where there were several
        self.seen: Counter[str] = Counter()  # by the watch: syn, probe, datagram
        self.scans: Counter[tuple[str, str, bool]] = Counter()  # by kind, proto, slow
        self.actions: Counter[str] = Counter()
        self._counted = 0
        self._sources: dict[str | bytes, int] = {}
        self.set_limits(limits, threads)

    def set_limits(self, limits: Limits, threads: int | None = None) -> None:
        """New bounds; `threads` is how many sessions the machine has descriptors and threads for."""
        with self._lock:
            if threads is not None:
                self._threads = threads
            self.limits = limits
            self.max_sessions = max(1, min(limits.sessions, self._threads))
            self.max_source = limits.sessions_per_source or max(1, self.max_sessions // 2)

    def enter(self, key: str | bytes) -> str:
        """A session of this source begins: "" or the name of the bound that refuses it. Either way the session
        is accepted, open and charged with SESSION_CHARGE, unless the bound is memory."""
        with self._lock:
            self.accepted += 1
            self.open += 1
            if key != self.lone:
                self.lone = key if self.lone is None else ""
            count = self._sources.get(key, 0)
            self._sources[key] = count + 1
            if self.held + SESSION_CHARGE > self.limits.memory:
                bound = self.scarce
            else:
                self.held += SESSION_CHARGE
                if self.open > self.max_sessions:
                    bound = "sessions"
                elif count >= self.max_source:
                    bound = "sessions_per_source"
                else:
                    return ""
            self.refused[bound] += 1
            return bound

    def refuse(self, bound: str) -> None:
        """A session is refused by a bound that is not kept here."""
        with self._lock:
            self.refused[bound] += 1

    def leave(self, key: str | bytes) -> None:
        """The session ended; its memory stays charged until `give`."""
        with self._lock:
            self.open -= 1
            self._forget(key)

    def _forget(self, key: str | bytes) -> None:
        count = self._sources[key] - 1
        if count:
            self._sources[key] = count
        else:
            del self._sources[key]

    def move(self, old: str | bytes, new: str | bytes) -> str:
        """An open session is of another source than it seemed: "" or the name of the bound that this breaks."""
        with self._lock:
            self._forget(old)
            count = self._sources.get(new, 0)
            self._sources[new] = count + 1
            self.lone = ""
            if count < self.max_source:
                return ""
            self.refused["sessions_per_source"] += 1
            return "sessions_per_source"

    def turn_sources(self) -> tuple[str | bytes, int]:
        """(the only source of the sessions since the last call or "", how many they were)."""
        with self._lock:
            found = (self.lone or "", self.accepted - self._counted)
            self.lone, self._counted = None, self.accepted
            return found

    def datagram(self, size: int) -> bool:
        """A datagram of `size` bytes was read; False where memory is out, and then it is dropped and counted."""
        with self._lock:
            self.accepted += 1
            self.datagrams += 1
            if self.held + size + SESSION_CHARGE > self.limits.memory:
                self.dropped[self.scarce] += 1
                return False
            self.held += size + SESSION_CHARGE
            return True

    def take(self, size: int) -> bool:
        """May `size` more bytes be held in memory?"""
        with self._lock:
            if self.held + size > self.limits.memory:
                return False
            self.held += size
            return True

    def give(self, size: int) -> None:
        """`size` bytes are held no more."""
        with self._lock:
            self.held -= size

    def take_sightings(self, size: int) -> bool:
        """May what the watch saw hold `size` more? A share of the memory bound, so that a flood of SYNs leaves sessions
        the rest."""
        with self._lock:
            if self.held_sightings + size > self.limits.memory // SIGHTINGS_SHARE:
                return False
            if self.held + size > self.limits.memory:
                return False
            self.held += size
            self.held_sightings += size
            return True

    def give_sightings(self, size: int) -> None:
        with self._lock:
            self.held -= size
            self.held_sightings -= size

    def settle(self, sessions: int, bytes_in: int, charge: int, lines: int, bytes_written: int) -> None:
        """These sessions are recorded, their memory is given back."""
        with self._lock:
            self.recorded += sessions
            self.bytes_in += bytes_in
            self.held -= charge
            self.lines += lines
            self.bytes_written += bytes_written

    def tally(self, sessions: Sequence[Session]) -> None:
        """What the metrics tell of recorded sessions."""
        ended = [(session.proto, session.closed or "datagram") for session in sessions]
        ports = [("udp" if session.proto == "udp" else "tcp", session.dport) for session in sessions]
        payloads = sum([len(session.payloads) for session in sessions])
        with self._lock:
            self.ended.update(ended)
            self.ports.update(ports)
            self.payloads += payloads

    def drop(self, cause: str, sessions: int = 1) -> None:
        """Sessions that will be in no file."""
        with self._lock:
            self.dropped[cause] += sessions

    def cut(self, cause: str) -> None:
        """A session's payloads are cut by a bound."""
        with self._lock:
            self.truncated[cause] += 1

    def error(self, name: str, count: int = 1) -> int:
        """Something went wrong `count` times; returns how often that makes."""
        with self._lock:
            self.errors[name] += count
            return self.errors[name]

    def saw(self, syn: int, probe: int, datagram: int) -> None:
        """The watch saw so many of them more."""
        with self._lock:
            self.seen["syn"] += syn
            self.seen["probe"] += probe
            self.seen["datagram"] += datagram

    def scan(self, kind: str, proto: str, slow: bool) -> None:
        """The watch found a scan."""
        with self._lock:
            self.scans[kind, proto, slow] += 1

    def acted(self, name: str, count: int = 1) -> int:
        """Of the actions: run, failed, dropped_queue, dropped_memory, dropped_stop, blocks… Returns how many so far."""
        with self._lock:
            self.actions[name] += count
            return self.actions[name]

    def counts(self) -> dict[str, Any]:
        """Everything counted so far, as the ledger names it: numbers, and numbers by cause."""
        with self._lock:
            return {
                "accepted": self.accepted,
                "recorded": self.recorded,
                "open": self.open,
                "truncated": dict(self.truncated),
                "refused": dict(self.refused),
                "dropped": dict(self.dropped),
                "errors": dict(self.errors),
                "bytes_in": self.bytes_in,
                "lines": self.lines,
                "bytes": self.bytes_written,
            }

    def summary(self) -> str:
        """The counts in one line, those that are zero left out."""
        with self._lock:
            parts = [f"{self.accepted} accepted", f"{self.open} open"]
            parts += [f"{count} refused ({name})" for name, count in sorted(self.refused.items())]
            parts += [f"{count} truncated ({name})" for name, count in sorted(self.truncated.items())]
            parts += [f"{count} dropped ({name})" for name, count in sorted(self.dropped.items())]
            parts += [f"{count} {name}" for name, count in sorted(self.errors.items())]
            if self.held and not self.open:
                parts.append(f"{self.held} bytes held")
        return ", ".join(parts)
