"""TLS sessions, with the clients that strangers use: openssl s_client, curl, Python's ssl."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import time
import warnings
from base64 import b64decode
from pathlib import Path

import pytest

from tcppc.protocols import client_hello
from tests import certificates
from tests.conftest import Start
from tests.harness import PATIENCE, Sensor, payload


def client(
    sensor: Sensor, data: bytes, context: ssl.SSLContext | None = None, name: str | None = None
) -> ssl.SSLSocket:
    """One TLS session that sends `data`; returns the closed socket's last state."""
    context = context or lenient()
    with sensor.connect() as sock, context.wrap_socket(sock, server_hostname=name) as tls:
        tls.sendall(data)
        return tls


def lenient() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def hello_bytes() -> bytes:
    """A whole ClientHello of this machine's OpenSSL."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        lenient().wrap_bio(incoming, outgoing, server_hostname="hello.example").do_handshake()
    return outgoing.read()


def test_auto_recognises_tls_and_keeps_what_is_said_inside(start: Start) -> None:
    sensor = start()
    context = lenient()
    context.set_alpn_protocols(["h2", "http/1.1"])
    client(sensor, b"GET / HTTP/1.1\r\n\r\n", context, "www.example")
    (record,) = sensor.records(1)
    assert record["flow"]["proto"] == "tls"
    assert payload(record) == b"GET / HTTP/1.1\r\n\r\n"
    assert record["bytes"] == 18
    assert record["closed"] == "peer"
    tls = record["tls"]
    assert (tls["version"], tls["sni"], tls["alpn"]) == ("TLSv1.3", "www.example", ["h2", "http/1.1"])
    assert tls["cipher"].startswith("TLS_")
    hello = client_hello.read(b64decode(tls["client_hello"]))
    assert hello is not None
    assert (tls["ja3"], tls["ja4"]) == (hello.ja3, hello.ja4)
    assert tls["ja4"].startswith("t13d")
    assert "error" not in tls


def test_auto_leaves_everything_else_plain(start: Start) -> None:
    sensor = start()
    sensor.send(b"GET / HTTP/1.1\r\n\r\n")
    sensor.send(b"\x16\x03nothing of TLS")
    sensor.send(b"\x16")
    records = sensor.records(3)
    assert {record["flow"]["proto"] for record in records} == {"tcp"}
    assert [payload(record) for record in records] == [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03nothing of TLS", b"\x16"]


def test_off_keeps_a_client_hello_as_plain_bytes(start: Start) -> None:
    sensor = start("-tls", "off")
    hello = hello_bytes()
    sensor.send(hello)
    (record,) = sensor.records(1)
    assert record["flow"]["proto"] == "tcp"
    assert payload(record) == hello
    assert "tls" not in record


@pytest.mark.parametrize("kind", ["rsa:2048", "ec"])
def test_a_given_certificate_is_shown(start: Start, tmp_path: Path, kind: str) -> None:
    certificate, key = certificates.make(tmp_path, kind)
    sensor = start("-C", certificate, "-K", key)
    with sensor.connect() as sock, lenient().wrap_socket(sock) as tls:
        shown = tls.getpeercert(binary_form=True)
    expected = ssl.PEM_cert_to_DER_cert(Path(certificate).read_text(encoding="ascii"))
    assert shown == expected
    assert "Server Mode: TLS\n" in sensor.log


def test_with_a_certificate_every_session_is_tls_as_with_tcppc_go(start: Start, tmp_path: Path) -> None:
    certificate, key = certificates.make(tmp_path, "ec")
    sensor = start("-C", certificate, "-K", key)
    sensor.send(b"plain text\r\n")
    sensor.send(b"")
    plain, empty = sorted(sensor.records(2), key=payload, reverse=True)  # the first one lingers
    assert plain["flow"]["proto"] == empty["flow"]["proto"] == "tls"
    assert payload(plain) == b"plain text\r\n"
    assert plain["tls"]["error"]
    assert empty["tls"]["error"] == "the connection ended before a whole ClientHello"


def test_the_self_made_certificate_survives_a_restart_and_names_nobody(start: Start, tmp_path: Path) -> None:
    shown = []
    for _ in range(2):
        sensor = start()
        with sensor.connect() as sock, lenient().wrap_socket(sock) as tls:
            shown.append(tls.getpeercert(binary_form=True))
        assert sensor.stop() == 0
    assert shown[0]
    assert shown[0] == shown[1]
    assert b"tcppc" not in shown[0]
    assert socket.gethostname().encode() not in shown[0]
    for key in (tmp_path / "state").glob("*.key"):
        assert key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("flags", "version"),
    [
        (["-tls1", "-cipher", "ALL:@SECLEVEL=0"], "TLSv1"),
        (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "TLSv1.1"),
        (["-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0"], "TLSv1.2"),
        (["-tls1_2", "-cipher", "DHE-RSA-AES128-SHA:@SECLEVEL=0"], "TLSv1.2"),
        (["-tls1_2", "-cipher", "NULL-SHA:@SECLEVEL=0"], "TLSv1.2"),
        (["-tls1_2", "-cipher", "ADH-AES128-SHA:@SECLEVEL=0"], "TLSv1.2"),
        (["-tls1_3"], "TLSv1.3"),
    ],
)
def test_old_and_weak_clients_are_let_in(start: Start, flags: list[str], version: str) -> None:
    sensor = start()
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{sensor.port}", "-quiet", "-no_ign_eof", *flags]
    subprocess.run(command, input=b"old but here\nQ\n", capture_output=True, timeout=PATIENCE, check=False)
    (record,) = sensor.records(1)
    assert record["tls"].get("error") is None, record["tls"]
    assert record["tls"]["version"] == version
    assert payload(record).startswith(b"old but here\n")


def test_curl_comes_through(start: Start) -> None:
    sensor = start()
    url = f"https://127.0.0.1:{sensor.port}/index"
    subprocess.run(["curl", "-sk", "-m", "1", url], capture_output=True, timeout=PATIENCE, check=False)
    (record,) = sensor.records(1)
    assert record["flow"]["proto"] == "tls"
    assert payload(record).startswith(b"GET /index HTTP/1.1\r\n")
    assert record["app"] == "http"


def test_a_client_hello_in_one_byte_pieces_is_recognised(start: Start) -> None:
    sensor = start()
    hello = hello_bytes()
    with sensor.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(len(hello)):
            sock.sendall(hello[index : index + 1])
            if index < 8:
                time.sleep(0.02)  # so that the first bytes are read one by one
        assert sock.recv(1) == b"\x16"  # the ServerHello
    (record,) = sensor.records(1)
    assert record["flow"]["proto"] == "tls"
    assert b64decode(record["tls"]["client_hello"]) == hello
    assert record["tls"]["sni"] == "hello.example"
    assert record["tls"]["error"] == "the connection ended within the handshake"
    assert payload(record).startswith(hello)  # a failed handshake keeps its bytes as payload


def test_a_client_that_sends_one_byte_of_tls_and_waits_costs_nobody_else(start: Start) -> None:
    sensor = start("-t", "3")
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(sensor.connect()).sendall(b"\x16")
        begin = time.monotonic()
        client(sensor, b"through")
        sensor.records(1)
        assert time.monotonic() - begin < 2.5
        records = sensor.records(21)
    assert payload(records[0]) == b"through"
    assert [record["closed"] for record in records[1:]] == ["timeout"] * 20
    assert {payload(record) for record in records[1:]} == {b"\x16"}


def test_a_handshake_cannot_be_stretched_by_a_trickle(start: Start) -> None:
    sensor = start("-t", "0.6")
    hello = hello_bytes()
    begin = time.monotonic()
    with sensor.connect() as sock, contextlib.suppress(OSError):
        for index in range(len(hello) - 1):
            if sensor.lines():
                break
            sock.sendall(hello[index : index + 1])
            time.sleep(0.05)
    (record,) = sensor.records(1)
    assert time.monotonic() - begin < PATIENCE
    assert record["closed"] == "timeout"
    assert record["tls"]["error"] == "the connection ended within the handshake"


def test_a_failed_handshake_is_recorded_with_its_reason(start: Start) -> None:
    sensor = start()
    broken = bytearray(hello_bytes())
    broken[43] = 0xFF  # the session id's length
    sensor.send(bytes(broken))
    (record,) = sensor.records(1)
    assert record["flow"]["proto"] == "tls"
    assert record["closed"] == "error"
    assert payload(record) == bytes(broken)
    assert record["tls"]["error"]
    assert b64decode(record["tls"]["client_hello"]) == bytes(broken)
    client(sensor, b"the next one")
    assert payload(sensor.records(2)[1]) == b"the next one"


def test_an_offer_of_nothing_we_know_is_recorded(start: Start) -> None:
    sensor = start()
    context = lenient()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    hello = bytearray(_first_flight(context))
    at = hello.index(b"\xc0\x2f")
    hello[at : at + 2] = b"\x13\x37"  # a cipher nobody has
    sensor.send(bytes(hello))
    (record,) = sensor.records(1)
    assert record["tls"]["error"] == "no shared cipher"
    assert record["tls"]["ja3"]


def _first_flight(context: ssl.SSLContext) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def test_garbage_after_the_handshake_keeps_what_came_before(start: Start) -> None:
    sensor = start()
    with sensor.connect() as sock:
        tls = lenient().wrap_socket(sock, do_handshake_on_connect=True)
        tls.sendall(b"well said")
        sensor.said("well said")
        raw = socket.socket(fileno=tls.detach())
        raw.sendall(b"not TLS at all, and long enough to be looked at")
        raw.shutdown(socket.SHUT_WR)
        raw.close()
    (record,) = sensor.records(1)
    assert payload(record) == b"well saidnot TLS at all, and long enough to be looked at"
    assert record["tls"]["after"] == 1
    assert record["closed"] == "error"
    assert record["tls"]["error"]


def test_without_a_certificate_to_answer_with_the_hello_is_still_decoded(start: Start, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be", encoding="ascii")
    sensor = start()
    assert "TLS is recognised but not answered" in sensor.log
    hello = hello_bytes()
    sensor.send(hello)
    (record,) = sensor.records(1)
    assert record["flow"]["proto"] == "tls"
    assert record["tls"]["sni"] == "hello.example"
    assert record["tls"]["error"] == "no certificate to answer with"
    assert payload(record) == hello


def test_a_large_upload_inside_tls_is_kept_whole(start: Start) -> None:
    sensor = start("-q")
    data = bytes(range(256)) * 8192
    client(sensor, data)
    (record,) = sensor.records(1)
    assert payload(record) == data


def test_memory_of_tls_is_bounded(start: Start, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[limits]\nmemory = "80KiB"\n', encoding="ascii")
    sensor = start("-c", str(tmp_path / "c.toml"))
    with sensor.connect() as sock, lenient().wrap_socket(sock) as first:
        first.sendall(b"inside")
        sensor.said('"inside"')
        sensor.send(hello_bytes())
        (refused,) = sensor.records(1)
        assert refused["tls"]["error"] == "no memory left for TLS"
        assert refused["tls"]["sni"] == "hello.example"
    sensor.records(2)
    client(sensor, b"room again")
    assert payload(sensor.records(3)[2]) == b"room again"


def test_a_client_that_never_reads_cannot_hold_up_a_stop(start: Start) -> None:
    sensor = start()
    with sensor.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tls = lenient().wrap_socket(sock)
        tls.sendall(b"said")
        sensor.said('"said"')
        begin = time.monotonic()
        assert sensor.stop() == 0
        assert time.monotonic() - begin < PATIENCE / 2
        tls.close()
    (record,) = sensor.records(1)
    assert (payload(record), record["closed"]) == (b"said", "shutdown")
