"""What is measured: the figures, their targets, and how each sample is taken from one running server.

A figure is measured on a fresh server each time. Its rows are the values that one sample gives; the targets
stand beside them, ratios being ours / theirs.
"""

from __future__ import annotations

import resource
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from recorded import Recorded
from servers import BenchError, Server
from tools import Tools

PAYLOAD = 64  # bytes
CONCURRENT = 200
SOURCES = 50
# So many that a bound on the sessions of one source is not what is measured: 30 each at 15,000.
HOLD_SOURCES = 500
LOAD_SECONDS = 90
HOLD_SECONDS = 180
FLOOD_SECONDS = 120
MIB = 1024 * 1024
KIB = 1024


@dataclass(frozen=True)
class Sizes:
    """How much is sent; `hold_most` 0 leaves that figure out. Floods in MiB."""

    sessions: int
    handshakes: int
    datagrams: int
    pace: int  # datagrams a second
    burst: int
    hold: int
    hold_most: int
    flood: int
    flood_all: int


@dataclass(frozen=True)
class Target:
    """A bound on a value or on a ratio."""

    sign: str  # ">=" or "<="
    value: float

    def met(self, value: float) -> bool:
        """Whether the value keeps to it."""
        return value >= self.value if self.sign == ">=" else value <= self.value

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}"


@dataclass(frozen=True)
class Row:
    """One line of the table; a total is added up over the runs, everything else is a median."""

    key: str
    unit: str
    own: Target | None = None
    peer: Target | None = None
    yardstick: Target | None = None
    total: bool = False
    compared: bool = True  # whether ours / theirs says anything


@dataclass
class Sample:
    """What one server did in one run: a value for each row's key, and what went wrong, a phrase each."""

    values: dict[str, float]
    faults: list[str] = field(default_factory=list)


Measure = Callable[[Server, Tools], Sample]


@dataclass(frozen=True)
class Figure:
    """Something to measure; `group` is its name for --only, `name` its name in the table."""

    group: str
    name: str
    kind: str  # of the server's command: plain, log or tls
    measure: Measure
    rows: tuple[Row, ...]
    proto: str = "tcp"
    most_runs: int = 99
    needs: tuple[str, ...] = ()  # tools that may be missing
    certificate: str = ""
    only_ours: bool = False
    reason_not: str = ""  # why it can't be measured here


LOST = Row("lost", "lost, all runs", own=Target("<=", 0), total=True, compared=False)


def check(recorded: Recorded, line: dict[str, float], what: str) -> tuple[int, list[str]]:
    """How many of those sent are not in the file, and what else is wrong; `line` is the generator's."""
    sent, failed = int(line["sent"]), int(line["fail"])
    faults = recorded.faults(sent)
    if failed:
        faults.append(f"{failed} {what} failed")
    return recorded.lost(sent), faults


def sessions(program: str, mode: tuple[str, ...], count: int) -> Measure:
    """Short sessions, of TCP or TLS: their rate and CPU."""

    def measure(server: Server, tools: Tools) -> Sample:
        recorded = Recorded(server.file, PAYLOAD)
        before = server.cpu()
        arguments = (*mode, server.port, count, CONCURRENT, PAYLOAD, SOURCES, LOAD_SECONDS)
        line = tools.load(program, *arguments, seconds=LOAD_SECONDS + 10)
        ended = time.time()
        # What a server does after it closed the connection is part of the session too.
        recorded.settle(int(line["sent"]))
        cpu = server.cpu() - before
        lost, faults = check(recorded, line, "sessions")
        # A session counts when it is in the file: throwing it away must not look fast.
        kept = min(line["done"], line["sent"] - lost)
        if not kept:
            return Sample({"lost": lost}, [*faults, "not one session was finished and recorded"])
        values = {
            "rate": kept / line["seconds"],
            "cpu": cpu / kept * 1e6,
            "behind": max(0.0, recorded.last_written() - ended) * 1e3,
            "lost": lost,
        }
        return Sample(values, faults)

    return measure


