"""What is missing, explained in the ledger: by a person (`tcppc account --acknowledge`), or since `tcppc recover` has
brought it back.

A line explains what the ledger says of its run before it. Of files it explains those that it names, and says what
stood there: bytes that go later are missing again. docs/ledger.md has the lines.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from tcppc.account import Account, Run
from tcppc.account_files import File, UnreadableError
from tcppc.clock import Zone
from tcppc.ledger_lines import Values
from tcppc.show import DataError


def acknowledge(sums: Account, only: str, why: str, by: str) -> list[Values]:
    """A line for each run of which something is a problem, or for `only` that one (its id, or when it began) and for
    all files that it was the last to write. `sums` are checked. ValueError where there is no such run."""
    if only:
        runs = [run for run in sums.runs.values() if only in (run.id, run.began)]
        if not runs:
            raise ValueError(f"the id of a run in {sums.ledger}, or when it began, not {only!r}")
    else:
        runs = [run for run in sums.runs.values() if run.findings]
    lines = []
    for run in runs:
        files = [state for file in _files(sums, run, bool(only)) if (state := _state(sums, file))]
        line = _line("acknowledge", run) | {"why": why, "by": by}
        line |= {"running": True} if run is sums.running else {}  # how it will end is not known
        lines.append(line | ({"files": files} if files else {}))
    return lines


def recovered(sums: Account, run: Run, sessions: int, lost: int) -> Values:
    """The line of a killed run whose event lines gave so many sessions, and so many of them without an end. It explains
    nothing of files, but says what stands there where nothing of it is missing."""
    files = []
    for file in _files(sums, run, False):
        state = _state(sums, file)
        if "size" in state and state["size"] >= file.expected and not file.changed:
            files.append(state)
    line = _line("recover", run) | {"sessions": sessions, "lost": lost}
    return line | {"files": files} if files else line


def _line(event: str, run: Run) -> Values:
    return {"timestamp": Zone().stamp(time.time_ns()), "run": run.id, "sensor": run.sensor, "event": event}


def _files(sums: Account, run: Run, all_of_them: bool) -> Iterable[File]:
    """The file that it had open when it ended, and where `all_of_them` those it was the last to write and that are not
    as they should be."""
    wrong = {finding.file for finding in sums.files.problems if finding.run == run.id}
    for name, file in sums.files.of.items():
        ended_open = name == run.file and (file.run == run.id or name in wrong)
        if ended_open or (all_of_them and name in wrong):
            yield file


def _state(sums: Account, file: File) -> Values:
    """What stands there, unless it is written to; nothing where that cannot be read."""
    if file.streamed:
        return {}
    if sums.running and sums.running.file == file.name:
        return {"file": file.name}
    try:
        there, _ = sums.files.there(file)
    except (DataError, UnreadableError):  # it stays the problem that it is
        return {}
    return {"file": file.name, "size": there.size, "lines": there.lines}
