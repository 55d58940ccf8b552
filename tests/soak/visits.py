"""One stranger's connection: what it sends, what of that the kernel acknowledged, how it ended.

A kind of stranger (kinds.py, tls_kinds.py, dialogues.py) is a function that gets a `Visit` and uses it. Whatever the
network says to it is part of the note, not an error.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import random
import socket
import struct
import termios
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

from tests.soak import notes
from tests.soak.notes import Note, Part

PATIENCE_SECONDS = 90.0  # much longer than any fault lasts
CONNECT_SECONDS = 15.0
FIRST_PORT, LAST_PORT = 10000, 64000
MOST_MARKS = 60
MOST_RAW = 256 << 10
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, no time: close(2) sends RST


class Over(Exception):  # noqa: N818 - how a visit ends, not an error
    """The connection is over; the note says how."""


@dataclass
class World:
    """What all strangers share. `counts` are what was sent, by proto."""

    seed: int
    targets: list[str]
    sources: list[str]
    balancer: str
    port: int
    every_port: bool
    file: IO[str]
    counts: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)
    _ports: dict[str, itertools.cycle[int]] = field(default_factory=dict)

    def source_port(self, source: str) -> int:
        """Each pair of source and port is used once, so that a flow tells one visit from all others."""
        with self.lock:
            if source not in self._ports:
                self._ports[source] = itertools.cycle(range(FIRST_PORT, LAST_PORT))
            return next(self._ports[source])

    def pair(self, lot: random.Random) -> tuple[str, str]:
        """A source and a target of one family."""
        target = lot.choice(self.targets)
        family = [source for source in self.sources if (":" in source) == (":" in target)]
        return (lot.choice(family), target) if family else (target, target)

    def port_for(self, lot: random.Random, *ports: int) -> int:
        """One of these ports, or any, where all are the sensor's; else the one that is."""
        if not self.every_port:
            return self.port
        return lot.choice(ports) if ports else lot.choice((self.port, lot.randrange(1, 65536)))

    def write(self, note: Note) -> None:
        line = note.line()
        with self.lock:
            self.file.write(f"{line}\n")
            self.file.flush()
            if note.how != notes.FAILED:
                self.counts[note.proto] += len(note.datagrams) if note.proto == "udp" else 1
                self.counts["bytes"] += note.sent


@dataclass
class Segment:
    """Bytes on the wire, and which bytes of the parts they carry; a TLS record all of them or none (`whole`)."""

    raw: int
    size: int
    plain: int
    carried: int
    whole: bool


