"""Tokens of a command, as portanoia has them: [SRC_IP] and so on.

What they become are addresses, numbers and names that this program or its operator made; no byte that a stranger sent
can be among them, so that none reaches a command line. `expand` holds that a second time, whoever made the values.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# name: (what it is, an example)
TOKENS = {
    "SRC_IP": ("the stranger's address", "198.51.100.7"),
    "SRC_PORT": ("its port; 0 where a scan has none", "51324"),
    "DEST_IP": ("the address that was touched", "192.0.2.10"),
    "DEST_PORT": ("the port that was touched; of a scan the last one", "2323"),
    "LISTEN_PORT": ("the port that the sensor listens on", "12345"),
    "PROTO": ("tcp, tls or udp", "tcp"),
    "TIMESTAMP": ("when, RFC 3339", "2026-04-18T09:51:34.689696842Z"),
    "SESSION_ID": ("the id of its record; empty for a SYN or a scan", "019da3a1-2d51-7000-8000-000000000001"),
    "SENSOR": ("this sensor's name", "tokyo-1"),
    "COUNT": ("how many events a digest holds; otherwise 1", "1"),
}
_TOKEN = re.compile(r"\[([A-Z][A-Z_]+)\]")
_SAFE = re.compile(r"[0-9A-Za-z.:+_-]*")


class TokenError(ValueError):
    """A token that there is not, in one line."""


def check(text: str) -> None:
    """TokenError for an unknown one. A shell's [A-Z] is none: it has more than letters."""
    for name in _TOKEN.findall(text):
        if name not in TOKENS:
            close = difflib.get_close_matches(name, TOKENS, 1)
            hint = f"did you mean [{close[0]}]?" if close else f"expected one of {', '.join(TOKENS)}"
            raise TokenError(f"there is no token [{name}]; {hint}")


@dataclass(frozen=True)
class Values:
    """What the tokens of one event become; texts of _SAFE characters, but for the operator's own SENSOR."""

    values: Mapping[str, str]

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if name != "SENSOR" and not _SAFE.fullmatch(value):
                raise TokenError(f"[{name}] would be {value!r}: no address, number or name")

    def expand(self, text: str, quoted: bool) -> str:
        """`text` with its tokens replaced; `quoted` for a shell, where a name of the operator's may need it."""

        def value(match: re.Match[str]) -> str:
            found = self.values.get(match[1], "")
            return shlex.quote(found) if quoted and not _SAFE.fullmatch(found) else found

        return _TOKEN.sub(value, text)

    def arguments(self, command: str | Sequence[str]) -> list[str]:
        """What is executed: a line by /bin/sh, a list as it is."""
        if isinstance(command, str):
            return ["/bin/sh", "-c", self.expand(command, quoted=True)]
        return [self.expand(word, quoted=False) for word in command]

    def environment(self) -> dict[str, str]:
        """The same as variables."""
        return {f"TCPPC_{name}": value for name, value in self.values.items()}


EXAMPLE = Values({name: example for name, (_, example) in TOKENS.items()})
