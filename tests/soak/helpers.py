"""The two programs beside the sensor: the strangers and the neighbours. Each prints a line of JSON a second."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.soak.janitor import Janitor

END_SECONDS = 20.0


class Helper:
    """One of them. `told` is its last line; what it says on standard error goes to a file."""

    def __init__(self, module: str, arguments: list[str], prefix: list[str], errors: Path, janitor: Janitor) -> None:
        self.told: dict[str, Any] = {}
        self.errors = errors
        with errors.open("ab") as file:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        janitor.told("pid", self._process.pid)
        self._first = threading.Event()
        self._lock = threading.Lock()
        self._metrics: dict[str, float] = {}  # the last that were scraped
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            told = json.loads(line)
            with self._lock:
                self.told = told
                self._metrics = told.get("metrics", self._metrics)
            self._first.set()

    def wait(self, seconds: float) -> bool:
        """Until it has said something."""
        return self._first.wait(seconds)

    def alive(self) -> bool:
        return self._process.poll() is None

    def say(self, line: str) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError), self._lock:  # it ended, which is told elsewhere
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def metric(self, name: str) -> float:
        with self._lock:
            return self._metrics.get(name, 0.0)

    def close(self) -> int:
        """Let it end."""
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
