"""argv to one call each: the only place that parses arguments, prints usage, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from tcppc.cli.arguments import PROGRAM, Exit, UsageError
from tcppc.problems import Failure, Misuse

Command = Callable[[Sequence[str]], int]
# Where each is: one is imported when it is called, since all of them take a quarter of a second.
COMMANDS = {
    "serve": "serving.serve",
    "show": "reading.show_command",
    "nc": "netcat.listen",
    "account": "accounting.account",
    "recover": "recovering.recover_command",
    "rules": "ruling.rules_command",
    "watch": "watching.watch_command",
    "actions": "acting.actions_command",
    "blocks": "acting.blocks_command",
    "flows": "streaming.flows_command",
    "diff": "differing.diff_command",
    "personas": "serving.personas",
    "doctor": "examining.doctor_command",
    "check": "serving.check",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every expected error is one line on standard error."""
    _open_standard_descriptors()
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = "serve"
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
    try:
        if name not in COMMANDS:
            raise UsageError(f"there is no command {name!r}; expected one of {', '.join(COMMANDS)}, or flags alone")
        code = _command(name)(arguments)
        sys.stdout.flush()
        return code
    except Misuse as problem:
        print(f"{PROGRAM}: {problem}", file=sys.stderr)
        return Exit.USAGE
    except Failure as problem:
        print(f"{PROGRAM}: {problem}", file=sys.stderr)
        return Exit.FAILED
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except OSError as problem:
        print(f"{PROGRAM}: {problem.filename or 'standard output'}: {problem.strerror}", file=sys.stderr)
        if problem.filename is None:  # what it still holds has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.FAILED


def _command(name: str) -> Command:
    module, function = COMMANDS[name].split(".")
    found: Command = getattr(importlib.import_module(f"tcppc.cli.{module}"), function)
    return found


def _open_standard_descriptors() -> None:
    """Who starts us may have closed some of 0 to 2: what is opened next must not be taken for one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, so this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for good
        elif hasattr(stream, "reconfigure"):  # what a terminal's encoding has not is shown escaped
            stream.reconfigure(errors="backslashreplace")
