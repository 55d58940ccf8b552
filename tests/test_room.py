"""A disk of its own for a sensor, which is filled: by what strangers send, and by others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tcppc.capture.room import reserve_of
from tests.conftest import Start
from tests.harness import Sensor, payload, tcppc, wait_until

GIB = 1 << 30
MIB = 1 << 20
QUICK = (
    "import tcppc.capture.keep as k, tcppc.capture.room as r; k.LOOK_SECONDS = k.TEND_SECONDS = 0.1; "
    "r.SETTLE_SECONDS = 0.5; r.AGAIN_SECONDS = 0.1"
)


@pytest.mark.parametrize(
    ("setting", "total", "reserve"),
    [
        ("", 4 * GIB, 0.4 * GIB),
        ("", 10 * GIB, GIB),
        ("", 20 * GIB, GIB),
        ("", 100 * GIB, 5 * GIB),
        ("", 4000 * GIB, 10 * GIB),
        ("5%", 100 * GIB, 5 * GIB),
        ("5%", 4000 * GIB, 200 * GIB),
        (2 * GIB, 100 * GIB, 2 * GIB),
        (2 * GIB, 3 * GIB, 1.5 * GIB),
        (0, 100 * GIB, 0),
        ("", 0, 0),
    ],
)
def test_how_much_stays_free(setting: str | int, total: int, reserve: float) -> None:
    assert reserve_of(setting, total) == int(reserve)


class Disk:
    """A tmpfs that the sensor's own process has mounted, in its own namespace, and that is gone with it."""

    def __init__(self, start: Start, folder: Path, files: str, *, size: str = "48m", patch: str = QUICK) -> None:
        place = folder / "disk"
        place.mkdir()
        (folder / "c.toml").write_text(f"[files]\n{files}\n".replace("DISK", str(place)), encoding="ascii")
        mounted = f'mount -t tmpfs -o size={size} tmpfs {place} && exec "$@"'
        self.sensor: Sensor = start(
            "-q", "-c", str(folder / "c.toml"), prefix=("unshare", "--mount", "sh", "-c", mounted, "sh"),
            file="disk/data.jsonl", patch=patch,
        )  # fmt: skip
        self.place = Path(f"/proc/{self.sensor.process.pid}/root{place}")
        self.kept = folder / "kept"

    def names(self) -> set[str]:
        return {path.name for path in self.place.glob("data*.jsonl*")}

    def free(self) -> int:
        told = os.statvfs(self.place)
        return told.f_bavail * told.f_frsize

    def fill(self, leave: int, name: str = "filler") -> None:
        """Somebody else's file takes all but so many bytes."""
        with (self.place / name).open("ab", buffering=0) as file:
            file.write(bytes(max(0, self.free() - leave)))

    def send_files(self, count: int) -> None:
        """So many more data files, of 1.4 MB each: a session fills one."""
        for _ in range(count):
            before = self.sensor.log.count("Created a session file")
            self.sensor.send(b"x" * MIB)
            while self.sensor.log.count("Created a session file") == before:
                self.sensor.datagram(b"the next one")
                time.sleep(0.01)

    def stop(self) -> None:
        """Its files are copied before they are gone with it."""
        shutil.copytree(self.place, self.kept, ignore=shutil.ignore_patterns("filler*"))
        assert self.sensor.stop() == 0


def ledger(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_bytes().splitlines()]


FILES = 'file_bytes = "1MB"\nreserve = "8MiB"'


def test_what_strangers_send_leaves_the_reserve_free_and_the_newest_files_there(start: Start, tmp_path: Path) -> None:
    disk = Disk(start, tmp_path, FILES)
    disk.send_files(60)  # twice as much as there is room for
    wait_until(lambda: disk.free() >= 8 * MIB, "the reserve to be free")
    names = disk.names()
    assert "data.jsonl" not in names
    numbers = sorted(int(name.split(".")[1]) for name in names)
    assert numbers == list(range(numbers[0], 61))  # the oldest are gone, and no other
    assert disk.free() < 8 * MIB + 2 * MIB + 4 * MIB  # no more than the margin, and one file
    log = disk.sensor.log
    assert "; the oldest go where less than 8.0 MiB is free on the disk of " in log
    assert "Removed the oldest session file: " in log
    assert " free, less than files.reserve (8.0 MiB)." in log
    disk.stop()
    gone = [line["file"] for line in ledger(disk.kept) if line["event"] == "remove"]
    assert gone[0] == "data.jsonl"
    assert gone[1:] == [f"data.{number}.jsonl" for number in range(1, numbers[0])]
    assert {line["why"] for line in ledger(disk.kept) if line["event"] == "remove"} == {"reserve"}
    done = tcppc("account", str(disk.kept))
    assert done.returncode == 0 or "never stopped" in done.stdout, done.stdout  # copied before its end


def test_others_who_fill_the_disk_cost_no_file_of_the_sensor_s(start: Start, tmp_path: Path) -> None:
    disk = Disk(start, tmp_path, FILES)
    disk.send_files(4)
    before = disk.names()
    disk.fill(2 * MIB)
    disk.sensor.said(", so others fill it; none is removed. Make room there.")
    disk.sensor.send(b"still recorded")
    wait_until(lambda: any(payload(record) == b"still recorded" for record in records(disk)), "it to be recorded")
    assert disk.names() >= before
    assert disk.sensor.log.count("so others fill it") == 1  # said once, not at each look
    assert "Removed" not in disk.sensor.log
    (disk.place / "filler").unlink()
    assert disk.sensor.stop() == 0


