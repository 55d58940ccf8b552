from __future__ import annotations

import gzip
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tcppc.capture import keep, ours
from tcppc.capture.books import Books
from tcppc.clock import Zone
from tcppc.log import Log
from tcppc.sections import Limits
from tests.conftest import Start
from tests.harness import reachable, wait_until


def keeper(
    folder: Path, compress: str = "off", keep_bytes: int = 0, open_name: str = "d-9.jsonl", pattern: str = "d-%d.jsonl"
) -> keep.Keeper:
    log = Log(Zone("UTC"), str(folder / "log"))
    terms = keep.Terms(str(folder / pattern), compress, keep_bytes)
    return keep.Keeper(terms, lambda: str(folder / open_name), log, Books(Limits()).error)


@pytest.mark.parametrize(("kind", "ending"), [("gzip", ".gz"), ("zstd", ".zst")])
def test_a_closed_file_is_compressed_to_the_same_bytes(tmp_path: Path, kind: str, ending: str) -> None:
    content = b'{"line":1}\n' * 100_000
    path = tmp_path / "d-01.jsonl"
    path.write_bytes(content)
    made = keeper(tmp_path, kind)
    made.start()
    made.closed(str(path))
    wait_until(lambda: not path.exists(), "the plain file to go")
    packed = (tmp_path / f"d-01.jsonl{ending}").read_bytes()
    assert (
        gzip.decompress(packed) if kind == "gzip" else zstandard.ZstdDecompressor().stream_reader(packed).read()
    ) == content
    made.stop(10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"d-01.jsonl{ending}", "log"]


def test_what_an_earlier_run_left_is_compressed_at_start_but_not_the_open_file_or_a_strangers(tmp_path: Path) -> None:
    for name in ("d-01.jsonl", "d-09.jsonl", "notes.txt", "d-xx.jsonl", "d-02.jsonl.bak"):
        (tmp_path / name).write_bytes(b"{}\n")
    made = keeper(tmp_path, "gzip", open_name="d-09.jsonl")
    made.start()
    wait_until(
        lambda: (tmp_path / "d-01.jsonl.gz").exists() and not (tmp_path / "d-01.jsonl").exists(),
        "d-01 to be compressed",
    )
    made.stop(10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "d-01.jsonl.gz", "d-02.jsonl.bak", "d-09.jsonl", "d-xx.jsonl", "log", "notes.txt",
    ]  # fmt: skip


def test_a_name_that_came_back_does_not_cost_the_file_before_it(tmp_path: Path) -> None:
    (tmp_path / "d-01.jsonl.gz").write_bytes(gzip.compress(b"first\n"))
    (tmp_path / "d-01.jsonl").write_bytes(b"second\n")
    made = keeper(tmp_path, "gzip")
    made.start()
    wait_until(lambda: not (tmp_path / "d-01.jsonl").exists(), "the plain file to go")
    made.stop(10)
    assert gzip.decompress((tmp_path / "d-01.jsonl.gz").read_bytes()) == b"first\n"
    assert gzip.decompress((tmp_path / "d-01.jsonl.1.gz").read_bytes()) == b"second\n"


def test_the_oldest_closed_files_go_first_and_never_the_open_one(tmp_path: Path) -> None:
    for day in range(1, 6):
        path = tmp_path / f"d-{day:02}.jsonl"
        path.write_bytes(bytes(1000))
        os.utime(path, (day, day))
    (tmp_path / "other.jsonl").write_bytes(bytes(5000))
    made = keeper(tmp_path, keep_bytes=2500, open_name="d-01.jsonl")
    made.start()
    wait_until(lambda: not (tmp_path / "d-03.jsonl").exists(), "the oldest to go")
    made.stop(10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "d-01.jsonl",
        "d-04.jsonl",
        "d-05.jsonl",
        "log",
        "other.jsonl",
    ]
    assert "Removed the oldest session file" in (tmp_path / "log").read_text(encoding="utf-8")


