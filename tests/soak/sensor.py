"""The sensor under test: started, signalled, killed and started again; its log, read from a pipe; its lives."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.soak.janitor import Janitor
from tests.soak.place import Place
from tests.soak.settings import Settings

READY = "Start UDP server."
START_SECONDS = 60.0
STOP_SECONDS = 60.0
NOTICED_NS = 2_000_000_000  # until it is seen that it ended by itself

STOPPED, KILLED, ENDED = "stopped", "killed", "ended by itself"


@dataclass
class Life:
    """From one start to its end, in ns since the epoch. `told` is when it was sent the signal that ends it."""

    began: int
    ready: int = 0
    told: int = 0
    gone: int = 0
    how: str = ""
    code: int | None = None


class Reader(threading.Thread):
    """Reads one sensor's log from its pipe into a file; `pause` lets it wait."""

    def __init__(self, fd: int, path: Path) -> None:
        super().__init__(daemon=True)
        self.ready = threading.Event()
        self._fd = fd
        self._path = path
        self._going = threading.Event()
        self._going.set()
        self.start()

    def pause(self) -> None:
        self._going.clear()

    def go_on(self) -> None:
        self._going.set()

    def run(self) -> None:
        tail = b""
        with self._path.open("ab") as file:
            while data := os.read(self._fd, 65536):
                file.write(data)
                file.flush()
                tail = (tail + data)[-200_000:]
                if READY.encode("ascii") in tail:
                    self.ready.set()
                self._going.wait()
        os.close(self._fd)
        self.ready.set()  # it will say no more


class SensorError(Exception):
    """The sensor did not do what the soak cannot go on without, in one line."""


class Sensor:
    """One at a time. `lives` has all of them."""

    def __init__(self, command: list[str], place: Place, settings: Settings, janitor: Janitor) -> None:
        self.lives: list[Life] = []
        self.log = place.folder / "sensor.log"
        self._command = [*place.sensor_prefix, *command, "-c", str(settings.path)]
        self._janitor = janitor
        self._process: subprocess.Popen[bytes] | None = None
        self.reader: Reader | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def life(self) -> Life:
        return self.lives[-1]

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def serves(self) -> bool:
        """Is it there, and past its start, and not told to end?"""
        return self.alive() and bool(self.life.ready) and not self.life.told

    def start(self) -> None:
        """Start, and wait until it serves. SensorError where it does not."""
        ours, theirs = os.pipe()
        life = Life(time.time_ns())
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            start_new_session=True,  # Ctrl-C is for the soak, which ends the sensor in its own way
        )
        os.close(theirs)
        self._janitor.told("pid", self._process.pid)
        self.lives.append(life)
        self.reader = Reader(ours, self.log)
        if not self.reader.ready.wait(START_SECONDS) or not self.alive():
            raise SensorError(f"the sensor did not start: {self.last_words()}")
        life.ready = time.time_ns()

    def last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return " | ".join(lines[-3:])

    def signal(self, number: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(number)

    def end(self, how: str) -> None:
        """SIGTERM or kill -9, and wait for its end."""
        assert self._process
        life = self.life
        life.told, life.how = time.time_ns(), how
        self.signal(signal.SIGTERM if how == STOPPED else signal.SIGKILL)
        try:
            life.code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            life.how = KILLED
            raise SensorError(f"the sensor had not ended {STOP_SECONDS:.0f} s after SIGTERM") from None
        finally:
            life.gone = time.time_ns()

    def note_end(self) -> None:
        """It ended by itself: its life is over."""
        life = self.life
        life.gone = time.time_ns()
        life.told = life.gone - NOTICED_NS
        life.how, life.code = ENDED, self._process.returncode if self._process else None

    def said(self, text: str, since: int) -> int:
        """How often the log has this, from this offset on."""
        with self.log.open("rb") as file:
            file.seek(since)
            return file.read().count(text.encode("utf-8"))

    def log_size(self) -> int:
        return self.log.stat().st_size
