from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tcppc.capture import keep
from tcppc.clock import Zone
from tcppc.log import Log
from tests.harness import wait_until


def keeper(
    folder: Path, compress: str = "off", keep_bytes: int = 0, open_name: str = "d-9.jsonl", pattern: str = "d-%d.jsonl"
) -> keep.Keeper:
    log = Log(Zone("UTC"), str(folder / "log"))
    return keep.Keeper(str(folder / pattern), compress, keep_bytes, lambda: str(folder / open_name), log)


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
    regex = keep.pattern_regex(pattern)
    for made in (name, f"{name}.gz", f"{name}.3.zst"):
        assert regex.fullmatch(made)
    assert not regex.fullmatch(f"{name}.bak")
    assert not regex.fullmatch(f"other-{name}")


@given(st.text(alphabet="%-_0^#aYmd.*[](){}+?\\ x", min_size=1, max_size=15))
def test_no_pattern_breaks_the_search(pattern: str) -> None:
    keep.pattern_regex(pattern)


def test_one_that_was_compressed_before_a_kill_is_not_compressed_twice(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"line\n" * 1000)
    with gzip.open(tmp_path / "data.jsonl.gz", "wb") as file:
        file.write(b"line\n" * 1000)
    (tmp_path / "other.jsonl").write_bytes(b"line\n" * 1001)
    with gzip.open(tmp_path / "other.jsonl.gz", "wb") as file:
        file.write(b"line\n" * 1000)
    keeper = keep.Keeper(str(tmp_path / "%s.jsonl"), "gzip", 0, lambda: "", Log(Zone("UTC")))
    for name in ("data.jsonl", "other.jsonl"):
        keeper._compress(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl.gz", "other.jsonl.1.gz", "other.jsonl.gz"]
