"""Cleans up after a soak, however it ends: a process of its own that waits for its standard input to close.

It is told a line for each thing that must be gone at the end: `pid N`, `netns NAME`, `mount PATH`, `folder PATH`. Its
input closes when the soak ends, also when that is killed. A process is ended only while it is the one that was told of
(by its start time), what runs in a network namespace of the soak is ended with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_SECONDS = 3.0


def started(pid: int) -> str:
    """When a process started, in clock ticks (proc(5), field 22); empty where there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:  # gone
        return ""
    return "" if fields[0] == "Z" else fields[19]


def end(pids: dict[int, str]) -> None:
    """SIGTERM is not asked for: what is still there was left behind."""
    for pid, when in pids.items():
        if when and started(pid) == when:
            with contextlib.suppress(OSError):  # it ended by itself just now
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until and any(when and started(pid) == when for pid, when in pids.items()):
        time.sleep(0.02)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout


def clean(things: list[tuple[str, str]], pids: dict[int, str]) -> None:
    end(pids)
    for kind, name in reversed(things):
        if kind == "netns" and Path(f"/run/netns/{name}").exists():
            inside = {int(pid): started(int(pid)) for pid in _run("ip", "netns", "pids", name).split()}
            end(inside)
            _run("ip", "netns", "del", name)
        elif kind == "mount":
            _run("umount", "--lazy", name)
        elif kind == "folder":
            shutil.rmtree(name, ignore_errors=True)


def main() -> int:
    things: list[tuple[str, str]] = []
    pids: dict[int, str] = {}
    for line in sys.stdin:
        kind, _, name = line.strip().partition(" ")
        if kind == "pid":
            pids[int(name)] = started(int(name))
        elif kind == "keep":
            things = [thing for thing in things if thing != ("folder", name)]
        else:
            things.append((kind, name))
        print("noted", flush=True)
    clean(things, pids)
    return 0


class Janitor:
    """The soak's side of it."""

    def __init__(self) -> None:
        # A session of its own: Ctrl-C in the terminal is for the soak, and then this one is needed.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.janitor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def told(self, kind: str, name: str | int | Path) -> None:
        """This must be gone at the end; returns when the janitor knows."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{kind} {name}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def close(self) -> None:
        """Clean up now, and wait for it."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait(60)
        if self._process.stdout:
            self._process.stdout.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(main())