def test_without_a_bound_nothing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "d-01.jsonl").write_bytes(bytes(1000))
    made = keeper(tmp_path)
    made.start()
    made.closed(str(tmp_path / "d-01.jsonl"))
    wait_until(made._todo.empty, "all to be looked at")
    made.stop(10)
    assert (tmp_path / "d-01.jsonl").stat().st_size == 1000


@given(st.floats(0, 4e9), st.sampled_from(["d-%Y%m%d.jsonl", "%H/%M-%S.json", "x%%y%j", "a.%a.%b.log", "%s.jsonl"]))
def test_a_pattern_fits_every_name_it_makes(now: float, pattern: str) -> None:
    name = os.path.basename(Zone("UTC").format(pattern, now))
    regex = ours.pattern_regex(pattern)
    for made in (name, f"{name}.gz", f"{name}.3.zst"):
        assert regex.fullmatch(made)
    assert not regex.fullmatch(f"{name}.bak")
    assert not regex.fullmatch(f"other-{name}")


@given(st.text(alphabet="%-_0^#aYmd.*[](){}+?\\ x", min_size=1, max_size=15))
def test_no_pattern_breaks_the_search(pattern: str) -> None:
    ours.pattern_regex(pattern)


def test_one_that_was_compressed_before_a_kill_is_not_compressed_twice(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"line\n" * 1000)
    with gzip.open(tmp_path / "data.jsonl.gz", "wb") as file:
        file.write(b"line\n" * 1000)
    (tmp_path / "other.jsonl").write_bytes(b"line\n" * 1001)
    with gzip.open(tmp_path / "other.jsonl.gz", "wb") as file:
        file.write(b"line\n" * 1000)
    made = keeper(tmp_path, "gzip", open_name="", pattern="%s.jsonl")
    for name in ("data.jsonl", "other.jsonl"):
        made._compress(str(tmp_path / name), made.terms)
    (tmp_path / "log").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl.gz", "other.jsonl.1.gz", "other.jsonl.gz"]


LIMITED = """
import os, resource, time
from tcppc.capture import keep
from tcppc.capture.books import Books
from tcppc.sections import Limits
open("d-01.jsonl", "wb").write(os.urandom(100_000))
open("d-02.jsonl", "wb").write(b"text" * 1000)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
books = Books(Limits())
made = keep.Keeper(keep.Terms("d-%d.jsonl", "gzip"), lambda: "", lambda line: print(line, flush=True), books.error)
made.start()
while os.path.exists("d-02.jsonl"):
    time.sleep(0.01)
made.stop(20)
print(sorted(os.listdir()), books.errors["thread_restarts"])
"""


def test_a_file_size_limit_is_named_and_costs_no_other_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.stdout.splitlines()[1:] == [
        "Failed to tend closed session files: d-01.jsonl: the file size limit (ulimit -f) is 5000 bytes; going on.",
        "['d-01.jsonl', 'd-02.jsonl.gz'] 0",
    ]


def test_only_names_that_the_pattern_makes_are_ours_folders_too(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("2026/04/d.jsonl", "2026/04/d.1.jsonl.gz", "2026/xx/d.jsonl", "notes/04/d.jsonl", "2026/04/e.jsonl"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"{}\n")
    (tmp_path / "elsewhere" / "d.jsonl").write_bytes(b"{}\n")
    (tmp_path / "data" / "2027").mkdir()
    (tmp_path / "data" / "2027" / "05").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "2026" / "04" / "d.2.jsonl").symlink_to(tmp_path / "elsewhere" / "d.jsonl")
    found = ours.files_of(str(tmp_path / "data" / "%Y" / "%m" / "d.jsonl"), lambda problem: None)
    assert {Path(file.path).relative_to(tmp_path / "data").as_posix() for file in found} == {
        "2026/04/d.jsonl",
        "2026/04/d.1.jsonl.gz",
    }


