"""From outside in: knock at ssh and at ports of this host, and look for it in the sensor's data."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import secrets
import socket
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from tcppc import outside
from tcppc.config import Config
from tcppc.doctor import Finding, bad, current_file, data_folder, ok, unknown
from tcppc.netfilter import found, host, kernel, tools
from tcppc.netfilter.tools import RulesError
from tcppc.outside import Outside, OutsideError
from tcppc.values import ports

ANSWER_SECONDS = 5.0
# Until what was sent stands in the file: the writer gathers for milliseconds, a busy machine takes longer.
FILE_SECONDS = 10.0
# The rules let the outside host's interface through for so long at most, whatever becomes of us.
OPEN_SECONDS = 60


@dataclass
class Knock:
    """One attempt: where, with which word, and what became of it."""

    kind: str
    address: str
    port: int
    word: bytes = field(default_factory=lambda: f"tcppc doctor {secrets.token_hex(8)}".encode("ascii"))
    problem: str = ""
    family: bool = True  # has this host sockets of its family?
    record: dict[str, Any] | None = None


def look(config: Config) -> Iterator[Finding]:
    """The whole way, for each family; nothing stays of what is made for it."""
    try:
        with outside.host() as there:
            yield from _knock_all(config, there)
    except (OutsideError, RulesError, OSError) as problem:
        yield unknown("way", f"not proved from outside: {problem}")


def addresses(config: Config, interfaces: list[str]) -> dict[int, str]:
    """An address of the sensor for each family: of those the rules are for, or the interfaces' first ones."""
    found_ones: dict[int, str] = {}
    own = own_addresses(interfaces)
    for text in config.rules.address:
        network = ip_network(text)
        inside = own.get(network.version)
        if inside and ip_address(inside) in network:
            found_ones.setdefault(network.version, inside)
        found_ones.setdefault(network.version, str(network[1] if network.num_addresses > 2 else network[0]))
    return found_ones or own


def own_addresses(interfaces: list[str]) -> dict[int, str]:
    """The interfaces' first address of each family."""
    found_ones: dict[int, str] = {}
    for name in interfaces:
        for item in tools.query("ip", "-j", "addr", "show", "dev", name):
            for info in item.get("addr_info", []):
                if info.get("scope") == "global":
                    address = ip_address(info["local"])
                    found_ones.setdefault(address.version, str(address))
    return found_ones


def _knock_all(config: Config, there: Outside) -> Iterator[Finding]:
    now = found.look()
    every_port = now.ours and bool(now.interfaces)
    names = list(now.interfaces) or [name for name in host.interfaces() if name not in ("lo", outside.INSIDE)]
    if every_port:
        kernel.open_for(outside.INSIDE, OPEN_SECONDS)
    try:
        where = addresses(config, names)
        if not where:
            yield bad("way", f"{', '.join(names)}: no address to call the sensor at")
        ssh = host.ssh_ports(os.environ)
        own = own_addresses(names)  # of a network that is the sensor's, port 22 too is the sensor's
        for family in (4, 6):
            if family in own:
                yield from _ssh(there, own[family], ssh)
        yield from _capture(config, there, where, every_port)
    finally:
        if every_port:
            with contextlib.suppress(RulesError):  # it expires by itself
                kernel.close_for(outside.INSIDE)


def _ssh(there: Outside, address: str, ports_of_ssh: tuple[int, ...]) -> Iterator[Finding]:
    if not ports_of_ssh and ":" not in address:
        yield unknown("ssh", "no sshd listens on this host, as far as can be seen")
    for port in ports_of_ssh:
        try:
            with there.run(functools.partial(socket.create_connection, (address, port), ANSWER_SECONDS)) as sock:
                banner = sock.recv(256)
            said = "" if banner.startswith(b"SSH-") else "something answers, but not as ssh does"
        except OSError as problem:
            said = problem.strerror or str(problem)
            if problem.errno == errno.EAFNOSUPPORT:
                yield unknown("ssh", f"{address} port {port}: cannot be tried from here: {said}")
                continue
        if said:
            yield bad("ssh", f"{address} port {port}: {said}; tcppc rules --except {port} leaves it alone")
        else:
            yield ok("ssh", f"{address} port {port} answers")


