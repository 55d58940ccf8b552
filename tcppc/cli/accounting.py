"""`tcppc account` and `tcppc recover`: was anything lost, and what of it can be had back."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tcppc import clock, recover, values
from tcppc.account import Account, Run, read, running
from tcppc.capture.files import LEDGER, end_half_line
from tcppc.cli.arguments import PROGRAM, Exit, UsageError, parser
from tcppc.cli.progress import Progress
from tcppc.cli.reading import all_files, tell
from tcppc.problems import Few
from tcppc.records import read_lines, run_of
from tcppc.show import DataError, read_files, safe

_ACCOUNT_EXAMPLES = """\
examples:
  tcppc account /var/lib/tcppc      was anything lost, when, and why? exit 1 where the sums do not agree
  tcppc account -q data/ || mail    the same for a timer: says nothing while all is well
  tcppc account --since 30d data/   runs and files of the last thirty days alone
"""

# The most problems and notes that are shown; one screen is what a person reads.
MOST_LINES = 20


def account(argv: Sequence[str]) -> int:
    flags = parser("account", _ACCOUNT_EXAMPLES)
    flags.add_argument("folders", nargs="+", metavar="DIR", type=Path, help="a folder with data files and their ledger")
    flags.add_argument("-q", "--quiet", action="store_true", help="say nothing where the sums agree")
    flags.add_argument(
        "--since",
        metavar="WHEN",
        default="",
        help="leave out what ended before: a time stamp, or 90s, 10m, 2h, 30d ago",
    )
    given = flags.parse_args(argv)
    try:
        since = values.moment(given.since, time.time_ns()) if given.since else 0
    except ValueError as problem:
        raise UsageError(f"expected {problem}") from None
    agree = True
    for folder in given.folders:
        sums = _sums(folder, since)
        agree = agree and sums.agrees()
        if not (given.quiet and sums.agrees()):
            print("\n".join(safe(line) for line in _screen(sums)))
    return Exit.DONE if agree else Exit.FAILED


def _sums(folder: Path, since: int) -> Account:
    ledger = folder / LEDGER
    sums = Account(folder, since)
    damaged: list[int] = []
    young = not since
    try:
        for number, line in read(ledger):
            if line is None:
                damaged += [number] if young else []
            else:
                young = young or clock.parse(line["timestamp"]) >= since
                sums.add(line)
        for number in damaged:
            sums.problems.append(f"{ledger}:{number}: is no line of a ledger, passed over: its counts are missing")
        sums.close()
        progress = Progress(f"reading {folder}", sums.bytes_to_read())
        try:
            sums.check(progress)
        finally:
            progress.done()
    except FileNotFoundError:
        raise UsageError(f"there is no {ledger}; expected the folder of a sensor's data files") from None
    except OSError as problem:
        if problem.filename is None:
            raise
        raise UsageError(f"{problem.filename}: cannot be read: {problem.strerror}") from None
    if not sums.runs:
        since_then = " since then" if since else ""
        raise UsageError(
            f"{ledger}: has no line of a ledger{since_then}; expected the one beside a sensor's data files"
        )
    return sums


def _screen(sums: Account) -> Iterator[str]:
    runs = list(sums.runs.values())
    total = {
        name: sum(run.totals[name] for run in runs) for name in ("accepted", "recorded", "dropped", "lines", "bytes")
    }
    names = ", ".join(sorted({run.sensor for run in runs}))
    yield f"{sums.folder / LEDGER}: {names}, {len(runs)} runs, {runs[0].began} to {max(run.last for run in runs)}"
    yield f"  accepted  {total['accepted']:>14,}  sessions and datagrams"
    yield f"  recorded  {total['recorded']:>14,}  in {total['lines']:,} lines, {total['bytes']:,} bytes"
    yield from _causes(sums, "dropped", f"  dropped   {total['dropped']:>14,}  in no file")
    yield f"  open      {sum(run.open for run in runs):>14,}  {_whose(sums.running)}"
    yield from _causes(sums, "refused", "  refused by a bound, and recorded as closed: limit")
    yield from _causes(sums, "truncated", "  cut by a bound, and recorded as truncated")
    yield from _causes(sums, "errors", "  lost before they were accepted, and other errors")
    yield f"  files     {sums.checked:>14,}  read and counted"
    for kind, lines in (("note", sums.notes), ("PROBLEM", sums.problems)):
        yield from (f"  {kind}: {line}" for line in lines[:MOST_LINES])
        if len(lines) > MOST_LINES:
            yield f"  {kind}: {len(lines) - MOST_LINES} more like these"
    yield "The sums agree." if sums.agrees() else "The sums do not agree."


def _whose(running: Run | None) -> str:
    return "by the last line of the sensor that runs" if running else "no sensor runs here"


def _causes(sums: Account, kind: str, head: str) -> Iterator[str]:
    found = sums.causes(kind)
    if found or kind == "dropped":
        yield head
    for name, cause in found.items():
        yield f"            {cause.count:>14,}  {name}, between {cause.since} and {cause.until}"


_RECOVER_EXAMPLES = """\
examples:
  tcppc recover data/events.jsonl > sessions.jsonl     session records of event lines (--record events)
  tcppc recover data/ -o sessions.jsonl                adds what is not in sessions.jsonl yet; may be run again
