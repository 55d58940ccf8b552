"""-c and -C: payloads to standard output as packets arrive, in tcpflow's forms."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, NamedTuple

from tcppc.flows.flow import Flow, Run
from tcppc.flows.listener import Listener
from tcppc.flows.packets import shown
from tcppc.flows.stream import Verdict
from tcppc.text import raw

MOST_SHOWN_BYTES = 16 << 20  # of a body
MOST_HELD_BYTES = 16 << 20  # of one stream, that wait for what stands before them
_WIDTH = 32
_BLUE, _RED, _PLAIN = b"\x1b[0;34m", b"\x1b[0;31m", b"\x1b[0m"
_PRINTED = bytes(code if 32 <= code < 127 or code in b"\r\n" else 46 for code in range(256))
_IN_HEX = bytes(code if 32 <= code < 127 else 46 for code in range(256))


class Form(NamedTuple):
    """-C without names, -D in hex, -B raw, -0 without line feeds, -g in colour, -J as JSON."""

    names: bool = True
    hex: bool = False
    raw: bool = False
    line_feeds: bool = True
    colour: bool = False
    json: bool = False


class Console(Listener):
    """To `out`."""

    by_packet = True

    def __init__(self, out: IO[bytes], form: Form, name: Callable[[Flow], str]) -> None:
        self._out = out
        self._form = form
        self._name = name

    def segment(self, flow: Flow, run: Run, verdict: Verdict) -> None:
        if data := b"".join(run.data.parts()):
            self.show(flow, data)

    def settle(self) -> None:
        self._out.flush()

    def finish(self) -> None:
        self._out.flush()

    def show(self, flow: Flow, data: bytes) -> None:
        form = self._form
        if form.json:
            self._out.write(_as_json(flow, data))
            return
        parts = []
        if form.colour:
            parts.append(_BLUE if flow.asks else _RED)
        if form.names:
            parts.append(raw(f"{self._name(flow)}: ") + (b"\n" if form.hex else b""))
        if form.hex:
            parts.append(_as_hex(data))
        else:
            parts.append(data if form.raw else data.translate(_PRINTED))
        if form.colour:
            parts.append(_PLAIN)
        if form.line_feeds:
            parts.append(b"\n")
        self._out.write(b"".join(parts))

    def message(self, flow: Flow, head: bytes, body: Iterable[bytes]) -> None:
        """One of HTTP: its head as it was sent, its body without codings."""
        shown = [head]
        left = MOST_SHOWN_BYTES
        for part in body:
            shown.append(part[:left])
            left -= len(part)
            if left <= 0:
                shown.append(b"[...]")
                break
        self.show(flow, b"".join(shown))


@dataclass
class _Held:
    """Of one stream: how far it was shown, and what waits for what stands before it, nearest first."""

    at: int = 0
    size: int = 0
    waiting: list[tuple[int, bytes]] = field(default_factory=list)


class InOrder(Console):
    """--in-order: each byte once, behind the one before it. A gap is passed once MOST_HELD_BYTES wait behind it, or the
    stream has ended."""

    def __init__(self, out: IO[bytes], form: Form, name: Callable[[Flow], str]) -> None:
        super().__init__(out, form, name)
        self._held: dict[Flow, _Held] = {}

    def segment(self, flow: Flow, run: Run, verdict: Verdict) -> None:
        if verdict.what != "write":  # what stands before the first bytes came too late to be shown before them
            return
        held = self._held.setdefault(flow, _Held())
        data = b"".join(run.data.parts())
        held.size += len(data)
        heapq.heappush(held.waiting, (verdict.offset, data))
        self._show(flow, held, held.size > MOST_HELD_BYTES)

    def _show(self, flow: Flow, held: _Held, all_of_it: bool) -> None:
        while held.waiting and (all_of_it or held.waiting[0][0] <= held.at):
            offset, data = heapq.heappop(held.waiting)
            held.size -= len(data)
            if fresh := data[max(0, held.at - offset) :]:
                self.show(flow, fresh)
                held.at = max(held.at, offset) + len(fresh)

    def ended(self, flow: Flow) -> None:
        if held := self._held.pop(flow, None):
            self._show(flow, held, True)


def _as_json(flow: Flow, data: bytes) -> bytes:
    named = flow.named
    return (
        f'{{"src_host":"{shown(named.src)}","src_port":{named.sport},"dst_host":"{shown(named.dst)}",'
        f'"dst_port":{named.dport},"payload": [{",".join(map(str, data))}]}}\n'
    ).encode()


def _as_hex(data: bytes) -> bytes:
    """32 bytes a line, each padded to the widest one's hex."""
    lines = []
    for at in range(0, len(data), _WIDTH):
        row = data[at : at + _WIDTH]
        pairs = "".join(
            f"{row[n : n + 2].hex()} " if n + 2 <= len(row) else row[n:].hex() for n in range(0, len(row), 2)
        )
        lines.append((at, pairs, row.translate(_IN_HEX).decode()))
    widest = max((len(pairs) for _, pairs, _ in lines), default=0)
    return "".join(f"{at:04x}: {pairs:<{widest}} {text}\n" for at, pairs, text in lines).encode()
