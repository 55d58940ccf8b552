"""The command line, from outside."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toml

from tcppc import __version__, cli
from tcppc.cli import arguments
from tests import certificates
from tests.conftest import Start
from tests.harness import PATIENCE, Sensor, tcppc


def effective(*flags: str) -> dict[str, Any]:
    done = tcppc("check", *flags)
    assert done.returncode == 0, done.stderr
    return toml.loads(done.stdout)


@pytest.mark.parametrize("flag", ["-v", "--v", "--version", "-v=true"])
def test_the_version_alone_is_printed(flag: str) -> None:
    done = tcppc(flag)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("spelling", [["-p", "99"], ["-p=99"], ["--p", "99"], ["--p=99"]])
def test_flags_take_one_dash_or_two_and_an_equals_sign_as_go_does(spelling: list[str]) -> None:
    assert effective(*spelling)["tcppc"]["port"] == 99


def test_every_flag_of_tcppc_go_sets_its_setting(tmp_path: Path) -> None:
    certificate, key = certificates.make(tmp_path)
    flags = [
        "-H",
        "127.0.0.1",
        "-H",
        "::1",
        "-p",
        "1",
        "-t",
        "5",
        "-w",
        "f-%Y",
        "-T",
        "60",
        "-offset",
        "-9",
        "-z",
        "UTC",
    ]
    flags += ["-R", "500", "-C", certificate, "-K", key, "-L", "log", "-disable-udp-server"]
    found = effective(*flags)
    assert found["tcppc"] == {
        "host": ["127.0.0.1", "::1"], "port": 1, "timeout": 5, "tcpFileFmt": "f-%Y", "rotInt": 60, "rotOffset": -9,
        "timezone": "UTC", "maxFdNum": 500, "x509Cert": certificate, "x509Key": key, "logFile": "log",
    }  # fmt: skip
    assert (found["capture"]["tcp"], found["capture"]["udp"]) == (True, False)


@pytest.mark.parametrize("written", ["-disable-tcp-server", "--disable-tcp-server", "-disable-tcp-server=true"])
def test_a_server_can_be_disabled(written: str) -> None:
    assert effective(written)["capture"]["tcp"] is False


def test_false_leaves_a_server_enabled() -> None:
    assert effective("-disable-tcp-server=false", "-q=0")["capture"]["tcp"] is True


@pytest.mark.parametrize("command", [(), *((name,) for name in cli.COMMANDS)])
def test_help_has_examples_and_exits_0(command: tuple[str, ...]) -> None:
    done = tcppc(*command, "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert done.stderr == ""


def test_help_lists_every_command_and_every_flag() -> None:
    shown = tcppc("--help").stdout
    for name in cli.COMMANDS:
        assert f"tcppc {name} " in shown
    for flag in [
        "-H",
        "-p",
        "-t",
        "-w",
        "-T",
        "-offset",
        "-z",
        "-R",
        "-C",
        "-K",
        "-c",
        "-L",
        "-v",
        "-disable-tcp-server",
        "-disable-udp-server",
        "-q",
        "--hints",
    ]:
        assert f" {flag}" in shown, flag


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["-p", "http"], "-p 'http': expected a whole number from 0 to 65535"),
        (["-p", "65536"], "-p '65536': expected a whole number"),
        (["-p"], "expected one argument"),
        (["-t", "soon"], "-t 'soon': expected a duration"),
        (["-t", "0"], "-t '0': expected a duration from 0.01"),
        (["-T", "-5"], "-T '-5': expected a whole number from 0"),
        (["-R", "many"], "-R 'many': expected a whole number"),
        (["-z", "Mars/Base"], "there is no time zone 'Mars/Base'; expected Local or a name such as Asia/Tokyo"),
        (["-H", "no.such.host.invalid"], "cannot listen on 'no.such.host.invalid'"),
        (["-H", ""], "-H ['']: expected a name or address"),
        (["-tls", "maybe"], "--tls 'maybe': expected off, on or auto"),
        (["-tls", "on"], "TLS is on without a certificate"),
        (["-C", "x"], "-C is given without -K"),
        (["-C", "/nowhere/x", "-K", "/nowhere/y"], "-C /nowhere/x -K /nowhere/y: No such file"),
        (["-c", "/nowhere/tcppc.toml"], "/nowhere/tcppc.toml: cannot be read: No such file"),
        (["-format", "xml"], "--format 'xml': expected full or classic"),
        (["-w", "data/"], "expected the name of a file, not of a folder"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["surplus-word"], "there is no command 'surplus-word'"),
        (["-q", "surplus"], "unrecognized arguments: surplus"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "check"])
def test_what_is_wrong_is_one_line_and_exit_code_2(
    command: str, flags: list[str], complaint: str, tmp_path: Path
) -> None:
    if flags == ["surplus-word"]:
        done = tcppc(*flags)
    else:
        file = [] if "-w" in flags else ["-w", f"{tmp_path}/d"]
        done = tcppc(command, *file, "-p", "0", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("tcppc: ")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_port_below_1024_without_the_right_to_it_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    import os
    import shutil

    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("dropping a capability needs root and setpriv")
    capability = "-net_bind_service"
    prefix = ("setpriv", "--bounding-set", capability, "--inh-caps", capability)
    sensor = Sensor(tmp_path, port=99, prefix=prefix)
    assert sensor.process.wait(PATIENCE) == 1
    assert sensor.log.splitlines()[-1].endswith("Permission denied; ports below 1024 need CAP_NET_BIND_SERVICE")


@pytest.mark.parametrize("form", ["full", "classic"])
def test_check_accepts_what_the_sensor_writes(start: Start, form: str) -> None:
    sensor = start("-format", form)
    sensor.send(b"GET / HTTP/1.0\r\n\r\n")
    sensor.send(b"")
    sensor.send(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")
    sensor.datagram(b"\0\xff")
    sensor.records(4)
    done = tcppc("check", "--records", str(sensor.file))
    assert (done.returncode, done.stdout) == (0, f"{sensor.file}: 4 records, 0 not as the schema says\n")


def test_check_names_the_lines_that_are_no_records_and_shows_no_control_bytes(start: Start) -> None:
    sensor = start()
    sensor.send(b"x")
    sensor.records(1)
    sensor.stop()
    with sensor.file.open("ab") as file:
        file.write(b'{"half":\n{"timestamp":"now","flow":{},"payloads":[]}\n{"\\u001b[31m":1}\n')
    done = tcppc("check", "--records", str(sensor.file))
    assert done.returncode == 1
    assert f"{sensor.file}:2: is no JSON object" in done.stderr
    assert f"{sensor.file}:3: " in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert "4 records, 3 not as the schema says" in done.stdout


def test_hints_say_where_it_listens_where_the_file_is_and_what_to_type(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tcppc", "-p", "0", "-H", "127.0.0.1", "-w", f"{tmp_path}/d.jsonl", "--hints"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).parent.parent
    )
    assert process.stdout is not None
    shown = ""
    while "tail -n" not in shown:
        shown += process.stdout.readline()
    process.terminate()
    assert process.wait(PATIENCE) == 0
    process.stdout.close()
    port = shown.split("127.0.0.1:")[1].split(",")[0]
    for text in (
        f"{tmp_path}/d.jsonl",
        f"nc -w 1 127.0.0.1 {port}",
        f"nc -u -w 1 127.0.0.1 {port}",
        f"https://127.0.0.1:{port}",
    ):
        assert text in shown


def test_a_reader_that_goes_away_gives_no_traceback() -> None:
    reader, writer = socket.socketpair()
    reader.close()
    done = subprocess.run(
        [sys.executable, "-m", "tcppc", "check"],
        stdout=writer.fileno(),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    writer.close()
    assert "Traceback" not in done.stderr


def test_every_command_is_listed_with_what_it_is_for() -> None:
    assert list(cli.COMMANDS) == list(arguments.ABOUT)
