from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tcppc import clock, records, show
from tests.conftest import Start
from tests.harness import PATIENCE, tcppc, wait_until

MINUTE = 60 * clock.NANOSECONDS
BEGIN = 1_776_473_494 * clock.NANOSECONDS


def line(data: bytes, minute: int = 0, src: str = "198.51.100.7", dport: int = 80, proto: str = "tcp") -> str:
    session = records.Session(
        proto, src, 40000, "192.0.2.10", dport, BEGIN + minute * MINUTE, [(BEGIN, data)], len(data)
    )
    return records.Encoder(clock.Zone("UTC"), "s").line(session) + "\n"


def test_text_is_shown_as_text_and_the_rest_as_hex(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(line(b"GET / HTTP/1.0\r\n\r\n") + line(bytes(range(20))), encoding="ascii")
    shown = tcppc("show", str(file)).stdout.splitlines()
    assert shown[0].startswith("2026-04-18T00:51:34.000000000Z tcp 198.51.100.7:40000 -> 192.0.2.10:80, 18 bytes, http")
    assert shown[1] == r"    GET / HTTP/1.0\r\n"
    assert shown[4] == "    00000000  00 01 02 03 04 05 06 07  08 09 0a 0b 0c 0d 0e 0f  |................|"
    assert shown[5] == "    00000010  10 11 12 13                                       |....|"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--port", "22"], [b"b"]),
        (["--port", "20-30,443"], [b"b", b"c"]),
        (["--source", "203.0.113.0/24"], [b"b"]),
        (["--source", "2001:db8::/32", "--source", "203.0.113.9"], [b"b", b"c"]),
        (["--proto", "udp"], [b"c"]),
        (["--since", "2026-04-18T00:52:34Z"], [b"b", b"c"]),
        (["--since", "2026-04-18T09:52:34+09:00", "--until", "2026-04-18T00:53:34Z"], [b"b"]),
        (["--since", "1d"], []),
    ],
)
def test_filters_by_source_port_protocol_and_time(tmp_path: Path, flags: list[str], expected: list[bytes]) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(line(b"a") + line(b"b", 1, "203.0.113.9", 22) + six(b"c"), encoding="ascii")
    shown = tcppc("show", *flags, str(file)).stdout.splitlines()
    assert [text.strip().encode() for text in shown if text.startswith("    ")] == expected


def six(data: bytes) -> str:
    session = records.Session("udp", "2001:db8::1", 1, "2001:db8::2", 443, BEGIN + 2 * MINUTE, [(BEGIN, data)], 1)
    return records.Encoder(clock.Zone("UTC"), "s").line(session) + "\n"


def test_folders_and_compressed_files_are_read_oldest_first(tmp_path: Path) -> None:
    import os

    (tmp_path / "1.jsonl.gz").write_bytes(gzip.compress(line(b"one").encode()))
    (tmp_path / "2.jsonl.zst").write_bytes(zstandard.compress(line(b"two").encode()))
    (tmp_path / "3.jsonl").write_text(line(b"three"), encoding="ascii")
    (tmp_path / "notes.txt").write_text("no data", encoding="ascii")
    for index, name in enumerate(["1.jsonl.gz", "2.jsonl.zst", "3.jsonl"]):
        os.utime(tmp_path / name, (index, index))
    shown = tcppc("show", str(tmp_path)).stdout.splitlines()
    assert [text.strip() for text in shown if text.startswith("    ")] == ["one", "two", "three"]


def test_raw_gives_the_bytes_of_one_session_and_nothing_else(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40
    file = tmp_path / "d.jsonl"
    file.write_text(line(b"other") + line(data), encoding="ascii")
    wanted = json.loads(file.read_text(encoding="ascii").splitlines()[1])["id"]
    command = [sys.executable, "-m", "tcppc", "show", "--raw", wanted, str(file)]
    assert subprocess.run(command, capture_output=True, check=True, cwd=Path(__file__).parent.parent).stdout == data
    missing = tcppc("show", "--raw", "no-such-id", str(file))
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)


def test_lines_that_are_no_records_are_counted_and_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    half = '{"timestamp":"2026-\n{}\n[]\n{"flow":1,"timestamp":2,"payloads":3}\n\x1b[31m\n'
    file.write_text(half + line(b"whole"), encoding="ascii")
    done = tcppc("show", str(file))
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "    whole"
    assert done.stderr == "tcppc: 5 lines are no records and were passed over\n"


LEAVES = st.none() | st.booleans() | st.integers() | st.text()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
ANY_RECORD = st.dictionaries(
    st.sampled_from(["timestamp", "flow", "payloads", "bytes", "tls", "app", "closed", "truncated", "id"]), JSON
)


@given(ANY_RECORD, st.binary(max_size=300), st.text(max_size=20))
def test_whatever_a_file_holds_nothing_unprintable_is_shown(odd: dict[str, object], data: bytes, name: str) -> None:
    record = json.loads(line(data)) | {"tls": {"sni": name, "error": name}} | odd
    try:
        shown = list(show.show(record))
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    for text in shown:
        assert text.isprintable(), text


