"""`tcppc blocks`: what is blocked, and blocks made and taken away by hand."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from tcppc import acting
from tcppc.actions.blocks import parse, shown
from tcppc.actions.event import Network
from tcppc.actions.journal import Entry, Journal
from tcppc.clock import Zone
from tcppc.config import Config
from tcppc.folders import NoFolder
from tcppc.netfilter import blocking
from tcppc.netfilter.blocking import Block
from tcppc.netfilter.tools import RulesError

__all__ = ["add", "listed", "parse", "remove", "shown"]


def listed(config: Config) -> tuple[list[dict[str, str]], str]:
    """A row each: network, scope, since, until, by, on, why. And what could not be asked, nft or the undo log: then the
    other one alone knows. Failure where it is both."""
    zone, now = Zone(config.tcppc.timezone), time.time_ns()
    known, unread = _known(config, now)
    said = f"{unread}: this is what nft says." if unread else ""
    try:
        until = {key: now + seconds * 1_000_000_000 for key, seconds in blocking.blocked().items()}
    except RulesError as problem:
        if unread:
            raise RulesError(f"{problem}; and the undo log says nothing either: {unread}") from None
        path = acting.journal(config).path
        if not os.path.lexists(path):
            raise RulesError(f"{problem}; there is no undo log {path} either: who is blocked is not known") from None
        until = {key: entry.until for key, entry in known.items()}
        said = f"{problem}; what the undo log {path} says may be old"
    rows = []
    for (network, scope), end in sorted(until.items(), key=lambda item: item[1]):
        entry = known.get((network, scope))
        rows.append(
            {
                "network": shown(network),
                "scope": scope,
                "since": zone.seconds(entry.instant) if entry else "unknown",
                "until": zone.seconds(entry.until if entry else end),
                "by": entry.by if entry else "",
                "on": entry.on if entry else "",
                "why": entry.why if entry else "",
            }
        )
    return rows, said


def _known(config: Config, now: int) -> tuple[dict[tuple[Network, str], Entry], str]:
    """What the undo log has in force; and why it cannot be read, or nothing."""
    try:
        journal = acting.journal(config)
    except NoFolder as problem:
        return {}, str(problem)
    try:
        return journal.in_force(now), ""
    except OSError as problem:
        return {}, f"{journal.path}: cannot be read: {problem.strerror}"


def add(config: Config, networks: Sequence[Network], seconds: float, scope: str, why: str, by: str) -> list[Network]:
    """Blocks them from now on for so long, also those that are blocked already. RulesError where one may not be."""
    journal = acting.journal(config)  # before anything is done: without it nobody could tell why it was
    allowed = acting.allowed(config)
    allowed.look()
    for network in networks:
        if reason := allowed.why(str(network.network_address)):
            raise RulesError(f"{shown(network)} is not blocked: {reason}")
    if not blocking.in_place():
        blocking.put_in_place(config.tcppc.port, config.rules.mark, config.actions.blocks)
    there = blocking.blocked()
    blocking.remove((network, scope) for network in networks if (network, scope) in there)
    blocking.add(Block(network, scope, round(seconds)) for network in networks)
    now = time.time_ns()
    until = now + round(seconds * 1e9)
    _write(journal, [Entry("block", now, network, scope, until, by, "", why) for network in networks])
    return list(networks)


def remove(config: Config, networks: Sequence[Network] | None, scope: str | None, why: str, by: str) -> list[Network]:
    """Takes these, or all, out of the sets; returns those that were blocked."""
    journal = acting.journal(config)
    there = blocking.blocked()
    wanted = [key for key in there if (networks is None or key[0] in networks) and scope in (None, key[1])]
    blocking.remove(wanted)
    now = time.time_ns()
    _write(journal, [Entry("unblock", now, network, place, 0, by, "", why) for network, place in wanted])
    return [network for network, _ in wanted]


def _write(journal: Journal, entries: list[Entry]) -> None:
    try:
        journal.write(entries)
    except OSError as problem:
        raise RulesError(f"it is done, but {journal.path} cannot be written: {problem.strerror}") from None