def records(disk: Disk) -> list[dict[str, object]]:
    newest = max(disk.place.glob("data*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(line) for line in newest.read_bytes().split(b"\n")[:-1]]


def test_others_who_take_all_that_is_freed_stop_it_in_time(start: Start, tmp_path: Path) -> None:
    """As much as the reserve stays, whatever others do."""
    disk = Disk(start, tmp_path, FILES)
    disk.send_files(20)
    for number in range(40):
        disk.fill(5 * MIB, f"filler{number}")
        if "Make room there." in disk.sensor.log:
            break
        wait_until(lambda: disk.free() >= 8 * MIB or "Make room there." in disk.sensor.log, "the reserve to be free")
    assert "Make room there." in disk.sensor.log
    assert sum(path.stat().st_size for path in disk.place.glob("data*.jsonl")) > 6 * MIB
    assert disk.sensor.stop() == 0


def test_a_file_that_is_never_closed_is_never_removed(start: Start, tmp_path: Path) -> None:
    disk = Disk(start, tmp_path, 'file_bytes = 0\nreserve = "8MiB"')
    for _ in range(12):
        disk.sensor.send(b"x" * MIB)
    wait_until(lambda: (disk.place / "data.jsonl").stat().st_size > 16 * MIB, "all to be written")
    disk.fill(4 * MIB)
    disk.sensor.said("but none of them is closed, so none is removed. Make room there.")
    assert "There is one data file, which is never closed, and so never removed." in disk.sensor.log
    assert disk.names() == {"data.jsonl"}
    assert disk.sensor.stop() == 0


def test_copies_go_before_data_files(start: Start, tmp_path: Path) -> None:
    disk = Disk(start, tmp_path, f'{FILES}\nsession_dir = "DISK/sessions"')
    for _ in range(12):
        disk.sensor.send(b"x" * MIB)
    wait_until(lambda: len(list((disk.place / "sessions").iterdir())) == 12, "the copies")
    names = disk.names()
    disk.fill(6 * MIB)
    disk.sensor.said(" oldest files of ")
    wait_until(lambda: disk.free() >= 8 * MIB, "the reserve to be free")
    assert disk.names() == names
    left = sorted(path.name for path in (disk.place / "sessions").iterdir())
    assert 5 <= len(left) < 12
    assert disk.sensor.stop() == 0


def test_files_that_give_no_room_back_are_not_removed_one_after_the_other(start: Start, tmp_path: Path) -> None:
    """Somebody holds them open, as a snapshot would."""
    disk = Disk(start, tmp_path, FILES)
    disk.send_files(20)
    held = [path.open("rb") for path in disk.place.glob("data*.jsonl")]
    before = len(disk.names())
    disk.fill(4 * MIB)
    disk.sensor.said(" did not make room: something else holds or takes it. Make room there.")
    gone = before - len(disk.names())
    assert 0 < gone <= 6  # once as many as were needed
    for file in held:
        file.close()
    wait_until(lambda: disk.free() >= 8 * MIB, "the room to come back")
    assert before - len(disk.names()) == gone
    assert disk.sensor.stop() == 0


def never_ours(disk: Disk, make: Callable[[Path], None]) -> None:
    """What stands at the oldest name, and is none of ours, is still there when others had to go."""
    disk.send_files(20)
    oldest = disk.place / "data.00.jsonl"
    make(oldest)
    os.utime(oldest, (1, 1), follow_symlinks=False)
    disk.fill(6 * MIB)
    disk.sensor.said("Removed the oldest session file: ")
    wait_until(lambda: disk.free() >= 8 * MIB, "the reserve to be free")
    assert os.path.lexists(oldest)
    assert disk.sensor.stop() == 0


def test_a_link_named_like_a_data_file_is_not_removed(start: Start, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(bytes(MIB))
    never_ours(Disk(start, tmp_path, FILES), lambda path: path.symlink_to(tmp_path / "precious"))
    assert (tmp_path / "precious").stat().st_size == MIB


def test_a_file_with_another_name_is_not_removed_since_that_makes_no_room(start: Start, tmp_path: Path) -> None:
    def make(path: Path) -> None:
        path.write_bytes(bytes(1000))
        path.with_name("other").hardlink_to(path)

    never_ours(Disk(start, tmp_path, FILES), make)


def test_a_fifo_or_a_folder_named_like_a_data_file_is_not_removed(start: Start, tmp_path: Path) -> None:
    def make(path: Path) -> None:
        os.mkfifo(path)
        path.with_name("data.01.jsonl").mkdir()

    disk = Disk(start, tmp_path, FILES)
    never_ours(disk, make)
    assert "Failed to tend" not in disk.sensor.log


def test_without_a_reserve_nothing_is_removed_and_a_full_disk_is_told(start: Start, tmp_path: Path) -> None:
    disk = Disk(start, tmp_path, 'file_bytes = "1MB"\nreserve = 0')
    disk.send_files(3)
    disk.fill(1 * MIB)
    disk.sensor.said(" is nearly full: ")
    assert "Disk: nothing bounds the closed data files: files.keep_bytes and files.reserve are 0." in disk.sensor.log
    assert "Removed" not in disk.sensor.log
    assert disk.sensor.log.count("is nearly full") == 1
    assert disk.sensor.stop() == 0


def test_a_reload_brings_another_reserve(start: Start, tmp_path: Path) -> None:
    disk = Disk(start, tmp_path, 'file_bytes = "1MB"\nreserve = 0')
    disk.send_files(20)
    disk.fill(4 * MIB)
    (tmp_path / "c.toml").write_text(f"[files]\n{FILES}\n")
    disk.sensor.signal(signal.SIGHUP)
    disk.sensor.said("Removed the oldest session file: ")
    wait_until(lambda: disk.free() >= 8 * MIB, "the reserve to be free")
    assert disk.sensor.stop() == 0
