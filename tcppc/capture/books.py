"""The books: what strangers may use, what they do use, and what became of every session.

One lock guards every number here. Each accepted session ends in exactly one of `recorded` and `dropped`, or is
still `open` or on its way to the writer; what a bound refuses or cuts and what the kernel lost is counted by its
cause. A refused session is recorded too (closed: limit), so `refused` is a reason, not a loss.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from tcppc.capture.shares import BULK, FIRST, Shares, Source, network_key, source_key
from tcppc.records import Session
from tcppc.sections import Limits

# What a session costs beside its payload bytes, and a payload beside its own. tracemalloc on CPython 3.11 says 522
# bytes (the Session, its addresses, numbers and place in the queue) and 136 (tuple, integer, bytes header); rounded up.
SESSION_CHARGE = 1024
PAYLOAD_CHARGE = 160
# A payload's step on its way to the writer costs 104 more (a tuple of five, sys.getsizeof), and the queue its place.
STEP_CHARGE = 128
SIGHTINGS_SHARE = 4


__all__ = ["Books", "Source", "network_key", "source_key"]


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
        self.stowed = 0  # bytes in the spill file
        self.refused: Counter[str] = Counter()  # sessions: sessions, source, memory, threads
        self.dropped: Counter[str] = Counter()  # sessions that reached no file: disk, memory, stuck, stop, error
        self.bytes_dropped = 0  # bytes of payload in them, as far as they were read
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
        self._shares = Shares(limits.memory)
        self.set_limits(limits, threads)

    def set_limits(self, limits: Limits, threads: int | None = None) -> None:
        """New bounds; `threads` is how many sessions the machine has descriptors and threads for."""
        with self._lock:
            if threads is not None:
                self._threads = threads
            self.limits = limits
            self._shares.memory = limits.memory
            self._bulk, self._first = limits.memory * BULK // 16, limits.memory * FIRST // 16
            self.max_sessions = max(1, min(limits.sessions, self._threads))
            self.max_source = limits.sessions_per_source or max(1, self.max_sessions // 2)
            # An eighth is left to others, unless one source is given more.
            self.max_network = max(self.max_source, self.max_sessions - self.max_sessions // 8)

    def enter(self, key: str | bytes) -> tuple[str, Source]:
        """A session of this source begins: ("" or the name of the bound that refuses it, the source). Either way it is
        accepted, open and charged with SESSION_CHARGE, unless the bound is memory or disk: then there is no room even
        for its bare record, and it has to be dropped."""
        with self._lock:
            self.accepted += 1
            self.open += 1
            if key != self.lone:
                self.lone = key if self.lone is None else ""
            source = self._shares.source(key)
            source.sessions += 1
            source.network.sessions += 1
            if self.held + SESSION_CHARGE > self.limits.memory:
                return self.scarce, source
            self._hold(SESSION_CHARGE, source)
            if self.open > self.max_sessions:
                bound = "sessions"
            elif source.sessions > self.max_source:
                bound = "sessions_per_source"
            elif source.network.sessions > self.max_network:
                bound = "sessions_per_network"
            else:
                return "", source
            self.refused[bound] += 1
            return bound, source

    def _hold(self, size: int, source: Source | None) -> None:
        self.held += size
        if source:
            source.held += size
            source.network.held += size

    def refuse(self, bound: str) -> None:
        """A session is refused by a bound that is not kept here."""
        with self._lock:
            self.refused[bound] += 1

    def leave(self, source: Source) -> None:
        """The session ended; its memory stays charged until `give`."""
        with self._lock:
            self.open -= 1
            self._forget(source)

    def _forget(self, source: Source) -> None:
        source.sessions -= 1
        source.network.sessions -= 1
        self._shares.tidy(source)

    def move(self, old: Source, key: str | bytes, charge: int) -> tuple[str, Source]:
        """An open session, which holds `charge` bytes, is of another source than it seemed: ("" or the name of the
        bound that this breaks, the source)."""
        with self._lock:
            new = self._shares.source(key)
            self._hold(-charge, old)
            self._hold(charge, new)
            new.sessions += 1
            new.network.sessions += 1
            self._forget(old)
            self.lone = ""
            if new.sessions > self.max_source:
                bound = "sessions_per_source"
            elif new.network.sessions > self.max_network:
                bound = "sessions_per_network"
            else:
                return "", new
            self.refused[bound] += 1
            return bound, new

    def turn_sources(self) -> tuple[str | bytes, int]:
        """(the only source of the sessions since the last call or "", how many they were)."""
        with self._lock:
            found = (self.lone or "", self.accepted - self._counted)
            self.lone, self._counted = None, self.accepted
            return found

    def datagram(self, size: int, src: str) -> Source | Literal[False] | None:
        """A datagram of `size` bytes was read; False where memory is out, and then it is dropped and counted. Otherwise
        whom its memory is charged to: nobody (None) while there is plenty."""
        charge = size + SESSION_CHARGE
        with self._lock:
            self.accepted += 1
            self.datagrams += 1
            held = self.held
            if held + charge <= self.limits.memory >> 2:
                self.held = held + charge
                return None
            source = self._shares.source(source_key(src))
            full = self._shares.full(source, charge)
            if full or held + charge > self._first:
                self.dropped["source_memory" if full else self.scarce] += 1
                self.bytes_dropped += size
                self._shares.tidy(source)
                return False
            self._hold(charge, source)
            return source

    def take(self, size: int, source: Source | None = None, small: bool = False) -> bool:
        """May `size` more bytes be held in memory for this source? `small`: they are the first of their session."""
        with self._lock:
            if self.held + size > (self._first if small else self._bulk):
                return False
            if source and self._shares.full(source, size):
                return False
            self._hold(size, source)
            return True

    def give(self, size: int, source: Source | None = None) -> None:
        """`size` bytes are held no more."""
        with self._lock:
            self._hold(-size, source)
            if source:
                self._shares.tidy(source)

    def stow(self, size: int, source: Source | None, most: int) -> bool:
        """May `size` bytes more of this source's stand in the spill file of at most `most` bytes?"""
        with self._lock:
            if source and (source.stowed + size > most // 4 or source.network.stowed + size > most // 2):
                return False
            if source:
                source.stowed += size
                source.network.stowed += size
            self.stowed += size
            return True

    def unstow(self, size: int, source: Source | None) -> None:
        with self._lock:
            self.stowed -= size
            if source:
                source.stowed -= size
                source.network.stowed -= size
                self._shares.tidy(source)

    def ceiling(self, source: Source | None) -> int:
        """How many bytes a session of this source may hold in memory now; a look without the lock."""
        return self._shares.ceiling(self.held, source)

    def why_full(self, source: Source | None, size: int) -> str:
        """Why there is no memory for `size` bytes: the source's own share, or all of it."""
        with self._lock:
            return "source_memory" if source and self._shares.full(source, size) else self.scarce

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

    def settle(self, sessions: Sequence[Session], lines: int, bytes_written: int) -> None:
        """These sessions are recorded, their memory is given back."""
        # Sums first: where there is no memory for them, nothing was counted, and it can be done again.
        bytes_in, charge = sum([session.bytes for session in sessions]), sum([session.charge for session in sessions])
        with self._lock:
            self.recorded += len(sessions)
            self.bytes_in += bytes_in
            self.lines += lines
            self.bytes_written += bytes_written
            self._give_all(sessions, charge)

    def _give_all(self, sessions: Sequence[Session], charge: int) -> None:
        self.held -= charge
        for session in sessions:
            if source := session.source:
                charge = session.charge
                source.held -= charge
                source.network.held -= charge
                if not source.held:
                    self._shares.tidy(source)

    def tally(self, sessions: Sequence[Session]) -> None:
        """What the metrics tell of recorded sessions."""
        ended = [(session.proto, session.closed or "datagram") for session in sessions]
        ports = [("udp" if session.proto == "udp" else "tcp", session.dport) for session in sessions]
        payloads = sum([session.count for session in sessions])
        with self._lock:
            self.ended.update(ended)
            self.ports.update(ports)
            self.payloads += payloads

    def drop(self, cause: str, sessions: int = 1, size: int = 0) -> None:
        """Sessions that will be in no file, with `size` bytes of payload in all."""
        with self._lock:
            self.dropped[cause] += sessions
            self.bytes_dropped += size

    def lose(self, cause: str, sessions: Sequence[Session]) -> None:
        """As `drop`, and their memory is given back."""
        size, charge = sum([session.bytes for session in sessions]), sum([session.charge for session in sessions])
        with self._lock:
            self.dropped[cause] += len(sessions)
            self.bytes_dropped += size
            self._give_all(sessions, charge)

    def left_unread(self, connections: int = 0, datagrams: int = 0, size: int = 0) -> None:
        """So many connections and datagrams (of `size` bytes in all) had come, and were not taken when the time for the
        stop was over."""
        if count := connections + datagrams:
            with self._lock:
                self.accepted += count
                self.datagrams += datagrams
                self.dropped["stop"] += count
                self.bytes_dropped += size

    def end(self, late: int) -> None:
        """The writer takes nothing more: what was on its way to it, out of one of `late` threads that did not end in
        time, reaches no file. What is missing beside that stays missing, for `tcppc account` to find."""
        with self._lock:
            missing = self.accepted - self.open - self.recorded - sum(self.dropped.values())
            if (count := min(missing, late)) > 0:
                self.dropped["stop"] += count

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
                "bytes_dropped": self.bytes_dropped,
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
            if self.bytes_dropped:
                parts.append(f"{self.bytes_dropped} bytes in those dropped")
            parts += [f"{count} {name}" for name, count in sorted(self.errors.items())]
            if self.held and not self.open:
                parts.append(f"{self.held} bytes held")
        return ", ".join(parts)
