"""Rules put in place and taken away, as a whole or not at all."""

from __future__ import annotations

import os
import signal
import syslog
import time
from collections.abc import Sequence

from tcppc.netfilter import found, plan, tools
from tcppc.netfilter.found import Found
from tcppc.netfilter.plan import INTERFACES, TABLE, Plan
from tcppc.netfilter.tools import RulesError

# The kernel lets the rules expire on its own clock; who tidies up comes after it.
AFTER_SECONDS = 0.5


def apply(wanted: Plan) -> str:
    """Put it in place, and take away what was ours before; RulesError, and all as it was, where that cannot be done.
    May be called again with the same plan. Returns what its person should know, mostly nothing."""
    if problem := found.in_the_way(wanted, found.ruleset()):
        raise RulesError(problem)
    before = found.look()
    undo: list[Sequence[str]] = []
    try:
        for family in wanted.families if wanted.mode == "tproxy" else ():
            if (family, wanted.table) not in before.routes:
                tools.run("ip", *plan.route(wanted, family, "replace"))
                undo.append(plan.route(wanted, family, "del"))
            if not _has_rule(before, wanted, family):
                tools.run("ip", *plan.policy_rule(wanted, family, "add"))
                undo.append(plan.policy_rule(wanted, family, "del"))
        tools.run("nft", "-f", "-", text=plan.nft(wanted))
    except RulesError as problem:
        raise RulesError(f"{problem}{_undone(undo)}") from None
    except BaseException:  # a signal: nothing is half done
        _undone(undo)
        raise
    try:
        _forget(before, wanted)
    except RulesError as problem:  # the new ones are in force; what is left of others does nothing any more
        return f"something of the rules before could not be taken away: {problem}"
    return ""


def _undone(commands: list[Sequence[str]]) -> str:
    """Take back what was done, the last first; says what could not be."""
    left = []
    for command in reversed(commands):
        try:
            tools.run("ip", *command)
        except RulesError as problem:
            left.append(str(problem))
    return f"; and what was begun could not be undone: {'; '.join(left)}" if left else ""


def _has_rule(now: Found, wanted: Plan, family: int) -> bool:
    return any(
        (rule.family, rule.pref, rule.mark, rule.table) == (family, plan.NUMBER, wanted.mark, wanted.table)
        for rule in now.rules
    )


def _forget(before: Found, wanted: Plan | None) -> None:
    """Take away our policy rules and routes that the plan does not have."""
    families = wanted.families if wanted and wanted.mode == "tproxy" else ()
    for rule in before.rules:
        if wanted and rule.family in families and (rule.mark, rule.table) == (wanted.mark, wanted.table):
            continue
        mark = f"fwmark {rule.mark} " if rule.mark else ""
        words = f"-{rule.family} rule del pref {rule.pref} {mark}lookup {rule.table} protocol {plan.PROTOCOL}"
        tools.run("ip", *words.split())
    for family, table in before.routes:
        if wanted and family in families and table == wanted.table:
            continue
        tools.run("ip", f"-{family}", "route", "flush", "table", str(table), "protocol", str(plan.PROTOCOL))


def remove(by: str = "") -> bool:
    """Take away all of ours (only those put in place `by` somebody, where given) and nothing else; False where there
    was nothing."""
    if by and not found.table():
        return False
    now = found.look()
    if by and now.by != by:
        return False
    if now.table and not now.ours:
        raise RulesError(f"there is a table inet {TABLE} that tcppc did not make; it stays")
    if now.table:
        tools.run("nft", "-f", "-", text=f"delete table inet {TABLE}\n")
    _forget(now, None)
    return now.anything


def keep() -> bool:
    """The rules in place stay for good; False where they did so already. RulesError where there are none any more."""
    now = found.look()
    if not now.ours or not now.interfaces:
        raise RulesError("there are no rules to keep: none were put in place, or nobody confirmed them in time")
    expiring = [name for name, seconds in now.interfaces.items() if seconds is not None]
    if not expiring:
        return False
    these = "{ " + ", ".join(f'"{name}"' for name in expiring) + " }"
    tools.run(
        "nft",
        "-f",
        "-",
        text=f"delete element inet {TABLE} {INTERFACES} {these}\nadd element inet {TABLE} {INTERFACES} {these}\n",
    )
    return True


def open_for(name: str, seconds: int) -> None:
    """Let one interface more through the rules for a time."""
    tools.run("nft", "-f", "-", text=f'add element inet {TABLE} {INTERFACES} {{ "{name}" timeout {seconds}s }}\n')


def close_for(name: str) -> None:
    """No more."""
    tools.run("nft", "-f", "-", text=f'delete element inet {TABLE} {INTERFACES} {{ "{name}" }}\n')


def tidy_up_later(seconds: int) -> None:
    """A process of its own, which no terminal's end reaches, takes away what has expired.

    Nobody depends on it: the kernel itself lets rules expire that nobody kept. It only takes away what then does
    nothing any more. OSError where there can be no process more."""
    # The terminal may die at any moment: until it has a session of its own, nothing but this keeps it.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        child = os.fork()
    except OSError:
        signal.signal(signal.SIGHUP, before)
        raise
    if child:
        os.waitpid(child, 0)  # it ends once there is one in a session of its own
        signal.signal(signal.SIGHUP, before)
        return
    # From here on this is the other process: nothing may return from it.
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.chdir("/")
        if not os.fork():
            time.sleep(seconds + AFTER_SECONDS)
            if found.look().expired:
                remove()
                syslog.syslog("tcppc rules: nobody confirmed them in time, and they are taken away")
    except Exception as problem:
        syslog.syslog(syslog.LOG_ERR, f"tcppc rules: expired, and could not be taken away: {problem}")
    finally:
        os._exit(0)
