r"""Names and passwords of any bytes: each persona keeps them in the same form, and nothing of them is lost.

Bytes that are no UTF-8 are `\xNN` in a record; a backslash that would be taken for one is `\x5c`.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc import text
from tcppc.personas import registry
from tcppc.personas.base import MOST_CREDENTIAL, Findings, Place, Talk
from tcppc.personas.identity import Identity
from tests.conftest import Start
from tests.harness import tcppc, wait_until
from tests.test_personas import talk

USER, PASSWORD = b"r\xf6\xf6t", rb"p\xe4ss" + b"\xe4\\"
SHOWN = (r"r\xf6\xf6t", r"p\x5cxe4ss\xe4" + "\\")


def heard(name: str, *pieces: bytes) -> Callable[[], Findings]:
    def say() -> Findings:
        persona = talk(name)
        for piece in pieces:
            persona.hear(piece)
        return persona.findings

    return say


def in_base64(*parts: bytes) -> bytes:
    return b64encode(b"\0".join(parts))


def mysql_login() -> bytes:
    body = (0x0200).to_bytes(4, "little") + bytes(28) + USER + b"\0\0"
    return len(body).to_bytes(3, "little") + b"\x01" + body


def mssql_login(user: bytes, password: bytes) -> bytes:
    """LOGIN7: offsets and lengths in characters from byte 36 on; the password's bytes are turned and XORed."""
    hidden = bytes(((byte & 0x0F) << 4 | byte >> 4) ^ 0xA5 for byte in password)
    head = bytearray(94)
    for at, (offset, size) in ((40, (94, len(user) // 2)), (44, (94 + len(user), len(password) // 2))):
        head[at : at + 4] = offset.to_bytes(2, "little") + size.to_bytes(2, "little")
    message = bytes(head) + user + hidden
    return b"\x10\x01" + (8 + len(message)).to_bytes(2, "big") + b"\0\0\x01\0" + message


def form(user: bytes, password: bytes) -> bytes:
    body = b"username=" + user + b"&password=" + password
    return b"POST /login.php HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def percent(data: bytes) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in data)


LOGINS: dict[str, Callable[[], Findings]] = {
    "telnet": heard("telnet", USER + b"\r\n", PASSWORD + b"\r\n"),
    "telnet in one piece": heard("telnet", USER + b"\r\n" + PASSWORD + b"\r\n"),
    "ftp": heard("ftp", b"USER " + USER + b"\r\nPASS " + PASSWORD + b"\r\n"),
    "pop3": heard("pop3", b"USER " + USER + b"\r\nPASS " + PASSWORD + b"\r\n"),
    "pop3 auth plain": heard("pop3", b"AUTH PLAIN " + in_base64(b"", USER, PASSWORD) + b"\r\n"),
    "pop3 auth login": heard("pop3", b"AUTH LOGIN\r\n" + in_base64(USER) + b"\r\n" + in_base64(PASSWORD) + b"\r\n"),
    "smtp auth plain": heard("smtp", b"EHLO x\r\nAUTH PLAIN " + in_base64(b"", USER, PASSWORD) + b"\r\n"),
    "smtp auth plain on a line of its own": heard(
        "smtp", b"EHLO x\r\nAUTH PLAIN\r\n" + in_base64(b"", USER, PASSWORD) + b"\r\n"
    ),
    "smtp auth login": heard(
        "smtp", b"EHLO x\r\nAUTH LOGIN\r\n" + in_base64(USER) + b"\r\n" + in_base64(PASSWORD) + b"\r\n"
    ),
    "http basic": heard(
        "http", b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic " + b64encode(USER + b":" + PASSWORD) + b"\r\n\r\n"
    ),
    "http form": heard("http", form(percent(USER), percent(PASSWORD))),
    "http form as it is": heard("http", form(USER, PASSWORD)),
    "redis auth": heard("redis", b"*3\r\n$4\r\nAUTH\r\n$4\r\n" + USER + b"\r\n$9\r\n" + PASSWORD + b"\r\n"),
    "redis hello": heard(
        "redis", b"*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$4\r\n" + USER + b"\r\n$9\r\n" + PASSWORD + b"\r\n"
    ),
}


@pytest.mark.parametrize("way", LOGINS)
def test_bytes_of_names_and_passwords_are_kept_by_each_persona(way: str) -> None:
    assert LOGINS[way]().credentials == [SHOWN]


def test_where_there_is_no_password_as_such_the_name_is_kept_all_the_same() -> None:
    assert heard("mysql", mysql_login())().credentials == [(SHOWN[0], "")]
    line = b'REGISTER sip:x SIP/2.0\r\nAuthorization: Digest username="' + USER + b'", response="' + PASSWORD + b'"'
    assert heard("sip", line + b"\r\n\r\n")().credentials == [(SHOWN[0], f"digest {SHOWN[1]}")]
    request = (
        b'GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Digest username="' + USER + b'", response="' + PASSWORD + b'"'
    )
    assert heard("http", request + b"\r\n\r\n")().credentials == [(SHOWN[0], f"digest {SHOWN[1]}")]
    assert heard("pop3", b"APOP " + USER + b" " + PASSWORD + b"\r\n")().credentials == [(SHOWN[0], f"apop {SHOWN[1]}")]
    answerer = registry.known()["snmp"].answerer
    assert answerer
    findings = Findings()
    community = bytes((4, len(PASSWORD))) + PASSWORD
    pdu = b"\xa0\x0b\x02\x01\x01\x02\x01\x00\x02\x01\x00\x30\x00"
    inner = b"\x02\x01\x00" + community + pdu
    answerer(Identity("sensor")).answer(b"\x30" + bytes([len(inner)]) + inner, Place(), findings)
    assert findings.credentials == [("", SHOWN[1])]


@pytest.mark.parametrize(
    ("user", "shown"),
    [
        ("rööt".encode("utf-16-le"), "rööt"),
        ("\U0001f600".encode("utf-16-le"), "\U0001f600"),
        (r"DOMAIN\xf6".encode("utf-16-le"), r"DOMAIN\x5cxf6"),
        (b"r\0\xd6\xd8t\0", r"r\xd6\xd8t"),  # half of a pair
    ],
)
def test_bytes_that_are_no_utf_16_are_kept_too(user: bytes, shown: str) -> None:
    found = heard("mssql", mssql_login(user, user))().credentials
    assert found == [(shown, shown)]


def test_names_of_ssh_clients_are_in_the_same_form() -> None:
    findings = heard("ssh", rb"SSH-2.0-a\xf6" + b"\xf6\r\n")()
    assert findings.ssh == {"version": r"SSH-2.0-a\x5cxf6\xf6"}


@given(
    st.binary(min_size=1, max_size=60).filter(lambda data: not re.search(rb"[\0\x03\x04\x08\n\r\x15\x7f\xff]", data))
)
@settings(deadline=None, max_examples=50)
def test_what_was_typed_can_be_had_back(data: bytes) -> None:
    found = heard("telnet", data + b"\r\n", data + b"\r\n")().credentials
    assert [text.bytes_of(part) for part in found[0]] == [data, data]


@pytest.mark.parametrize(
    "data", [b"\xf6" * 300, b"a" * 254 + b"\xf6\xf6", rb"\xf6" * 100, b"a" * 255 + rb"\xf6", b"\\" * 300]
)
def test_a_name_that_is_too_long_is_cut_between_two_bytes(data: bytes) -> None:
    findings = Findings()
    findings.tried(data, data.decode("utf-8", "surrogateescape"))
    user, password = findings.credentials[0]
    assert user == password
    assert MOST_CREDENTIAL - 4 < len(user) <= MOST_CREDENTIAL
    assert data.startswith(text.bytes_of(user))


# The shell hears bytes, and says them.


def replies(name: str, *lines: bytes, **more: Any) -> bytes:
    persona: Talk = talk(name, **more)
    return b"".join(persona.hear(line + b"\n") for line in lines)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((b"echo r\xf6\xf6t",), b"r\xf6\xf6t\r\n"),
        ((b"echo \xc3\xb6",), b"\xc3\xb6\r\n"),
        ((b"echo 'r\xf6' > /tmp/x; cat /tmp/x",), b"r\xf6\r\n"),
        ((b"mkdir /tmp/\xf6", b"cd /tmp/\xf6", b"pwd"), b"/tmp/\xf6\r\n"),
        ((b"\xf6\xe4",), b"bash: \xf6\xe4: command not found\r\n"),
        ((b"cat \xf6",), b"cat: \xf6: No such file or directory\r\n"),
        ((b"A=\xf6; echo $A",), b"\xf6\r\n"),
        ((b"wget http://\xf6/x",), b"unable to resolve host address '\xf6'\r\n"),
        ((b"sh -c 'echo \xf6'",), b"\xf6\r\n"),
        ((b"echo \xf6 | grep \xf6",), b"\xf6\r\n"),
        ((b"printf '\\xf6\\n'; echo \\\\xf6",), b"\xf6\r\n"),
    ],
)
def test_the_shell_says_the_bytes_that_it_was_told(lines: tuple[bytes, ...], said: bytes) -> None:
    assert said in replies("shell", *lines)


def test_the_prompt_has_a_folder_of_any_bytes() -> None:
    assert replies("shell", b"mkdir /tmp/\xf6", b"cd /tmp/\xf6").endswith(b":/tmp/\xf6# ")


def test_telnets_shell_gets_the_bytes() -> None:
    user, password = next(
        (b"root", b"%d" % number) for number in range(100) if Identity("sensor").admits("root", str(number))
    )
    assert b"r\xf6\xf6t\r\n" in replies("telnet", user, password, b"echo r\xf6\xf6t")


def test_ftp_says_the_bytes_of_a_path() -> None:
    login = (b"USER anonymous", b"PASS x")
    assert replies("ftp", *login, b"MKD /tmp/\xf6").endswith(b'257 "/tmp/\xf6" created\r\n')
    assert b'257 "/tmp/\xf6" is the current directory\r\n' in replies(
        "ftp", *login, b"MKD /tmp/\xf6", b"CWD /tmp/\xf6", b"PWD"
    )


def test_ftp_lists_the_bytes_of_a_name() -> None:
    persona = talk("ftp")
    found: list[Talk] = []
    persona.place.awaits = lambda place, port, made: found.append(made)
    for line in (b"USER anonymous", b"PASS x", b"MKD /tmp/\xf6", b"EPSV", b"NLST /tmp"):
        persona.hear(line + b"\r\n")
    delivered: list[bytes] = []
    found[0].attach(delivered.append)
    assert b"\xf6\r\n" in found[0].greet() + b"".join(delivered)


def test_errors_of_databases_name_the_bytes() -> None:
    assert b"user 'r\xf6\xf6t'@" in talk("mysql").hear(mysql_login()) or Identity("sensor").admits(
        USER.decode("utf-8", "surrogateescape"), "any"
    )
    user = b"r\0\xd6\xd8t\0"
    assert "Login failed for user '".encode("utf-16-le") + user + "'.".encode("utf-16-le") in talk("mssql").hear(
        mssql_login(user, user)
    )


@pytest.mark.parametrize("name", sorted(name for name, kind in registry.known().items() if kind.talk))
@given(st.binary(max_size=80))
@settings(deadline=None, max_examples=20)
def test_whatever_is_found_can_be_written(name: str, data: bytes) -> None:
    persona = talk(name)
    persona.hear(data + b"\r\n")
    for user, password in persona.findings.credentials:
        (user + password).encode("utf-8")


def test_a_record_and_what_is_shown_of_it_have_one_form(start: Start) -> None:
    sensor = start("--persona", "telnet")
    with sensor.connect() as sock:
        sock.settimeout(20)
        for word in (b"login: ", b"Password: "):
            answered = b""
            while word not in answered:
                answered += sock.recv(4096)
            sock.sendall((USER if word == b"login: " else PASSWORD) + b"\r\n")
        wait_until(lambda: sock.recv(4096), "an answer")
    record = sensor.records(1)[0]
    assert record["credentials"] == [{"user": SHOWN[0], "password": SHOWN[1]}]
    shown = tcppc("show", str(sensor.file)).stdout.splitlines()[-1]
    assert shown == f"    tried: user {SHOWN[0]}, password {SHOWN[1]}"
