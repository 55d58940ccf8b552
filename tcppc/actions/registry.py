"""Which kinds of action there are; one file each. A setting of [[action]] says that a kind is wanted, and how."""

from __future__ import annotations

from tcppc.actions import command, syslog, webhook
from tcppc.actions.job import Kind
from tcppc.actions.rule import Rule

# By the setting's name, in the order in which they are done.
KINDS: dict[str, Kind] = {"command": command.run, "webhook": webhook.run, "syslog": syslog.run}


def wanted(rule: Rule) -> dict[str, Kind]:
    return {name: kind for name, kind in KINDS.items() if getattr(rule.action, name)}


def check(rule: Rule) -> None:
    """RuleError for what only a kind itself can tell."""
    if rule.action.webhook:
        webhook.check(rule.action.webhook)
    if rule.action.syslog:
        syslog.address(rule.action.syslog)
