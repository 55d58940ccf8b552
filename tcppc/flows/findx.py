"""-I: when each byte of a stream came, in a file beside it: NAME.findx, a line `offset|seconds|length` a packet with
data, as they arrived."""

from __future__ import annotations

import os

from tcppc.flows.flow import Flow, Run
from tcppc.flows.listener import Listener
from tcppc.flows.stream import Verdict
from tcppc.flows.stream_files import StreamFiles

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class Findx(Listener):
    """Of the streams in `files`. A segment that was written before all others keeps offset 0: tcpflow says so too."""

    by_packet = True

    def __init__(self, files: StreamFiles) -> None:
        self._files = files
        self._waiting: dict[Flow, list[str]] = {}
        self._begun: dict[Flow, str] = {}  # and its path; empty where it cannot be had

    def segment(self, flow: Flow, run: Run, verdict: Verdict) -> None:
        if verdict.what not in ("write", "shift"):
            return
        offset = 0 if verdict.what == "shift" else verdict.offset
        rest = run.first % 10**9
        digits = f"{rest // 1000:06d}" if rest % 1000 == 0 else f"{rest:09d}"
        self._waiting.setdefault(flow, []).append(f"{offset}|{run.first // 10**9}.{digits}|{run.size}\n")

    def settle(self) -> None:
        for flow in list(self._waiting):
            self._write(flow)

    def ended(self, flow: Flow) -> None:
        self._write(flow)
        self._begun.pop(flow, None)

    def _write(self, flow: Flow) -> None:
        lines = self._waiting.get(flow)
        if not lines:
            return
        self._files.flush_one(flow.file)
        name = self._files.name(flow.file)
        if not name:  # -b 0: there is no file
            return
        del self._waiting[flow]
        if flow not in self._begun:
            made = self._files.beside(flow.file, ".findx")
            self._begun[flow] = f"{self._files.folder}/{made[1]}" if made else ""
            if made:
                os.close(made[0])
        if path := self._begun[flow]:
            with os.fdopen(os.open(path, _FLAGS), "ab") as file:
                file.write("".join(lines).encode())
