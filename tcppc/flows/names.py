"""Names of stream files, as tcpflow makes them: its -T templates and -F letters. docs/flows.md lists the codes.

A name is made of addresses, numbers and times, and of what the operator wrote: nothing of it is a stranger's bytes.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from copy import copy
from functools import lru_cache
from typing import NamedTuple

from tcppc.protocols.packet import TCP

DEFAULT = "%A.%a-%B.%b%V%v%C%c"
# What each letter of -F puts before the name.
LETTERS = {
    "k": "%K/",
    "m": "{million}/{thousand}/",
    "g": "{billion}/{million9}/{thousand9}/",
    "t": "%tT",
    "T": "%T",
}
SILENT_LETTERS = ("c", "X", "M")  # the counter on all names; no files; MD5 in the report


class Named(NamedTuple):
    """What a stream is named after. Addresses and MAC addresses are packed, `start` is ns since the epoch, `vlan` is -1
    for none, `number` counts streams from 0, `pair` both directions of one together."""

    src: bytes
    sport: int
    dst: bytes
    dport: int
    start: int = 0
    vlan: int = -1
    number: int = 0
    pair: int = 0
    src_mac: bytes = b""
    dst_mac: bytes = b""
    protocol: int = TCP


class TemplateError(ValueError):
    """What is wrong with a template or a letter, in one line."""


@lru_cache(maxsize=1 << 12)
def address(packed: bytes) -> str:
    """IPv4 with three digits a number; IPv6 as inet_ntop(3) writes it."""
    if len(packed) == 4:
        return "%03d.%03d.%03d.%03d" % tuple(packed)  # noqa: UP031 - five times as fast as an f-string of four
    return socket.inet_ntop(socket.AF_INET6, packed)


def _utc(named: Named) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(named.start // 1_000_000_000))


_CODES: dict[str, Callable[[Named, int], str]] = {
    "A": lambda named, count: address(named.src),
    "a": lambda named, count: f"{named.sport:05d}",
    "B": lambda named, count: address(named.dst),
    "b": lambda named, count: f"{named.dport:05d}",
    "E": lambda named, count: named.src_mac.hex(":"),
    "e": lambda named, count: named.dst_mac.hex(":"),
    "T": lambda named, count: _utc(named),
    "t": lambda named, count: str(named.start // 1_000_000_000),
    "V": lambda named, count: "--" if named.vlan >= 0 else "",
    "v": lambda named, count: str(named.vlan) if named.vlan >= 0 else "",
    "C": lambda named, count: "c" if count else "",
    "c": lambda named, count: str(count) if count else "",
    "#": lambda named, count: str(count),
    "N": lambda named, count: f"{named.number % 1000:03d}",
    "K": lambda named, count: f"{named.number // 1000 % 1000:03d}",
    "M": lambda named, count: f"{named.number // 10**6 % 1000:03d}",
    "G": lambda named, count: f"{named.number // 10**9 % 1000:03d}",
    "S": lambda named, count: f"{named.pair:020d}",
    "%": lambda named, count: "%",
}


def _range(low: int, size: int, digits: int) -> str:
    return f"{low:0{digits}d}-{low + size - 1:0{digits}d}"


def _folders(letter: str, named: Named) -> str:
    """What -F k, m and g put before the name, by the number of the stream."""
    thousand = named.number // 1000
    million, billion = thousand // 1000 * 1000, thousand // 10**6 * 10**6
    if letter == "m":
        return f"{_range(million, 1000, 6)}/{thousand:06d}/"
    return f"{_range(billion, 10**6, 9)}/{_range(million, 1000, 9)}/{thousand:09d}/"


class Template:
    """Names from a template of -T, with the letters of -F before it. TemplateError where either is wrong."""

    def __init__(self, template: str = DEFAULT, letters: str = "") -> None:
        self.no_files = "X" in letters
        self._suffix = ""
        self._always = "c" in letters
        self.is_default = template == DEFAULT and not set(letters) & set(LETTERS)
        codes = set(re.findall("%(.)", template))
        self.tells_streams_apart = codes >= {"A", "a", "B", "b", "v"}
        # Names without the numbers of streams, which depend on those of all connections.
        self.counts_nothing = self.tells_streams_apart and not codes & set("NKMGS") and not set(letters) & set("kmg")
        pieces: list[str | Callable[[Named, int], str]] = []
        for letter in letters:
            if letter in LETTERS:
                pieces = [*_before(letter), *pieces]
            elif letter not in SILENT_LETTERS:
                raise TemplateError(f"-F {letter}: expected letters of {''.join([*LETTERS, *SILENT_LETTERS])}")
        self._pieces = [*pieces, *_parse(template, template)]
        if "%c" not in template.replace("%%", ""):  # without a counter, two streams of one name would be one file
            self._pieces += _parse("%C%c", template)

    def with_suffix(self, suffix: str) -> Template:
        """The same names, with something behind each."""
        found = copy(self)
        found._suffix, found.no_files = suffix, False
        return found

    def path(self, named: Named, count: int = 0) -> str:
        """Relative to the output folder. `count` is how many streams had this name before."""
        shown = count + 1 if self._always else count
        suffix = self._suffix if named.protocol == TCP else f".udp{self._suffix}"
        if self.is_default:  # three times as fast as what follows
            vlan, counted = f"--{named.vlan}" if named.vlan >= 0 else "", f"c{shown}" if shown else ""
            return (
                f"{address(named.src)}.{named.sport:05d}-{address(named.dst)}.{named.dport:05d}{vlan}{counted}{suffix}"
            )
        return "".join([piece if isinstance(piece, str) else piece(named, shown) for piece in self._pieces]) + suffix


def _before(letter: str) -> list[str | Callable[[Named, int], str]]:
    if letter in "mg":
        return [lambda named, count: _folders(letter, named)]
    return _parse(LETTERS[letter], LETTERS[letter])


def _parse(template: str, given: str) -> list[str | Callable[[Named, int], str]]:
    if given.startswith("/") or ".." in given.split("/") or "\0" in given:
        raise TemplateError(f"-T {given!r}: expected names below the output folder, without .. and / before them")
    found: list[str | Callable[[Named, int], str]] = []
    at = 0
    while at < len(template):
        if template[at] != "%":
            found.append(template[at])
        elif template[at + 1 : at + 2] in _CODES and at + 1 < len(template):
            at += 1
            found.append(_CODES[template[at]])
        else:
            code = template[at : at + 2]
            raise TemplateError(f"-T {given!r}: {code} is no code; expected % and one of {' '.join(_CODES)}")
        at += 1
    return found