def test_following_goes_on_across_a_rotation(start: Start, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    sensor = start("-q", "-T", "2", file="data/d-%H%M%S.jsonl")
    output = tmp_path / "shown"
    with output.open("wb") as sink:
        command = [sys.executable, "-m", "tcppc", "show", "-f", str(tmp_path / "data")]
        follower = subprocess.Popen(command, stdout=sink, stderr=subprocess.PIPE, cwd=Path(__file__).parent.parent)
    try:
        sent = 0
        # Once it follows, every session has to come through.

        def seen() -> bool:
            sensor.send(b"probe")
            return b"probe" in output.read_bytes()

        wait_until(seen, "the follower to be there")
        files = len(list((tmp_path / "data").iterdir()))
        while len(list((tmp_path / "data").iterdir())) < files + 2:
            sensor.send(b"number %d" % sent)
            sent += 1
        wait_until(lambda: b"number %d\n" % (sent - 1) in output.read_bytes(), "the last session")
        shown = output.read_text(encoding="ascii").splitlines()
        assert [text.strip() for text in shown if "number" in text] == [f"number {index}" for index in range(sent)]
    finally:
        follower.send_signal(signal.SIGINT)
        assert follower.wait(PATIENCE) == 0
        assert follower.stderr is not None
        assert follower.stderr.read() == b""
        follower.stderr.close()
    shutil.rmtree(tmp_path / "data")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--port", "http"], "expected ports from 0 to 65535 such as 22,8000-8999, not 'http'"),
        (["--source", "nobody"], "expected an address or network such as"),
        (["--since", "noon"], "expected a time such as"),
        (["--max", "0"], "expected a size from 1"),
        (["--proto", "icmp"], "invalid choice"),
    ],
)
def test_wrong_filters_are_one_line(flags: list[str], complaint: str) -> None:
    done = tcppc("show", *flags, "x.jsonl")
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_missing_and_damaged_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl.gz").write_bytes(b"not gzip at all")
    (tmp_path / "e.jsonl.zst").write_bytes(b"not zstd at all")
    for path in (tmp_path / "none.jsonl", tmp_path / "d.jsonl.gz", tmp_path / "e.jsonl.zst"):
        done = tcppc("show", str(path))
        assert done.returncode == 1
        assert done.stderr.startswith("tcppc: ")
        assert done.stderr.count("\n") == 1, done.stderr


def test_a_long_line_is_shown_to_its_end() -> None:
    assert "".join(show.text_lines(b"A" * 9000 + b"END")).endswith("AEND")


def test_a_terminal_that_lacks_letters_gets_them_escaped(start: Start) -> None:
    sensor = start()
    sensor.send("caf\u00e9 \u65e5\u672c\n".encode())
    sensor.records(1)
    command = [sys.executable, "-m", "tcppc", "show", str(sensor.file)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert "caf\\u00e9" in done.stdout


def test_a_damaged_file_does_not_hide_the_next_one_nor_does_a_ledger_trouble(tmp_path: Path, start: Start) -> None:
    sensor = start()
    sensor.send(b"whole")
    sensor.records(1)
    assert sensor.stop() == 0
    damaged = tmp_path / "a.jsonl.gz"
    damaged.write_bytes(gzip.compress(os.urandom(5000))[:2500])
    files = [str(path) for path in sorted(tmp_path.glob("*.jsonl*"))]
    assert any(path.endswith("ledger.jsonl") for path in files)
    for command in ("show", "recover"):
        done = tcppc(command, *files)
        assert done.returncode == 1
        assert f"{damaged}: is damaged from here on" in done.stderr
        assert ("whole" if command == "show" else "d2hvbGU=") in done.stdout
    damaged.unlink()
    checked = tcppc("check", "--records", *files[1:])
    assert checked.returncode == 0, checked.stderr
    assert "ledger.jsonl: the ledger, not looked at here" in checked.stdout


def test_a_full_disk_behind_standard_output_is_one_line(tmp_path: Path, start: Start) -> None:
    sensor = start()
    sensor.send(b"x")
    sensor.records(1)
    assert sensor.stop() == 0
    for command in ("show", "recover", "account"):
        path = str(tmp_path if command == "account" else sensor.file)
        with open("/dev/full", "wb") as full:
            words = [sys.executable, "-m", "tcppc", command, path]
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
            done = subprocess.run(
                words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=30, env=environment
            )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "tcppc: standard output: No space left on device"
        assert len(done.stderr.splitlines()) <= 2, done.stderr


def test_half_a_character_is_shown_escaped_and_hides_no_session(tmp_path: Path) -> None:
    """JSON can hold what no text has."""
    record = json.loads(line(b"one")) | {"closed": "\ud800"}
    (tmp_path / "d.jsonl").write_text(json.dumps(record) + "\n", encoding="ascii")
    done = tcppc("show", str(tmp_path / "d.jsonl"))
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\xed\xa0\x80" in done.stdout
