"""What a person writes in a setting, to the value the program uses: one converter a kind.

A converter takes what TOML or a flag gives (a str from a flag) and returns the value, or raises ValueError
with what would be right, in words that end the sentence "expected …".
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

Converter = Callable[[Any], Any]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)", re.IGNORECASE)
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def text(value: Any) -> str:
    """A string without control characters."""
    if not isinstance(value, str):
        raise ValueError('text in quotes, such as "text"')
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError("text without control characters")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # half of a pair of UTF-16, as "\\ud800" is
        raise ValueError("text of whole characters") from None
    return value


def texts(value: Any) -> tuple[str, ...]:
    """One string or a list of at least one, none of them empty."""
    items = value if isinstance(value, (list, tuple)) else [value]
    if not items or not all(isinstance(item, str) and item for item in items):
        raise ValueError('a name or address, or a list of them, such as ["0.0.0.0", "::"]')
    return tuple(text(item) for item in items)


def switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def choice(*names: str) -> Converter:
    """One of `names`; an empty string among them stands for "decide by itself"."""

    def convert(value: Any) -> str:
        if value not in names:
            shown = [name for name in names if name]
            raise ValueError(", ".join(shown[:-1]) + f" or {shown[-1]}")
        return str(value)

    return convert


def whole(low: int, high: int) -> Converter:
    """A whole number from `low` to `high`."""

    def convert(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,30}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return convert


def size(low: int, high: int = 1 << 50) -> Converter:
    """Bytes: a number, or text such as "64MiB", "500kB", "1G" (k M G T are powers of 1000, with i of 1024)."""

    def convert(value: Any) -> int:
        number = -1
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
            base = 1024 if match[3] else 1000
            number = int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))
        if not low <= number <= high:
            raise ValueError(f'a size from {low} to {high} bytes, such as 65536, "64KiB" or "1GB"')
        return number

    return convert


def size_text(count: int) -> str:
    """Bytes for people: "512 bytes", "1.5 MiB", "10.0 GiB"."""
    if count < 1024:
        return f"{count} bytes"
    value, unit = float(count), 0
    while value >= 1024 and unit < 4:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {' KMGT'[unit]}iB"


def free_space(value: Any) -> str | int:
    """Bytes as `size` takes them, a share of a disk as text such as "5%", or "" for "decide by itself"."""
    if value == "":
        return ""
    if isinstance(value, str) and (share := re.fullmatch(r"(\d{1,2}(?:\.\d+)?)\s*%", value.strip())):
        if 0 < float(share[1]) <= 50:
            return f"{float(share[1]):g}%"
    else:
        try:
            found: int = size(0)(value)
            return found
        except ValueError:  # the words below say more
            pass
    raise ValueError('a size such as "2GiB", a share of the disk from "1%" to "50%", 0 for none, or "" for the default')


def duration(low: float, high: float) -> Converter:
    """Seconds: a number, or text such as "90s", "10m", "1h", "7d"."""

    def convert(value: Any) -> float:
        number = -1.0
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            number = float(value)
        elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
            number = float(match[1]) * _SECONDS[match[2].lower()]
        if not low <= number <= high:
            raise ValueError(f'a duration from {low:g} to {high:g} seconds, such as 60, "90s" or "1h"')
        return number

    return convert


_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[^\[\]\s]+)?)\]|([^\[\]:/\s]+)):(\d{1,5})")


def host_and_port(value: str) -> tuple[str, int]:
    """HOST:PORT, an IPv6 address in brackets."""
    match = _HOST_PORT.fullmatch(value)
    if not match or int(match[3]) > 65535:
        raise ValueError(f"an address and port such as 127.0.0.1:2112 or [::1]:2112, not {value!r}")
    return match[1] or match[2], int(match[3])


def listen(value: Any) -> str:
    """As `host_and_port`, as text; empty for none."""
    given = text(value)
    if given:
        host_and_port(given)
    return given


def network(value: str) -> IPv4Network | IPv6Network:
    """An address or network, such as 198.51.100.7 or 2001:db8::/32."""
    try:
        if "%" in value:  # a scope may be any text
            raise ValueError
        return ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"an address or network such as 198.51.100.0/24, not {value!r}") from None


def networks(value: Any) -> tuple[str, ...]:
    """One network or a list of them, none too, each as ip_network writes it."""
    items = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(item, str) for item in items):
        raise ValueError('a network or a list of them, such as ["10.0.0.0/8", "2001:db8::/32"]')
    return tuple(str(network(item)) for item in items)


def interfaces(value: Any) -> tuple[str, ...]:
    """Names of network interfaces, one or a list of them, none too. The kernel would take stranger ones."""
    items = value if isinstance(value, (list, tuple)) else [value] if value else []
    for item in items:
        if not isinstance(item, str) or not re.fullmatch(r"[A-Za-z0-9_.:@-]{1,15}", item) or item == "lo":
            raise ValueError(f'a network interface such as "eth0", or a list of them, and not lo; not {item!r}')
    return tuple(items)


def watched(value: Any) -> tuple[str, ...]:
    """As `interfaces`; lo too, and any."""
    items = value if isinstance(value, (list, tuple)) else [value] if value else []
    return tuple(name for item in items for name in (("lo",) if item == "lo" else interfaces([item])))


def names_of(*known: str) -> Converter:
    """One of `known` or a list of them, each once."""

    def convert(value: Any) -> tuple[str, ...]:
        items = value if isinstance(value, (list, tuple)) else [value] if value else []
        if not all(isinstance(item, str) and item in known for item in items):
            raise ValueError(f"one of {', '.join(known)}, or a list of them")
        return tuple(dict.fromkeys(items))

    return convert


def command(value: Any) -> str | tuple[str, ...]:
    """A line for the shell, or a list of arguments."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value) and value[0]:
        return tuple(text(item) for item in value)
    if isinstance(value, str):
        return text(value)
    raise ValueError('a shell line, or a list of arguments such as ["logger", "[SRC_IP]"]')


def port_list(value: Any) -> str:
    """Ports and ranges that do not overlap, as text; empty for none."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError('ports such as "25,9100-9200"')
    found = sorted(ports(value)) if value else []
    for before, after in itertools.pairwise(found):
        if after[0] <= before[1]:
            shown = ["-".join(map(str, dict.fromkeys(pair))) for pair in (before, after)]
            raise ValueError(f"ports that do not overlap, as {shown[0]} and {shown[1]} do")
    return value


def ssh_ports(value: Any) -> str:
    """As `port_list`, or none."""
    return value if value == "none" else port_list(value)


def ports(value: str) -> list[tuple[int, int]]:
    """Ports and ranges, such as 22,8000-8999, as (low, high)."""
    found = []
    for part in value.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not low <= high <= 65535:
            raise ValueError(f"ports from 0 to 65535 such as 22,8000-8999, not {value!r}")
        found.append((low, high))
    return found


def moment(value: str, now: int) -> int:
    """An RFC 3339 time stamp, or how long before `now` (90s, 10m, 2h, 1d); nanoseconds since the epoch."""
    try:
        ago: float = duration(0, 1e10)(value)
        return now - round(ago * 1e9)
    except ValueError:  # then it has to be a time stamp
        found = value
    try:
        from tcppc import clock  # which takes long, and few values are instants

        return clock.parse(found)
    except ValueError:
        raise ValueError(f"a time such as 2026-04-18T09:51:34+09:00, or 90s, 10m, 2h, 1d ago, not {value!r}") from None
