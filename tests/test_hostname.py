"""Names that this host gives, of any bytes: its own, those of files, those in the environment."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import captures, netns
from tests.conftest import Start
from tests.harness import PATIENCE, Sensor, ended, payload, wait_until

ROOT = Path(__file__).parent.parent
ODD = b"\xf6-\xc3\xb6"  # a byte that is no UTF-8, and an ö
SHOWN = r"\xf6-ö"
# In a UTS namespace of its own: the name is this process's and its children's.
NAMED = (
    "unshare", "--uts", sys.executable, "-c",
    "import os, socket, sys; socket.sethostname(bytes.fromhex(sys.argv[1])); os.execvp(sys.argv[2], sys.argv[2:])",
)  # fmt: skip


def named(name: bytes) -> tuple[str, ...]:
    if why := netns.why_not():
        pytest.skip(why)
    return (*NAMED, name.hex())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"h\xf6st", r"h\xf6st"),
        (rb"h\xf6st", r"h\xf6st"),
        (b"", "unnamed"),
        (b"n" * 64, "n" * 64),
        (b"quo\"te's \\", "quo\"te's \\"),
        (b"a\nb\x1b[31m\x7f", "a\nb\x1b[31m\x7f"),
        ("ホスト".encode(), "ホスト"),
    ],
)
def test_a_sensor_on_a_host_of_any_name_starts_and_records_it(name: bytes, shown: str, start: Start) -> None:
    sensor = start("--persona", "auto", prefix=named(name))
    sensor.send(b"GET / HTTP/1.0\r\n\r\n")
    assert sensor.records(1)[0]["sensor"] == shown
    assert sensor.stop() == 0
    assert {json.loads(line)["sensor"] for line in (sensor.folder / "ledger.jsonl").open("rb")} == {shown}
    account = sensor.account()
    assert account.returncode == 0, account.stderr
    assert "\x1b" not in account.stdout + account.stderr


def test_actions_have_the_same_name(start: Start, net: netns.Net, tmp_path: Path) -> None:
    out = tmp_path / "told"
    action = f"printf '%s' [SENSOR]\\ \"$TCPPC_SENSOR\" > {out}.new; mv {out}.new {out}"
    prefix = (*net.sensor.prefix, *named(b"h\xf6st"))
    sensor = start("--action", action, hosts=("0.0.0.0",), port=12345, prefix=prefix)
    netns.knock(net.attacker, "tcp", netns.SENSOR[0], 12345, "x")
    wait_until(out.exists, "the action")
    assert out.read_text(encoding="utf-8") == r"h\xf6st h\xf6st"
    assert sensor.stop() == 0


def test_nc_and_the_report_have_the_same_name(tmp_path: Path) -> None:
    prefix = named(b"h\xf6st")
    records = tmp_path / "nc.jsonl"
    command = [*prefix, sys.executable, "-m", "tcppc", "nc", "-lv", "0", "-o", str(records)]
    with ended(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)) as process:
        assert process.stderr
        port = int(process.stderr.readline().split()[-1])
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
        assert process.wait(PATIENCE) == 0
    assert json.loads(records.read_text(encoding="ascii"))["sensor"] == r"h\xf6st"
    capture = tmp_path / "empty.pcap"
    capture.write_bytes(captures.pcap([]))
    command = [*prefix, sys.executable, "-m", "tcppc", "flows", "-q", "-r", str(capture), "-X", "-", "-FX"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=ROOT)
    assert r"<host>h\xf6st</host>" in done.stdout


def test_a_name_given_on_the_command_line_may_be_of_any_bytes_too(tmp_path: Path, start: Start) -> None:
    sensor = start("--sensor", os.fsdecode(ODD))
    sensor.send(b"x")
    assert sensor.records(1)[0]["sensor"] == SHOWN


# Files


def test_a_data_file_of_any_name_is_written_accounted_for_and_shown(tmp_path: Path) -> None:
    name = os.fsdecode(b"data-" + ODD + b".jsonl")
    sensor = Sensor(tmp_path, file=name).started()
    try:
        sensor.send(b"hello")
        assert [payload(record) for record in sensor.records(1)] == [b"hello"]
        assert sensor.stop() == 0
    finally:
        sensor.kill()
    assert f"Created a session file: {tmp_path}/data-{SHOWN}.jsonl\n" in sensor.log
    ledger = (tmp_path / "ledger.jsonl").read_text(encoding="ascii")
    lines = [json.loads(line) for line in ledger.splitlines()]
    assert {line["file"] for line in lines if "file" in line} == {f"data-{SHOWN}.jsonl"}
    assert "\\udc" not in ledger  # which few readers of JSON take
    account = run("account", str(tmp_path))
    assert (account.returncode, b"The sums agree." in account.stdout) == (0, True), account.stdout
    sensor.file.unlink()
    account = run("account", str(tmp_path))
    assert account.returncode == 1
    assert f"{SHOWN}.jsonl: is gone".encode() in account.stdout.replace(b"\\\\", b"\\")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "tcppc", *words],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    "words",
    ["check -c NAME", "show NAME", "account NAME", "recover NAME", "check --records NAME",
     "flows -q -r NAME -FX -S enable_report=NO",
     "diff NAME NAME", "NAME", "check --NAME", "check -w NAME/", "check --captures NAME -w NAME", "nc -l NAME 1",
     "check -H NAME", "check -z NAME", "rules --interface NAME", "watch -i NAME", "check --persona NAME",
     "check -C NAME -K NAME", "blocks add NAME", "actions --test NAME --action x", "blocks list -c NAME"],
)  # fmt: skip
@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_whatever_is_wrong_with_a_name_of_any_bytes_is_one_line(words: str, locale: str, tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/none-" + ODD)
    done = run(*(word.replace("NAME", name) for word in words.split()), LC_ALL=locale)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(b"tcppc: "), done.stderr
    assert done.stderr.count(b"\n") == 1, done.stderr
    done.stderr.decode("utf-8")


def test_logs_captures_and_session_files_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"f-" + ODD)
    sensor = Sensor(
        tmp_path, "-L", f"{folder}/log", "--captures", f"{folder}/captures", "--session-dir", f"{folder}/sessions",
        file=f"{folder.name}/data.jsonl",
    )  # fmt: skip
    folder.mkdir()
    try:
        wait_until(lambda: (folder / "log").exists() and "Start UDP server." in (folder / "log").read_text(), "a start")
        log = (folder / "log").read_text(encoding="utf-8")
        assert f"Created a session file: {tmp_path}/f-{SHOWN}/data.jsonl\n" in log
        sensor.signal(signal.SIGTERM)
        assert sensor.process.wait(PATIENCE) == 0
    finally:
        sensor.kill()


def test_streams_in_a_folder_of_any_name(tmp_path: Path) -> None:
    capture, folder = tmp_path / os.fsdecode(ODD + b".pcap"), tmp_path / os.fsdecode(b"out-" + ODD)
    client, server = socket.inet_aton("198.51.100.7"), socket.inet_aton("192.0.2.10")
    capture.write_bytes(captures.pcap([(10**18, captures.tcp_packet(client, 51324, server, 80, 1, b"hello"))]))
    done = run("flows", "-r", str(capture), "-o", str(folder))
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        0, f"reportfilename: {tmp_path}/out-{SHOWN}/report.xml".encode(),
    )  # fmt: skip
    report = (folder / "report.xml").read_text(encoding="utf-8")
    assert f"<image_filename>{tmp_path}/{SHOWN}.pcap</image_filename>" in report
    assert f"{tmp_path}/out-{SHOWN}/" in report
    shown = run("flows", "-q", "-c", "-r", str(capture), "-o", str(folder))
    assert shown.stdout.startswith(os.fsencode(folder) + b"/198.051.100.007")


@pytest.mark.parametrize("name", ["HOME", "STATE_DIRECTORY", "XDG_STATE_HOME", "TMPDIR", "USER", "TZ", "SSH_CONNECTION",
                                  "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC", "PATH", "LANG",
                                  "NO_COLOR", "COLUMNS"])  # fmt: skip
def test_an_environment_of_any_bytes(name: str, start: Start, tmp_path: Path) -> None:
    value = os.fsdecode(os.fsencode(tmp_path) + b"/" + ODD)
    sensor = start(prefix=("env", f"{name}={value}"))
    sensor.send(b"x")
    sensor.records(1)
    assert sensor.stop() == 0
    for words in (("rules", "--status"), ("--help",)):
        assert b"Traceback" not in run(*words, **{name: value}).stderr


def test_who_blocks_and_why_may_be_of_any_bytes(net: netns.Net, tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text(f'[capture]\nstate_dir = "{tmp_path}/state"\n', encoding="ascii")
    words = ("blocks", "-c", str(settings))
    odd: dict[str, Any] = {"environment": {"USER": os.fsdecode(ODD), "SUDO_USER": ""}}
    done = net.sensor.tcppc(*words, "add", "198.51.100.9", "--why", os.fsdecode(ODD), **odd)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "state/blocks.jsonl").read_text(encoding="ascii"))
    assert (told["by"], told["why"]) == (SHOWN, SHOWN)
    assert SHOWN in net.sensor.tcppc(*words, "list").stdout
