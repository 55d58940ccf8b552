"""`tcppc account`: was anything lost, when, and why; and what is known of it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tcppc import clock, explanations, ledger_lines, values
from tcppc.account import Account, account_of
from tcppc.capture.files import LEDGER
from tcppc.cli.arguments import Exit, UsageError, operator, parser
from tcppc.cli.progress import Progress
from tcppc.problems import Failure
from tcppc.show import safe

_EXAMPLES = """\
examples:
  tcppc account /var/lib/tcppc      was anything lost, when, and why? exit 1 where the sums do not agree
  tcppc account -q data/ || mail    the same for a timer: says nothing while all is well
  tcppc account --since 30d data/   runs and files of the last thirty days alone
  tcppc account --json data/        one object, for other programs
  tcppc account --acknowledge --why 'power cut on Monday' data/    what is a problem of a run is known from now on
  tcppc account --acknowledge --run 2026-11-28T09:52:06.837019845Z data/    of this run alone, and of its files
"""

# The most problems and notes that are shown; one screen is what a person reads.
MOST_LINES = 20
MOST_SHOWN = 400  # characters of a line
MOST_WHY = 500  # as `tcppc blocks` has it
AGAIN_SECONDS = 0.2  # until a file that went away while we read is in the ledger


def account(argv: Sequence[str]) -> int:
    given = _arguments(argv)
    try:
        since = values.moment(given.since, time.time_ns()) if given.since else 0
        why = values.text(given.why)
    except ValueError as problem:
        raise UsageError(f"expected {problem}") from None
    if len(why) > MOST_WHY:
        raise UsageError(f"--why: expected {MOST_WHY} characters at most, not {len(why)}")
    if (given.run or why) and not given.acknowledge:
        raise UsageError("--run and --why go with --acknowledge")
    agree = True
    for folder in given.folders:
        sums = _sums(folder, since)
        if given.acknowledge:
            sums = _acknowledge(sums, given.run, why)
        agree = agree and sums.agrees()
        if not (given.quiet and sums.agrees()):
            lines = [json.dumps(_object(sums))] if given.json else map(_shown, _screen(sums))
            print("\n".join(lines))
    return Exit.DONE if agree else Exit.FAILED


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    flags = parser("account", _EXAMPLES)
    flags.add_argument("folders", nargs="+", metavar="DIR", type=Path, help="a folder with data files and their ledger")
    flags.add_argument("-q", "--quiet", action="store_true", help="say nothing where the sums agree")
    flags.add_argument("--json", action="store_true", help="one JSON object a folder")
    flags.add_argument(
        "--since",
        metavar="WHEN",
        default="",
        help="leave out what ended before: a time stamp, or 90s, 10m, 2h, 30d ago",
    )
    flags.add_argument(
        "--acknowledge", action="store_true", help="write into the ledger that the problems of runs are known"
    )
    flags.add_argument("--run", default="", help="acknowledge this run alone (its id, or its start), and its files")
    flags.add_argument("--why", metavar="TEXT", default="", help="the reason, for the ledger")
    return flags.parse_args(argv)


def _acknowledge(sums: Account, run: str, why: str) -> Account:
    """The sums after it."""
    try:
        lines = explanations.acknowledge(sums, run, why, operator())
    except ValueError as problem:
        raise UsageError(f"--run: expected {problem}") from None
    try:
        ledger_lines.add(sums.ledger, lines)
    except OSError as problem:
        raise Failure(f"{sums.ledger}: cannot be written to: {problem.strerror}; nothing is acknowledged") from None
    sums = _sums(sums.folder, sums.since)
    for file, key in dict.fromkeys((finding.file, finding.run) for finding in sums.findings if finding.file):
        began = sums.runs[key].began if key in sums.runs else key
        sums.notes.append(f"not acknowledged: {file}: --acknowledge --run {began} covers the files of its run too")
    return sums


def _sums(folder: Path, since: int) -> Account:
    """Once more where a file went away meanwhile: a sensor that runs compresses and removes them."""
    sums = _read(folder, since)
    if sums.files.moving and (sums.running or sums.unheard):
        time.sleep(AGAIN_SECONDS)
        sums = _read(folder, since)
    return sums


def _read(folder: Path, since: int) -> Account:
    ledger = folder / LEDGER
    try:
        sums = account_of(folder, since)
        progress = Progress(f"reading {folder}", sums.files.bytes_to_read())
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


def _shown(line: str) -> str:
    text = safe(line)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _screen(sums: Account) -> Iterator[str]:
    runs, total = list(sums.runs.values()), sums.total
    names = ", ".join(sorted({run.sensor for run in runs}))[: MOST_SHOWN // 2]
    last = max((run.last for run in runs), key=clock.parse)
    yield f"{sums.ledger}: {names}, {len(runs)} runs, {runs[0].began} to {last}"
    yield f"  accepted  {total('accepted'):>14,}  sessions and datagrams"
    yield f"  recorded  {total('recorded'):>14,}  in {total('lines'):,} lines, {total('bytes'):,} bytes"
    dropped = f", {total('bytes_dropped'):,} bytes" if total("bytes_dropped") else ""
    yield from _causes(sums, "dropped", f"  dropped   {total('dropped'):>14,}  in no file{dropped}")
    whose = "by the last line of the sensor that runs" if sums.running else "no sensor runs here"
    yield f"  open      {total('open'):>14,}  {'a sensor runs here' if sums.unheard else whose}"
    if sums.running and total("waiting"):
        yield f"  waiting   {total('waiting'):>14,}  accepted and not yet written, {whose}"
    if total("cut off"):
        yield f"  cut off   {total('cut off'):>14,}  open or not yet written when their run ended"
    yield from _causes(sums, "refused", "  refused by a bound, and recorded as closed: limit")
    yield from _causes(sums, "truncated", "  cut by a bound, and recorded as truncated")
    yield from _causes(sums, "errors", "  lost before they were accepted, and other errors")
    yield f"  files     {sums.files.checked:>14,}  read and counted"
    for kind, lines in (("note", sums.notes), ("UNREAD", sums.unread), ("PROBLEM", sums.problems)):
        yield from (f"  {kind}: {line}" for line in lines[:MOST_LINES])
        if len(lines) > MOST_LINES:
            yield f"  {kind}: {len(lines) - MOST_LINES} more like these"
    yield _verdict(sums)


def _causes(sums: Account, kind: str, head: str) -> Iterator[str]:
    found = sums.causes(kind)
    if found or kind == "dropped":
        yield head
    for name, cause in list(found.items())[:MOST_LINES]:
        yield f"            {cause.count:>14,}  {name}, between {cause.since} and {cause.until}"
    if len(found) > MOST_LINES:
        yield f"            {len(found) - MOST_LINES} more causes"


def _verdict(sums: Account) -> str:
    if sums.problems:
        return "The sums do not agree."
    if sums.unread:
        return "Nobody knows whether the sums agree: not all of it can be read."
    but = ", but for what is explained above" if sums.explained else ""
    states = (
        (sums.total("open"), "session", "open"),
        (sums.total("waiting"), "session", "not yet written"),
        (sums.files.since.lines, "line", "newer than the ledger's last"),
    )
    still = [
        f"{count:,} {noun} is {words}" if count == 1 else f"{count:,} {noun}s are {words}"
        for count, noun, words in states
        if count
    ]
    return f"The sums agree so far{but}: {', '.join(still)}." if still else f"The sums agree{but}."


def _object(sums: Account) -> dict[str, Any]:
    """All of it, for --json."""
    names = ("accepted", "recorded", "dropped", "open", "waiting", "cut off", "lines", "bytes", "bytes_in")
    return {
        "ledger": str(sums.ledger),
        "agrees": sums.agrees(),
        "verdict": _verdict(sums),
        "running": sums.running.id if sums.running else None,
        "totals": {name.replace(" ", "_"): sums.total(name) for name in (*names, "bytes_dropped")},
        "causes": {
            kind: {name: vars(cause) for name, cause in sums.causes(kind).items()} for kind in ledger_lines.CAUSES
        },
        "runs": [
            {
                "run": run.id,
                "sensor": run.sensor,
                "began": run.began,
                "last": run.last,
                "ended": "running" if run is sums.running else "stopped" if run.stopped else "killed",
                "explained": run.how or None,
                **{name: run.totals[name] for name in ("accepted", "recorded", "dropped")},
                "open": run.open,
            }
            for run in sums.runs.values()
        ],
        "files_checked": sums.files.checked,
        "notes": sums.notes,
        "unread": sums.unread,
        "problems": sums.problems,
    }
