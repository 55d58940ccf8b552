"""What may go wrong that is nobody's bug: each of these is one line for a person, and an exit code."""

from __future__ import annotations


class Misuse(Exception):  # noqa: N818 - a family of errors, no error of its own
    """What was wrong with arguments or configuration: exit code 2."""


class Failure(Exception):  # noqa: N818
    """What went wrong at run time: exit code 1."""
