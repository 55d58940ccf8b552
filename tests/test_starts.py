"""It starts with what this host gives, or says in one line what it lacks. Never a traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import captures, lacking
from tests.harness import PATIENCE, wait_until
from tests.lacking import Nameless

# What the environment may say of the user's folders.
HOMES: dict[str, dict[str, str]] = {
    "no HOME": {},
    "an empty one": {"HOME": ""},
    "a relative one": {"HOME": "work"},
    "one that is not there": {"HOME": "/nonexistent"},
    "one that cannot be written to": {"HOME": "/usr"},
    "a relative XDG_STATE_HOME": {"XDG_STATE_HOME": "state"},
    "an XDG_STATE_HOME that is a file": {"XDG_STATE_HOME": os.devnull},
    "two state folders": {"STATE_DIRECTORY": ":/nonexistent/a:/nonexistent/b"},
}


@pytest.fixture(scope="module")
def nameless() -> Iterator[Nameless]:
    yield from lacking.nameless()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def serving(user: Nameless, *arguments: str, shell: str = "", **environment: str) -> Iterator[Path]:
    """The path of its log, for the time of a `with`, once it serves."""
    path = user.work / f"log-{len(os.listdir(user.work))}"
    with path.open("wb") as log:
        process = subprocess.Popen(
            user.command(*arguments, shell=shell),
            cwd=user.work,
            env=user.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:

        def started() -> bool:
            assert process.poll() is None, path.read_text(encoding="utf-8")
            return "Start UDP server." in path.read_text(encoding="utf-8")

        wait_until(started, "the sensor to start")
        yield path
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert "Traceback" not in path.read_text(encoding="utf-8")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("home", HOMES)
def test_a_user_without_a_name_has_a_sensor_whatever_the_environment_says_of_its_home(
    nameless: Nameless, home: str
) -> None:
    port, file = free_port(), f"data-{len(os.listdir(nameless.work))}.jsonl"
    with serving(nameless, "-H", "127.0.0.1", "-p", str(port), "-w", file, **HOMES[home]):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.sendall(b"hello")
        written = nameless.work / file
        wait_until(lambda: b"aGVsbG8=" in written.read_bytes(), "the record")


def test_without_a_folder_to_keep_them_in_tls_is_not_answered_and_nobody_is_blocked_and_both_is_said(
    nameless: Nameless,
) -> None:
    settings = nameless.work / "block.toml"
    settings.write_text('[[action]]\nblock = "1h"\n', encoding="ascii")
    missing = f"there is no folder for what is kept: uid {lacking.UID} has no entry in passwd(5), and HOME is not set"
    with serving(nameless, "-H", "127.0.0.1", "-p", str(free_port()), "-c", str(settings)) as log:
        text = log.read_text(encoding="utf-8")
    assert f"TLS is recognised but not answered: {missing}; capture.state_dir takes one." in text
    assert "Blocks: nobody is blocked: " in text  # of two reasons the capability is told first


@pytest.fixture(scope="module")
def capture(nameless: Nameless) -> Path:
    client, server = socket.inet_aton("198.51.100.7"), socket.inet_aton("192.0.2.10")
    asked, told = b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nyes"
    frames = [
        captures.tcp_packet(client, 51324, server, 80, 0, flags=captures.SYN),
        captures.tcp_packet(server, 80, client, 51324, 0, flags=captures.SYN | captures.ACK),
        captures.tcp_packet(client, 51324, server, 80, 1, asked),
        captures.tcp_packet(server, 80, client, 51324, 1, told),
    ]
    path = nameless.work / "of-http.pcap"
    path.write_bytes(captures.pcap([(10**18 + number, frame) for number, frame in enumerate(frames)]))
    return path


# Each command, and its exit code where there is nothing that it could do with the rights of this user.
COMMANDS = {
    "blocks list": 1,
    "blocks add 198.51.100.9": 1,
    "doctor -p 1": 1,
    "rules --interface none0": 2,
    "rules --status": 1,
    "actions --tokens": 0,
    "actions --action true --test 198.51.100.7:23": 0,
    "watch -i lo": 1,
    "flows -q -r CAPTURE -o out": 0,
    "flows -q -a -r CAPTURE -o out": 0,
    "flows -q -c -r CAPTURE": 0,
    "flows -q --udp --json - -FX -S enable_report=NO -r CAPTURE": 0,
    "diff DATA CAPTURE": 0,
    "show DATA": 0,
    "recover DATA": 0,
    "account .": 0,
    "personas": 0,
    "check": 0,
}
GONE = "mkdir gone; cd gone; rmdir ../gone;"
# Those that name files of the working folder cannot do without it.
IN_ANY_FOLDER = [words for words in COMMANDS if "-o out" not in words and words != "account ."]


def tried(user: Nameless, capture: Path, words: str, shell: str = "", cwd: Path | None = None) -> tuple[int, str]:
    """(exit code, what it said on standard error) of a command."""
    data = user.work / "of-http.jsonl"
    if not data.exists():
        made = user.run("flows", "-q", "--json", str(data), "-FX", "-S", "enable_report=NO", "-r", str(capture))
        assert made.returncode == 0, made.stderr
    arguments = words.replace("CAPTURE", str(capture)).replace("DATA", str(data)).split()
    done = user.run(*arguments, shell=shell, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", COMMANDS)
def test_a_user_without_a_name_and_a_home_has_every_command(nameless: Nameless, capture: Path, words: str) -> None:
    code, said = tried(nameless, capture, words)
    assert code == COMMANDS[words], said
    assert said.count("tcppc: ") <= 1, said


@pytest.mark.parametrize("words", IN_ANY_FOLDER)
@pytest.mark.parametrize("folder", ["gone", "closed"])
def test_commands_that_need_nothing_of_the_working_folder_do_without_it(
    nameless: Nameless, capture: Path, words: str, folder: str
) -> None:
    if folder == "gone":
        code, said = tried(nameless, capture, words, GONE)
    else:
        closed = nameless.folder / "not-to-be-entered"
        closed.mkdir(mode=0o700, exist_ok=True)
        code, said = tried(nameless, capture, words, cwd=closed)
    assert code == COMMANDS[words], said


def test_a_sensor_with_full_names_does_without_a_working_folder(nameless: Nameless) -> None:
    port, file = free_port(), nameless.work / "elsewhere.jsonl"
    arguments = ("-H", "127.0.0.1", "-p", str(port), "-w", str(file), "--hints")
    with serving(nameless, *arguments, shell=GONE):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.sendall(b"hello")
        wait_until(lambda: file.exists() and b"aGVsbG8=" in file.read_bytes(), "the record")


@pytest.mark.parametrize(
    "words",
    ["flows -q -c -e http -r CAPTURE", "flows -q --json - -FX -S enable_report=NO -r CAPTURE", "diff DATA CAPTURE"],
)
def test_without_a_temporary_folder_one_line_says_so(nameless: Nameless, capture: Path, words: str) -> None:
    tried(nameless, capture, "check")  # so that what it is given is there
    closed = nameless.work / "closed"
    closed.mkdir(mode=0o555, exist_ok=True)
    mounted = "mount --bind {0} /tmp 2>/dev/null; mount --bind {0} /var/tmp; mount --bind {0} /usr/tmp 2>/dev/null; "
    arguments = words.replace("CAPTURE", str(capture)).replace("DATA", str(nameless.work / "of-http.jsonl")).split()
    # What stands beneath /tmp is reached by descriptors that are open, and by a second mount.
    again = nameless.folder / "again"
    again.mkdir(exist_ok=True)
    command = [each.replace(str(nameless.work), "/mnt/work") for each in nameless.command(*arguments)]
    shell = f'mount --bind {nameless.folder} /mnt; {mounted.format("/mnt/work/closed")} cd /mnt/work/closed; exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, "sh", *command],
        env=nameless.environment() | {"PYTHONPATH": "/mnt/packages", "TMPDIR": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "tcppc: there is no folder for temporary files that can be written to: expected TMPDIR, /tmp or /var/tmp\n"
    )
