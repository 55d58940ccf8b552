"""Sources that are blocked, as nft takes them: a table of their own with sets whose elements expire by themselves.

It is not the table of the rules, so that either comes and goes without the other, and nobody's else is ever touched. A
blocked source is dropped before every service of this host and those behind it; with the scope host its packets to the
sensor still get through.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

from tcppc.netfilter import tools

Network = IPv4Network | IPv6Network
TABLE = "tcppc_blocks"  # of the family inet
SCOPES = ("host", "all")
_NETMASK6 = "ffff:ffff:ffff:ffff::"
# Before other filters of the input and forward hooks (0), behind the rules that mark the sensor's packets (-150).
_BEFORE_FILTERS, _FIRST = -10, -300


class Block(NamedTuple):
    """An IPv4 address or IPv6 /64, for how many seconds from now."""

    network: Network
    scope: str
    seconds: int


def set_name(network: Network, scope: str) -> str:
    return f"{scope}{network.version}"


def _set(name: str, kind: str, size: int) -> list[str]:
    return [f"  set {name} {{", f"    type {kind}", "    flags timeout", f"    size {size}", "  }"]


def _dropped(scope: str) -> list[str]:
    return [
        f"    ip saddr @{scope}4 counter drop",
        f"    ip6 saddr & {_NETMASK6} @{scope}6 counter drop",
    ]


def table(size: int) -> str:
    """The table with empty sets and chains, where it is not there yet."""
    lines = [f"table inet {TABLE} {{"]
    for scope in SCOPES:
        lines += _set(f"{scope}4", "ipv4_addr", size) + _set(f"{scope}6", "ipv6_addr", size)
    lines += ["  set marks {", "    type mark", "  }", "  set ports {", "    type inet_service", "  }"]
    for chain, hook, priority in (
        ("everything", "prerouting", _FIRST),
        ("input", "input", _BEFORE_FILTERS),
        ("forward", "forward", _BEFORE_FILTERS),
    ):
        lines += [f"  chain {chain} {{", f"    type filter hook {hook} priority {priority}; policy accept;", "  }"]
    return "\n".join([*lines, "}", ""])


def rules(port: int, mark: int) -> str:
    """What is in the chains, anew; and one sensor more that blocked sources still reach."""
    lines = [f"flush chain inet {TABLE} {chain}" for chain in ("everything", "input", "forward")]
    lines += [f"add element inet {TABLE} marks {{ {mark} }}"]
    lines += [f"add element inet {TABLE} ports {{ {port} }}"] if port else []
    lines += [f"table inet {TABLE} {{", "  chain everything {", *_dropped("all"), "  }", "  chain input {"]
    lines += ["    meta mark @marks accept", "    meta l4proto { tcp, udp } th dport @ports accept"]
    lines += [*_dropped("host"), "  }", "  chain forward {", *_dropped("host"), "  }", "}", ""]
    return "\n".join(lines)


def put_in_place(port: int, mark: int, size: int) -> None:
    """May be called again; what is blocked stays. RulesError where that is refused."""
    tools.run("nft", "-f", "-", text=table(size) + rules(port, mark))


def _address(network: Network) -> str:
    return str(network.network_address)


def add(blocks: Iterable[Block]) -> None:
    """All of them or none. What is blocked already keeps its time, or from Linux 6.12 on has the new one. RulesError
    where that is refused."""
    by_set: dict[str, list[str]] = {}
    for block in blocks:
        element = f"{_address(block.network)} timeout {max(1, block.seconds)}s"
        by_set.setdefault(set_name(block.network, block.scope), []).append(element)
    text = "".join(f"add element inet {TABLE} {name} {{ {', '.join(each)} }}\n" for name, each in by_set.items())
    if text:
        tools.run("nft", "-f", "-", text=text)


def remove(networks: Iterable[tuple[Network, str]]) -> None:
    """Those that are blocked; (network, scope) each."""
    text = "".join(
        f"delete element inet {TABLE} {set_name(network, scope)} {{ {_address(network)} }}\n"
        for network, scope in networks
    )
    if text:
        tools.run("nft", "-f", "-", text=text)


def in_place() -> bool:
    """Is the table there? RulesError where nobody tells."""
    return any(item.get("table", {}).get("name") == TABLE for item in tools.query("nft", "-j", "list", "tables"))


def blocked() -> dict[tuple[Network, str], int]:
    """(network, scope): seconds left. Empty where the table is not there; RulesError where nobody tells."""
    found: dict[tuple[Network, str], int] = {}
    if not in_place():
        return found
    for item in tools.query("nft", "-j", "list", "table", "inet", TABLE):
        given = item.get("set", {})
        scope, version = str(given.get("name", ""))[:-1], str(given.get("name", ""))[-1:]
        for element in given.get("elem", []) if scope in SCOPES and version in ("4", "6") else ():
            if (parsed := _element(element)) is not None:
                found[parsed[0], scope] = parsed[1]
    return found


def _element(item: Any) -> tuple[Network, int] | None:
    values = item.get("elem", {}) if isinstance(item, dict) else {}
    try:
        found = ip_address(values["val"])
        return ip_network((found, 64 if found.version == 6 else 32)), int(values["expires"])
    except (KeyError, TypeError, ValueError):  # not of our making
        return None
