"""argv to one call each: the only place that parses arguments, prints usage, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from tcppc.cli import standard
from tcppc.cli.arguments import PROGRAM, Exit, UsageError
from tcppc.problems import NO_THREAD, Failure, Misuse, is_lack_of_threads
from tcppc.text import harmless

MOST_SAID = 5000  # characters of an error: a path may have 4096
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
    standard.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    code = _guarded(lambda: _run(arguments))
    # What was printed before something went wrong is written too; and Python's own end would have no words for it.
    return _guarded(sys.stdout.flush) or code


def _run(arguments: list[str]) -> int:
    name = "serve"
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name!r}; expected one of {', '.join(COMMANDS)}, or flags alone")
    return _command(name)(arguments)


def _guarded(work: Callable[[], int | None]) -> int:
    """The exit code of `work`, whose errors are said here."""
    try:
        return work() or Exit.DONE
    except SystemExit as end:  # --help, --version
        return end.code if isinstance(end.code, int) else Exit.DONE
    except Misuse as problem:
        return _said(str(problem), Exit.USAGE)
    except standard.ReaderGoneError:  # who reads no more wants to be told nothing more
        return Exit.FAILED
    except Failure as problem:
        return _said(str(problem), Exit.FAILED)
    except OSError as problem:
        return _said(standard.reason(problem), Exit.FAILED)
    except RuntimeError as problem:
        if not is_lack_of_threads(problem):
            raise
        return _said(NO_THREAD, Exit.FAILED)
    except KeyboardInterrupt:
        return Exit.FAILED


def _said(line: str, code: int) -> int:
    shown = harmless(line)
    print(f"{PROGRAM}: {shown if len(shown) <= MOST_SAID else f'{shown[:MOST_SAID]}...'}", file=sys.stderr)
    return code


def _command(name: str) -> Command:
    module, function = COMMANDS[name].split(".")
    found: Command = getattr(importlib.import_module(f"tcppc.cli.{module}"), function)
    return found
