"""What the rules are, as nft and ip take them: text in, text out, nothing done.

A captured packet's way with mode tproxy (docs/all-ports.md has the picture): the chain hands it to the sensor's socket
and marks it; a policy rule for that mark looks into a routing table of its own, where everything is local. With mode
redirect NAT rewrites its destination instead, and the sensor asks connection tracking what that was.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

MODES = ("tproxy", "redirect")
TABLE = "tcppc"  # of the family inet
DOCTOR_INTERFACE = "tcppc-in"  # let through while `tcppc doctor` knocks
INTERFACES = "interfaces"  # the set of interfaces; with a time-out in it, the rules expire by themselves
# The policy rule's preference (before main's 32766), and the mark and the routing table where nothing else is asked
# for: "tp" in ASCII, a number that nobody else is likely to have.
NUMBER = 0x7470
# include/uapi/linux/rtnetlink.h: unspec, compat, default, main, local.
KERNEL_TABLES = (0, 252, 253, 254, 255)
# UDP ports at which this host hears answers to what it asked: DHCP's clients, and those that the kernel gives to who
# names none (net.ipv4.ip_local_port_range). They are left to their sockets also with take_over.
CLIENT_PORTS = ("68", "546", "32768-60999")
# rt_protos of rtnetlink(7) leaves 5 to 252 to whoever takes them; by it, our routes and policy rules are known.
PROTOCOL = 116

Network = IPv4Network | IPv6Network
Ports = tuple[int, int]  # low, high


@dataclass(frozen=True)
class Plan:
    """`families` are 4 and 6; `ssh` and `listening` are ports of this host's own services, found on it."""

    interfaces: tuple[str, ...]
    port: int
    addresses: tuple[Network, ...] = ()  # none: all addresses of this host
    excepted: tuple[Ports, ...] = ()
    ssh: tuple[int, ...] = ()
    listening: tuple[tuple[str, int], ...] = ()  # mode redirect: ("tcp", 80)
    protocols: tuple[str, ...] = ("tcp", "udp")
    families: tuple[int, ...] = (4, 6)
    mode: str = "tproxy"
    mark: int = NUMBER
    table: int = NUMBER
    take_over: bool = False
    by: str = "tcppc rules"
    confirm: int = 0  # seconds until the rules expire; 0: never