def _free_port(config: Config, kind: str) -> int:
    """One that nobody listens on and no rule excepts, at random."""
    taken = {port for other, port in host.listening() if other == kind}
    excepted = ports(config.rules.excepted) if config.rules.excepted else []
    excepted += [(at, at) for at in host.ssh_ports(os.environ)] or [(22, 22)]
    free = [port for port in range(1, 65536) if port not in taken]
    free = [port for port in free if not any(low <= port <= high for low, high in excepted)]
    return secrets.choice(free) if free else config.tcppc.port


def _capture(config: Config, there: Outside, where: dict[int, str], every_port: bool) -> Iterator[Finding]:
    folder = data_folder(config) if config.tcppc.tcpFileFmt else None
    file = current_file(folder) if folder else None
    start = file.stat().st_size if file else 0
    knocks = [
        Knock(kind, address, _free_port(config, kind) if every_port else config.tcppc.port)
        for address in where.values()
        for kind in ("tcp", "udp")
        if getattr(config.capture, kind)
    ]
    for knock in knocks:
        _send(there, knock)
    if file:
        _find(file, start, knocks)
    for knock in knocks:
        yield _finding(knock, file)
    for family in (4, 6):
        if family not in where:
            yield unknown("way", f"IPv{family}: there is no such address of this host")


def _send(there: Outside, knock: Knock) -> None:
    family = socket.AF_INET6 if ":" in knock.address else socket.AF_INET
    kind = socket.SOCK_STREAM if knock.kind == "tcp" else socket.SOCK_DGRAM
    try:
        with there.run(lambda: socket.socket(family, kind)) as sock:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect((knock.address, knock.port))
            sock.sendall(knock.word)
            if knock.kind == "tcp":
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1)
    except OSError as problem:
        knock.problem = problem.strerror or str(problem)
        knock.family = problem.errno != errno.EAFNOSUPPORT


def _find(file: Path, start: int, knocks: list[Knock]) -> None:
    """Wait for the words in what is written to the file from `start` on."""
    end = time.monotonic() + FILE_SECONDS
    while time.monotonic() < end and any(not knock.record and not knock.problem for knock in knocks):
        with file.open("rb") as opened:
            opened.seek(start)
            lines = opened.read().split(b"\n")[:-1]
        for knock in knocks:
            wanted = b64encode(knock.word)
            found_line = next((line for line in lines if wanted in line), None)
            if found_line:
                record = json.loads(found_line)
                # A payload's event line: its flow is in the line of its session's start.
                begun = b'"event":"start"', f'"id":"{record.get("id")}"'.encode()
                start_line = next((line for line in lines if all(part in line for part in begun)), None)
                if "flow" in record or start_line is None:
                    knock.record = record
                else:
                    knock.record = record | {"flow": json.loads(start_line)["flow"]}
        time.sleep(0.05)


def _finding(knock: Knock, file: Path | None) -> Finding:
    what = f"{knock.kind.upper()} to {knock.address} port {knock.port}"
    if not knock.family:
        return unknown("way", f"{what}: cannot be tried from here: {knock.problem}")
    if knock.problem:
        return bad(
            "way", f"{what}: {knock.problem}; is the sensor up, does a firewall stop it, are the rules in place?"
        )
    if file is None:
        return unknown("way", f"{what}: sent, but no data file is known to look into")
    if knock.record is None:
        return bad("way", f"{what}: sent, and not in {file}; does a firewall stop it, does the sensor listen there?")
    flow = knock.record.get("flow", {})
    if (flow.get("dst"), flow.get("dport")) != (knock.address, knock.port):
        return bad(
            "way",
            f"{what}: recorded as {flow.get('dst')} port {flow.get('dport')}; with rules of mode redirect, "
            "the sensor needs --mode redirect too",
        )
    return ok("way", f"{what} reached {file}")
