"""Is all well with a sensor on this host? Each finding is a line: ok, or what to do.

What counts is proved from outside in: a host outside (outside.py) knocks at ssh and at one port each that nobody can
have foreseen, with a word that nobody can have known, and the word has to stand in the sensor's data file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tcppc import ledger_lines, rules
from tcppc.capture import capabilities, limits
from tcppc.capture.files import LEDGER, fixed_folder
from tcppc.capture.ledger import in_use
from tcppc.config import Config
from tcppc.netfilter import found, host
from tcppc.netfilter.tools import RulesError

# Where less is free, a flood may fill the disk before somebody looks; the sensor then holds back what it can.
LEAST_FREE_BYTES = 1 << 30
LEAST_SESSIONS = 1000
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_LONGS = 64  # more than struct timex has
_MAXERROR = 3  # its place in struct timex, in longs


class Finding(NamedTuple):
    """`state`: ok, BAD, or "-" for what could not be looked at."""

    state: str
    about: str
    text: str


def ok(about: str, text: str) -> Finding:
    return Finding("ok", about, text)


def bad(about: str, text: str) -> Finding:
    return Finding("BAD", about, text)


def unknown(about: str, text: str) -> Finding:
    return Finding("-", about, text)


def sensor_process(port: int) -> int:
    """The process that listens on TCP or UDP `port`; 0 where there is none or we may not see it."""
    inodes = {item.inode for item in host.sockets() if item.listens and item.port == port and item.inode}
    holders = [pid for _, pid in host.owners(inodes)]
    # A service manager that passed the socket on holds it too.
    return next((pid for pid in holders if pid != 1 and host.program(pid) != "systemd"), next(iter(holders), 0))


def data_folder(config: Config) -> Path:
    """Where its data files are: a relative name is the sensor's own working folder's. OSError where that cannot be
    seen."""
    folder = fixed_folder(config.tcppc.tcpFileFmt)
    if folder.is_absolute():
        return folder
    port = config.tcppc.port
    if process := sensor_process(port):
        return Path(os.readlink(f"/proc/{process}/cwd")) / folder
    if any(listens == port for _, listens in host.listening()):
        unseen = f"it is in the working folder of a process on port {port} that we may not see"
        raise PermissionError(errno.EACCES, f"{unseen}: as root it can", str(folder))
    return folder


def look(config: Config) -> Iterator[Finding]:
    """All that can be seen from within."""
    yield from _sensor(config)
    yield _rules(config)
    yield from _files(config)
    yield _clock()
    yield from _connection_tracking()


def _sensor(config: Config) -> Iterator[Finding]:
    port = config.tcppc.port
    waiting = host.listening()
    for kind in ("tcp", "udp"):
        if getattr(config.capture, kind):
            if (kind, port) in waiting:
                yield ok("sensor", f"{kind.upper()} port {port} is listened on")
            else:
                yield bad(
                    "sensor", f"nothing listens on {kind.upper()} port {port}: start it, or give -c or -p as it has"
                )
    process = sensor_process(port)
    if not process:
        yield unknown("limits", "the sensor's process cannot be seen; as root it can")
        return
    yield _limits(process)
    yield _capabilities(process, config)


def _limits(process: int) -> Finding:
    try:
        lines = Path(f"/proc/{process}/limits").read_text(encoding="ascii").splitlines()
        words = next(line for line in lines if line.startswith("Max open files")).split()
    except (OSError, StopIteration):
        return unknown("limits", f"process {process} cannot be looked at; as root it can")
    descriptors = int(words[3]) if words[3].isdigit() else 1 << 30
    room = limits.sessions_possible(descriptors)
    if room < LEAST_SESSIONS:
        return bad(
            "limits", f"room for {room} sessions at once: raise LimitNOFILE and TasksMax of its unit, or ulimit -n"
        )
    return ok("limits", f"process {process} has {descriptors} descriptors, room for {room} sessions at once")


def _capabilities(process: int, config: Config) -> Finding:
    bits = capabilities.held(process)
    if config.capture.rules and not capabilities.has("CAP_NET_ADMIN", bits):
        granted = capabilities.how_to_grant(("CAP_NET_ADMIN",))
        return bad("limits", f"capture.rules needs CAP_NET_ADMIN, which process {process} has not: {granted}")
    names = [name for name in capabilities.NUMBERS if capabilities.has(name, bits)]
    return ok("limits", f"capabilities kept: {', '.join(names) or 'none'}")


def _rules(config: Config) -> Finding:
    try:
        now = found.look()
    except RulesError as problem:
        return unknown("rules", str(problem))
    lines, _ = rules.status(now, config.tcppc.port, ask=False)
    said = "; ".join(" ".join(line.split()) for line in lines)
    if not now.table and not config.rules.interface:
        return unknown("rules", "none in place: the sensor has its own port alone; tcppc rules brings it the others")
    well = now.ours and bool(now.interfaces) and all(family in now.families for family in now.wanted)
    asked = config.rules.interface
    if well and asked and set(asked) != set(now.interfaces):
        return bad("rules", f"{said}; the configuration says interface {', '.join(asked)}")
    if well and now.port != config.tcppc.port:
        return bad("rules", f"{said}; the sensor's port is {config.tcppc.port}")
    return ok("rules", said) if well else bad("rules", f"{said}; tcppc rules --apply puts them in place")


def _files(config: Config) -> Iterator[Finding]:
    pattern = config.tcppc.tcpFileFmt
    if not pattern:
        yield bad("file", "no data file is configured (-w): what strangers send is not kept")
        return
    try:
        folder = data_folder(config)
        usage, nodes = shutil.disk_usage(folder), os.statvfs(folder)
        file = current_file(folder)
        used = os.path.lexists(folder / LEDGER) and in_use(folder / LEDGER)
    except OSError as problem:
        where = problem.filename or fixed_folder(pattern)
        yield bad("file", f"{where}: {problem.strerror}: what the sensor writes cannot be looked at")
        return
    free = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f} on the disk of {folder}"
    few = nodes.f_files and nodes.f_favail < 1000
    if usage.free < LEAST_FREE_BYTES or few:
        yield bad("disk", f"{free}{', and hardly a file more' if few else ''}: make room, or set files.keep_bytes")
    else:
        yield ok("disk", free)
    if not used:
        yield bad("file", f"no sensor writes into {folder}: start it, or give -c or -w as it has")
    elif file is None:
        yield bad("file", f"{folder / LEDGER} names no open data file; tcppc account {folder} says more")
    else:
        yield ok("file", f"{file} is written to")


def current_file(folder: Path) -> Path | None:
    """The data file that a running sensor has open, as its ledger says. OSError where that cannot be read."""
    name = None
    with contextlib.suppress(FileNotFoundError):  # nobody has written here yet
        for _, values in ledger_lines.read(folder / LEDGER):
            if values and values["event"] in ("open", "mark"):
                name = values["file"]
            elif values and values["event"] == "stop":
                name = None
    return folder / name if name else None


def _clock() -> Finding:
    timex = (ctypes.c_long * _TIMEX_LONGS)()  # modes = 0: only look
    state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    if state < 0:
        return unknown("clock", f"adjtimex(2): {os.strerror(ctypes.get_errno())}")
    if state == _TIME_ERROR:
        return bad("clock", "nobody keeps this clock right: install chrony, or run systemd-timesyncd")
    return ok("clock", f"kept right, at most {timex[_MAXERROR] / 1000:.0f} ms off")


def _connection_tracking() -> Iterator[Finding]:
    try:
        count, most = (
            int(Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}").read_text(encoding="ascii"))
            for name in ("count", "max")
        )
    except (OSError, ValueError):  # it is not there, or not this namespace's to see
        return
    if count > most * 0.8:
        yield bad("tracking", f"{count} of {most} connections are tracked: raise net.netfilter.nf_conntrack_max")
