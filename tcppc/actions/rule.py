"""One [[action]] made ready: what it is for, and how often."""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from tcppc.actions import tokens
from tcppc.actions.event import Event, Network, source_bytes
from tcppc.sections import Action
from tcppc.values import network, ports

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where commands are looked for, and what they get as their own PATH."""

# Sources whose last action is remembered for `once_per`, of each rule; beyond, who was longest ago acts again.
MOST_REMEMBERED = 1 << 16
# As much of a payload as `match` looks at.
MATCHED_BYTES = 1 << 16


class RuleError(ValueError):
    """What is wrong with an action, in one line without its name."""


def _pattern(text: str) -> Callable[[bytes], Any]:
    """A search in bytes. RE2 takes time linear in them, whatever the expression: Python's own can be made to hang."""
    try:
        import re2
    except ImportError:
        raise RuleError("match needs the package google-re2: pip install 'tcppc[actions]'") from None
    try:
        options = re2.Options()
        options.log_errors = False
        options.encoding = re2.Options.Encoding.LATIN1
        found: Callable[[bytes], Any] = re2.compile(text.encode("utf-8"), options).search
    except re2.error as problem:
        raise RuleError(f"match = {text!r}: is no regular expression of RE2: {_words(problem)}") from None
    return found


def _words(problem: Exception) -> str:
    said = problem.args[0] if problem.args else problem
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)


class Rule:
    """RuleError where the action cannot be done as it is written."""

    def __init__(self, number: int, action: Action) -> None:
        self.action = action
        self.name = action.name or f"action {number}"
        try:
            for text in [action.command] if isinstance(action.command, str) else action.command:
                tokens.check(text)
        except tokens.TokenError as problem:
            raise RuleError(f"command: {problem}") from None
        if not (action.command or action.webhook or action.syslog or action.block):
            raise RuleError("does nothing; expected command, webhook, syslog or block")
        if action.digest and not (action.command or action.webhook or action.syslog):
            raise RuleError("digest gathers what command, webhook or syslog tell; a block waits for nothing")
        if action.match and not {"payload", "end"} & set(action.on):
            raise RuleError('match goes with on = "payload" or "end": only then there is a payload')
        self._ports = tuple(ports(action.ports)) if action.ports else ()
        self._sources: tuple[Network, ...] = tuple(map(network, action.sources))
        self._search = _pattern(action.match) if action.match else None
        self._last: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    def wants(self, event: Event) -> bool:
        """Is this event one of those it is for?"""
        action = self.action
        if event.on not in action.on or (action.proto and event.proto not in action.proto):
            return False
        touched = event.ports or ((event.dport, event.dport),)
        if self._ports and not any(low <= to and at <= high for low, high in self._ports for at, to in touched):
            return False
        if self._search and not self._matches(self._search, event):
            return False
        return not self._sources or any(ip_address(event.src) in each for each in self._sources)

    @staticmethod
    def _matches(search: Callable[[bytes], Any], event: Event) -> bool:
        """In this piece, or where it and the one before it meet; what was there before it has been told."""
        data = event.data[:MATCHED_BYTES]
        if search(data):
            return True
        return bool(event.before and search(event.before + data) and not search(event.before))

    def due(self, event: Event) -> bool:
        """Does it act now, or did it for the same source within `once_per`? Asked once an event."""
        if not self.action.once_per:
            return True
        per = self.action.per
        port = event.dport if per.endswith("+port") else 0
        key = source_bytes(event.src, per.startswith("network")) + port.to_bytes(2, "big")
        with self._lock:
            last = self._last.get(key)
            if last is not None and event.instant - last < self.action.once_per * 1e9:
                return False
            self._last[key] = event.instant
            self._last.move_to_end(key)
            if len(self._last) > MOST_REMEMBERED:
                self._last.popitem(last=False)
            return True

    def may_block(self, event: Event) -> bool:
        """A source that can be made up is blocked only where the action says so in as many words."""
        if not self.action.block:
            return False
        return not event.spoofable or event.on in ("syn", "scan") or "udp" in self.action.proto

    def warnings(self) -> list[str]:
        """What its person should know, a line each."""
        action = self.action
        if isinstance(action.command, tuple) and shutil.which(action.command[0], path=PATH) is None:
            return [f"{self.name}: {action.command[0]}: there is no such command in {PATH}", *self._of_blocks()]
        return self._of_blocks()

    def _of_blocks(self) -> list[str]:
        action = self.action
        if not action.block:
            return []
        found = [on for on in ("syn", "scan") if on in action.on]
        said = [
            f'{self.name}: blocks on = "{on}", which anybody can send in another\'s name: an attacker chooses whom you '
            "block; allow those you cannot do without"
            for on in found
        ]
        if "udp" in action.proto and set(action.on) - {"syn", "scan"}:
            said.append(f"{self.name}: blocks on datagrams, whose source anybody can make up; allow those you need")
        return said