def shown_ports(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _these(items: Iterable[object]) -> str:
    return "{ " + ", ".join(map(str, items)) + " }"


def _family_networks(plan: Plan) -> tuple[list[IPv4Network], list[IPv6Network]]:
    fours = [network for network in plan.addresses if isinstance(network, IPv4Network)]
    sixes = [network for network in plan.addresses if isinstance(network, IPv6Network)]
    return list(collapse_addresses(fours)), list(collapse_addresses(sixes))


def _not_ours(plan: Plan) -> list[str]:
    """Packets that are not for an address of the plan go on as if there were no rules."""
    rules = [f'iifname != @{INTERFACES} accept comment "{plan.by}"']
    if plan.families == (4,):
        rules.append("meta nfproto != ipv4 accept")
    rules.append(f"meta l4proto != {_these(plan.protocols)} accept")
    if not plan.addresses:
        return [*rules, "fib daddr type != local accept"]
    rules.append("fib daddr type { broadcast, multicast, anycast } accept")
    fours, sixes = _family_networks(plan)
    rules.append(f"ip daddr != {_these(fours)} accept" if fours else "meta nfproto ipv4 accept")
    if 6 in plan.families:
        rules.append(f"ip6 daddr != {_these(sixes)} accept" if sixes else "meta nfproto ipv6 accept")
    return rules


def _left_alone(plan: Plan) -> list[str]:
    """Ports that go on to whom they belong."""
    rules = []
    if plan.ssh:
        rules.append(f"fib daddr type local tcp dport {_these(plan.ssh)} accept")
    if plan.excepted:
        rules.append(f"th dport {_these(shown_ports(*ports) for ports in plan.excepted)} accept")
    return rules


def _tproxy(plan: Plan) -> list[str]:
    # The order matters: first what the sensor serves already, then what belongs to any other socket of this host,
    # be it listening or in the middle of a session that began before these rules.
    # Of datagrams TPROXY itself finds the sensor's socket: others of its own only send.
    rules = (
        [f"meta l4proto tcp socket transparent 1 meta mark set {plan.mark} accept"] if "tcp" in plan.protocols else []
    )
    if not plan.take_over:
        rules.append("fib daddr type local socket transparent 0 accept")
    elif "udp" in plan.protocols:
        rules.append(f"fib daddr type local udp dport {_these(CLIENT_PORTS)} socket transparent 0 accept")
    rules += _left_alone(plan)
    wanted = _these(plan.protocols)
    for family, name, kind in ((4, "ipv4", "ip"), (6, "ipv6", "ip6")):
        if family in plan.families:
            rules.append(
                f"meta nfproto {name} meta l4proto {wanted} tproxy {kind} to :{plan.port} "
                f"meta mark set {plan.mark} accept"
            )
    return rules


def _redirect(plan: Plan) -> list[str]:
    # Address translation sees a flow's first packet only: what began before these rules is let through by its flags.
    rules = ["meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn accept"]
    for protocol in plan.protocols:
        ports = sorted({port for kind, port in plan.listening if kind == protocol and port != plan.port})
        if ports:
            rules.append(f"fib daddr type local {protocol} dport {_these(ports)} accept")
    rules += _left_alone(plan)
    return [*rules, f"meta l4proto {_these(plan.protocols)} redirect to :{plan.port}"]


def nft(plan: Plan) -> str:
    """For `nft -f`: one transaction that replaces what is there."""
    timeout = f" timeout {plan.confirm}s" if plan.confirm else ""
    interfaces = _these(f'"{name}"{timeout}' for name in plan.interfaces)
    # Behind this host's own address translation: what it sends on to its services and guests, and answers to these,
    # have their real destination by then, and are left alone as such.
    tproxy = plan.mode == "tproxy"
    hook = "filter hook prerouting priority dstnat + 1" if tproxy else "nat hook prerouting priority dstnat"
    rules = _not_ours(plan) + (_tproxy(plan) if plan.mode == "tproxy" else _redirect(plan))
    return "\n".join(
        [
            f"table inet {TABLE}",
            f"delete table inet {TABLE}",
            f"table inet {TABLE} {{",
            f"  set {INTERFACES} {{",
            "    type ifname",
            "    flags timeout",
            f"    elements = {interfaces}",
            "  }",
            "  chain prerouting {",
            f"    type {hook}; policy accept;",
            *(f"    {rule}" for rule in rules),
            "  }",
            "}",
            "",
        ]
    )


def policy_rule(plan: Plan, family: int, verb: str) -> list[str]:
    """Arguments of ip(8) for the rule by which marked packets find the table."""
    words = f"-{family} rule {verb} pref {NUMBER} fwmark {plan.mark} lookup {plan.table} protocol {PROTOCOL}"
    return words.split()


def route(plan: Plan, family: int, verb: str) -> list[str]:
    """Arguments of ip(8) for the route that makes everything local."""
    return f"-{family} route {verb} local default dev lo table {plan.table} protocol {PROTOCOL}".split()


def script(plan: Plan) -> str:
    """The whole as a shell script that does what --apply does."""
    said = [line.encode("unicode_escape").decode("ascii") for line in describe(plan)]
    lines = ["#!/bin/sh", *(f"# {line}" for line in said), "set -e", ""]
    if plan.mode == "tproxy":
        for family in plan.families:
            lines.append(shlex.join(["ip", *route(plan, family, "replace")]))
            lines.append(shlex.join(["ip", *policy_rule(plan, family, "del")]) + " 2>/dev/null || true")
            lines.append(shlex.join(["ip", *policy_rule(plan, family, "add")]))
    return "\n".join([*lines, "nft -f - <<'END'", nft(plan) + "END", ""])


def describe(plan: Plan) -> list[str]:
    """For people, a few lines."""
    kinds = " and ".join(kind.upper() for kind in plan.protocols)
    where = ", ".join(map(str, plan.addresses)) if plan.addresses else "this host's addresses"
    families = "IPv4 and IPv6" if plan.families == (4, 6) else f"IPv{plan.families[0]} alone"
    found = [
        f"Every {kinds} port of {where} on {', '.join(plan.interfaces)} goes to port {plan.port} "
        f"(mode {plan.mode}, {families})."
    ]
    alone = [f"{port} (ssh)" for port in plan.ssh]
    alone += [shown_ports(*ports) for ports in plan.excepted]
    if not plan.take_over:
        alone.append("ports on which this host listens")
    if alone:
        found.append(f"Left alone: {', '.join(alone)}.")
    return found
