"""thp's session folder, held to its bounds."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tcppc.capture import session_files
from tcppc.capture.session_files import SessionFiles
from tests.conftest import Start
from tests.harness import wait_until

QUICK = "import tcppc.capture.keep as k; k.LOOK_SECONDS = k.TEND_SECONDS = 0.1"


def fill(folder: Path, count: int, size: int = 1) -> list[str]:
    """So many files, the first the oldest."""
    folder.mkdir(exist_ok=True)
    names = [f"{0x5DD4A1F1 + number:X}C3A20.silent" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(b"x" * size)
        os.utime(folder / name, (number, number))
    return names


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> set[bytes]:
    found = set()
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            found.add(path.read_bytes())
    return found


def of(folder: Path) -> SessionFiles:
    def failed(problem: OSError) -> None:
        raise problem

    return SessionFiles(str(folder), failed)


@pytest.mark.parametrize("at_once", [7, 10_000])
def test_the_oldest_go_until_the_rest_is_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(session_files, "AT_ONCE", at_once)
    names = fill(tmp_path / "s", 100)
    assert of(tmp_path / "s").bound(0, 0).files == 0
    assert of(tmp_path / "s").bound(100, 0).files == 0
    assert of(tmp_path / "s").bound(80, 0).files == 28  # a tenth of the bound more
    assert there(tmp_path / "s") == names[28:]


def test_bytes_are_those_of_the_disk(tmp_path: Path) -> None:
    names = fill(tmp_path / "s", 20, 10_000)
    each = (tmp_path / "s" / names[0]).stat().st_blocks * 512
    gone = of(tmp_path / "s").bound(0, 10 * each)
    assert (gone.files, gone.room) == (11, 11 * each)
    assert there(tmp_path / "s") == names[11:]


def test_others_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    names = fill(folder, 10)
    (tmp_path / "precious").write_bytes(b"x")
    (folder / "0DD4A1F1C3A20.silent").symlink_to(tmp_path / "precious")
    (folder / "0DD4A1F1C3A21.silent").mkdir()
    os.mkfifo(folder / "0DD4A1F1C3A22.silent")
    (folder / "notes.txt").write_bytes(b"x")
    (folder / "0DD4A1F1C3A20.silent.bak").write_bytes(b"x")
    others = set(there(folder)) - set(names)
    assert of(folder).held().files == 10
    assert of(folder).remove(1000, 0).files == 10
    assert set(there(folder)) == others
    assert (tmp_path / "precious").exists()


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    files = of(tmp_path / "none")
    assert files.bound(1, 1).files == files.held().files == 0
    assert files.device() is None


def test_it_is_looked_through_again_only_where_something_changed(tmp_path: Path) -> None:
    fill(tmp_path / "s", 3)
    files = of(tmp_path / "s")
    held = files.held()
    assert files.held() is held
    (tmp_path / "s" / "5DD4A1F1C3A20.shell").write_bytes(b"x")
    assert files.held().files == 4


@pytest.mark.parametrize("setting", ["session_dir_files = 20", 'session_dir_bytes = "80KiB"'])
def test_a_sensor_bounds_its_folder_and_keeps_the_newest(start: Start, tmp_path: Path, setting: str) -> None:
    folder = tmp_path / "sessions"
    (tmp_path / "c.toml").write_text(f'[files]\nsession_dir = "{folder}"\n{setting}\n', encoding="ascii")
    sensor = start("-q", "-c", str(tmp_path / "c.toml"), patch=QUICK)
    for number in range(60):
        sensor.send(b"%d" % number)
    sensor.records(60)
    wait_until(lambda: b"59" in contents(folder) and len(there(folder)) <= 20, "the oldest to go")
    kept = sorted(int(path.read_bytes()) for path in folder.iterdir())
    assert len(kept) >= 18
    assert kept == list(range(60))[-len(kept) :]
    assert sensor.stop() == 0
    bound = setting.partition(" ")[0].removeprefix("session_dir_")
    assert f"Disk: files of {folder} are kept up to " in sensor.log
    assert f"oldest files of {folder} (" in sensor.log
    assert bound in sensor.log


def test_a_folder_that_a_reload_brings_is_bounded_too(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    (tmp_path / "c.toml").write_text("", encoding="ascii")
    sensor = start("-q", "-c", str(tmp_path / "c.toml"), patch=QUICK, file="")
    (tmp_path / "c.toml").write_text(
        f'[files]\nsession_dir = "{folder}"\nsession_dir_files = 5\n[tcppc]\ntcpFileFmt = "{tmp_path}/%A"\n'
    )
    sensor.signal(signal.SIGHUP)
    sensor.said("Reloaded.")
    assert f"Disk: files of {folder} are kept up to 5 files and 1.0 GiB, the oldest go first." in sensor.log
    for number in range(20):
        sensor.send(b"%d" % number)
    wait_until(lambda: folder.exists() and 0 < len(there(folder)) <= 5, "the oldest to go")
    assert sensor.stop() == 0


def test_it_is_bounded_without_a_data_file_too(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    (tmp_path / "c.toml").write_text(f'[files]\nsession_dir = "{folder}"\nsession_dir_files = 5\n', encoding="ascii")
    sensor = start("-q", "-c", str(tmp_path / "c.toml"), patch=QUICK, file="")
    for number in range(20):
        sensor.send(b"%d" % number)
    wait_until(lambda: folder.exists() and 0 < len(there(folder)) <= 5, "the oldest to go")
    assert sensor.stop() == 0
