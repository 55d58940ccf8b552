"""What is in place: our own rules, and what others have put in the way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tcppc.netfilter import host, tools
from tcppc.netfilter.plan import DOCTOR_INTERFACE, INTERFACES, PROTOCOL, TABLE, Plan


@dataclass(frozen=True)
class PolicyRule:
    """One of ip(8)'s, with a mark."""

    family: int
    pref: int
    mark: int
    mask: int
    table: int
    ours: bool

    def catches(self, mark: int) -> bool:
        return mark & self.mask == self.mark & self.mask


@dataclass(frozen=True)
class Found:
    """`interfaces`: seconds until they expire, None for never; empty where all have."""

    table: bool = False
    ours: bool = False
    by: str = ""
    mode: str = ""
    port: int = 0
    mark: int = 0
    interfaces: dict[str, int | None] = field(default_factory=dict)
    rules: tuple[PolicyRule, ...] = ()
    routes: tuple[tuple[int, int], ...] = ()  # (family, table)
    captured: tuple[int, ...] = ()  # families of its tproxy rules

    @property
    def wanted(self) -> tuple[int, ...]:
        """The families that the table captures."""
        return self.captured or (4,)

    @property
    def anything(self) -> bool:
        return self.table or bool(self.rules or self.routes)

    @property
    def expired(self) -> bool:
        return self.ours and not self.interfaces

    @property
    def families(self) -> tuple[int, ...]:
        """For which the packets that the table marks are delivered."""
        if self.mode == "redirect":
            return (4, 6)
        return tuple(
            family
            for family in (4, 6)
            if any(
                rule.family == family and rule.catches(self.mark) and (family, rule.table) in self.routes
                for rule in self.rules
            )
        )


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of an answer in JSON, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


def _number(value: Any) -> int:
    """As ip writes numbers: 7, "7", "0x7"; -1 for what is none."""
    try:
        return int(str(value), 0)
    except ValueError:
        return -1


def policy_rules() -> list[PolicyRule]:
    """All with a mark, and ours."""
    found = []
    for family in (4, 6):
        if family == 6 and not Path("/proc/net/if_inet6").exists():
            continue
        for item in tools.query("ip", "-N", "-j", f"-{family}", "rule", "show"):
            ours = _number(item.get("protocol")) == PROTOCOL
            if "fwmark" in item or ours:
                mask = _number(item.get("fwmask", "0xffffffff"))
                found.append(
                    PolicyRule(
                        family,
                        _number(item.get("priority")),
                        _number(item.get("fwmark", 0)),
                        mask,
                        _number(item.get("table")),
                        ours,
                    )
                )
    return found


def _routes(family: int, *which: str) -> list[dict[str, Any]]:
    try:
        return tools.query("ip", "-N", "-j", f"-{family}", "route", "show", "table", *which)
    except tools.RulesError as problem:
        if "FIB table does not exist" in str(problem):
            return []
        raise


def _our_routes() -> tuple[tuple[int, int], ...]:
    found = []
    for family in (4, 6):
        if family == 6 and not Path("/proc/net/if_inet6").exists():
            continue
        found += [(family, _number(item.get("table"))) for item in _routes(family, "all", "protocol", str(PROTOCOL))]
    return tuple(found)


def ruleset() -> list[dict[str, Any]]:
    """All of nft's but the elements of sets, which may be millions; RulesError where it may not be read."""
    return tools.query("nft", "-j", "-t", "list", "ruleset")


def table() -> list[dict[str, Any]]:
    """Our table, empty where there is none. The whole ruleset may be long: a block list of others."""
    tables = tools.query("nft", "-j", "list", "tables")
    if not any(_table_of(item) == ("inet", TABLE) for item in tables if "table" in item):
        return []
    return tools.query("nft", "-j", "list", "table", "inet", TABLE)


def look() -> Found:
    """Ours, out of nft's answers and ip's."""
    items = [item for item in table() if "metainfo" not in item]
    policies = tuple(rule for rule in policy_rules() if rule.ours)
    if not items:
        return Found(rules=policies, routes=_our_routes())
    values: dict[str, Any] = {}
    for item in items:
        if "set" in item and item["set"].get("name") == INTERFACES:
            elements = dict(map(_element, item["set"].get("elem", [])))
            values["interfaces"] = {name: left for name, left in elements.items() if name != DOCTOR_INTERFACE}
        for key, value in _walk(item.get("rule", {})):
            if key == "comment" and str(value).startswith("tcppc "):
                values["by"] = value
            elif key in ("tproxy", "redirect") and isinstance(value, dict):
                values |= {"mode": key, "port": _number(value.get("port"))}
                family = {"ip": 4, "ip6": 6}.get(str(value.get("family")))
                values["captured"] = (*values.get("captured", ()), *([family] if family else []))
            elif key == "mangle" and value.get("key") == {"meta": {"key": "mark"}}:
                values["mark"] = _number(value.get("value"))
    return Found(True, "by" in values, **values, rules=policies, routes=_our_routes())


