"""Kinds of strangers that speak TLS, or begin to."""

from __future__ import annotations

import contextlib
import functools
import socket
import ssl
import warnings
from base64 import b64encode

from tests.soak import notes
from tests.soak.notes import Part
from tests.soak.visits import PATIENCE_SECONDS, Kinds, Visit

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1)


@functools.cache
def context(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that speaks this version alone, believes whoever answers, and knows old ciphers."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are wanted here
        made.minimum_version = made.maximum_version = version
    return made


class Secure:
    """The client side of TLS on a visit's connection. What goes wrong inside it ends the visit."""

    RECORD_BYTES = 16000

    def __init__(self, visit: Visit) -> None:
        visit.keep_raw = True
        visit.note.plain = visit.note.sent
        self._visit = visit
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        version = visit.lot.choice(VERSIONS)
        self._object = context(version).wrap_bio(self._in, self._out, server_hostname="soak.example")

    def _flush(self, carried: int = 0) -> None:
        if data := self._out.read():
            self._visit.write(data, carried)

    def hello(self) -> bytes:
        """A ClientHello, not sent."""
        with contextlib.suppress(ssl.SSLWantReadError):  # for the sensor's answer
            self._object.do_handshake()
        return self._out.read()

    def handshake(self) -> None:
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._hear()
                continue
            except ssl.SSLError:
                self._visit.finish()
            self._flush()
            return

    def _hear(self) -> None:
        data = self._visit.hear(PATIENCE_SECONDS)
        if not data:  # it ended, and `wait` notes how
            self._visit.wait()
        self._in.write(data)

    def say(self, part: Part) -> None:
        """Send a part inside."""
        data = notes.content([part])
        self._visit.note.parts.append(part)
        for at in range(0, len(data), self.RECORD_BYTES):
            piece = data[at : at + self.RECORD_BYTES]
            self._object.write(piece)
            self._flush(len(piece))

    def hear(self, seconds: float = 2.0) -> bytes:
        """What the sensor says inside within so many seconds."""
        try:
            return self._object.read(65536)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            return b""
        self._in.write(self._visit.hear(seconds))
        try:
            return self._object.read(65536)
        except ssl.SSLError:
            return b""

    def goodbye(self) -> None:
        """Say close_notify, and wait for no answer."""
        with contextlib.suppress(ssl.SSLError):  # it wants the sensor's own, which may come or not
            self._object.unwrap()
        self._flush()


def secure(visit: Visit) -> None:
    """A TLS session of any version, with or without a goodbye."""
    visit.connect(visit.world.port_for(visit.lot, 443, 8443, 990))
    tunnel = Secure(visit)
    tunnel.handshake()
    for _ in range(visit.lot.randint(0, 4)):
        tunnel.say(visit.made(int(visit.lot.expovariate(1 / 2000)) + 1))
        if visit.lot.random() < 0.3:
            visit.pause(visit.lot.uniform(0, 0.5))
    if visit.lot.random() < 0.6:
        tunnel.goodbye()
    visit.finish()


def behind_goodbye(visit: Visit) -> None:
    """Goes on in clear text once TLS has said goodbye."""
    visit.connect(visit.world.port_for(visit.lot, 443, 8443))
    tunnel = Secure(visit)
    tunnel.handshake()
    tunnel.say(visit.made(visit.lot.randint(1, 2000)))
    rest = visit.made(visit.lot.randint(1, 3000))
    if visit.lot.random() < 0.5:  # all at once
        visit.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    tunnel.goodbye()
    visit.say(rest)
    visit.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    visit.finish()


def broken(visit: Visit) -> None:
    """Begins as TLS does and is none: half a hello, noise behind it, records that cannot be."""
    lot = visit.lot
    visit.connect(visit.world.port_for(visit.lot, 443, 8443))
    hello = Secure(visit).hello()
    visit.keep_raw = False
    noise = notes.content([visit.made(lot.randint(1, 4000))])
    flipped = bytearray(hello)
    for _ in range(3):
        flipped[lot.randrange(9, len(flipped))] ^= 1 << lot.randrange(8)
    data = lot.choice(
        (
            hello[: lot.randrange(3, len(hello))],
            hello + noise,
            hello + b"\x17\x03\x03\xff\xff" + noise,
            bytes(flipped),
            hello[:3] + b"\xff\xff" + hello[5:],
            b"\x15\x03\x01\x00\x02\x02\x28",
            hello + hello,
        )
    )
    visit.say(notes.said(data), pieces=lot.randint(1, 2))
    if lot.random() < 0.5:
        visit.pause(lot.uniform(0, 0.3))
    visit.finish()


def broken_inside(visit: Visit) -> None:
    """Shakes hands, says something, and then sends what is no TLS record."""
    visit.connect(visit.world.port_for(visit.lot, 443, 8443))
    tunnel = Secure(visit)
    tunnel.handshake()
    tunnel.say(visit.made(visit.lot.randint(1, 5000)))
    visit.pause(visit.lot.uniform(0, 0.3))
    noise = notes.content([visit.made(visit.lot.randint(1, 500))])
    visit.note.noise = b64encode(noise).decode("ascii")
    visit.write(noise, carried=0)
    visit.finish()


def starttls(visit: Visit) -> None:
    """A mail client that changes to TLS within the session; what it said before is in the record too."""
    visit.connect(visit.world.port_for(visit.lot, 25, 587))
    if not visit.world.every_port:  # the greeting waits for what the client speaks
        visit.say(notes.said(b"EHLO soak.example\r\n"))
    visit.hear()
    if visit.world.every_port:
        visit.say(notes.said(b"EHLO soak.example\r\n"))
        visit.hear()
    visit.say(notes.said(b"STARTTLS\r\n"))
    if not visit.hear(5.0).startswith(b"220"):
        visit.finish()
    tunnel = Secure(visit)
    tunnel.handshake()
    for line in (b"EHLO soak.example\r\n", b"AUTH PLAIN AHJvb3QAc2VjcmV0\r\n", b"QUIT\r\n"):
        tunnel.say(notes.said(line))
        tunnel.hear()
    visit.finish()


# What a stranger is, and how many of a thousand are such ones.
SECURED: Kinds = {secure: 80, behind_goodbye: 30, broken: 40, broken_inside: 15, starttls: 15}