def datagrams(count: int, pace: int) -> Measure:
    """Datagrams at a pace (a second), or as a burst when it is 0."""

    def measure(server: Server, tools: Tools) -> Sample:
        recorded = Recorded(server.file, PAYLOAD)
        before = server.cpu()
        arguments = (server.port, count, PAYLOAD, pace, LOAD_SECONDS)
        line = tools.load("udpload", *arguments, seconds=LOAD_SECONDS + 10)
        recorded.settle(int(line["sent"]))
        cpu = server.cpu() - before
        lost, faults = check(recorded, line, "datagrams")
        kept = line["sent"] - lost
        if not kept:
            return Sample({"lost": lost}, [*faults, "not one datagram was recorded"])
        # A datagram that the kernel dropped cost the server nothing.
        return Sample({"cpu": cpu / kept * 1e6, "lost": lost}, faults)

    return measure


def held_line(stream_fd: int) -> int:
    """How many connections `tcpload hold` says it has."""
    if not select.select([stream_fd], [], [], HOLD_SECONDS)[0]:
        raise BenchError("tcpload hold says nothing")
    with open(stream_fd, encoding="ascii", closefd=False) as stream:
        words = stream.readline().split()
    if len(words) != 4 or words[0] != "held":
        raise BenchError("tcpload hold failed")
    return int(words[1])


def hold(count: int) -> Measure:
    """Connections that stay open: memory each, and whether all are recorded at SIGTERM."""

    def measure(server: Server, tools: Tools) -> Sample:
        recorded = Recorded(server.file, PAYLOAD)
        memory, descriptors = server.memory(), server.descriptors()
        with tools.hold(server.port, count, PAYLOAD, HOLD_SOURCES, HOLD_SECONDS) as load:
            assert load.stdout
            held = held_line(load.stdout.fileno())
            deadline = time.monotonic() + 20
            while server.descriptors() - descriptors < held and time.monotonic() < deadline:
                time.sleep(0.1)
            server.wait_idle(20)  # the payload of the last one is to be read too
            taken = server.descriptors() - descriptors
            grown = server.memory() - memory
            server.stop()
            recorded.settle(held)
        faults = recorded.faults(held)
        if held < count:
            faults.append(f"{count - held} of {count} connections could not be opened")
        if taken < held:
            faults.append(f"{held - taken} of {held} connections were not open in the server")
        if taken <= 0:
            raise BenchError("the server holds no connection")
        return Sample({"rss": grown / taken / KIB, "lost": recorded.lost(held)}, faults)

    return measure


def flood(mebibytes: int) -> Measure:
    """One session that sends without end: how far the memory grows at its peak."""

    def measure(server: Server, tools: Tools) -> Sample:
        recorded = Recorded(server.file, None)
        server.reset_peak()
        memory = server.memory()
        arguments = ("flood", server.port, mebibytes, FLOOD_SECONDS)
        line = tools.load("tcpload", *arguments, seconds=FLOOD_SECONDS + 10)
        recorded.settle(1)
        faults = recorded.faults(1)
        sent = int(line["sent"])
        if line["closed"] and not recorded.limited:
            faults.append(f"it closed the connection after {sent} bytes, and no record says that a limit did")
        if not line["closed"] and sent < mebibytes * MIB:
            faults.append(f"only {sent} bytes could be sent in {FLOOD_SECONDS} s")
        # Only a record with the key `bytes` can be held to it; one that a limit ended need not count on.
        if not line["closed"] and recorded.total not in (0, sent):
            faults.append(f"{sent} bytes were sent and the records count {recorded.total}")
        grown = (server.memory("VmHWM") - memory) / MIB
        values = {"grown": grown, "rate": sent / MIB / line["seconds"], "sent": sent / MIB}
        return Sample({**values, "lost": recorded.lost(1)}, faults)

    return measure


