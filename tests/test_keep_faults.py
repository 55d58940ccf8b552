"""A keeper that nothing beside the data files brings down."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.conftest import Start
from tests.harness import Sensor, reachable, wait_until

ENDINGS = {"gzip": ".gz", "zstd": ".zst"}
CONTENT = b'{"old":"line"}\n' * 1000


def truncated(path: Path) -> None:
    packed = gzip.compress(CONTENT) if path.suffix == ".gz" else zstandard.compress(CONTENT)
    path.write_bytes(packed[: len(packed) // 2])


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(4096))


def huge_window(path: Path) -> None:
    """A header that asks for more memory than a decompressor gives, or for what there is none of."""
    path.write_bytes(b"\x1f\x8b\x08\x04" + b"\xff" * 100 if path.suffix == ".gz" else b"\x28\xb5\x2f\xfd\x00\xff" * 20)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.mkdir()


def link(path: Path) -> None:
    """To a file that must stay as it is."""
    target = path.parent / "precious"
    target.write_bytes(b"precious")
    path.symlink_to(target)


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unreadable(path: Path) -> None:
    path.write_bytes(b"x")
    path.chmod(0)


DAMAGES = (truncated, garbage, huge_window, empty, folder, link, dangling, fifo, unreadable)


def settings(folder: Path, kind: str, more: str = "") -> str:
    path = folder / "c.toml"
    path.write_text(f'[files]\ncompress = "{kind}"\nfile_bytes = 4096\n{more}', encoding="ascii")
    return str(path)


def unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else zstandard.ZstdDecompressor().stream_reader(data).read()


def goes_on(sensor: Sensor) -> None:
    """Files that are closed from now on are still compressed."""
    before = set(sensor.folder.glob("data*.jsonl.*"))

    def more() -> bool:
        sensor.send(b"x" * 900)
        return len(set(sensor.folder.glob("data*.jsonl.*")) - before) >= 2

    wait_until(more, f"the next files to be compressed; log:\n{sensor.log[-2000:]}")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("when", ["start", "later"])
def test_what_stands_at_a_compressed_files_name_costs_no_other_file(
    start: Start, tmp_path: Path, when: str, kind: str, damage: Callable[[Path], None]
) -> None:
    ending = ENDINGS[kind]
    plain = tmp_path / ("data.7.jsonl" if when == "start" else "data.1.jsonl")
    beside = plain.with_name(plain.name + ending)
    if when == "start":
        plain.write_bytes(CONTENT)
        (tmp_path / "data.8.jsonl").write_bytes(CONTENT)
        damage(beside)
    sensor = start("-q", "-c", settings(tmp_path, kind))
    if when == "later":
        damage(beside)
    goes_on(sensor)
    wait_until(lambda: not plain.exists(), f"{plain.name} to be compressed; log:\n{sensor.log[-2000:]}")
    second = plain.with_name(f"{plain.name}.1{ending}")
    assert all(json.loads(line) for line in unpacked(second).splitlines())
    if when == "start":
        assert unpacked(second) == CONTENT
        assert unpacked(tmp_path / f"data.8.jsonl{ending}") == CONTENT
    assert os.path.lexists(beside)  # what stood there stands there still
    if damage is link:
        assert (tmp_path / "precious").read_bytes() == b"precious"
    assert sensor.stop() == 0
    assert sensor.log.count(f"{beside}: ") == 1, sensor.log
    assert "thread_restarts" not in sensor.log
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("damage", [link, dangling, folder, fifo, garbage], ids=lambda damage: damage.__name__)
def test_a_temporary_name_is_never_followed(start: Start, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    (tmp_path / "data.7.jsonl").write_bytes(CONTENT)
    damage(tmp_path / ".data.7.jsonl.gz.tmp")
    sensor = start("-q", "-c", settings(tmp_path, "gzip"))
    packed = tmp_path / "data.7.jsonl.gz"
    wait_until(lambda: packed.exists() and not (tmp_path / "data.7.jsonl").exists(), "it to be compressed")
    assert unpacked(packed) == CONTENT
    assert not packed.is_symlink()
    assert not (tmp_path / "nothing").exists()
    if damage is link:
        assert (tmp_path / "precious").read_bytes() == b"precious"
    goes_on(sensor)
    assert sensor.stop() == 0


def test_what_a_killed_run_was_compressing_is_taken_away(start: Start, tmp_path: Path) -> None:
    """Also where the data file itself is gone, or nothing is compressed any more."""
    for name in (".data.7.jsonl.gz.tmp", ".data.jsonl.3.zst.12.tmp", ".data.jsonl.tmp", ".other.gz.tmp"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".data.8.jsonl.gz.tmp").symlink_to(tmp_path / ".other.gz.tmp")
    sensor = start("-q")
    wait_until(lambda: not (tmp_path / ".data.jsonl.3.zst.12.tmp").exists(), "one of them to go")
    assert sensor.stop() == 0
    assert {path.name for path in tmp_path.glob(".*")} == {".data.jsonl.tmp", ".other.gz.tmp", ".data.8.jsonl.gz.tmp"}


def test_a_data_file_that_cannot_be_read_is_named_once_and_costs_no_other(start: Start, tmp_path: Path) -> None:
    """It takes a sensor that is not root."""
    tmp_path.chmod(0o777)
    unreadable(tmp_path / "data.7.jsonl")
    (tmp_path / "data.8.jsonl").write_bytes(CONTENT)
    flags = ("-q", "-c", settings(tmp_path, "gzip"))
    (tmp_path / "c.toml").chmod(0o644)
    reachable(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    setpriv = shutil.which("setpriv") or "setpriv"
    patch = "import tcppc.capture.keep as k; k.LOOK_SECONDS = k.AGAIN_SECONDS = 0.05"
    sensor = start(*flags, prefix=(setpriv, "--reuid=65534", "--clear-groups"), patch=patch)
    goes_on(sensor)
    assert unpacked(tmp_path / "data.8.jsonl.gz") == CONTENT
    assert sensor.stop() == 0
    assert sensor.log.count(f"{tmp_path / 'data.7.jsonl'}: Permission denied") == 1, sensor.log
    assert "keeper_errors" in sensor.log
