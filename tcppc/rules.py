"""The rules that bring every port to the sensor, as the configuration and this host have them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

from tcppc.capture import capabilities
from tcppc.capture.sockets import shown
from tcppc.config import Config, ConfigError
from tcppc.netfilter import found, host, kernel, tools
from tcppc.netfilter.found import Found
from tcppc.netfilter.plan import KERNEL_TABLES, NUMBER, Plan, describe
from tcppc.netfilter.tools import RulesError
from tcppc.values import network, ports

ANSWER_SECONDS = 5.0
MOST_NAMED = 20  # ports, in one line
LOOK_AGAIN_SECONDS = 1.0
SENSOR = "tcppc sensor"  # who put rules in place, where the sensor did
# Held by the sensor whose rules are in place. An abstract name is a network namespace's, as nft's tables are, and is
# gone with its process, however that ends.
_NAME = "\0tcppc-rules"


def make(
    config: Config,
    port: int,
    environment: Mapping[str, str] = os.environ,
    *,
    by: str = "tcppc rules",
    confirm: int = 0,
) -> tuple[Plan, list[str]]:
    """The plan for this host, and what its person should know of it, a line each. ConfigError where there is no such
    interface or port."""
    given = config.rules
    known = host.interfaces()
    if not given.interface:
        raise ConfigError(f"--interface is missing: expected the one that strangers come by, of {', '.join(known)}")
    for name in given.interface:
        if name not in known:
            raise ConfigError(
                f"--interface {name}: this host has no such interface; expected one of {', '.join(known)}"
            )
    if not port:
        raise ConfigError("--port 0: the rules need to know the sensor's port")
    if given.table in KERNEL_TABLES:
        raise ConfigError(
            f"--table {given.table} is one of the kernel's own; expected another number, such as {NUMBER}"
        )
    protocols = tuple(kind for kind in ("tcp", "udp") if getattr(config.capture, kind))
    families = (4, 6) if host.has_ipv6("lo") and any(map(host.has_ipv6, given.interface)) else (4,)
    addresses = tuple(map(network, given.address))
    if addresses and not any(each.version in families for each in addresses):
        raise ConfigError("--address names IPv6 networks alone, and IPv6 is off on this host")
    for name in given.interface:
        if bridge := host.master(name):
            raise ConfigError(f"--interface {name} is a port of {bridge}, which its packets come by: expected {bridge}")
    redirect = given.mode == "redirect"
    ssh, to_know = _ssh(config, port, environment) if "tcp" in protocols else ((), [])
    if redirect and port in ssh:
        raise ConfigError(f"--port {port} is ssh's: every port would lead to it; expected the sensor's")
    plan = Plan(
        interfaces=given.interface,
        port=port,
        addresses=addresses,
        excepted=tuple(ports(given.excepted)) if given.excepted else (),
        ssh=ssh,
        listening=host.reached() if redirect and not given.take_over else (),
        protocols=protocols,
        families=families,
        mode=given.mode,
        mark=given.mark,
        table=given.table,
        take_over=given.take_over,
        by=by,
        confirm=confirm,
    )
    return plan, [*to_know, *_to_know(plan)]


def _ssh(config: Config, port: int, environment: Mapping[str, str]) -> tuple[tuple[int, ...], list[str]]:
    """ssh's ports on this host, and what its person should know of it. RulesError where it cannot be told and would be
    taken."""
    given = config.rules
    if given.ssh:
        named = ports(given.ssh) if given.ssh != "none" else []
        return tuple(number for low, high in named for number in range(low, high + 1)), []
    found = host.ssh_ports(environment)
    if not given.take_over and given.mode != "redirect":
        return found, []  # what listens is left alone as it is at each moment
    excepted = ports(given.excepted) if given.excepted else []
    hidden = [at for at in host.unseen() if not any(low <= at <= high for low, high in excepted) and at != port]
    if given.take_over and not found and hidden:
        raise RulesError(
            f"--take-over: whether ssh is one of the ports {_some(hidden)} cannot be seen without root; "
            "name its ports with --ssh"
        )
    found = tuple(sorted({*found, *(at for at in host.managed_ports() if at != port)}))
    if found:
        return found, []
    return (22,), ["No ssh was found on this host: port 22 is left alone in case it comes; --ssh none takes it too."]


def _some(numbers: list[int]) -> str:
    more = f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else ""
    return ", ".join(map(str, numbers[:MOST_NAMED])) + more


def _to_know(plan: Plan) -> list[str]:
    said = []
    if plan.families == (4,):
        said.append(f"IPv6 is off on {', '.join(plan.interfaces)} or on lo: these rules are for IPv4 alone.")
    waiting = host.listening()
    for kind in plan.protocols:
        if (kind, plan.port) not in waiting:
            said.append(
                f"Nothing listens on {kind.upper()} port {plan.port}: until the sensor does, all goes on as before."
            )
    if plan.port in plan.ssh:
        said.append(f"Port {plan.port} is ssh's: the sensor needs another one.")
    return said


def status(now: Found, port: int, ask: bool = True) -> tuple[list[str], bool]:
    """What is in place and, with `ask`, whether the sensor answers behind it, a line each; True where all is well."""
    if not now.table:
        lines = ["rules     none in place"]
        if now.anything:
            lines.append("left      policy rules or routes of tcppc without their table: tcppc rules --remove")
        return lines, False
    if not now.ours:
        return ["rules     a table inet tcppc that tcppc did not make: nft list table inet tcppc"], False
    interfaces = ", ".join(now.interfaces)
    well = bool(now.interfaces)
    if well:
        lines = [f"rules     {now.mode}, interface {interfaces}, to port {now.port}, put in place by {now.by}"]
    else:
        lines = ["rules     expired, nobody confirmed them: they do nothing any more; tcppc rules --remove tidies up"]
    seconds = [left for left in now.interfaces.values() if left is not None]
    if seconds:
        lines.append(f"confirm   {min(seconds)} seconds left: tcppc rules --keep")
    for family in (4, 6):
        if family in now.families:
            lines.append(f"IPv{family}      packets find their way to the sensor")
        elif family in now.wanted:
            lines.append(f"IPv{family}      not in place: the policy rule or its route is missing; tcppc rules --apply")
            well = False
    if not ask:
        return lines, well
    answers, said = answer(now.port or port)
    return [*lines, *said], well and answers


def answer(port: int) -> tuple[bool, list[str]]:
    """Does something answer on TCP `port` of this host, and is UDP `port` taken? Leaves an empty session there."""
    waiting = host.listening()
    lines, well = [], True
    if ("tcp", port) in waiting:
        try:
            _connect(port)
            lines.append(f"sensor    TCP {port} answers")
        except OSError as problem:
            well = False
            lines.append(f"sensor    TCP {port} is listened on and does not answer: {problem.strerror or problem}")
    else:
        well = False
        lines.append(f"sensor    nothing listens on TCP {port}: start the sensor, or give its port")
    lines.append(f"sensor    UDP {port} " + ("is open" if ("udp", port) in waiting else "is not listened on"))
    return well, lines


def _connect(port: int) -> None:
    last: OSError | None = None
    for address in ("127.0.0.1", "::1"):
        try:
            socket.create_connection((address, port), ANSWER_SECONDS).close()
            return
        except OSError as problem:
            last = last or problem  # of IPv4, the one that the sensor listens on unless it was told otherwise
    raise last or OSError(f"{shown('127.0.0.1', port)}: no answer")


class SensorRules:
    """The rules that a sensor puts in place at its start and takes away at its stop."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._held: socket.socket | None = None
        self._plan: Plan | None = None
        self._told = False

    def apply(self, config: Config, port: int) -> None:
        """RulesError where they cannot be had, or another sensor has its own in place."""
        self._held = _hold()
        if self._held is None:
            raise RulesError("another sensor on this host has its rules in place; stop it first")
        before = found.look()
        plan, to_know = make(config, port, by=SENSOR)
        if before.ours and before.by != SENSOR and before.interfaces:
            to_know.append(f"They replace those that {before.by} put in place.")
        self._plan = plan
        if said := kernel.apply(plan):
            to_know.append(said)
        for line in [*describe(plan), *to_know]:
            self._say(f"Rules: {line}")

    def look(self) -> None:
        """Are they still there? A firewall that loads its own rules anew may flush everybody's: then they are put in
        place again. What `tcppc rules --remove` took away stays away."""
        if self._held is None or self._plan is None:
            return
        try:
            now = found.look()
            if not now.table and now.rules:  # somebody may just be taking them away
                time.sleep(LOOK_AGAIN_SECONDS)
                now = found.look()
            if now.table:
                self._told = False
            elif now.rules:  # policy rules without their table: nobody removed them on purpose
                kernel.apply(self._plan)
                self._say("Rules: somebody flushed them; they are in place again.")
            elif not self._told:
                self._told = True
                self._say("Rules: somebody has taken them away: nothing but this sensor's own port is captured.")
        except RulesError as problem:
            self._say(f"Rules: could not be looked at: {problem}.")

    def remove(self) -> None:
        """Take away what `apply` put in place."""
        if self._held is None:
            return
        try:
            now = found.look()
            # Without a table what is left of them is ours alone.
            gone = kernel.remove(by=SENSOR) if now.table else kernel.remove()
            self._say(
                "Rules: taken away." if gone else "Rules: others have replaced or removed them; nothing was done."
            )
        except RulesError as problem:
            self._say(f"Rules: could not be taken away: {problem}; tcppc rules --remove does it.")
        self._held.close()
        self._held = None

    def tidy_up(self) -> None:
        """Take away what a sensor that was killed left in place."""
        if not capabilities.has("CAP_NET_ADMIN") or not tools.available("nft"):
            return
        held = _hold()
        if held is None:
            return  # they are of a sensor that runs
        try:
            if kernel.remove(by=SENSOR):
                self._say("Rules: what an earlier sensor left in place is taken away.")
        except RulesError as problem:
            self._say(f"Rules: could not be looked at: {problem}.")
        finally:
            held.close()


def _hold() -> socket.socket | None:
    """The name, while it is held; None where another process has it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(_NAME)
    except OSError:
        sock.close()
        return None
    return sock
