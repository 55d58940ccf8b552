"""Who may not read something is told so, in a line, by each command that reads folders: never that nothing is there."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import PATIENCE, ended, payload, tcppc, wait_until
from tests.ledgers import Ledger
from tests.test_show import line

ROOT = Path(__file__).parent.parent
# Root without its capabilities may no more than any owner may: a file of mode 0 is closed to it.
PREFIX = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all") if os.geteuid() == 0 else ()
EMPTY_CAPTURE = bytes.fromhex("d4c3b2a1020004000000000000000000ffff000001000000")
BLOCK = (
    '{"timestamp":"2026-11-28T09:00:00Z","event":"block","network":"198.51.100.7/32","scope":"host",'
    '"until":"2099-01-01T00:00:00Z"}\n'
)
# Who is closed out of what, and what is then refused.
KINDS = {
    "a folder above": ("outer", 0),
    "the folder's names": ("data", 0o311),
    "what is in the folder": ("data", 0o644),
    "files": ("files", 0),
    "ledger": ("ledger.jsonl", 0),
}
COMMANDS = {
    "account": ("account", "{data}"),
    "account --acknowledge": ("account", "--acknowledge", "{data}"),
    "recover": ("recover", "{data}"),
    "recover FILE": ("recover", "{data}/data.jsonl"),
    "show": ("show", "{data}"),
    "show FILE": ("show", "{data}/data.jsonl"),
    "show -f": ("show", "-f", "{data}"),
    "show -f FILE": ("show", "-f", "{data}/data.jsonl"),
    "check": ("check", "--records", "{data}/data.jsonl"),
    "diff": ("diff", "{data}/data.jsonl", "{data}/c.pcap"),
    "diff CAPTURE": ("diff", "{base}/other.jsonl", "{data}/c.pcap"),
    "blocks": ("blocks", "-c", "{base}/conf.toml", "list"),
    "doctor": ("doctor", "-c", "{base}/conf.toml"),
}
ONLY_FOLDERS = {"account", "account --acknowledge", "recover", "show", "show -f"}
OF_THE_LEDGER = {"account", "account --acknowledge", "recover", "recover FILE", "doctor"}
CASES = [
    (kind, command)
    for kind in KINDS
    for command in COMMANDS
    if (kind != "the folder's names" or command in ONLY_FOLDERS)
    and (kind != "ledger" or command in OF_THE_LEDGER)
    and (kind, command) != ("files", "doctor")  # it reads the ledger alone
]


def closed_out(*words: str) -> subprocess.CompletedProcess[str]:
    """A command run by somebody who may read no more than modes allow."""
    return subprocess.run(
        [*PREFIX, sys.executable, "-m", "tcppc", *words],
        capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT,
    )  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A folder with all that the commands read, in one of its own."""
    folder = tmp_path / "outer" / "data"
    folder.mkdir(parents=True)
    ledger = Ledger(folder)
    ledger.file().write_text(line(b"one"), encoding="ascii")
    ledger.whole(0)
    (folder / "blocks.jsonl").write_text(BLOCK, encoding="ascii")
    (folder / "c.pcap").write_bytes(EMPTY_CAPTURE)
    (tmp_path / "other.jsonl").write_text("", encoding="ascii")
    (tmp_path / "conf.toml").write_text(
        f'[tcppc]\ntcpFileFmt = "{folder}/data.jsonl"\n[capture]\nstate_dir = "{folder}"\n', encoding="utf-8"
    )
    yield folder
    os.chmod(folder.parent, 0o755)
    os.chmod(folder, 0o755)


def close(data: Path, kind: str) -> None:
    name, mode = KINDS[kind]
    names = ("data.jsonl", "blocks.jsonl", "c.pcap") if name == "files" else (name,)
    places = {"outer": data.parent, "data": data}
    for each in names:
        os.chmod(places.get(each, data / each), mode)


@pytest.mark.parametrize(("kind", "command"), CASES, ids=[f"{kind}: {command}" for kind, command in CASES])
def test_what_may_not_be_read_is_said_and_nothing_is_made_up(
    data: Path, tmp_path: Path, kind: str, command: str
) -> None:
    close(data, kind)
    done = closed_out(*(word.format(data=data, base=tmp_path) for word in COMMANDS[command]))
    told = [text for text in (done.stderr + done.stdout).splitlines() if "Permission denied" in text]
    assert done.returncode != 0, done.stdout
    assert told, done
    assert all(str(data) in text for text in told)
    assert "Traceback" not in done.stderr
    for wrong in ("Nobody is blocked", "The sums", "is gone", "no session", "agree,", "is sound", "is no line"):
        assert wrong not in done.stdout + done.stderr, done


def test_the_same_commands_say_what_is_there_where_it_may_be_read(data: Path, tmp_path: Path) -> None:
    """The other side of the test above: what it closes is the reason."""
    for name in ("account", "recover", "show FILE", "check", "diff CAPTURE"):
        done = closed_out(*(word.format(data=data, base=tmp_path) for word in COMMANDS[name]))
        assert done.returncode == 0, done
        assert "Permission denied" not in done.stderr


