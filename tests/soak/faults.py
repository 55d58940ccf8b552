"""What befalls the sensor while strangers are at it: each fault is a function, `Faults` does them at random moments.

Two threads do them, so that they meet: one what befalls the process and its disk, one after the other; one all else.
Whatever a fault takes away it gives back before it returns.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.follower import Follower
from tests.soak.helpers import Helper
from tests.soak.place import Place
from tests.soak.sensor import KILLED, STOPPED, Sensor, SensorError
from tests.soak.settings import Settings

CAUGHT_UP_SECONDS = 20.0
FEW, FEW_BYTES = 100, 8 << 20
NO_DESCRIPTORS = "Too many open files"
PUT_OFF = "put off: the writer had a backlog"
RELOAD_SECONDS = 20.0


@dataclass
class Stage:
    """All that a fault may touch."""

    place: Place
    settings: Settings
    sensor: Sensor
    follower: Follower
    strangers: Helper
    neighbours: Helper
    lot: random.Random
    removed: list[tuple[Path, Path]] = field(default_factory=list)  # a data file that was removed, its copy
    moved: int = 0  # folders that data was written to while its own was away


@dataclass
class Done:
    """One fault that was done."""

    name: str
    begun: int
    ended: int
    what: str = ""


Fault = Callable[[Stage, random.Random], str]


# What befalls the process and its disk.


def full_disk(stage: Stage, lot: random.Random) -> str:
    """The disk is full for some seconds."""
    filler = stage.place.disk / "filler"
    seconds = lot.uniform(1, 8)
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # full: as it shall be
            while True:
                file.write(bytes(1 << 20))
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(512))
        time.sleep(seconds)
    finally:
        filler.unlink(missing_ok=True)
    return f"{seconds:.1f} s"


def covered(stage: Stage, lot: random.Random) -> str:
    """The data folder is read-only for some seconds: an empty file system that is mounted over it, for the sensor."""
    if os.readlink(f"/proc/{stage.sensor.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
        raise SensorError("the sensor has no mount namespace of its own")
    inside = ["nsenter", "-t", str(stage.sensor.pid), "-m"]
    seconds = lot.uniform(1, 5)
    mount = [*inside, "mount", "-t", "tmpfs", "-o", "ro", "soak", str(stage.place.data)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        time.sleep(seconds)
    finally:
        subprocess.run([*inside, "umount", "--lazy", str(stage.place.data)], check=True, capture_output=True)
    return f"{seconds:.1f} s"


def renamed_folder(stage: Stage, lot: random.Random) -> str:
    """The data folder is renamed, and named as before when the next interval has begun."""
    data, away = stage.place.data, stage.place.disk / "away"
    data.rename(away)
    time.sleep(stage.settings.interval + lot.uniform(0.5, 2))
    stage.moved += 1
    with contextlib.suppress(FileNotFoundError):  # nothing was written meanwhile
        data.rename(stage.place.disk / f"data.{stage.moved}")
    away.rename(data)
    return ""


def moved_file(stage: Stage, lot: random.Random) -> str:
    """The open data file is renamed, as logrotate does."""
    path = _open_file(stage)
    if path:
        with contextlib.suppress(FileNotFoundError):  # closed and compressed just now
            path.rename(path.with_name(f"{path.name}.1"))
    return ""


def removed_file(stage: Stage, lot: random.Random) -> str:
    """The open data file is removed."""
    path = _open_file(stage)
    if path:
        with contextlib.suppress(FileNotFoundError):
            copy = stage.follower.copy_of(path)
            path.unlink()
            if copy:
                stage.removed.append((path, copy))
    return ""


def _open_file(stage: Stage) -> Path | None:
    for descriptor in Path(f"/proc/{stage.sensor.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            path = Path(os.readlink(descriptor))
            if path.name.startswith("soak-") and path.suffix == ".jsonl" and path.exists():
                return path
    return None


def stopped_for_a_while(stage: Stage, lot: random.Random) -> str:
    """SIGSTOP, and SIGCONT up to three seconds later."""
    seconds = lot.uniform(0.2, 3)
    stage.sensor.signal(signal.SIGSTOP)
    time.sleep(seconds)
    stage.sensor.signal(signal.SIGCONT)
    return f"{seconds:.1f} s"


def few_descriptors(stage: Stage, lot: random.Random) -> str:
    """Hardly a descriptor is left for some seconds."""
    pid = str(stage.sensor.pid)
    limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
    soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    have = len(os.listdir(f"/proc/{pid}/fd"))
    few = max(12, have - lot.randint(0, 10))
    seconds = lot.uniform(0.5, 4)
    subprocess.run(["prlimit", "--pid", pid, f"--nofile={few}:{hard}"], check=True, capture_output=True)
    try:
        time.sleep(seconds)
    finally:
        subprocess.run(["prlimit", "--pid", pid, f"--nofile={soft}:{hard}"], check=False, capture_output=True)
    return f"{few} of {soft} for {seconds:.1f} s"


def restart(stage: Stage, lot: random.Random) -> str:
    """SIGTERM, and another start."""
    stage.sensor.end(STOPPED)
    stage.sensor.start()
    return ""


def kill(stage: Stage, lot: random.Random) -> str:
    """kill -9, and another start. The writer has no backlog at that moment: what was lost with it could not be told
    from other losses."""
    until = time.monotonic() + CAUGHT_UP_SECONDS
    while not _caught_up(stage):
        if time.monotonic() > until:
            return PUT_OFF
        time.sleep(0.5)
    stage.sensor.end(KILLED)
    stage.sensor.start()
    return ""


def _caught_up(stage: Stage) -> bool:
    """Is next to nothing on its way to the disk, by the metrics of the last second?"""
    metric = stage.neighbours.metric
    ended = metric("sessions_started") - metric("sessions_open")
    on_the_way = ended - metric("sessions_ended") - metric("sessions_dropped")
    fresh = time.time() - stage.neighbours.told.get("at", 0.0) < 2
    return fresh and on_the_way < FEW and metric("held_bytes") < FEW_BYTES


# All else.


def _reload(stage: Stage, expected: str) -> None:
    before = stage.sensor.log_size()
    life = stage.sensor.life
    if not stage.sensor.serves():  # it starts or ends: SIGHUP is for one that serves
        return
    stage.sensor.signal(signal.SIGHUP)
    until = time.monotonic() + RELOAD_SECONDS
    while time.monotonic() < until:
        # Where another fault leaves it hardly a descriptor, it cannot read the file, and says so.
        answered = stage.sensor.said(expected, before) or stage.sensor.said(NO_DESCRIPTORS, before)
        if answered or stage.sensor.life is not life or life.told:
            return
        time.sleep(0.1)
    # Its log's reader may sleep, and the line be lost: then the log cannot tell.
    if stage.neighbours.metric("log_lines_lost") == 0 and stage.sensor.alive() and not life.told:
        raise SensorError(f"after SIGHUP the log does not say {expected!r} within {RELOAD_SECONDS:.0f} s")


def reload_same(stage: Stage, lot: random.Random) -> str:
    """SIGHUP with the configuration as it is."""
    _reload(stage, "Reloaded.")
    return ""


def reload_changed(stage: Stage, lot: random.Random) -> str:
    """SIGHUP with other values."""
    what = stage.settings.change(lot)
    stage.settings.write()
    _reload(stage, "Reloaded.")
    return what


def reload_wrong(stage: Stage, lot: random.Random) -> str:
    """SIGHUP with a wrong configuration, which is refused."""
    spoiled = lot.choice(("[nothing]\nx = 1", "this is no TOML", "[[action]]\non = 'connect'"))
    stage.settings.write(spoiled)
    try:
        _reload(stage, "Reload refused")
    finally:
        stage.settings.write()
    return spoiled.splitlines()[0]


def persona_gone(stage: Stage, lot: random.Random) -> str:
    """SIGHUP where the file of a persona that the table names is gone, which is refused."""
    if not stage.place.namespaces:
        return ""
    stage.settings.take_persona()
    try:
        _reload(stage, "Reload refused")
    finally:
        stage.settings.put_persona()
    return ""


def log_reader_sleeps(stage: Stage, lot: random.Random) -> str:
    """Nobody reads the log for some seconds."""
    seconds = lot.uniform(1, 8)
    reader = stage.sensor.reader
    if reader:
        reader.pause()
        time.sleep(seconds)
        reader.go_on()
    return f"{seconds:.1f} s"


def busy_processors(stage: Stage, lot: random.Random) -> str:
    """Two programs take all they can get of the processors."""
    seconds = lot.uniform(2, 6)
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        time.sleep(seconds)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    return f"{seconds:.1f} s"


def hook_hangs(stage: Stage, lot: random.Random) -> str:
    """The web server that the webhook calls does not answer."""
    seconds = lot.uniform(3, 15)
    stage.neighbours.say("hang")
    time.sleep(seconds)
    stage.neighbours.say("go on")
    return f"{seconds:.1f} s"


def hoarding_source(stage: Stage, lot: random.Random) -> str:
    """One source holds many sessions of 16 MiB, more than there is memory for."""
    stage.strangers.say("hoard")
    time.sleep(5)
    return ""


def crowding_source(stage: Stage, lot: random.Random) -> str:
    """One source has more sessions at once than it may."""
    stage.strangers.say("crowd")
    time.sleep(3)
    return ""


OF_THE_PROCESS: tuple[Fault, ...] = (
    full_disk, covered, renamed_folder, moved_file, removed_file, stopped_for_a_while, few_descriptors,
)  # fmt: skip
OF_ITS_LIFE: tuple[Fault, ...] = (restart, kill)
ELSE: tuple[Fault, ...] = (
    reload_same, reload_changed, reload_wrong, persona_gone, log_reader_sleeps, busy_processors, hook_hangs,
    hoarding_source, crowding_source,
)  # fmt: skip
NEED_NAMESPACES: tuple[Fault, ...] = (full_disk, covered, persona_gone)
BY_NAME = {fault.__name__.replace("_", "-"): fault for fault in (*OF_THE_PROCESS, *OF_ITS_LIFE, *ELSE)}


class Faults:
    """Does faults until `close`. `lives_until` (monotonic): from then on the process is not ended any more, so that
    its memory can be watched for long."""

    def __init__(self, stage: Stage, chosen: list[Fault], pause: float, lives_until: float) -> None:
        self.done: list[Done] = []
        self.failures: list[str] = []
        self._stage = stage
        self._pause = pause
        self._lives_until = lives_until
        self._ending = threading.Event()
        self._others = threading.Lock()  # held by a fault that none of the other thread's may meet
        groups = ([*OF_THE_PROCESS, *OF_ITS_LIFE], ELSE)
        self._threads = [
            threading.Thread(
                target=self._run, args=([fault for fault in group if fault in chosen], number), daemon=True
            )
            for number, group in enumerate(groups)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _run(self, faults: list[Fault], number: int) -> None:
        lot = random.Random(f"{self._stage.lot.random()} {number}")
        lives = [fault for fault in faults if fault in OF_ITS_LIFE]
        bag = lot.sample(faults, min(1, len(faults))) + lives  # these first: their time is short
        lot.shuffle(bag)
        while faults and not self._ending.wait(lot.uniform(0.5, 1.5) * self._pause):
            bag = bag or lot.sample(faults, len(faults))
            fault = bag.pop()
            if fault in OF_ITS_LIFE and time.monotonic() > self._lives_until:
                continue
            self._do(fault, lot)

    def _do(self, fault: Fault, lot: random.Random) -> None:
        done = Done(fault.__name__.replace("_", " "), time.time_ns(), 0)
        alone = fault is kill or fault in ELSE
        try:
            with self._others if alone else contextlib.nullcontext():
                if not self._stage.sensor.serves():  # it ended by itself, and is started again
                    return
                done.what = fault(self._stage, lot)
        except SensorError as problem:
            self.failures.append(f"{done.name}: {problem}")
        except (OSError, subprocess.CalledProcessError) as problem:
            if self._stage.sensor.alive():  # else it ended under the fault's hands, which is told elsewhere
                self.failures.append(f"{done.name} could not be done: {problem}")
        done.ended = time.time_ns()
        if done.what == PUT_OFF:
            done.name += " (put off)"
        self.done.append(done)

    def close(self) -> None:
        """No more; returns when those under way are done."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
