"""Plug-ins that look at streams: what they return goes into the report.

Two kinds. Entry points of the group `tcppc.scanners` are called as `scan(flow, stream)`, with a Scanned and a file
object of its bytes. And tcpflow's: `-e python` with a folder, a module and a function, that is called with the bytes
alone. What a plug-in raises is told in the report; it ends nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from tcppc.flows.flow import Flow
from tcppc.flows.listener import Listener
from tcppc.flows.packets import shown
from tcppc.flows.report import attribute, text
from tcppc.flows.stream_files import StreamFiles
from tcppc.protocols.packet import UDP

GROUP = "tcppc.scanners"
MOST_BYTES = 256 << 20  # that a function of `-e python` is given of a stream
MOST_RESULT = 1 << 20  # characters of a result


class ScannerError(Exception):
    """Why a plug-in cannot be had, in one line."""


@dataclass(frozen=True)
class Scanned:
    """A stream that has ended. `start` and `end` are ns since the epoch, `path` is its file's."""

    proto: str
    src: str
    sport: int
    dst: str
    dport: int
    start: int
    end: int
    size: int
    path: str


Scan = Callable[[Scanned, BinaryIO], Any]


def installed() -> list[str]:
    """Names of the plug-ins that are there."""
    return sorted({point.name for point in _entry_points()})


def plug_in(name: str) -> Scan:
    """ScannerError where there is none of that name, or it cannot be loaded."""
    for point in _entry_points():
        if point.name == name:
            try:
                found: Scan = point.load()
            except Exception as problem:
                raise ScannerError(f"-e {name}: {point.value} cannot be loaded: {_line(problem)}") from None
            return found
    raise ScannerError(
        f"-e {name}: there is no such scanner; expected {', '.join(['http', 'md5', 'python', *installed()])}"
    )


def python(settings: Mapping[str, str]) -> Scan:
    """The function that -S py_path, py_module and py_function name."""
    missing = [name for name in ("py_module", "py_function") if not settings.get(name)]
    if missing:
        raise ScannerError(f"-e python: expected -S {missing[0]}=NAME, and -S py_path=FOLDER where it is not installed")
    if settings.get("py_path"):
        sys.path.insert(0, settings["py_path"])
    module, function = settings["py_module"], settings["py_function"]
    try:
        called = getattr(importlib.import_module(module), function)
    except Exception as problem:
        raise ScannerError(f"-e python: {module}.{function} cannot be loaded: {_line(problem)}") from None
    return lambda flow, stream: called(stream.read(MOST_BYTES))


def _entry_points() -> Any:
    from importlib import metadata  # takes longer than many a capture

    return metadata.entry_points(group=GROUP)


class Scanners(Listener):
    """Runs them over each stream of `files` that has bytes; `failed` counts what they raised."""

    def __init__(self, files: StreamFiles, scans: dict[str, Scan]) -> None:
        self.failed = 0
        self._files = files
        self._scans = scans
        self._results: dict[Flow, str] = {}

    def ended(self, flow: Flow) -> None:
        if not self._files.name(flow.file):
            return
        import json

        named, path = flow.named, self._files.path(flow.file)
        scanned = Scanned(
            "udp" if named.protocol == UDP else "tcp", shown(named.src), named.sport, shown(named.dst), named.dport,
            flow.first, flow.last, flow.stream.size, path,
        )  # fmt: skip
        found = []
        for name, scan in self._scans.items():
            kind = "result"
            with self._files.open(flow.file) as stream:
                try:
                    said = scan(scanned, stream)
                    words = said if isinstance(said, str) else json.dumps(said, default=str, skipkeys=True)
                except (Exception, SystemExit) as problem:  # anybody's code: its faults are its own
                    self.failed += 1
                    kind, said, words = "error", True, _line(problem)
            if said is not None:
                element = f"tcpflow:{kind}"
                found.append(f"    <{element} scanner={attribute(name)}>{text(words[:MOST_RESULT])}</{element}>\n")
        if found:
            self._results[flow] = "".join(found)

    def results(self, flow: Flow) -> str:
        """Elements of the report, once."""
        return self._results.pop(flow, "")


def _line(problem: BaseException) -> str:
    try:
        said = str(problem)
    except Exception as other:
        said = f"which cannot be shown: {type(other).__name__}"
    return f"{type(problem).__name__}: {said}".replace("\n", " ")[:500]
