"""Kinds of strangers that send datagrams: each is a function that gets a `Visit`, and sends a `Burst` of one source
port instead of its connection."""

from __future__ import annotations

import socket
import struct
import time

from tests.soak import notes
from tests.soak.dialogues import _dns_query
from tests.soak.notes import Note, Part
from tests.soak.visits import Kinds, Visit

LARGEST = 65507  # what fits into an IPv4 packet beside its headers


class Burst:
    """Datagrams from one source port; each is noted with the moment it was sent."""

    def __init__(self, visit: Visit, *ports: int) -> None:
        world = self._world = visit.world
        self._visit = visit
        source, target = world.pair(visit.lot)
        sport, dport = world.source_port(source), world.port_for(visit.lot, *ports)
        self.note = Note(visit.number, visit.kind, "udp", source, sport, target, dport, time.time_ns())
        self._sock = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((source, self.note.sport))

    def made(self, size: int) -> Part:
        return self._visit.made(size)

    def send(self, part: Part) -> None:
        data = notes.content([part])
        try:
            self._sock.sendto(data, (self.note.dst, self.note.dport))
        except OSError:  # not sent
            return
        self.note.datagrams.append((time.time_ns(), part))
        self.note.sent += len(data)

    def end(self) -> None:
        self._sock.close()
        self.note.ended = time.time_ns()
        self.note.how = notes.LEFT
        self._world.write(self.note)


def some(visit: Visit) -> None:
    """Some datagrams of any size, none and the largest among them."""
    lot, burst = visit.lot, Burst(visit)
    for _ in range(lot.randint(1, 12)):
        size = lot.choice((0, 1, LARGEST, int(LARGEST ** lot.random()), int(LARGEST ** lot.random())))
        burst.send(burst.made(size))
        if lot.random() < 0.2:
            time.sleep(lot.uniform(0, 0.3))
    burst.end()


def flood(visit: Visit) -> None:
    """Many small ones as fast as they go."""
    lot, burst = visit.lot, Burst(visit)
    size = lot.randint(12, 100)
    for _ in range(lot.randint(500, 3000)):
        burst.send(burst.made(size))
    burst.end()


QUESTIONS: tuple[tuple[int, bytes], ...] = (
    (53, _dns_query("a.example")),
    (123, b"\x23" + bytes(47)),
    (161, bytes.fromhex("302902010004067075626c6963a01c020400000001020100020100300e300c06082b060102010101000500")),
    (5060, b"OPTIONS sip:1@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP a;branch=x\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\n\r\n"),
    (69, b"\0\x02x.bin\0octet\0"),
    (111, struct.pack("!10I", 77, 0, 2, 100000, 2, 0, 0, 0, 0, 0)),
)  # fmt: skip


def questions(visit: Visit) -> None:
    """What a persona for datagrams answers."""
    port, question = visit.lot.choice(QUESTIONS)
    burst = Burst(visit, port)
    for _ in range(visit.lot.randint(1, 5)):
        burst.send(notes.said(question))
    burst.end()


# What a stranger is, and how many of a thousand are such ones.
SENDERS: Kinds = {some: 150, flood: 8, questions: 60}
