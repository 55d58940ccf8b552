"""The machine behind the shell: its words, variables, redirections and files. What commands print is in programs.py."""

from __future__ import annotations

import re

from tcppc.personas.base import Place
from tcppc.personas.identity import Identity
from tcppc.personas.programs import COMMANDS, Answer
from tcppc.personas.tree import Tree, TreeError, absolute
from tcppc.personas.words import UnfinishedError, parse

MOST_PRINTED = 64 << 10
"""Characters that one command prints, at most."""


MOST_VARIABLES = 100
MOST_SHELLS = 4
"""Of a session; one within the other."""


class Machine:
    """One session's machine."""

    def __init__(self, identity: Identity, place: Place, user: str = "root") -> None:
        self.identity = identity
        self.place = place
        self.user = user
        self.tree = Tree(identity)
        self.folder = "/root"
        self.ended = False
        self.status = 0
        self._depth = 0
        self.variables = {"HOME": "/root", "USER": user, "PWD": "/root", "SHELL": "/bin/bash",
                          "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}  # fmt: skip

    def held(self) -> int:
        """Bytes of what this session has made."""
        return self.tree.held + sum(map(len, self.variables)) + sum(map(len, self.variables.values()))

    def run(self, text: str, piped: str | None = None) -> Answer:
        """One simple command with its redirections."""
        try:
            command = parse(text, self._value)
        except UnfinishedError:
            return "bash: syntax error: unexpected end of file\n", 2
        words, target, append = command.words, command.target, command.append
        while words and (match := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[0], re.DOTALL)):
            if len(self.variables) < MOST_VARIABLES or match[1] in self.variables:
                self.variables[match[1]] = match[2][:256]
            words.pop(0)
        if not words:
            printed, self.status = "", 0
            if target is None:
                return "", 0
        else:
            printed, self.status = self._call(words, piped)
        if target is not None:
            try:
                path = absolute(target, self.folder)
                self.tree.write(path, printed.encode("utf-8", "surrogateescape"), self.place.now, append)
            except TreeError as problem:
                return f"bash: {target}: {problem}\n", 1
            printed = ""
        return printed[:MOST_PRINTED], self.status

    def _value(self, name: str) -> str:
        return str(self.status) if name == "?" else "4721" if name == "$" else self.variables.get(name, "")

    def _call(self, words: list[str], piped: str | None) -> Answer:
        name = words[0].rpartition("/")[2]
        while name in _SHELLS or name in _BEFORE or name == "busybox":
            words = words[1:]
            if not words and name == "busybox":
                return "BusyBox v1.35.0 multi-call binary.\n\nUsage: busybox [function [arguments]...]\n", 0
            if name in _SHELLS and words[:1] == ["-c"] and len(words) > 1:
                return self._script(words[1])
            if not words or (name != "busybox" and words[0].startswith("-")):
                return "", 0
            inner = words[0].rpartition("/")[2]
            if name == "busybox" and words[0] not in COMMANDS and words[0] not in _SHELLS:
                return f"{words[0]}: applet not found\n", 127
            name = inner
        command = COMMANDS.get(name)
        if command is None:
            if "/" in words[0]:
                return self._execute(words[0])
            return f"bash: {words[0]}: command not found\n", 127
        return command(self, words[1:], piped or "")

    def _script(self, line: str) -> Answer:
        """sh -c, once within another."""
        self._depth += 1
        try:
            return self.run(line) if self._depth <= MOST_SHELLS else ("", 0)
        finally:
            self._depth -= 1

    def _execute(self, path: str) -> Answer:
        """A file of this session's own: it does nothing, and says nothing."""
        try:
            node = self.tree.get(absolute(path, self.folder))
        except TreeError as problem:
            return f"bash: {path}: {problem}\n", 127
        if node.data is None:
            return f"bash: {path}: Is a directory\n", 126
        return ("", 0) if node.mode & 0o111 else (f"bash: {path}: Permission denied\n", 126)


_BEFORE = ("sudo", "nohup", "exec", "command", "time")
_SHELLS = ("sh", "bash", "ash", "dash", "enable", "system", "shell", "linuxshell")
