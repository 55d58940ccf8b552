"""All personas by name, and which port has which.

Built-in ones are modules of this package; others come from TOML files in a folder (scripted.py) and from the entry
point group `tcppc.personas`, whose names lead to a Talk or an Answerer. A name may be both, for TCP and for UDP.
"""

from __future__ import annotations

import importlib
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from tcppc.personas.base import Answerer, Findings, Place, Talk
from tcppc.personas.identity import Identity

GROUP = "tcppc.personas"
SILENT = "silent"
# Modules that have TALK, for TCP, or ANSWERER, for UDP, or both.
BUILTIN = (
    "auto", "dns", "ftp", "http", "mssql", "mysql", "ntp", "pop3", "portmap", "redis", "shell", "sip", "smtp", "snmp",
    "ssh", "telnet", "tftp",
)  # fmt: skip

# Replies to one UDP source in so many seconds, and how many sources are remembered (2 MB): over it the oldest go.
UDP_REPLIES = 30
UDP_SECONDS = 60.0
MOST_SOURCES = 10_000
SMALL_SHARE = 16  # a reply of at most a sixteenth of what it answers is not counted
# Second connections that are awaited (FTP's data), for how long, and how many at once: each holds what it will say, 64
# KiB at most.
AWAITED_SECONDS = 30.0
MOST_AWAITED = 256

PortKey = tuple[str, int]  # ("tcp", 21)


class PersonaError(ValueError):
    """What is wrong with a persona or the table, in one line."""


@dataclass(frozen=True)
class Kind:
    """A persona by its name: how a conversation and how a datagram's answer is made."""

    name: str
    about: str
    talk: Callable[[Identity, Place], Talk] | None = None
    answerer: Callable[[Identity], Answerer] | None = None


def builtin(name: str) -> Kind:
    module = importlib.import_module(f"tcppc.personas.{name}")
    talk: Any = getattr(module, "TALK", None)
    answerer: Any = getattr(module, "ANSWERER", None)
    return Kind(name, str((talk or answerer).about), talk, answerer)


def plugged() -> Iterable[Kind]:
    """Those of other packages. PersonaError for one that cannot be loaded."""
    for entry in metadata.entry_points(group=GROUP):
        try:
            loaded = entry.load()
        except Exception as problem:
            raise PersonaError(f"persona {entry.name} of {entry.value}: {type(problem).__name__}: {problem}") from None
        if isinstance(loaded, type) and issubclass(loaded, Talk):
            yield Kind(entry.name, loaded.about, talk=loaded)
        elif isinstance(loaded, type) and issubclass(loaded, Answerer):
            yield Kind(entry.name, loaded.about, answerer=loaded)
        else:
            raise PersonaError(f"persona {entry.name} of {entry.value}: expected a subclass of Talk or Answerer")


def known(folder: str = "") -> dict[str, Kind]:
    """Every persona there is, by name."""
    from tcppc.personas import scripted

    found = {SILENT: Kind(SILENT, Talk.about)} | {name: builtin(name) for name in BUILTIN}
    for kind in plugged():
        if kind.name in found:
            raise PersonaError(f"persona {kind.name}: an entry point has the name of a built-in one")
        found[kind.name] = kind
    for name, script in scripted.load(Path(folder)).items() if folder else ():
        if name in found:
            raise PersonaError(f"persona {name}: a file in {folder} has the name of another one")
        found[name] = Kind(name, script.about, talk=script.talk)
    return found


