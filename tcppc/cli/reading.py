"""`tcppc show`: what reads data files."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tcppc import records, recover, show, values
from tcppc.capture.files import LEDGER
from tcppc.cli.arguments import PROGRAM, Exit, UsageError, parser
from tcppc.problems import Few

_SHOW_EXAMPLES = """\
examples:
  tcppc show data.jsonl                          every session of a file, as text or hex
  tcppc show -f data/                            sessions as they come, across rotations
  tcppc show --port 22,8000-8999 --since 1h data/
  tcppc show --source 198.51.100.0/24 data/*.gz
  tcppc show --raw 019d9e1a-... data/ > payload  the bytes of one session, as received
"""


def show_command(argv: Sequence[str]) -> int:
    flags = parser("show", _SHOW_EXAMPLES)
    flags.add_argument("paths", nargs="+", metavar="FILE|DIR", type=Path)
    flags.add_argument("-f", "--follow", action="store_true", help="show what comes from now on, until Ctrl+C")
    flags.add_argument("--raw", metavar="ID", help="write the bytes of the session with this id, and nothing else")
    flags.add_argument("--source", metavar="NET", action="append", default=[], help="only from this address or network")
    flags.add_argument("--port", metavar="PORTS", action="append", default=[], help="only to these, as 22,8000-8999")
    flags.add_argument("--proto", action="append", default=[], choices=["tcp", "tls", "udp"])
    flags.add_argument("--since", metavar="WHEN", default="", help="a time stamp, or how long ago: 90s, 10m, 2h, 1d")
    flags.add_argument("--until", metavar="WHEN", default="", help="the same")
    flags.add_argument("--max", metavar="BYTES", default="4096", help="shown of each payload (default 4096)")
    given = flags.parse_args(argv)
    try:
        wanted = show.Filter(
            sources=tuple(values.network(text) for text in given.source),
            ports=tuple(span for text in given.port for span in values.ports(text)),
            protos=tuple(given.proto),
            since=values.moment(given.since, time.time_ns()) if given.since else 0,
            until=values.moment(given.until, time.time_ns()) if given.until else 0,
        )
        most = values.size(1)(given.max)
        damaged: list[str] = []
        few = Few(damaged.append)
        files = [] if given.follow else all_files(given.paths)
        unread: list[str] = []  # said at once: what follows may take days

        def say(line: str) -> None:
            unread.append(line)
            tell([line])

        found = show.follow(given.paths, trouble=say) if given.follow else show.read_files(files, trouble=few)
        found = recover.assembled(found)
        done = _show_raw(found, given.raw) if given.raw else _show_sessions(found, wanted, most)
        few.over()
        return tell(damaged) or (Exit.FAILED if unread else done)
    except BrokenPipeError:
        raise
    except OSError as problem:
        if problem.filename is None:
            raise
        raise UsageError(f"{problem.filename}: cannot be read: {problem.strerror}") from None
    except show.DataError as problem:
        raise UsageError(str(problem)) from None
    except ValueError as problem:
        raise UsageError(f"expected {problem}") from None


def all_files(paths: Sequence[Path]) -> list[Path]:
    """The files; of several, a ledger among them is none of them: a shell's * takes it along."""
    found = [file for path in paths for file in show.data_files(path)]
    return [path for path in found if path.name != LEDGER] if len(found) > 1 else found


def tell(troubles: Sequence[str]) -> int:
    """Say what could not be read; the exit code that this means."""
    for line in troubles:
        print(f"{PROGRAM}: {line}", file=sys.stderr)
    return Exit.FAILED if troubles else Exit.DONE


def _show_sessions(found: Iterable[dict[str, Any] | None], wanted: show.Filter, most: int) -> int:
    """Heading in bold on a terminal; lines that are no records are counted at the end."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    broken = 0
    with contextlib.suppress(KeyboardInterrupt):  # how -f ends
        for record in found:
            try:
                if record is None or not wanted.fits(record):
                    broken += record is None
                    continue
                head, *rest = show.show(record, most)
            except (ValueError, KeyError, TypeError):
                broken += 1
                continue
            print("\n".join([f"{bold}{head}{plain}", *rest]), flush=True)
    if broken:
        print(f"{PROGRAM}: {broken} lines are no records and were passed over", file=sys.stderr)
    return Exit.DONE


def _show_raw(found: Iterable[dict[str, Any] | None], wanted: str) -> int:
    for record in found:
        if record is not None and record.get("id") == wanted:
            sys.stdout.buffer.write(records.payload_bytes(record))
            sys.stdout.buffer.flush()
            return Exit.DONE
    raise UsageError(f"there is no session with the id {wanted!r} in these files")