"""


def recover_command(argv: Sequence[str]) -> int:
    flags = parser("recover", _RECOVER_EXAMPLES)
    flags.add_argument("paths", nargs="+", metavar="FILE|DIR", type=Path)
    flags.add_argument("-o", "--output", metavar="FILE", type=Path, help="add the records to this file")
    given = flags.parse_args(argv)
    try:
        files = list(dict.fromkeys(path.resolve() for path in all_files(given.paths)))
        if given.output and given.output.exists():
            files = [path for path in files if not path.samefile(given.output)]
        assembler = recover.Assembler()
        if given.output is None:
            return _recover(assembler, files, sys.stdout.buffer)
        with given.output.open("a+b") as output:
            output.seek(0)
            for _, record in read_lines(output):
                if record and "event" not in record:
                    with contextlib.suppress(ValueError):  # something else was in that file: nothing to know of it
                        assembler.add(record)
            end_half_line(output.fileno())
            return _recover(assembler, files, output)
    except OSError as problem:
        where = problem.filename or given.output
        if where is None:
            raise
        raise UsageError(f"{where}: cannot be used: {problem.strerror}") from None
    except DataError as problem:
        raise UsageError(str(problem)) from None


def _recover(assembler: recover.Assembler, files: Sequence[Path], output: IO[bytes]) -> int:
    """Write what becomes whole as it does, then what never did; say in one line what came of it."""
    alive = {run_of(run) for folder in {path.parent for path in files} if (run := running(folder))}
    whole = lost = passed_over = 0
    damaged: list[str] = []
    few = Few(damaged.append)
    progress = Progress("reading", sum(path.stat().st_size for path in files))
    try:
        for line in read_files(list(files), progress, few):
            try:
                record = assembler.add(line) if line is not None else None
            except ValueError:
                line = None
            passed_over += line is None
            if line is not None and record:
                whole += 1
                output.write(_line(record))
        for record in assembler.rest(alive):
            lost += 1
            output.write(_line(record))
        output.flush()
    finally:
        progress.done()
    still_open, strays = assembler.left()
    words = [f"{whole} sessions whole", f"{lost} lost (they never ended)"]
    words += [f"{still_open} still open"] if still_open else []
    words += [f"{passed_over} lines passed over, that are cut off or no records"] if passed_over else []
    words += [f"{strays} sessions left out: they begin in a file that was not given"] if strays else []
    print(f"{PROGRAM}: {', '.join(words)}", file=sys.stderr)
    few.over()
    return tell(damaged) or (Exit.FAILED if strays else Exit.DONE)


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"