def test_the_log_and_captures_are_no_data_files_whatever_the_pattern(start: Start, tmp_path: Path) -> None:
    """%A may be any word: such a pattern fits their names too."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "older").write_bytes(bytes(5000))
    os.utime(place / "older", (1, 1))
    (tmp_path / "c.toml").write_text('[files]\nkeep_bytes = 1\ncompress = "gzip"\n')
    flags = ("-c", str(tmp_path / "c.toml"), "-L", str(place / "log"), "--captures", str(place / "captures"))
    sensor = start(*flags, file="place/%A", wait=False)
    wait_until(lambda: "Start UDP server." in ((place / "log").read_text() if (place / "log").exists() else ""), "it")
    wait_until(lambda: not (place / "older").exists() and not (place / "older.gz").exists(), "the older one to go")
    port = int((place / "log").read_text().partition("Listen: 127.0.0.1:")[2].partition("\n")[0])
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"x")
    wait_until((place / "captures").exists, "captures")
    sensor.signal(signal.SIGHUP)
    wait_until(lambda: "Reloaded." in (place / "log").read_text(), "the reload")
    assert sensor.stop() == 0
    assert {"log", "captures", "ledger.jsonl"} <= {path.name for path in place.iterdir()}


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (
            keep.Terms("d.jsonl", keep_bytes=1 << 30, reserve=1 << 20),
            "up to 1.0 GiB, the oldest go first; at least 1.0 MiB stays",
        ),
        (
            keep.Terms("d.jsonl", reserve=1 << 20),
            "are kept; the oldest go where less than 1.0 MiB is free on the disk of /",
        ),
        (keep.Terms("d.jsonl", keep_bytes=5000), "up to 4.9 KiB, the oldest go first; no free space is reserved"),
        (keep.Terms("d.jsonl"), "nothing bounds the closed data files: files.keep_bytes and files.reserve are 0."),
        (
            keep.Terms("d.jsonl", turns=False),
            " are 0. There is one data file, which is never closed, and so never removed.",
        ),
        (keep.Terms(session_dir="s", session_dir_files=5), "files of s are kept up to 5 files, the oldest go first."),
        (keep.Terms(session_dir="s"), "files of s are all kept."),
    ],
)
def test_what_bounds_the_disk_is_told_in_a_line(terms: keep.Terms, said: str) -> None:
    (line,) = keep.promises(terms)
    assert line.startswith("Disk: ")
    assert said in line


def test_many_files_that_go_at_once_are_not_as_many_log_lines(tmp_path: Path) -> None:
    for number in range(500):
        (tmp_path / f"d-01.{number}.jsonl").write_bytes(bytes(10))
    gone: list[str] = []
    log = Log(Zone("UTC"), str(tmp_path / "log"))
    terms = keep.Terms(str(tmp_path / "d-%d.jsonl"), keep_bytes=1000)
    made = keep.Keeper(terms, lambda: "", log, Books(Limits()).error, lambda path, size, why: gone.append(path))
    made.start()
    wait_until(lambda: len(list(tmp_path.glob("d-*"))) == 100, "the oldest to go")
    made.stop(20)
    assert len(set(gone)) == 400
    text = (tmp_path / "log").read_text()
    assert text.count("Removed the oldest session file: ") == keep.MOST_NAMED + 1
    assert f"and {400 - keep.MOST_NAMED} more; the ledger names them: files.keep_bytes is 1000." in text


def test_a_file_that_cannot_be_removed_costs_no_other(start: Start, tmp_path: Path) -> None:
    """The folder's owner is another user, and it is sticky: as in /tmp."""
    for number in range(4):
        path = tmp_path / f"data.{number}.jsonl"
        path.write_bytes(bytes(1000))
        os.utime(path, (number, number))
        os.chown(path, 65534 if number else 0, -1)
    (tmp_path / "c.toml").write_text("[files]\nkeep_bytes = 1500\n")
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    tmp_path.chmod(0o1777)
    reachable(tmp_path)
    sensor = start("-q", "-c", str(tmp_path / "c.toml"), prefix=("setpriv", "--reuid=65534", "--clear-groups"))
    wait_until(lambda: not (tmp_path / "data.3.jsonl").exists(), "what can be removed to go")
    assert (tmp_path / "data.0.jsonl").exists()
    assert sensor.stop() == 0
    assert f"Failed to tend closed session files: {tmp_path}/data.0.jsonl: Operation not permitted" in sensor.log
