"""Personas without code: a TOML file each.

    about = "a PBX that asks for a password"
    banner = "PBX ready\\r\\nlogin: "
    [[expect]]
    pattern = "^login (\\\\w+)"
    reply = "hello $1\\r\\n"
    close = true

Each line heard is held against the patterns in their order; the first that matches replies. `$1` is what its first
group matched, `$$` a dollar sign. `delay` is in seconds, for each reply; `otherwise` is the reply where none matches.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcppc import tables, text
from tcppc.personas.base import LineTalk, Place, Talk
from tcppc.personas.identity import Identity

# A pattern that goes back and forth needs long lines to hurt.
MOST_MATCHED = 256
MOST_DELAY = 5.0
_KEYS = {"about": str, "banner": str, "otherwise": str, "delay": (int, float), "expect": list}
_RULE_KEYS = {"pattern": str, "reply": str, "close": bool}


class ScriptError(ValueError):
    """What is wrong with a file, in one line."""


@dataclass(frozen=True)
class Rule:
    pattern: re.Pattern[bytes]
    reply: bytes
    close: bool


@dataclass(frozen=True)
class Script:
    """One file."""

    name: str
    about: str
    banner: bytes
    otherwise: bytes
    delay: float
    rules: tuple[Rule, ...]

    def talk(self, identity: Identity, place: Place) -> Talk:
        return Scripted(self, identity, place)


class Scripted(LineTalk):
    """A conversation as a file has it."""

    def __init__(self, script: Script, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self.name = script.name
        self.speaks_first = bool(script.banner)
        self.delay = script.delay
        self._script = script

    def greet(self) -> bytes:
        return self._script.banner

    def line(self, line: bytes) -> bytes:
        for rule in self._script.rules:
            if match := rule.pattern.search(line[:MOST_MATCHED]):
                self.done = rule.close
                return _filled(rule.reply, match)
        return self._script.otherwise


def _filled(reply: bytes, match: re.Match[bytes]) -> bytes:
    def group(place: re.Match[bytes]) -> bytes:
        if place[1] == b"$":
            return b"$"
        number = int(place[1])
        return (match[number] or b"") if number <= len(match.groups()) else b""

    return re.sub(rb"\$(\$|\d)", group, reply)


def load(folder: Path) -> dict[str, Script]:
    """All of a folder's files NAME.toml. ScriptError for one that is not as it should be."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except (FileNotFoundError, NotADirectoryError):
        raise ScriptError(f"personas.folder {folder}: there is no such folder") from None
    except OSError as problem:  # Path.glob would find nothing in it, and say nothing
        raise ScriptError(f"personas.folder {folder}: cannot be read: {problem.strerror}") from None
    found = {}
    for path in paths:
        if not re.fullmatch(r"[a-z0-9-]{1,32}", path.stem):
            raise ScriptError(f"{path}: expected a name of lower-case letters, digits and dashes")
        found[path.stem] = read(path)
    return found


def read(path: Path) -> Script:
    try:
        values = tables.read(path)
    except tables.TableError as problem:
        raise ScriptError(f"{path}: {problem}") from None
    _check(str(path), values, _KEYS)
    delay = float(values.get("delay", 0))
    if not 0 <= delay <= MOST_DELAY:
        raise ScriptError(f"{path}: delay = {delay:g}: expected seconds from 0 to {MOST_DELAY:g}")
    rules = tuple(_rule(f"{path}: expect {number}", rule) for number, rule in enumerate(values.get("expect", []), 1))
    texts = {key: values.get(key, "").encode() for key in ("banner", "otherwise")}
    return Script(path.stem, values.get("about", f"from {path.name}"), **texts, delay=delay, rules=rules)


_WORDS = {str: "text in quotes", bool: "true or false", float: "a number", int: "a number", list: "tables [[expect]]"}


def _check(where: str, values: dict[str, Any], keys: dict[str, Any]) -> None:
    for key, value in values.items():
        if key not in keys:
            raise ScriptError(f"{where}: {key[:80]} is nothing known; expected {', '.join(keys)}")
        if isinstance(value, str) and text.named(value) != value:  # half of a pair of UTF-16, as "\\ud800" is
            raise ScriptError(f"{where}: {key}: expected text of whole characters")
        if not isinstance(value, keys[key]) or (isinstance(value, bool) and keys[key] is not bool):
            kind = keys[key][-1] if isinstance(keys[key], tuple) else keys[key]
            raise ScriptError(f"{where}: {key} = {repr(value)[:80]}: expected {_WORDS[kind]}")


def _rule(where: str, values: Any) -> Rule:
    if not isinstance(values, dict):
        raise ScriptError(f"{where}: expected a table: [[expect]]")
    _check(where, values, _RULE_KEYS)
    if "pattern" not in values:
        raise ScriptError(f"{where}: has no pattern")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python will read otherwise
            pattern = re.compile(values["pattern"].encode())
    except (re.error, OverflowError, RecursionError) as problem:
        raise ScriptError(f"{where}: pattern {repr(values['pattern'])[:80]}: {problem}") from None
    return Rule(pattern, values.get("reply", "").encode(), values.get("close", False))