def _element(item: Any) -> tuple[str, int | None]:
    inner = item.get("elem", item) if isinstance(item, dict) else item
    if isinstance(inner, dict):
        expires = inner.get("expires", inner.get("timeout"))
        return str(inner.get("val")), None if expires is None else int(expires)
    return str(inner), None


def _table_of(item: dict[str, Any]) -> tuple[str, str]:
    """(family, name) of the table that an object of nft's belongs to."""
    kind, inner = next(iter(item.items()), ("", {}))
    if not isinstance(inner, dict):
        return "", ""
    return str(inner.get("family", "")), str(inner.get("name" if kind == "table" else "table", ""))


def in_the_way(plan: Plan, rules: list[dict[str, Any]]) -> str:
    """What of others does not go with the plan, in one line with what to do; empty for nothing."""
    found = look()
    if found.table and not found.ours:
        return f"there is a table inet {TABLE} that tcppc did not make: nft list table inet {TABLE} shows it"
    if plan.mode == "redirect":
        return ""
    for name in plan.interfaces:
        if 4 in plan.families and host.marks_are_routed(name):
            return (
                f"net.ipv4.conf.{name}.src_valid_mark or that of all is 1, as wg-quick sets it: the kernel would drop "
                "what is captured; set both to 0, or take --mode redirect"
            )
    for rule in policy_rules():
        if not rule.ours and rule.catches(plan.mark):
            return (
                f"--mark {plan.mark} is used already: ip -{rule.family} rule pref {rule.pref}, "
                f"fwmark {rule.mark}; expected another number"
            )
    for family in plan.families:
        if any(_number(item.get("protocol")) != PROTOCOL for item in _routes(family, str(plan.table))):
            return (
                f"--table {plan.table} is used already: ip -{family} route show table {plan.table}; "
                "expected another number"
            )
    return _other_rules(plan, rules) or _iptables(plan)


def _other_rules(plan: Plan, rules: list[dict[str, Any]]) -> str:
    for item in rules:
        family, name = _table_of(item)
        if "rule" not in item or (family, name) == ("inet", TABLE):
            continue
        where = f"nft table {family} {name}, chain {item['rule'].get('chain')}"
        for key, value in _walk(item["rule"].get("expr", [])):
            if key == "tproxy":
                return f"{where} has a tproxy rule of another program in the way: remove it, or leave its ports to it"
            if key not in ("mangle", "match") or not isinstance(value, dict):
                continue
            if _is_of_mark(plan.mark, value.get("key", value.get("left")), value.get("value", value.get("right"))):
                return f"--mark {plan.mark} is used already: {where}; expected another number"
    return ""


def _is_of_mark(mark: int, about: Any, value: Any) -> bool:
    """Is a rule about packets with this mark: set, or asked for, also in part?"""
    mask = 0xFFFFFFFF
    if isinstance(about, dict) and isinstance(about.get("&"), list) and len(about["&"]) == 2:
        about, mask = about["&"][0], _number(about["&"][1])
    wanted = _number(value)
    return about == {"meta": {"key": "mark"}} and wanted > 0 and mark & mask == wanted


def _iptables(plan: Plan) -> str:
    """iptables' rules: those over nftables, and the older ones where the kernel has them loaded (asking for those
    would load them)."""
    for family, name in (("ip", "iptables"), ("ip6", "ip6tables")):
        kinds = ["nft"]
        if "mangle" in tools.read(f"/proc/net/{family}_tables_names").split():
            kinds.append("legacy")
        for tool in (f"{name}-{kind}-save" for kind in kinds):
            if not tools.available(tool):
                continue
            said = tools.run(tool, "-t", "mangle")
            if " -j TPROXY " in said:
                return f"{name} has a TPROXY rule of another program in the way: {tool} -t mangle shows it; remove it"
            for value in re.findall(r"--set-x?mark (0x[0-9a-f]+)", said):
                if int(value, 16) == plan.mark:
                    return f"--mark {plan.mark} is used already: {tool} -t mangle; expected another number"
    return ""
