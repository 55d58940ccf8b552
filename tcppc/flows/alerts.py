"""-S tcp_cmd, tcp_alert_fd, http_cmd, http_alert_fd: who else is told of files, as tcpflow tells them."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tcppc.flows.flow import Flow, Run
from tcppc.flows.listener import Listener
from tcppc.flows.stream import Verdict
from tcppc.flows.stream_files import StreamFiles

Told = Callable[[str], None]  # a file's path


class AlertError(Exception):
    """What is wrong with a command or a descriptor, in one line."""


def command(name: str, words: str) -> Told:
    """Runs it with the path as its last argument, and waits; without a shell. Its failure is its own."""
    try:
        given = shlex.split(words)
    except ValueError as problem:
        raise AlertError(f"-S {name}: {words!r}: {problem}") from None
    if not given or not shutil.which(given[0]):
        raise AlertError(f"-S {name}: {words!r}: expected a command that is there")

    import subprocess  # takes longer than many a capture

    def run(path: str) -> None:
        try:
            subprocess.run([*given, path], stdin=subprocess.DEVNULL, check=False)
        except OSError as problem:
            raise OSError(problem.errno, problem.strerror, given[0]) from None

    return run


def descriptor(name: str, number: str, word: str = "") -> Told:
    """A line for each, with a word and a tab before the path where one is given."""
    try:
        fd = os.dup(int(number))
    except (ValueError, OverflowError, OSError):
        raise AlertError(f"-S {name}: {number!r}: expected the number of a descriptor that is open") from None
    before = f"{word}\t" if word else ""

    def tell(path: str) -> None:
        line = os.fsencode(f"{before}{path}\n")
        while line:
            line = line[os.write(fd, line) :]

    return tell


class Tells(NamedTuple):
    """Who is told of files that begin, of those that ended, and of bodies."""

    opened: list[Told]
    closed: list[Told]
    bodies: list[Told]


def tells(settings: Mapping[str, str]) -> Tells:
    """As the settings say. AlertError where one of them cannot be."""
    found = Tells([], [], [])
    for kind, after in (("tcp", found.closed), ("http", found.bodies)):
        if number := settings.get(f"{kind}_alert_fd"):
            before = found.opened if kind == "tcp" else after
            before.append(descriptor(f"{kind}_alert_fd", number, "open"))
            after.append(descriptor(f"{kind}_alert_fd", number, "close"))
        if f"{kind}_cmd" in settings:
            after.append(command(f"{kind}_cmd", settings[f"{kind}_cmd"]))
    return found


class Alerts(Listener):
    """`opened` is told each file when it is made, `ended` when nothing more comes."""

    def __init__(self, files: StreamFiles, opened: list[Told], closed: list[Told]) -> None:
        self.by_packet = bool(opened)
        self._files = files
        self._opened = opened
        self._closed = closed
        self._begun: set[Flow] = set()

    def segment(self, flow: Flow, run: Run, verdict: Verdict) -> None:
        if flow in self._begun or not run.data.size or verdict.what not in ("write", "shift"):
            return
        self._begun.add(flow)
        for tell in self._opened:
            tell(self._files.made(flow.file))

    def ended(self, flow: Flow) -> None:
        self._begun.discard(flow)
        if self._files.name(flow.file):
            for tell in self._closed:
                tell(self._files.path(flow.file))