class Visit:
    """A TCP connection. `say` sends, then one of `finish`, `wait`, `abort` and `leave` ends it."""

    def __init__(self, world: World, number: int, kind: str, lot: random.Random) -> None:
        self.world = world
        self.number = number
        self.kind = kind
        self.lot = lot
        self._made = itertools.count()
        self._segments: list[Segment] = []
        self._raw_sent = 0
        self._raw = bytearray()
        self.keep_raw = False

    def made(self, size: int) -> Part:
        """A part of `size` bytes that no other visit sends."""
        return ("made", f"v{self.number}.{next(self._made)}", size)

    def connect(self, dport: int = 0, source: str = "", target: str = "", buffer: int = 0) -> None:
        """Over where nobody is there."""
        world = self.world
        if not target:
            found, target = world.pair(self.lot)
            source = source or found
        dport = dport or world.port_for(self.lot)
        sport = world.source_port(source)
        self.note = Note(self.number, self.kind, "tcp", source, sport, target, dport, time.time_ns())
        self.sock = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        try:
            self.sock.bind((source, sport))
            self.sock.settimeout(CONNECT_SECONDS)
            self.sock.connect((target, dport))
        except OSError:  # nobody there for a moment, which the note says
            self._end(notes.FAILED)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.note.how = notes.PATIENCE

    def say(self, part: Part, pieces: int = 1) -> None:
        """Send a part, in so many pieces."""
        data = notes.content([part])
        self.note.parts.append(part)
        cuts = sorted(self.lot.randrange(len(data) + 1) for _ in range(pieces - 1)) if data else []
        for begin, end in itertools.pairwise([0, *cuts, len(data)]):
            self.write(data[begin:end])

    def write(self, data: bytes, carried: int | None = None, urgent: bool = False) -> None:
        """Bytes on the wire: the next bytes of the parts, or with `carried` a TLS record with so many of them (0: none
        of the parts)."""
        if self.keep_raw and len(self._raw) < MOST_RAW:
            self._raw += data
        left = memoryview(data)
        segment = Segment(self._raw_sent, 0, self.note.sent, 0, carried is not None)
        self._segments.append(segment)
        try:
            while left:
                taken = self.sock.send(left, socket.MSG_OOB if urgent else 0)
                left = left[taken:]
                self._raw_sent += taken
                segment.size += taken
                if carried is None:
                    segment.carried += taken
                    self.note.sent += taken
        except TimeoutError:
            self._end(notes.PATIENCE)
        except OSError:
            self._end(notes.RESET)
        if carried:
            segment.carried = carried
            self.note.sent += carried

    def acked(self) -> int:
        """How many bytes of the parts the sensor's kernel has acknowledged."""
        waiting = struct.unpack("i", fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4)))[0]
        reached = self._raw_sent - max(0, waiting - (1 if self.note.fin else 0))
        found = 0
        for segment in self._segments:
            if segment.whole:
                if segment.raw + segment.size <= reached:
                    found = max(found, segment.plain + segment.carried)
            elif segment.raw < reached:
                found = max(found, segment.plain + min(segment.carried, reached - segment.raw))
        return found

    def mark(self) -> None:
        """Note what has been acknowledged by now."""
        marks = self.note.marks
        marks.append((time.time_ns(), self.acked()))
        if len(marks) > MOST_MARKS:
            del marks[1:-1:2]

    @staticmethod
    def now() -> int:
        return time.time_ns()

    def ended(self) -> bool:
        """Has the sensor ended its side? What it has said by now is read."""
        self.sock.setblocking(False)
        try:
            while self.sock.recv(65536):
                pass
            return True
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.sock.settimeout(PATIENCE_SECONDS)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)
        self.mark()

    def hear(self, seconds: float = 2.0) -> bytes:
        """What the sensor says within so many seconds, if it says anything; b"" also where it ended."""
        self.sock.settimeout(seconds)
        try:
            return self.sock.recv(65536)
        except TimeoutError:
            return b""
        except OSError:
            self._end(notes.RESET)
        finally:
            with contextlib.suppress(OSError):  # closed by _end
                self.sock.settimeout(PATIENCE_SECONDS)

    def finish(self) -> NoReturn:
        """End this side, and read until the sensor has ended its own."""
        self.mark()
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._end(notes.RESET)
        self.note.fin = time.time_ns()
        self.wait(notes.WHOLE)

    def wait(self, how: str = notes.SENSOR) -> NoReturn:
        """Read until the sensor ends."""
        try:
            while self.sock.recv(1 << 18):
                pass
        except TimeoutError:
            how = notes.PATIENCE
        except OSError:
            how = notes.RESET
        self._end(how)

    def abort(self) -> NoReturn:
        """Reset the connection."""
        self.mark()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._end(notes.ABORT)

    def leave(self) -> NoReturn:
        """Close without a look at what the sensor says."""
        self.mark()
        unread = struct.unpack("i", fcntl.ioctl(self.sock, termios.FIONREAD, bytes(4)))[0]
        if not unread:
            self.note.fin = time.time_ns()
        self._end(notes.LEFT)

    def _end(self, how: str) -> NoReturn:
        note = self.note
        note.how = how
        note.raw = b64encode(self._raw).decode("ascii")
        with contextlib.suppress(OSError):  # never connected
            note.acked = self.acked()
        self.sock.close()
        note.ended = time.time_ns()
        self.world.write(note)
        raise Over


# Kinds of strangers, and how many of a thousand are such ones.
Kinds = dict[Callable[[Visit], None], int]


def open_notes(path: Path) -> IO[str]:
    return path.open("a", encoding="ascii")
