"""`tcppc account`: was anything lost, when, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tcppc.account import Account, Run, read
from tcppc.capture.files import LEDGER
from tcppc.cli.arguments import Exit, UsageError, parser
from tcppc.cli.progress import Progress
from tcppc.show import safe

_EXAMPLES = """\
examples:
  tcppc account /var/lib/tcppc      was anything lost, when, and why? exit 1 where the sums do not agree
  tcppc account -q data/ || mail    the same for a timer: says nothing while all is well
"""

# The most problems and notes that are shown; one screen is what a person reads.
MOST_LINES = 20


def account(argv: Sequence[str]) -> int:
    flags = parser("account", _EXAMPLES)
    flags.add_argument("folders", nargs="+", metavar="DIR", type=Path, help="a folder with data files and their ledger")
    flags.add_argument("-q", "--quiet", action="store_true", help="say nothing where the sums agree")
    given = flags.parse_args(argv)
    agree = True
    for folder in given.folders:
        sums = _sums(folder)
        agree = agree and sums.agrees()
        if not (given.quiet and sums.agrees()):
            print("\n".join(safe(line) for line in _screen(sums)))
    return Exit.DONE if agree else Exit.FAILED


def _sums(folder: Path) -> Account:
    ledger = folder / LEDGER
    sums = Account(folder)
    try:
        for number, values in read(ledger):
            if values is None:
                sums.problems.append(f"{ledger}:{number}: is no line of a ledger, passed over: its counts are missing")
            else:
                sums.add(values)
        sums.close()
        progress = Progress(f"reading {folder}", sums.bytes_to_read())
        try:
            sums.check(progress)
        finally:
            progress.done()
    except FileNotFoundError:
        raise UsageError(f"there is no {ledger}; expected the folder of a sensor's data files") from None
    except OSError as problem:
        raise UsageError(f"{problem.filename}: cannot be read: {problem.strerror}") from None
    if not sums.runs:
        raise UsageError(f"{ledger}: has no line of a ledger in it; expected the one beside a sensor's data files")
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
    found = {name: cause for (group, name), cause in sorted(sums.causes.items()) if group == kind}
    if found or kind == "dropped":
        yield head
    for name, cause in found.items():
        yield f"            {cause.count:>14,}  {name}, between {cause.since} and {cause.until}"
