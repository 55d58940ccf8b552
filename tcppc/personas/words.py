"""A command of the shell taken apart: words with their quotes understood, and what is redirected where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

MOST_WORDS = 2048
MOST_WORD = 4096
"""Words of one command, and characters of each: what is more is not looked at."""


@dataclass
class Command:
    """`target` is where what it prints goes, None for the client; `append` for >>."""

    words: list[str] = field(default_factory=list)
    target: str | None = None
    append: bool = False


class UnfinishedError(ValueError):
    """A quote that nobody ends."""


def parse(text: str, value: Callable[[str], str], home: str = "/root") -> Command:
    """The command; `value` says what a variable is. UnfinishedError where a quote does not end."""
    found = Command()
    at = 0
    redirect = ""  # the operator that the next word belongs to
    while at < len(text) and len(found.words) < MOST_WORDS:
        letter = text[at]
        if letter.isspace():
            at += 1
            continue
        if letter in "<>" or (letter == "&" and text[at + 1 : at + 2] == ">"):
            redirect, at = _operator(text, at)
            continue
        word, at, plain = _word(text, at, value, home)
        if plain in ("1", "2") and text[at : at + 1] in ("<", ">"):
            operator, at = _operator(text, at)
            redirect = operator if plain == "1" else f"2{operator}"
            continue
        if not redirect:
            found.words.append(word[:MOST_WORD])
        elif redirect in (">", ">>") and not plain.startswith("&"):
            found.target, found.append = word[:MOST_WORD], redirect == ">>"
        redirect = ""
    return found


def _operator(text: str, at: int) -> tuple[str, int]:
    """(>, >>, <, and so on, where it ends)."""
    if text[at] == "&":
        at += 1
    letter = text[at]
    double = text[at + 1 : at + 2] == letter
    return letter * (2 if double else 1), at + (2 if double else 1)


def _word(text: str, at: int, value: Callable[[str], str], home: str) -> tuple[str, int, str]:
    """(the word with its variables filled in, where it ends, the same as it was typed)."""
    begin, pieces = at, []
    while at < len(text) and not text[at].isspace() and text[at] not in "<>":
        letter = text[at]
        if letter == "'":
            end = text.find("'", at + 1)
            if end < 0:
                raise UnfinishedError
            pieces.append(text[at + 1 : end])
            at = end + 1
        elif letter == '"':
            inner, at = _quoted(text, at + 1, value)
            pieces.append(inner)
        elif letter == "\\" and at + 1 < len(text):
            pieces.append(f"\\{text[at + 1]}" if text[at + 1] in "xn0t" else text[at + 1])  # echo -e's, often unquoted
            at += 2
        elif letter == "$":
            inner, at = _variable(text, at, value)
            pieces.append(inner)
        elif letter == "~" and at == begin and text[at + 1 : at + 2] in ("", "/", " ", "\t", ";"):
            pieces.append(home)
            at += 1
        else:
            pieces.append(letter)
            at += 1
    return "".join(pieces), at, text[begin:at]


def _quoted(text: str, at: int, value: Callable[[str], str]) -> tuple[str, int]:
    """What is between double quotes, and where they end."""
    pieces = []
    while at < len(text) and text[at] != '"':
        if text[at] == "\\" and text[at + 1 : at + 2] in ('"', "\\", "$", "`"):
            pieces.append(text[at + 1])
            at += 2
        elif text[at] == "$":
            inner, at = _variable(text, at, value)
            pieces.append(inner)
        else:
            pieces.append(text[at])
            at += 1
    if at >= len(text):
        raise UnfinishedError
    return "".join(pieces), at + 1


def _variable(text: str, at: int, value: Callable[[str], str]) -> tuple[str, int]:
    """$NAME, ${NAME}, $? or $$, or a dollar that is none."""
    if text[at + 1 : at + 2] == "{":
        end = text.find("}", at)
        if end > 0 and text[at + 2 : end].isidentifier():
            return value(text[at + 2 : end]), end + 1
    if text[at + 1 : at + 2] in ("?", "$"):
        return value(text[at + 1]), at + 2
    end = at + 1
    while end < len(text) and (text[end].isalnum() or text[end] == "_") and text[end].isascii():
        end += 1
    if end > at + 1 and not text[at + 1].isdigit():
        return value(text[at + 1 : end]), end
    return "$", at + 1
