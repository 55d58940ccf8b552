"""`tcppc recover`: what event lines have, as session records."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, Any

from tcppc import explanations, recover
from tcppc.account import Account, Run, account_of
from tcppc.capture.files import end_half_line
from tcppc.cli.arguments import PROGRAM, Exit, UsageError, parser
from tcppc.cli.progress import Progress
from tcppc.cli.reading import all_files, tell
from tcppc.ledger_lines import add, find
from tcppc.problems import Few
from tcppc.records import read_lines, run_of
from tcppc.show import DataError, read_files
from tcppc.sightings import EVENTS

_EXAMPLES = """\
examples:
  tcppc recover data/events.jsonl > sessions.jsonl     session records of event lines (--record events)
  tcppc recover data/ -o sessions.jsonl                adds what is not in sessions.jsonl yet; may be run again
"""


MOST_SAID = 20


class Ledgers:
    """The ledgers beside the files: which runs go on, and which were killed, by the part of ids that each run draws
    anew; and what is read of the killed ones. OSError where a ledger cannot be read."""

    def __init__(self, files: Sequence[Path]) -> None:
        ledgers = sorted({ledger for folder in {path.parent for path in files} if (ledger := find(folder))})
        self.sums = [account_of(ledger.parent) for ledger in ledgers]
        self._unheard = any(sums.unheard for sums in self.sums)
        self._ended = {run_of(run.id) for sums in self.sums for run in sums.runs.values() if run is not sums.running}
        self._alive = {run_of(sums.running.id) for sums in self.sums if sums.running}
        self.killed = {run_of(run.id) for sums in self.sums for run in sums.unexplained()}
        self.begun: set[str] = set()  # sessions of which there is an event line
        self.whole: set[str] = set()  # sessions of TCP that are a line of their own
        self.given: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()  # of those given: without an end

    def __contains__(self, run: object) -> bool:
        """Does it go on?"""
        return run in self._alive or (self._unheard and run not in self._ended)

    def read(self, line: dict[str, Any]) -> None:
        identity = str(line.get("id", ""))
        if run_of(identity) not in self.killed:
            return
        if "event" in line:
            if line["event"] not in EVENTS:
                self.begun.add(identity)
        elif line.get("closed", "limit") != "limit":  # neither a datagram nor a refused session, which have no events
            self.whole.add(identity)

    def give(self, record: dict[str, Any]) -> None:
        run = run_of(str(record.get("id", "")))
        self.given[run] += 1
        self.lost[run] += record.get("closed") == "lost"

    def unexplained(self, sums: Account, run: Run, files: Collection[Path]) -> str:
        """Why what was read does not tell what became of a killed run; empty where it does."""
        key = run_of(run.id)
        if not any(run_of(identity) == key for identity in self.begun):
            return "there are no event lines of it (record = sessions), or in none of these files"
        if any(run_of(identity) == key for identity in self.whole - self.begun):
            return "not all of its sessions have event lines (record was changed by a reload)"
        for name in sorted(run.files):
            found = sums.files.found(sums.files.of[name])
            if found and found[0] == sums.folder / name and found[0].stat().st_size >= sums.files.of[name].expected:
                found = found[:1]  # it is whole by itself
            for path in found:
                if path.resolve() not in files:
                    return f"its file {path.name} is not among those that were read"
        expected = run.totals["accepted"] - run.totals["dropped"]
        if self.given[key] < expected and not any(sums.files.of[name].removed for name in run.files):
            return f"by its last line in the ledger it had {expected} sessions, and {self.given[key]} were found"
        return ""


def recover_command(argv: Sequence[str]) -> int:
    flags = parser("recover", _EXAMPLES)
    flags.add_argument("paths", nargs="+", metavar="FILE|DIR", type=Path)
    flags.add_argument("-o", "--output", metavar="FILE", type=Path, help="add the records to this file")
    given = flags.parse_args(argv)
    try:
        files = list(dict.fromkeys(path.resolve() for path in all_files(given.paths)))
        if given.output:
            with contextlib.suppress(FileNotFoundError):  # it is made anew
                output_is = given.output.stat()
                files = [path for path in files if not os.path.samestat(path.stat(), output_is)]
        assembler, ledgers = recover.Assembler(), Ledgers(files)
        if given.output is None:
            return _recover(assembler, ledgers, files, sys.stdout.buffer)
        if not _is_file(given.output):  # there is nothing to read back, and reading it may never end
            with given.output.open("wb") as output:
                return _recover(assembler, ledgers, files, output)
        with given.output.open("a+b") as output:
            output.seek(0)
            for _, record in read_lines(output):
                if record and "event" not in record:
                    with contextlib.suppress(ValueError):  # something else was in that file: nothing to know of it
                        assembler.add(record)
                        ledgers.give(record)
            end_half_line(output.fileno())
            return _recover(assembler, ledgers, files, output)
    except BrokenPipeError:
        raise
    except OSError as problem:
        where = problem.filename or given.output
        if where is None:
            raise
        raise UsageError(f"{where}: cannot be used: {problem.strerror}") from None
    except DataError as problem:
        raise UsageError(str(problem)) from None


def _is_file(path: Path) -> bool:
    """Is it one, or will it be?"""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True


def _recover(assembler: recover.Assembler, ledgers: Ledgers, files: Sequence[Path], output: IO[bytes]) -> int:
    """Write what becomes whole as it does, then what never did; say in one line what came of it, and let the ledgers
    know."""
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
            if line is not None:
                ledgers.read(line)
            if line is not None and record:
                whole += 1
                ledgers.give(record)
                output.write(_line(record))
        for record in assembler.rest(ledgers):
            lost += 1
            ledgers.give(record)
            output.write(_line(record))
        output.flush()
    finally:
        progress.done()
    still_open, strays = assembler.left()
    words = [f"{whole} sessions whole", f"{lost} lost (they never ended)"]
    words += [f"{still_open} still open"] if still_open else []
    words += [f"{passed_over} lines passed over, that are cut off or no records"] if passed_over else []
    words += [f"{strays} sessions left out: they begin in a file that was not given"] if strays else []
    words += ["and not all could be read"] if damaged else []
    print(f"{PROGRAM}: {', '.join(words)}", file=sys.stderr)
    few.over()
    code = tell(damaged) or (Exit.FAILED if strays else Exit.DONE)
    if code == Exit.DONE:
        for sums in ledgers.sums:
            tell(_explain(sums, ledgers, set(files))[:MOST_SAID])
    return code


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def _explain(sums: Account, ledgers: Ledgers, files: Collection[Path]) -> list[str]:
    """Write into the ledger which of its killed runs are brought back; what is to be said of them."""
    lines, said = [], []
    for run in sums.unexplained():
        key, whose = run_of(run.id), f"{sums.ledger}: the run of {run.began}"
        if why := ledgers.unexplained(sums, run, files):
            said.append(f"{whose} stays unexplained: {why}")
        else:
            lines.append(explanations.recovered(sums, run, ledgers.given[key], ledgers.lost[key]))
            said.append(
                f"{whose} is explained now: {ledgers.given[key]} sessions of it, {ledgers.lost[key]} of them lost"
            )
    try:
        if lines:
            add(sums.ledger, lines)
    except OSError as problem:
        return [f"{sums.ledger}: cannot be written to: {problem.strerror}; tcppc account knows of no recovery"]
    return said
