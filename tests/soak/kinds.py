"""Kinds of strangers that speak plain TCP: each is a function that gets a `Visit`, and ends it with its last line."""

from __future__ import annotations

import socket
import struct
from base64 import b64encode

from tests.soak import notes
from tests.soak.notes import Part
from tests.soak.visits import Kinds, Over, Visit

MIB = 1 << 20


def short(visit: Visit) -> None:
    """Says a little and ends."""
    visit.connect()
    for _ in range(visit.lot.randint(1, 4)):
        visit.say(visit.made(int(visit.lot.expovariate(1 / 300)) + 1))
    visit.finish()


def empty(visit: Visit) -> None:
    """Says nothing."""
    visit.connect()
    visit.finish()


def scan(visit: Visit) -> None:
    """Connects to one port after the other and leaves."""
    source, target = visit.world.pair(visit.lot)
    for number in range(visit.lot.randint(5, 25)):
        again = Visit(visit.world, visit.number * 100 + number, visit.kind, visit.lot)
        try:
            again.connect(source=source, target=target)
            again.leave()
        except Over:  # the next one
            continue


def large(visit: Visit) -> None:
    """Up to 20 MiB, more than is kept of a session."""
    size = int(0.2 * MIB * 100 ** visit.lot.random())
    visit.connect()
    visit.say(visit.made(size), pieces=visit.lot.randint(1, 8))
    visit.finish()


def trickle(visit: Visit) -> None:
    """A few bytes now and then."""
    visit.connect()
    for _ in range(visit.lot.randint(3, 15)):
        visit.say(visit.made(visit.lot.randint(1, 50)))
        visit.pause(visit.lot.uniform(0.05, 3))
    visit.finish()


def held(visit: Visit) -> None:
    """Says something and is silent until the sensor ends it."""
    visit.connect()
    visit.say(visit.made(visit.lot.randint(1, 2000)))
    visit.pause(0.5)
    visit.wait()


def endless(visit: Visit) -> None:
    """Never silent for long, until the sensor ends it: its duration is bounded."""
    visit.connect()
    while True:
        visit.say(visit.made(visit.lot.randint(1, 500)))
        visit.pause(visit.lot.uniform(0.2, 2.5))
        if visit.ended():
            visit.wait()


def urgent(visit: Visit) -> None:
    """Urgent bytes (MSG_OOB) among the others."""
    visit.connect()
    for _ in range(visit.lot.randint(1, 3)):
        visit.say(visit.made(visit.lot.randint(1, 400)))
        if visit.lot.random() < 0.5:
            visit.pause(visit.lot.uniform(0, 0.2))
        data = bytes([visit.lot.randrange(33, 127)]) * visit.lot.choice((1, 1, 1, 5))
        visit.note.parts.append(notes.said(data))
        visit.write(data, urgent=True)
        if visit.lot.random() < 0.5:
            visit.pause(visit.lot.uniform(0, 0.2))
    if visit.lot.random() < 0.5:
        visit.say(visit.made(visit.lot.randint(1, 400)))
    visit.finish()


def half(visit: Visit) -> None:
    """Ends its side at once with the last bytes, and reads slowly what is said."""
    visit.connect(buffer=4096)
    visit.say(visit.lot.choice((_shell("cat /etc/passwd", 20), visit.made(visit.lot.randint(1, 20000)))))
    visit.mark()
    try:
        visit.sock.shutdown(socket.SHUT_WR)
    except OSError:
        visit.wait()
    visit.note.fin = visit.now()
    visit.pause(visit.lot.uniform(0, 2))
    visit.wait(notes.WHOLE)


def reset(visit: Visit) -> None:
    """Resets the connection, at once or a little later."""
    visit.connect()
    visit.say(visit.made(visit.lot.randint(0, 5000)), pieces=2)
    if visit.lot.random() < 0.7:
        visit.pause(visit.lot.uniform(0.001, 1))
    visit.abort()