class Personas:
    """Which persona serves what. `table` is {("tcp", 21): "ftp"}; threads share it."""

    def __init__(self, default: str, table: dict[PortKey, str], folder: str, seed: str) -> None:
        kinds = known(folder)
        for where, name in [
            ("default", default),
            *((f"{proto}/{port}", name) for (proto, port), name in table.items()),
        ]:
            if name not in kinds:
                known_ones = ", ".join(sorted(kinds))
                raise PersonaError(f"{where}: there is no persona {name!r}; expected one of {known_ones}")
        for (proto, port), name in table.items():
            kind, other = kinds[name], "udp" if proto == "tcp" else "tcp"
            if name != SILENT and not (kind.talk if proto == "tcp" else kind.answerer):
                raise PersonaError(
                    f'{proto}/{port}: {name} answers over {other} alone; expected "{other}/{port}" = "{name}"'
                )
        self._default = kinds[default]
        self._table = {key: kinds[name] for key, name in table.items()}
        self.identity = Identity(seed)
        used = [self._default, *self._table.values()]
        self.silent = not any(kind.talk or kind.answerer for kind in used)
        self.for_datagrams = any(kind.answerer for kind in used)
        self._answerers = {kind.name: kind.answerer(self.identity) for kind in used if kind.answerer}
        self._lock = threading.Lock()
        # One of each client, by (src, dst): until when, which port, who serves it. Both the oldest first.
        self._awaited: OrderedDict[tuple[str, str], tuple[float, int, Talk]] = OrderedDict()
        self._sources: OrderedDict[str | bytes, tuple[float, int]] = OrderedDict()

    def _kind(self, proto: str, port: int) -> Kind:
        return self._table.get((proto, port), self._default)

    def talk(self, place: Place) -> Talk | None:
        """Who serves this connection; None for nobody, who is silent."""
        if self._awaited and (talk := self._take_awaited(place)):
            return talk
        made = self._kind("tcp", place.dport).talk
        if made is None:
            return None
        place.awaits = self._await
        return made(self.identity, place)

    def _await(self, place: Place, port: int, talk: Talk) -> None:
        with self._lock:
            self._awaited.pop((place.src, place.dst), None)  # the one before it of the same client
            while len(self._awaited) >= MOST_AWAITED:
                self._awaited.popitem(last=False)
            self._awaited[place.src, place.dst] = time.monotonic() + AWAITED_SECONDS, port, talk

    def _take_awaited(self, place: Place) -> Talk | None:
        now = time.monotonic()
        with self._lock:
            while self._awaited and next(iter(self._awaited.values()))[0] < now:
                self._awaited.popitem(last=False)
            _, port, talk = self._awaited.get((place.src, place.dst), (0.0, 0, None))
            if talk is None or port != place.dport:
                return None
            del self._awaited[place.src, place.dst]
            return talk

    def answer(self, data: bytes, place: Place, findings: Findings) -> tuple[str, bytes]:
        """(persona, reply) to a datagram: never longer than it, and rated for each source. Empty for none."""
        kind = self._kind("udp", place.dport)
        answerer = self._answerers.get(kind.name)
        if answerer is None:
            return "", b""
        name, reply = answerer.named(data, place, findings)
        # What is far shorter than what it answers, as the acknowledgement of each block that is stored, harms nobody.
        small = SMALL_SHARE * len(reply) <= len(data)
        if len(reply) > len(data) or (reply and not small and not self._rated(place.src)):
            reply = b""
        return name or kind.name, reply

    def _rated(self, address: str) -> bool:
        """May this source, an IPv4 address or IPv6 /64, be answered once more?"""
        source = IPv6Address(address).packed[:8] if ":" in address else address
        now = time.monotonic()
        with self._lock:
            until, count = self._sources.get(source, (0.0, 0))
            if until < now:
                self._sources.pop(source, None)
                until, count = now + UDP_SECONDS, 0
                self._forget_sources(now)
            self._sources[source] = until, count + 1
            return count < UDP_REPLIES

    def _forget_sources(self, now: float) -> None:
        """Two whose time is over, since one comes; and who is over the bound."""
        for _ in range(2):
            if self._sources and next(iter(self._sources.values()))[0] < now:
                self._sources.popitem(last=False)
        while len(self._sources) >= MOST_SOURCES:
            self._sources.popitem(last=False)


def high_port(place: Place) -> int:
    """A port for a second connection that leads back to the sensor: any, where rules bring all; else its own."""
    return random.randint(32768, 60999) if place.dport != place.own_port else place.own_port