def test_one_file_of_many_that_may_not_be_read_leaves_the_sums_open(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.whole(3, "d-1.jsonl")
    ledger.whole(2, "d-2.jsonl")
    os.chmod(ledger.file("d-1.jsonl"), 0)
    done = closed_out("account", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "Nobody knows whether the sums agree: not all of it can be read."
    assert f"  UNREAD: {ledger.file('d-1.jsonl')}: cannot be read: Permission denied\n" in done.stdout
    assert "PROBLEM" not in done.stdout
    found = json.loads(closed_out("account", "--json", str(tmp_path)).stdout)
    assert (found["agrees"], len(found["unread"]), found["problems"]) == (False, 1, [])
    ledger.file("d-2.jsonl").unlink()  # and where something is missing for certain, that is said
    done = closed_out("account", str(tmp_path))
    assert done.stdout.splitlines()[-1] == "The sums do not agree."


@pytest.mark.parametrize("mode", [0, 0o311, 0o644])
def test_a_folder_below_that_is_closed_holds_no_files_that_are_gone(tmp_path: Path, mode: int) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / "2026").mkdir()
    ledger.whole(3, "2026/d.jsonl")
    os.chmod(tmp_path / "2026", mode)
    done = closed_out("account", str(tmp_path))
    acknowledged = closed_out("account", "--acknowledge", "--run", ledger.run, str(tmp_path))
    os.chmod(tmp_path / "2026", 0o755)
    assert (done.returncode, done.stdout.count("UNREAD")) == (1, 1), done.stdout
    assert "is gone" not in done.stdout
    assert "is gone" not in acknowledged.stdout
    done = tcppc("account", str(tmp_path))
    assert (done.returncode, "is gone" in done.stdout) == (0, False), done.stdout


def test_a_ledger_that_may_be_read_alone_is_not_acknowledged(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.killed()
    os.chmod(ledger.path, 0o444)
    before = ledger.path.read_bytes()
    done = closed_out("account", "--acknowledge", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"tcppc: {ledger.path}: cannot be written to: Permission denied; nothing is acknowledged\n")
    assert ledger.path.read_bytes() == before


def test_recover_does_its_job_where_the_ledger_may_not_be_written_to(start: Start, tmp_path: Path) -> None:
    sensor = start("-q", "--record", "events")
    with sensor.connect() as sock:
        sock.sendall(b"cut")
        wait_until(lambda: len(sensor.lines()) == 2, "the payload")
        sensor.kill()
    ledger = tmp_path / "ledger.jsonl"
    os.chmod(ledger, 0o444)
    before = ledger.read_bytes()
    done = closed_out("recover", str(sensor.file))
    assert done.returncode == 0, done.stderr
    assert [payload(json.loads(text)) for text in done.stdout.splitlines()] == [b"cut"]
    assert f"{ledger}: cannot be written to: Permission denied; tcppc account knows of no recovery\n" in done.stderr
    assert ledger.read_bytes() == before


def test_show_follows_what_may_be_read_says_what_may_not_and_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "closed.jsonl").write_text(line(b"closed"), encoding="ascii")
    os.chmod(tmp_path / "closed.jsonl", 0)
    (tmp_path / "open.jsonl").write_text(line(b"before"), encoding="ascii")
    with ended(subprocess.Popen(
        [*PREFIX, sys.executable, "-m", "tcppc", "show", "-f", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )) as process:  # fmt: skip
        assert process.stderr
        assert process.stdout
        assert process.stderr.readline() == f"tcppc: {tmp_path}/closed.jsonl: cannot be read: Permission denied\n"
        with (tmp_path / "open.jsonl").open("a", encoding="ascii") as file:
            while not select.select([process.stdout], [], [], 0.1)[0]:  # it may not have looked at this one yet
                file.write(line(b"after"))
                file.flush()
        assert "198.51.100.7" in process.stdout.readline()
        assert process.stdout.readline() == "    after\n"
        time.sleep(0.6)  # two more looks: it is said once
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=PATIENCE)
    assert (process.returncode, rest) == (1, "")


def test_blocks_that_nobody_may_ask_the_kernel_for_are_not_said_to_be_none(tmp_path: Path) -> None:
    conf = tmp_path / "conf.toml"
    conf.write_text(f'[capture]\nstate_dir = "{tmp_path}"\n', encoding="utf-8")
    done = closed_out("blocks", "-c", str(conf), "list")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"there is no undo log {tmp_path}/blocks.jsonl either: who is blocked is not known" in done.stderr
    (tmp_path / "blocks.jsonl").write_text("", encoding="ascii")
    done = closed_out("blocks", "-c", str(conf), "list")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    (tmp_path / "blocks.jsonl").write_text(BLOCK, encoding="ascii")
    done = closed_out("blocks", "-c", str(conf), "list", "--json")
    assert (done.returncode, json.loads(done.stdout)["network"]) == (1, "198.51.100.7")
    assert f"{tmp_path}/blocks.jsonl says may be old" in done.stderr


def test_a_configuration_that_is_there_and_may_not_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    conf = tmp_path / "conf.toml"
    conf.write_text(f'[capture]\nstate_dir = "{tmp_path}"\n', encoding="utf-8")
    os.chmod(conf, 0)
    program = "import sys, tcppc.cli.acting as acting; acting.DEFAULT_FILE = sys.argv[1]; from tcppc.cli import main; "
    done = subprocess.run(
        [*PREFIX, sys.executable, "-c", f"{program}sys.exit(main(['blocks', 'list']))", str(conf)],
        capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{conf}: cannot be read: Permission denied" in done.stderr


def test_a_folder_of_personas_that_may_not_be_read_is_no_empty_one(tmp_path: Path) -> None:
    folder = tmp_path / "personas"
    folder.mkdir()
    (folder / "own.toml").write_text('banner = "hello"\n', encoding="ascii")
    conf = tmp_path / "conf.toml"
    conf.write_text(f'[personas]\nfolder = "{folder}"\n', encoding="utf-8")
    assert "own" in closed_out("personas", "-c", str(conf)).stdout
    os.chmod(folder, 0o311)
    for words in (("personas", "-c", str(conf)), ("check", "-c", str(conf))):
        done = closed_out(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
        assert f"personas.folder {folder}: cannot be read: Permission denied" in done.stderr
    os.chmod(folder, 0o755)