def unread(visit: Visit) -> None:
    """Asks much, reads nothing and closes: with unread data that is a reset."""
    visit.connect(visit.world.port_for(visit.lot, 23, 80, 6379, 2323))
    asked = visit.lot.choice((_shell("ls -l /etc", 10), notes.said(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 20)))
    visit.say(asked)
    if visit.lot.random() < 0.8:
        visit.pause(visit.lot.uniform(0.05, 1))
    if visit.lot.random() < 0.5:
        visit.say(visit.made(visit.lot.randint(1, 3000)))
    visit.leave()


def deaf(visit: Visit) -> None:
    """Asks without an end and never reads; the sensor is to keep what it asks all the same."""
    visit.connect(visit.world.port_for(visit.lot, 23, 2323, 6379), buffer=2048)
    for _ in range(visit.lot.randint(20, 80)):
        visit.say(_shell("cat /etc/passwd; ls -l /etc /bin", 20))
        if visit.lot.random() < 0.1:
            visit.pause(0.3)
    visit.finish()


def _shell(line: str, times: int) -> Part:
    return notes.said(f"{line}\n".encode() * times)


def hoard(visit: Visit) -> None:
    """16 MiB that are held: with others of its source, more than may be in memory."""
    visit.connect(source=visit.world.sources[0], target=visit.world.targets[0])
    visit.say(visit.made(16 * MIB))
    visit.pause(visit.lot.uniform(1, 4))
    visit.finish()


def crowd(visit: Visit) -> None:
    """One of many connections of one source at once."""
    visit.connect(source=visit.world.sources[1], target=visit.world.targets[0])
    visit.say(visit.made(visit.lot.randint(1, 100)))
    visit.pause(visit.lot.uniform(1, 3))
    visit.finish()


def proxy(visit: Visit) -> None:
    """Comes through a load balancer: a PROXY protocol header, then what the client says."""
    world, lot = visit.world, visit.lot
    visit.connect(source=world.balancer, target=world.targets[0])
    claimed = f"203.0.113.{lot.randint(1, 254)}", lot.randrange(1024, 65536)
    header = _header(lot.random() < 0.5, *claimed, visit.note.dport)
    visit.note.header, visit.note.claimed = b64encode(header).decode("ascii"), claimed
    rest = visit.made(lot.randint(0, 3000))
    if lot.random() < 0.5:  # in one piece with what follows
        visit.note.parts.append(rest)
        visit.write(header, carried=0)
        visit.write(notes.content([rest]))
    else:
        cut = lot.randrange(1, len(header))
        visit.write(header[:cut], carried=0)
        visit.pause(lot.uniform(0, 0.5))
        visit.write(header[cut:], carried=0)
        visit.say(rest, pieces=2)
    visit.finish()


def broken_proxy(visit: Visit) -> None:
    """A load balancer whose header is none, or only half of one: its bytes are the client's."""
    world, lot = visit.world, visit.lot
    visit.connect(source=world.balancer, target=world.targets[0])
    header = _header(lot.random() < 0.5, "203.0.113.1", 4711, visit.note.dport)
    if lot.random() < 0.3:
        visit.say(notes.said(header[: lot.randrange(1, len(header))]))
        visit.finish()
    broken = lot.choice(
        (
            b"PROXY TCP4 203.0.113.999 192.0.2.1 1 2\r\n",
            b"PROXY " + b"A" * 200,
            header[:12] + b"\xff" + header[13:],
            b"GET / HTTP/1.0\r\n\r\n",
        )
    )
    visit.say(notes.said(broken), pieces=lot.randint(1, 2))
    if lot.random() < 0.5:
        visit.say(visit.made(lot.randint(1, 500)))
    visit.finish()


def _header(version1: bool, source: str, sport: int, dport: int) -> bytes:
    target = "192.0.2.10"
    if version1:
        return f"PROXY TCP4 {source} {target} {sport} {dport}\r\n".encode("ascii")
    body = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!HH", sport, dport)
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", len(body)) + body


# What a stranger is, and how many of a thousand are such ones.
PLAIN: Kinds = {
    short: 270, empty: 40, scan: 10, large: 3, trickle: 40, held: 8, endless: 4, urgent: 40, half: 40, reset: 40,
    unread: 40, deaf: 5, proxy: 40, broken_proxy: 30,
}  # fmt: skip
