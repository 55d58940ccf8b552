r"""Others' bytes as text: strangers', and those of names that this host gives (files, hosts, environment variables).

Two forms, which differ in what they are for. `kept` is for records, and loses nothing: bytes that are no UTF-8 are
`\xNN`, and a backslash that stands where it could be taken for one of those is `\x5c`; so each text stands for one
sequence of bytes. `harmless` is for people: one line, which does nothing to a terminal.
"""

from __future__ import annotations

import codecs
import re

_LOOKS_ESCAPED = re.compile(rb"\\(?=x[0-9A-Fa-f]{2})")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_PIECES = re.compile(r"\\x[0-9a-f]{2}|.", re.DOTALL)


def kept(data: bytes) -> str:
    r"""Bytes as a record has them: b"r\xf6t" is r"r\xf6t", and what said just that in five letters is r"r\x5cxf6t"."""
    if b"\\" in data:
        data = _LOOKS_ESCAPED.sub(rb"\\x5c", data)
    return data.decode("utf-8", "backslashreplace")


def cut(text: str, most: int) -> str:
    """The beginning of what `kept` made, of at most so many characters and of whole bytes."""
    if len(text) <= most:
        return text
    end = 0
    for piece in _PIECES.finditer(text):
        if piece.end() > most:
            break
        end = piece.end()
    return text[:end]


def bytes_of(text: str) -> bytes:
    """What `kept` made this text of."""
    pieces = _ESCAPED.split(text)
    return b"".join(bytes.fromhex(piece) if number % 2 else raw(piece) for number, piece in enumerate(pieces))


def raw(name: str) -> bytes:
    """The bytes of a text that Python made of what the system gave (PEP 383: surrogates stand for bytes)."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate of another origin, such as a TOML file's \ud800
        return name.encode("utf-8", "surrogatepass")


def named(name: str) -> str:
    """A name that the system gave, as a record has it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return kept(raw(name))
    return name


def harmless(text: object) -> str:
    """Any value as one line: what cannot be printed is escaped, a byte that is no UTF-8 as in a record."""
    shown = str(text)
    return shown if shown.isprintable() else "".join(map(_escape, shown))


def _escape(character: str) -> str:
    return character if character.isprintable() else _code(character)


def _code(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # surrogateescape: a byte that is no UTF-8
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _escaped(problem: UnicodeError) -> tuple[str, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    return "".join(map(_code, problem.object[problem.start : problem.end])), problem.end


ESCAPED = "tcppc.escaped"
"""How a stream writes what its encoding has not, as the handler of its errors: the same escapes as `harmless`."""
codecs.register_error(ESCAPED, _escaped)
