"""A line a problem: of many the first ones, and how many more there are."""

from __future__ import annotations

import gzip
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tcppc.problems import Few
from tests import captures
from tests.harness import PATIENCE, tcppc

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, []), (1, ["0"]), (3, ["0", "1", "2"]), (4, ["0", "1", "2", "… 1 more like these"])],
)
def test_the_first_ones_are_told_and_the_others_counted(count: int, told: list[str]) -> None:
    found: list[str] = []
    few = Few(found.append, 3)
    for number in range(count):
        few(str(number))
    few.over()
    assert (found, few.count) == (told, count)


def limited(megabytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


def test_of_many_records_that_are_none_twenty_are_told(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(b'{"timestamp":1}\n' * 30_000)
    done = tcppc("check", "--records", str(file))
    assert done.returncode == 1
    assert done.stdout == f"{file}: 30000 records, 30000 not as the schema says\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 21
    assert [line.split(": ")[0] for line in lines[:20]] == [f"{file}:{number}" for number in range(1, 21)]
    assert lines[20] == "… 29,980 more like these"


def test_of_many_files_together_no_more(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.jsonl" for number in range(30)]
    for file in files:
        file.write_bytes(b"no record\n")
    done = tcppc("check", "--records", *map(str, files))
    assert done.stderr.splitlines()[20:] == ["… 10 more like these"]
    assert done.stdout.count("1 not as the schema says") == 30


def test_a_file_of_one_line_without_an_end_takes_no_more_memory_than_a_line_may(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    with file.open("wb") as made:
        made.truncate(1 << 30)  # a hole: it takes no room on the disk
    done = subprocess.run(
        [sys.executable, "-m", "tcppc", "check", "--records", str(file)],
        capture_output=True,
        text=True,
        preexec_fn=limited(1600),
        timeout=PATIENCE,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.endswith("4 records, 4 not as the schema says\n")


def damaged(folder: Path, count: int, kind: str) -> list[str]:
    names = []
    for number in range(count):
        path = folder / f"{number:03}.{kind}"
        content = b'{"event":"x"}\n' * 50 if kind == "jsonl.gz" else captures.pcap([])
        path.write_bytes(gzip.compress(content)[:-9] if kind == "jsonl.gz" else content[:20])
        names.append(str(path))
    return names


@pytest.mark.parametrize("command", ["show", "recover"])
def test_of_many_damaged_files_twenty_are_told(command: str, tmp_path: Path) -> None:
    done = tcppc(command, *damaged(tmp_path, 25, "jsonl.gz"))
    assert done.returncode == 1
    assert done.stderr.count("is damaged from here on") == 20
    assert "tcppc: … 5 more like these\n" in done.stderr


def test_of_many_damaged_captures_twenty_are_told(tmp_path: Path) -> None:
    done = tcppc("flows", "-q", "-o", str(tmp_path / "out"), "-l", *damaged(tmp_path, 25, "pcap"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 21, done.stderr
    assert done.stderr.splitlines()[20] == "tcppc: … 5 more like these"


def test_of_many_warnings_of_actions_twenty_are_told(tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text('[[action]]\non = "scan"\ncommand = "true"\n' * 30, encoding="ascii")
    done = tcppc("check", "-c", str(settings))
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 21, done.stderr
    assert done.stderr.splitlines()[20] == "tcppc: … 10 more like these"


def test_an_error_is_a_line_of_some_length(tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text(f"[tcppc]\n{'k' * 100_000} = 1\n[personas]\nfolder = '{'f' * 100_000}'\n", encoding="ascii")
    for words in (("check", "-c", str(settings)), ("check", "-H", "h" * 100_000), ("show", "x" * 100_000)):
        done = subprocess.run(
            [sys.executable, "-m", "tcppc", *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 2
        assert len(done.stderr) < 6000
        assert done.stderr.count("\n") == 1