def why_not_held(count: int) -> str:
    """Why so many connections can't be held here; '' when they can."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Some for the server's own files; client and server each have their own limit.
    if hard != resource.RLIM_INFINITY and hard < count + 500:
        return f"RLIMIT_NOFILE allows {hard} file descriptors, {count + 500} are needed"
    for name in ("threads-max", "pid_max"):
        most = int(Path(f"/proc/sys/kernel/{name}").read_text(encoding="ascii"))
        if most < count + 2000:
            return f"kernel.{name} is {most}, a thread a connection needs {count + 2000}"
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        # 64 kB each: the yardstick's threads, and the kernel's own memory for both ends.
        if line.startswith("MemAvailable:") and int(line.split()[1]) < count * 64:
            return f"{int(line.split()[1]) // KIB} MiB of free memory, {count * 64 // KIB} are needed"
    return ""


def tls_figure(kind: str, name: str, target: Target, sizes: Sizes) -> Figure:
    """Handshakes with one kind of certificate."""
    return Figure(
        f"tls-{kind}",
        name,
        "tls",
        sessions("tlsload", (), sizes.handshakes),
        (Row("rate", "handshakes/s", peer=target), Row("cpu", "us CPU each"), LOST),
        needs=("tlsload", kind),
        certificate=kind,
    )


def hold_figure(count: int, runs: int) -> Figure:
    """Connections held; the memory hardly varies, so a few runs do."""
    rows = (Row("rss", "kB RSS each", own=Target("<=", 20)), LOST)
    reason = why_not_held(count)
    return Figure("hold", f"hold {count}", "plain", hold(count), rows, most_runs=runs, reason_not=reason)


def flood_figure(mebibytes: int, only_ours: bool) -> Figure:
    """One long session; a very long one only for ours, for others keep all of it in memory.

    No bound on the growth: flat is when it is the same for both lengths.
    """
    rows = (
        Row("grown", "MiB peak growth"),
        Row("rate", "MiB/s"),
        Row("sent", "MiB taken", compared=False),
        LOST,
    )
    name = f"flood {mebibytes} MiB"
    return Figure("flood", name, "plain", flood(mebibytes), rows, most_runs=3, only_ours=only_ours)


def make_figures(sizes: Sizes) -> list[Figure]:
    """All figures in the order they are measured in. The targets for a peer are meant for tcppc-go 0.4.0."""
    cpu_plain = Row("cpu", "us CPU each", peer=Target("<=", 0.7), yardstick=Target("<=", 0.12))
    cpu_log = Row("cpu", "us CPU each", peer=Target("<=", 1.0))
    cpu_udp = Row("cpu", "us CPU each", peer=Target("<=", 0.35))
    rate = Row("rate", "sessions/s", peer=Target(">=", 1.3))
    behind = Row("behind", "ms behind", compared=False)
    tcp = sessions("tcpload", ("load",), sizes.sessions)
    udp = datagrams(sizes.datagrams, sizes.pace)
    figures = [
        Figure("tcp", "tcp", "plain", tcp, (rate, cpu_plain, behind, LOST)),
        Figure("tcplog", "tcp, log on", "log", tcp, (Row("rate", "sessions/s"), cpu_log, LOST)),
        Figure("udp", f"udp {sizes.pace}/s", "plain", udp, (cpu_udp, LOST), proto="udp"),
        Figure("burst", f"udp burst {sizes.burst}", "plain", datagrams(sizes.burst, 0), (LOST,), proto="udp"),
        tls_figure("rsa", "tls RSA-2048", Target(">=", 1.5), sizes),
        tls_figure("ecdsa", "tls ECDSA P-256", Target(">=", 0.9), sizes),
        hold_figure(sizes.hold, 3),
    ]
    if sizes.hold_most:
        figures.append(hold_figure(sizes.hold_most, 1))
    return [*figures, flood_figure(sizes.flood_all, False), flood_figure(sizes.flood, True)]
