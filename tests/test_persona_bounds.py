"""What strangers tried to make personas do: memory, time, silence, wrong records."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import time
import tracemalloc
from base64 import b64decode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.personas import auto, registry, words
from tcppc.personas.base import MOST_SAID, Findings, Place
from tcppc.personas.identity import Identity
from tcppc.protocols import app
from tests.conftest import Start
from tests.harness import wait_until
from tests.test_personas import run, serve, talk

MOST_OF_ONE_READ = 3 * MOST_SAID


def test_many_commands_in_one_read_are_answered_up_to_a_bound() -> None:
    redis = talk("redis")
    for number in range(100):
        name = b"%04d" % number + b"k" * 4092
        redis.hear(b"*3\r\n$3\r\nSET\r\n$4096\r\n%s\r\n$1\r\nx\r\n" % name)
    assert len(redis.hear(b"KEYS\n" * 13_000)) < MOST_OF_ONE_READ
    shell = talk("shell")
    shell.greet()
    for _ in range(15):
        shell.hear(b"mkdir %s; cd %s\n" % (b"a" * 250, b"a" * 250))
    assert len(shell.hear(b"\n" * 65_000)) < MOST_OF_ONE_READ
    ftp = talk("ftp")
    ftp.hear(b"USER anonymous\r\nPASS x\r\n")
    for _ in range(15):
        ftp.hear(b"MKD %s\r\nCWD %s\r\n" % (b"a" * 250, b"a" * 250))
    assert len(ftp.hear(b"PWD\r\n" * 13_000)) < MOST_OF_ONE_READ
    http = talk("http")
    assert len(http.hear(b"GET / HTTP/1.1\r\n\r\n" * 3_600)) < MOST_OF_ONE_READ


def test_names_are_as_long_as_a_file_system_has_them() -> None:
    shell = talk("shell")
    shell.greet()
    assert b"File name too long" in shell.hear(b"mkdir %s\n" % (b"a" * 300))
    assert b"File name too long" in shell.hear(b"echo x > /tmp/%s\n" % (b"a" * 256))


def test_a_session_that_asks_for_too_much_ends_and_the_sensor_goes_on(start: Start) -> None:
    sensor = serve(start, "redis")
    with sensor.connect() as sock:
        sock.sendall(b"SET %s 1\r\n" % (b"k" * 4000) * 4 + b"KEYS *\r\n" * 8_000)
        sock.settimeout(20)
        total = 0
        while data := sock.recv(65536):
            total += len(data)
            if total >= MOST_SAID:
                break
    record = sensor.records(1)[0]
    assert record["persona_error"] == "bound: bytes at once"
    assert sensor.stop() == 0


@pytest.mark.parametrize("folder", ["/root", "/tmp", "/"])
def test_ls_of_a_file_by_its_relative_name(folder: str) -> None:
    shell = talk("shell")
    shell.greet()
    heard = shell.hear(b"cd %s; echo hi > f; ls -l f; ls -la; ls -ld .; ls f\n" % folder.encode()).decode()
    assert "-rw-r--r--   1 root     root            3 " in heard
    assert heard.count(" f\r\n") >= 2
    assert heard.rstrip().endswith("#")


def test_words_before_a_command_have_no_end() -> None:
    shell = talk("shell")
    shell.greet()
    for word in (b"sh ", b"sudo ", b"busybox sh "):
        assert b"uid=0(root)" in shell.hear(word * (4000 // len(word)) + b"id\n")
    assert b"applet not found" in shell.hear(b"/bin/busybox XYZ\n")


def test_the_longest_duration_holds_for_a_greeted_client(start: Start, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[limits]\nduration = 1\n")
    sensor = serve(start, "telnet", "-t", "30", "-c", str(tmp_path / "c.toml"))
    with sensor.connect() as sock:
        sock.settimeout(20)
        while sock.recv(4096):
            pass
    assert sensor.records(1)[0]["closed"] == "limit"
    assert sensor.stop() == 0


def test_starttls_works_late_in_a_session_too(start: Start) -> None:
    from tests.test_tls import lenient

    sensor = serve(start, "smtp", "-t", "1")
    with sensor.connect() as sock:
        sock.settimeout(20)
        for _ in range(5):
            sock.sendall(b"EHLO x\r\n")
            assert sock.recv(4096)
            time.sleep(0.3)
        sock.sendall(b"STARTTLS\r\n")
        while b"220 2.0.0" not in sock.recv(4096):
            pass
        with lenient().wrap_socket(sock) as secure:
            secure.sendall(b"EHLO inside\r\n")
            assert b"250" in secure.recv(4096)
    record = sensor.records(1)[0]
    assert "error" not in record["tls"]
    assert sensor.stop() == 0


def test_a_listing_for_a_data_connection_that_is_gone_costs_nothing(start: Start) -> None:
    sensor = serve(start, "ftp")
    with sensor.connect() as sock:
        sock.settimeout(20)
        sock.recv(4096)

        def say(line: str) -> str:
            sock.sendall(line.encode() + b"\r\n")
            return sock.recv(4096).decode()

        say("USER anonymous")
        assert say("PASS x").startswith("230")
        for number in range(20):
            say(f"MKD {'d' * 200}{number}")
        for number in range(5):
            say("EPSV")
            sensor.connect().close()
            sensor.records(number + 1)
            assert "226" in say("LIST")
    assert sensor.stop() == 0
    assert "held" not in sensor.log


def test_auto_waits_until_it_knows_who_is_meant(start: Start) -> None:
    sensor = serve(start, "auto")

    def told(*pieces: bytes) -> bytes:
        with sensor.connect() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                sock.sendall(piece)
                time.sleep(0.1)
            sock.settimeout(3)
            try:
                return sock.recv(65536)
            except TimeoutError:
                return b""

    assert told(b"G", b"ET / HTTP/1.1\r\n", b"Host: x\r\n\r\n").startswith(b"HTTP/1.1 200 OK")
    assert b"SSH-2.0-OpenSSH" in told(b"SS", b"H-2.0-x\r\n")
    assert told(b"*1\r\n", b"$4\r\nPING\r\n") == b"+PONG\r\n"
    assert b"uid=0(root)" in told(b"i", b"d\n")
    assert told(b"\xff\xfd\x01").startswith(b"\xff\xfb")
    query = bytes.fromhex("123401000001000000000000076578616d706c6503636f6d0000010001")
    assert told(len(query).to_bytes(2, "big"), query)[2:4] == b"\x12\x34"
    assert sensor.stop() == 0


def test_each_protocol_that_auto_knows_is_one_that_is_told_apart() -> None:
    names = set((Path(app.__file__)).read_text(encoding="utf-8").split('"')[1::2])
    assert set(auto.BY_PROTOCOL) <= names
    assert set(auto.BY_PROTOCOL.values()) | set(auto.BY_PORT.values()) <= set(registry.BUILTIN)


def test_a_datagram_that_nobody_answers_has_no_other_s_persona() -> None:
    datagrams = auto.AutoDatagrams(Identity("test"))
    query = bytes.fromhex("123401000001000000000000076578616d706c6503636f6d0000010001")
    assert datagrams.named(query, Place(dport=53), Findings())[0] == "dns"
    assert datagrams.named(b"nobody's", Place(dport=9999), Findings()) == ("auto", b"")


def test_a_chunked_login_is_recorded_as_it_is(start: Start) -> None:
    sensor = serve(start, "http")
    where = f"http://127.0.0.1:{sensor.port}/login.php"
    heard = run("curl", "-s", "-H", "Transfer-Encoding: chunked", "-d", "username=alice&password=s3cret", where, where)
    assert heard.count("</html>") == 2
    assert sensor.records(1)[0]["credentials"] == [{"user": "alice", "password": "s3cret"}]
    assert sensor.stop() == 0


def test_a_request_behind_a_chunked_one_is_answered() -> None:
    http = talk("http")
    head = b"POST /login.php HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = [b"2\r\nus\r\n", b"10\r\ner=carol&passwor\r\n", b"4\r\nd=pw\r\n0\r\n\r\n", b"GET /after HTTP/1.1\r\n\r\n"]
    told = b"".join(map(http.hear, [head, *body]))
    assert told.count(b"HTTP/1.1 ") == 2
    assert http.findings.credentials == [("carol", "pw")]


def test_curl_stores_a_large_file_by_tftp(start: Start, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    sensor = serve(start, "tftp", "-q")
    run("curl", "-sS", "--max-time", "20", "-T", str(tmp_path / "large"), f"tftp://127.0.0.1:{sensor.port}/large")
    wait_until(lambda: len(sensor.lines()) >= 197, "all blocks")
    assert sensor.stop() == 0


def test_redis_shows_nothing_of_python(start: Start) -> None:
    redis = talk("redis")
    assert redis.hear(b"*--1\r\n") == b"-ERR Protocol error: invalid multibulk length\r\n"
    three = talk("redis")
    three.hear(b"HELLO 3\r\n")
    assert three.hear(b"CONFIG GET dir\r\n").startswith(b"%1\r\n$3\r\ndir\r\n")
    assert three.hear(b"GET nothing\r\n") == b"_\r\n"


def test_a_listing_of_many_folders_ends() -> None:
    shell = talk("shell")
    shell.greet()
    for number in range(100):
        shell.hear(b"echo x > f%d\n" % number)
    assert len(shell.hear(b"ls -l" + b" ." * 2000 + b"\n")) < MOST_SAID
    assert len(shell.hear(b"cat" + b" /proc/cpuinfo" * 250 + b"\n")) < MOST_SAID


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("cd /tmp; echo abc>x; cat x", "abc\r\n"),
        ("cat /etc/hostname>/tmp/h; wc -l /tmp/h", "1 /tmp/h\r\n"),
        ('echo "<?php eval($_POST[1]);?>" > /tmp/w.php; cat /tmp/w.php', "<?php eval([1]);?>\r\n"),
        ("echo '<?php eval($_POST[1]);?>' > /tmp/w.php; cat /tmp/w.php", "<?php eval($_POST[1]);?>\r\n"),
        ("echo '>y' z", ">y z\r\n"),
        ("echo '$HOME' \"$HOME\" ~", "$HOME /root /root\r\n"),
        ("cd ~ && pwd", "/root\r\n"),
        ("cd /tmp; cd /etc; cd -; pwd", "/tmp\r\n"),
        ("sh -c 'id'", "uid=0(root)"),
        ('bash -c "echo hi"', "hi\r\n"),
        ("mkdir -p /tmp/a/b/c; cd /tmp/a/b/c; pwd", "/tmp/a/b/c\r\n"),
        ("cd /tmp; echo 1 > a; mv a b; ls", "b\r\n"),
        ("cd /tmp; echo 1 > a; mv a b; cat a", "cat: a: No such file or directory\r\n"),
        ("[ -f /etc/passwd ] && echo yes", "yes\r\n"),
        ("[ -d /etc/passwd ] || echo no", "no\r\n"),
        ("grep -c root /etc/passwd", "1\r\n"),
        ("echo x 2>/dev/null >&2; frob 2>/dev/null", "bash: frob: command not found\r\n"),
        ("echo 'x", "syntax error"),
        ("ls 1>/tmp/o; ls /tmp", "o"),
    ],
)
def test_everyday_lines(line: str, wanted: str) -> None:
    shell = talk("shell")
    shell.greet()
    assert wanted in shell.hear(line.encode() + b"\n").decode("latin-1")


def test_bytes_that_are_echoed_are_these_bytes() -> None:
    shell = talk("shell")
    shell.greet()
    assert shell.hear(b"echo -ne '\\x7f\\xff\\x80' > /tmp/b; cat /tmp/b\n").startswith(b"\x7f\xff\x80")


@given(st.text(max_size=200))
def test_any_line_is_taken_apart(line: str) -> None:
    try:
        found = words.parse(line, lambda name: "v")
    except words.UnfinishedError:
        return
    assert all(len(word) <= words.MOST_WORD for word in found.words)


def test_one_who_does_not_read_loses_nothing_of_what_it_says(start: Start) -> None:
    sensor = serve(start, "shell", "-q", "-t", "2", patch="import tcppc.capture.tcp as t; t.SEND_TIMEOUT_SECONDS = 0.5")
    line = b"echo " + b"x" * 4000 + b"\n"
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", sensor.port))
        for _ in range(200):
            sock.sendall(line)
        sock.shutdown(socket.SHUT_WR)
        record = sensor.records(1)[0]
    assert record["bytes"] == 200 * len(line)
    assert record["persona_error"] in ("bound: nobody reads", "bound: bytes at once", "bound: heard")
    assert sensor.stop() == 0


def test_a_reload_with_a_fault_of_a_persona_changes_nothing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "c.toml").write_text(f'[personas]\nfolder = "{tmp_path}/p"\n')
    sensor = start("-c", str(tmp_path / "c.toml"))
    with sensor.connect() as sock:
        sock.sendall(b"before")
        (tmp_path / "p" / "bad.toml").write_text('[[expect]]\npattern = "a{99999999999999999999}"\nreply = "x"\n')
        os.kill(sensor.process.pid, signal.SIGHUP)
        sensor.said("Reload refused, the configuration stays as it was: ")
    sensor.records(1)
    assert sensor.stop() == 0
    assert "Traceback" not in sensor.log


def test_what_waits_for_a_data_connection_is_one_a_client() -> None:
    found = registry.Personas("ftp", {}, "", "seed")
    for number in range(50):
        found._await(Place(src="192.0.2.1", dst="192.0.2.2"), 40000 + number, talk("ftp"))
    assert len(found._awaited) == 1


# What a session may make a persona remember with few bytes; each is said a hundred times.
GROWING = {
    "shell": [b"mkdir -p /tmp/%s/%s\n" % (b"a" * 200, b"b" * 200), b"cd /tmp/%s/%s\n" % (b"a" * 200, b"b" * 200)]
    + [b"touch f%d\n" % number for number in range(150)]
    + [b"echo %s > x; cat x x x x x x x x > y; cat y y y y y y y y > z\n" % (b"c" * 1000)],
    "ftp": [b"USER ftp\r\nPASS x\r\n", b"MKD %s\r\nCWD %s\r\n" % (b"a" * 250, b"a" * 250)]
    + [b"MKD d%d\r\n" % number for number in range(150)],
    "redis": [b"SET k%d %s\r\n" % (number, b"v" * 1000) for number in range(90)],
    "telnet": [b"root\r\n", b"secret\r\n", b"mkdir /tmp/%s\r\n" % (b"a" * 200)],
}


@pytest.mark.parametrize("name", ["shell", "ftp", "redis"])
def test_what_a_persona_remembers_is_told_to_be_charged(name: str) -> None:
    made = talk(name)
    made.hear(GROWING[name][0])
    gc.collect()
    tracemalloc.start()
    try:
        before, held = tracemalloc.get_traced_memory()[0], made.held()
        for piece in GROWING[name][1:]:
            made.hear(piece)
        gc.collect()
        grown, told = tracemalloc.get_traced_memory()[0] - before, made.held() - held
    finally:
        tracemalloc.stop()
    assert grown > 20_000
    assert 0.8 * grown <= told <= 2 * grown + 4096


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("http", b"POST / HTTP/1.1\r\nContent-Length: 9000000\r\nX: " + b"x" * 5000),
        ("redis", b"*2\r\n$3\r\nSET\r\n$400000\r\n" + b"x" * 5000),
        ("mysql", b"\xf0\xf0\x00\x01" + b"x" * 5000),
        ("mssql", b"\x12\x01\x20\x00\x00\x00\x00\x00" + b"x" * 5000),
        ("portmap", b"\x80\x00\x20\x00" + b"x" * 5000),
        ("dns", b"\x20\x00" + b"x" * 5000),
        ("ssh", b"SSH-2.0-x\r\n\x00\x00\x70\x00" + b"x" * 5000),
        ("smtp", b"x" * 4000),
        ("sip", b"INVITE sip:x SIP/2.0\r\n" + b"Via: %s\r\n" % (b"x" * 4000)),
        ("auto", b"*2\r\n$3\r\nSET\r\n$400000\r\n" + b"x" * 5000),
    ],
)
def test_what_a_persona_heard_and_waits_with_is_told_to_be_charged(name: str, half: bytes) -> None:
    made = talk(name)
    if made.speaks_first:
        made.greet()
    made.hear(half)
    assert not made.done
    assert made.held() >= 4000


def test_what_personas_remember_is_within_the_memory_and_comes_back(start: Start, tmp_path: Path) -> None:
    """With some kB said, a session has a hundred kB remembered: those of one source stay within its share of it."""
    (tmp_path / "c.toml").write_text('[limits]\nmemory = "4MiB"\n')
    sensor = serve(start, "shell", "-c", str(tmp_path / "c.toml"))
    said = b"".join(GROWING["shell"])
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(sensor.connect()) for _ in range(14)]
        sensor.said("(#Sessions: 14)")
        for sock in socks:
            sock.sendall(said)
        for sock in socks:  # all are open at once; some are answered, and some are told no more
            sock.settimeout(1)
            with contextlib.suppress(OSError):  # nothing more comes, or it was ended
                while sock.recv(1 << 20):
                    pass
        for sock in socks:
            sock.settimeout(20)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
    ends = [record.get("persona_error") for record in sensor.records(14)]
    assert ends.count(None) >= 2
    assert ends.count("bound: source_memory") >= 2
    with sensor.connect() as sock:
        sock.sendall(b"uname\n")
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
    assert b"Linux" in b"".join(b64decode(reply["data"]) for reply in sensor.records(15)[-1]["replies"])
    assert sensor.stop() == 0
