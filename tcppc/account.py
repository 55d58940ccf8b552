"""The ledger added up: what was accepted, what became of it, and whether the files still hold it.

`Account` takes the ledger's lines (ledger_lines.py), judges the runs, and has the files looked at (account_files.py).
What is missing is a problem until somebody has explained it: `tcppc account --acknowledge` and `tcppc recover` write
lines of their own, and what such a line explains is what the ledger said before it, never what comes later.
docs/ledger.md tells the lines and what is found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tcppc import clock
from tcppc.account_files import Files, Finding, Progress
from tcppc.capture.files import LEDGER
from tcppc.capture.ledger import in_use
from tcppc.ledger_lines import CAUSES, COUNTING, EXPLAINING, OF_FILES, TOTALS, Values, holder_began, known, read

# A process may seem to have begun so much later than a line of its own: the clock is set a little, now and then.
SLACK_NS = clock.NANOSECONDS


@dataclass
class Cause:
    """How often something happened, and within which ledger lines: (from, to) as their time stamps."""

    count: int = 0
    since: str = ""
    until: str = ""


@dataclass
class Run:
    """One start of a sensor: totals of its lines, and how it ended. `findings` are why its sums do not agree,
    `explained` those of them that somebody explained, with how."""

    id: str
    sensor: str
    began: str
    last: str
    totals: Counter[str] = field(default_factory=Counter)
    causes: dict[tuple[str, str], Cause] = field(default_factory=dict)  # by (kind, name)
    open: int = 0
    stopped: bool = False
    begun: bool = False  # its start line was there
    file: str = ""  # the data file that it has open, or had when it ended without closing it
    files: set[str] = field(default_factory=set)  # all it had
    dead: dict[str, tuple[str, str]] = field(default_factory=dict)  # thread or listener that is: since when, why
    over: bool = False  # more was recorded than accepted
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)  # damaged lines behind its last one
    explained: list[str] = field(default_factory=list)
    beside: str = ""  # the start of a run that wrote here at the same time
    how: str = ""  # somebody explained how it ended

    @property
    def missing(self) -> int:
        """Accepted sessions that are in no count, by its last line. While it runs they wait to be written."""
        return self.totals["accepted"] - self.totals["recorded"] - self.totals["dropped"] - self.open

    def find(self, text: str) -> None:
        self.findings.append(Finding(self.last, f"the run of {self.began}: {text}", self.id))

    def add(self, values: Values) -> None:
        """Its next line."""
        before, self.last = self.last, values["timestamp"]
        self._follow(values)
        self.how = ""  # it goes on
        self._settle()
        event = values["event"]
        if event in COUNTING:
            for name in TOTALS:
                self.totals[name] += values[name]
            self.totals["bytes_dropped"] += values.get("bytes_dropped", 0)
            self.totals["dropped"] += sum(values.get("dropped", {}).values())
            self.open = values["open"]
            for kind in CAUSES:
                for name, count in values.get(kind, {}).items():
                    cause = self.causes.setdefault((kind, name), Cause(0, before))
                    cause.count += count
                    cause.until = values["timestamp"]
            self._judge(values)
        elif event in ("thread", "listener"):
            self._turn(f"{event} {values[event]}", values)

    def _follow(self, values: Values) -> None:
        """Is this the line that comes next? A sensor leaves none out."""
        event, name = values["event"], values.get("file", "")
        if event == "start" and self.begun:
            self.find("it has more than one start line")
        elif event != "start" and not self.begun:
            self.find("its start line is missing: the ledger's head was cut off, or a line is gone")
        elif self.stopped and event in ("open", *COUNTING):
            self.find(f"its line of {self.last} ({event}) comes after its stop: it is there twice, or out of its place")
        elif event == "open" and self.file:
            self.find(f"no line tells of {self.file}'s end: what it counted is missing")
        elif event in ("mark", "close") and name != self.file:
            self.find(f"{name} is counted at {self.last} and was not opened: a line is gone, or there twice")
        self.begun = True
        self.stopped = self.stopped or event == "stop"  # the keeper may remove a file after it
        if event in ("open", "mark"):
            self.file = name
            self.files.add(name)
        elif event == "close":
            self.file = ""

    def _judge(self, values: Values) -> None:
        """Its sums as they are with this line."""
        if lost := values.get("errors", {}).get("ledger_lines_lost", 0):
            self.find(f"{lost} lines of its ledger were lost, and what they counted is missing")
        if self.missing < 0 and not self.over:
            self.over = True
            self.find(f"{-self.missing} more sessions are recorded, dropped or open than were accepted")
        if values["event"] != "stop":
            return
        if self.missing > 0:
            self.find(f"{self.missing} accepted sessions are in no count")
        if self.open:
            self.find(f"{self.open} sessions were still open at its stop, and are lost")
        if self.totals["recorded"] > self.totals["lines"]:
            self.find(f"{self.totals['recorded']} sessions are recorded in {self.totals['lines']} lines")
        if self.file and "thread writer" not in self.dead and ("dropped", "stuck") not in self.causes:
            self.find(f"no line tells of {self.file}'s end: what it counted is missing")

    def _turn(self, what: str, values: Values) -> None:
        """A thread or listener is dead, stuck or alive again."""
        if not values["alive"]:
            self.dead.setdefault(what, (self.last, str(values.get("why", ""))))
        elif what in self.dead:
            since, why = self.dead.pop(what)
            self.notes.append(_outage(what, since, self.last, why))

    def _settle(self) -> None:
        self.findings += [Finding(self.last, text, self.id) for text in self.torn]
        self.torn.clear()

    def end(self) -> None:
        """No more lines come."""
        self._settle()
        until = f"the end of its run, after {self.last}" if self.stopped else f"its last line, of {self.last}"
        self.notes += [_outage(what, since, until, why) for what, (since, why) in self.dead.items()]

    def explain(self, how: str, ended: bool, all_of_it: bool) -> None:
        """Somebody did, by a line of the ledger at this place. `ended`: it ran no more by then; `all_of_it`: not only
        how it ended."""
        self.how = how if ended else ""
        self.explained += [f"{text}; {how}" for text in self.torn]
        self.torn.clear()
        if all_of_it:
            self.explained += [f"{finding.text}; {how}" for finding in self.findings]
            self.findings.clear()


def _outage(what: str, since: str, until: str, why: str) -> str:
    kind, _, name = what.partition(" ")
    said = f"the {name} was stuck" if kind == "thread" else f"the listener {name} did not answer"
    return f"{said} between {since} and {until}{': ' if why else ''}{why}"


class Account:
    """The sums of one folder's ledger. `problems` are why they do not agree, `notes` what one should know, `unread`
    what could not be looked at. What is older than `since` (ns) is left out."""

    def __init__(self, folder: Path, since: int = 0) -> None:
        self.folder = folder
        self.ledger = folder / LEDGER
        self.since = since
        self.runs: dict[str, Run] = {}
        self.files = Files(folder)
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.findings: list[Finding] = []  # what the problems are of
        self.running: Run | None = None
        self.unheard = False  # a sensor runs that has written no line
        self.explained = False
        self._damaged: list[str] = []  # before the first line of a run
        self._latest: Run | None = None
        self._unknown: Counter[str] = Counter()

    @property
    def unread(self) -> list[str]:
        return self.files.unread

    def damage(self, number: int) -> None:
        """This line of the ledger is none. It is laid to the run whose line came before, as a crash leaves half a
        line."""
        text = f"{self.ledger}:{number}: is no line of a ledger, passed over: its counts are missing"
        if self._latest is None:
            self._damaged.append(text)
        else:
            self._latest.torn.append(text)

    def add(self, values: Values) -> None:
        """The next line of the ledger."""
        event = values["event"]
        if not known(values):
            self._unknown[event] += 1
            if "accepted" in values and self._latest:
                self._latest.find(f"a line has counts of an event that this version does not know: {event}")
            return
        if event in EXPLAINING:
            self._explain(values)
            return
        stamp, key = values["timestamp"], values["run"]
        run = self.runs.setdefault(key, Run(key, values["sensor"], stamp, stamp))
        run.findings += [Finding("", text, key) for text in self._damaged]
        self._damaged.clear()
        newest = next(reversed(self.runs.values()))
        if run is not newest and not run.stopped and not run.beside:
            run.beside = newest.began
        self._latest = run
        if event in OF_FILES:
            self.files.add(values, self._left_open(values["file"]))
        run.add(values)
        if event == "stop" and run.file in self.files.of:
            self.files.of[run.file].end(values)

    def _left_open(self, name: str) -> bool:
        """Is it open, or was it when the run ended that wrote to it last?"""
        file = self.files.of.get(name)
        run = self.runs.get(file.run) if file else None
        return bool(run and run.file == name)

    def _explain(self, values: Values) -> None:
        """Of a run, and of the files that the line names."""
        stamp, run = values["timestamp"], self.runs.get(values["run"])
        why = f": {values['why']}" if values.get("why") else ""
        by = f" by {values['by']}" if values.get("by") else ""
        if values["event"] == "acknowledge":
            how = f"acknowledged{by} at {stamp}{why}"
        else:
            how = f"tcppc recover brought {values['sessions']} sessions back at {stamp}"
            how += f", {values['lost']} of them without their end" if values["lost"] else ""
        if run:
            run.explain(how, values.get("running") is not True, values["event"] == "acknowledge")
        for found in values.get("files", []):
            if found["file"] in self.files.of:
                self.files.of[found["file"]].acknowledge(found, how)

    def close(self) -> None:
        """All lines are read: judge the runs. The newest one without an end is the one that runs, if one does."""
        unended = [run for run in self.runs.values() if not run.stopped]
        if in_use(self.ledger):
            self.running = _holder(unended, holder_began(self.ledger))
            self.unheard = self.running is None
            unended = [run for run in unended if run is not self.running]
        for run in unended:
            self._judge_killed(run)
        if self.since:
            self.runs = {key: run for key, run in self.runs.items() if run is self.running or self._new(run.last)}
            self.files.left_out = {name for name, file in self.files.of.items() if not self._new(file.last)}
        for run in self.runs.values():
            run.end()
            if run.beside and run.stopped:
                self.notes.append(f"the runs of {run.began} and {run.beside} wrote here at the same time")
            self.findings += run.findings
            self.notes += run.notes + run.explained
            self.explained = self.explained or bool(run.explained)
        self._tell_of_ledger()

    def _judge_killed(self, run: Run) -> None:
        lost = [f"{run.open} sessions open"] + ([f"{run.missing} not yet written"] if run.missing > 0 else [])
        text = f"the run of {run.began} never stopped (kill -9, power cut): its last line is of {run.last}, with "
        text += ", ".join(lost)
        text += f"; or it runs still, beside that of {run.beside}: each needs a folder of its own" if run.beside else ""
        if run.how:
            run.explained.append(f"{text}; {run.how}")
        else:
            told = f"{text}; what it had not written by its end is lost"
            run.findings.append(Finding(run.last, told, run.id))

    def _tell_of_ledger(self) -> None:
        for event, count in self._unknown.items():
            self.notes.append(f"{count} lines of an event that this version does not know are passed over: {event}")
        sensors = sorted({run.sensor for run in self.runs.values()})
        if len(sensors) > 1:
            self.notes.append(f"lines of {len(sensors)} sensors: {', '.join(sensors)}")
        if self.unheard:
            self.notes.append("a sensor runs here that has written no line into this ledger yet")

    def _new(self, stamp: str) -> bool:
        return bool(stamp) and clock.parse(stamp) >= self.since

    def unexplained(self) -> list[Run]:
        """Runs that were killed, and nobody has said why or brought back what they had."""
        return [run for run in self.runs.values() if not run.stopped and run is not self.running and not run.how]

    def causes(self, kind: str) -> dict[str, Cause]:
        """Those of all runs, by name."""
        found: dict[str, Cause] = {}
        for run in self.runs.values():
            for (of, name), cause in run.causes.items():
                if of == kind:
                    all_of_it = found.setdefault(name, Cause(0, cause.since))
                    all_of_it.count += cause.count
                    all_of_it.until = cause.until
        return dict(sorted(found.items()))

    def total(self, name: str) -> int:
        """Of all runs: a total, or `open` and `waiting` of the one that runs, and `cut off` of those that ended."""
        if name in ("open", "waiting"):
            run = self.running
            return (run.open if name == "open" else max(0, run.missing)) if run else 0
        if name == "cut off":
            ended = [run for run in self.runs.values() if run is not self.running]
            return sum(run.open + max(0, run.missing) for run in ended)
        return sum(run.totals[name] for run in self.runs.values())

    def check(self, progress: Progress = lambda size: None) -> None:
        """Hold the files against the sums; `progress` is told of bytes read."""
        written_to = self.running.file if self.running else ""
        left = {name for name in self.files.of if self._left_open(name)}
        self.files.check(progress, written_to, left)
        self.findings += self.files.problems
        self.notes += self.files.notes
        self.explained = self.explained or any(file.explained for file in self.files.of.values())
        if self.since:
            self.findings = [finding for finding in self.findings if self._new(finding.stamp)]
        self.problems = [finding.text for finding in self.findings]

    def agrees(self) -> bool:
        return not self.problems and not self.unread


def _holder(unended: Sequence[Run], began: int | None) -> Run | None:
    """Which of these goes on: the newest, unless the process that holds the ledger began (ns) after its last line."""
    newest = unended[-1] if unended else None
    if newest and began is not None and clock.parse(newest.last) + SLACK_NS < began:
        return None
    return newest


def account_of(folder: Path, since: int = 0) -> Account:
    """The runs of a folder's ledger, judged; its files are not looked at yet. OSError where the ledger cannot be
    read."""
    sums = Account(folder, since)
    for number, line in read(sums.ledger):  # which never waits, as asking for the lock of a FIFO would
        if line is None:
            sums.damage(number)
        else:
            sums.add(line)
    sums.close()
    return sums
