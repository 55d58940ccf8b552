"""The soak's course: a place, a sensor with all on, strangers, faults; then a stop, the judge and the report.

Exit code 0: nothing is unexplained. 1: something is, or the soak could not go on. 2: wrong usage.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from tests.soak import evidence, faults, notes, place, settings, strangers
from tests.soak.evidence import Record
from tests.soak.faults import Fault, Faults, Stage
from tests.soak.follower import Follower
from tests.soak.helpers import Helper
from tests.soak.janitor import Janitor
from tests.soak.judge import Judge, Judgement
from tests.soak.meter import Meter, held, shown
from tests.soak.place import Place, PlaceError
from tests.soak.report import Report
from tests.soak.sensor import STOPPED, Sensor, SensorError

LINE_SECONDS = 60.0
LAST_VISITS_SECONDS = 3.0  # between the last new stranger and the sensor's stop
VISITS_END_SECONDS = 60.0
STARTS, START_PAUSE_SECONDS = 5, 3.0  # for a sensor that ended by itself
LIVES_SHARE = 0.25  # of the time, in which the sensor is ended and started again


def _cut(record: Record) -> Record:
    return replace(record, data=record.data[:-1], size=len(record.data[:-1]))


# What --spoil does, by the number of the record.
SPOILED: dict[int, Callable[[Record], Record | None]] = {
    100: lambda record: None,
    **dict.fromkeys(range(200, 205), _cut),
    300: lambda record: replace(record, src="192.0.2.99"),
}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="how long strangers come (default 30)")
    parser.add_argument("--seed", type=int, help="what is drawn follows from it (default: another one each time)")
    parser.add_argument("--rate", type=float, default=25, help="new strangers a second (default 25)")
    parser.add_argument("--record", choices=("sessions", "events"), help="files.record (default: by the seed)")
    parser.add_argument("--faults", default="all", help=f"all, none, or some of {', '.join(sorted(faults.BY_NAME))}")
    parser.add_argument("--pause", type=float, default=8, help="seconds between two faults of a kind (default 8)")
    parser.add_argument(
        "--without", default="", help=f"kinds of strangers that stay away: {', '.join(strangers.NAMES)}"
    )
    parser.add_argument("--loopback", action="store_true", help="no network namespaces, also where they can be had")
    parser.add_argument("--folder", type=Path, help="for everything (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep data, copies and logs also where all is explained")
    parser.add_argument("--spoil", action="store_true", help="spoil some records before they are judged: is it found?")
    parser.add_argument(
        "--tcppc", default=f"{shlex.quote(sys.executable)} -m tcppc", metavar="COMMAND", help="the sensor under test"
    )
    return parser.parse_args(argv)


def names(text: str, flag: str, known: Sequence[str]) -> list[str]:
    """Names with commas between; wrong usage where one is none of those known."""
    found = [name for name in text.split(",") if name]
    if unknown := [name for name in found if name not in known]:
        print(f"soak: {flag} {unknown[0]}: expected some of {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    return found


def chosen_faults(text: str) -> list[Fault]:
    every = sorted(faults.BY_NAME)
    found = every if text == "all" else [] if text == "none" else names(text, "--faults", every)
    return [faults.BY_NAME[name] for name in found]


class Interrupts:
    """SIGINT and SIGTERM: the first one ends the strangers' time, where they are at it; any other ends all."""

    def __init__(self) -> None:
        self.first = False
        self.patient = False  # is somebody there who looks at `first`?
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._came)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self.first or not self.patient:
            raise KeyboardInterrupt
        self.first = True
        print("interrupted: what was sent so far is judged; once more ends all at once", file=sys.stderr)


class Soak:
    def __init__(self, given: argparse.Namespace, seed: int, folder: Path, janitor: Janitor) -> None:
        self.given = given
        self.seed = seed
        self.folder = folder
        self.problems: list[str] = []
        self.meter = Meter()
        self.descriptors: dict[str, int] = {}  # what the sensor had open when it was told to stop
        self.record = given.record or ("events" if seed % 2 else "sessions")
        self.lot = random.Random(seed)
        self.why_loopback = "asked for" if given.loopback else place.why_loopback()
        self.place: Place = place.make(folder, janitor, bool(self.why_loopback))
        self.settings = settings.make(self.place, self.lot, self.record)
        self.words = shlex.split(given.tcppc)
        self.neighbours = Helper(
            "tests.soak.neighbours",
            [str(folder), settings.HOOK, settings.METRICS],
            self.place.sensor_prefix,
            folder / "neighbours.err",
            janitor,
        )
        self.sensor = Sensor(self.words, self.place, self.settings, janitor)
        self.sensor.start()
        self.began = time.time()
        self.follower = Follower(self.place.disk, folder / "copies")
        self.follower.start()
        self.strangers = self._strangers(janitor)

    def _strangers(self, janitor: Janitor) -> Helper:
        told = {
            "seed": self.seed, "targets": self.place.targets, "sources": self.place.sources, "rate": self.given.rate,
            "balancer": self.place.balancer, "port": settings.PORT, "every_port": self.place.namespaces,
            "notes": str(self.folder / "notes.jsonl"), "without": self.given.without.split(","),
        }  # fmt: skip
        path = self.folder / "strangers.json"
        path.write_text(json.dumps(told), encoding="utf-8")
        errors = self.folder / "strangers.err"
        return Helper("tests.soak.strangers", [str(path)], self.place.strangers_prefix, errors, janitor)

    def keep_going(self, interrupts: Interrupts) -> Faults:
        """Until the time is over, or something makes going on senseless."""
        stage = Stage(self.place, self.settings, self.sensor, self.follower, self.strangers, self.neighbours, self.lot)
        self.stage = stage
        chosen = chosen_faults(self.given.faults)
        if not self.place.namespaces:
            chosen = [fault for fault in chosen if fault not in faults.NEED_NAMESPACES]
        until = time.monotonic() + self.given.minutes * 60
        lives_until = time.monotonic() + self.given.minutes * 60 * LIVES_SHARE
        doing = Faults(stage, chosen, self.given.pause, lives_until)
        doing.start()
        next_line = time.monotonic() + LINE_SECONDS
        interrupts.patient = True
        while time.monotonic() < until and not interrupts.first and self._well():
            time.sleep(1)
            self._measure()
            if time.monotonic() >= next_line:
                next_line += LINE_SECONDS
                self._say(len(doing.done))
        interrupts.patient = False
        doing.close()
        self.problems += doing.failures
        return doing

    def _measure(self) -> None:
        # The metrics of the life before are still told in the moment after a start.
        told = self.neighbours.told
        fresh = self.sensor.lives and told.get("at", 0) * 1e9 > self.sensor.life.ready > 0
        metrics = told.get("metrics", {}) if fresh else {}
        self.meter.look(self.sensor.pid, len(self.sensor.lives), time.time(), metrics)

    def _well(self) -> bool:
        """False where the strangers or the neighbours ended; a sensor that ended by itself is started again."""
        if not self.strangers.alive() or not self.neighbours.alive():
            self.problems.append("a program of the soak itself ended too early: see its .err file")
            return False
        life = self.sensor.life
        if self.sensor.alive() or life.told:
            return True
        if not life.ready:  # the fault that started it says so too
            self.problems.append(f"the sensor did not start again: {self.sensor.last_words()}")
            return False
        self.sensor.note_end()
        self.problems.append(f"the sensor ended by itself ({life.code}): {self.sensor.last_words()}")
        return self._start_again()

    def _start_again(self) -> bool:
        """A fault of the soak's may keep it from starting for a while, such as a disk that is full."""
        for _ in range(STARTS):
            try:
                self.sensor.start()
                return True
            except SensorError as problem:
                why = str(problem)
                self.sensor.note_end()
                time.sleep(START_PAUSE_SECONDS)
        self.problems.append(why)
        return False

    def _say(self, done: int) -> None:
        sent, meter = self.strangers.told, self.meter
        now = meter.samples[-1] if meter.samples else None
        accepted, recorded = meter.total("sessions_started"), meter.total("sessions_ended")
        itself = (
            f"{shown('memory', now.memory)}, {now.threads} threads, {now.descriptors} descriptors"
            if now
            else "not there"
        )
        minute = (time.time() - self.began) / 60
        print(
            f"minute {minute:.0f}: sent {sent.get('tcp', 0):,} tcp, {sent.get('udp', 0):,} udp, "
            f"{sent.get('bytes', 0) / 1e6:,.0f} MB; accepted {accepted:,}, recorded {recorded:,}, open "
            f"{int(self.neighbours.metric('sessions_open')):,}; {itself}; {done} faults",
            flush=True,
        )

    def stop(self) -> None:
        """The last strangers, then SIGTERM with those that are still there, then all programs beside it."""
        self.strangers.say("stop")
        time.sleep(LAST_VISITS_SECONDS)
        self._measure()
        self.descriptors = held(self.sensor.pid)
        try:
            if self.sensor.alive():
                self.sensor.end(STOPPED)
            elif not self.sensor.life.told:
                self.sensor.note_end()
                self.problems.append(f"the sensor ended by itself ({self.sensor.life.code})")
        except SensorError as problem:
            self.problems.append(str(problem))
        self.problems += [
            f"life {number} ended with {life.code}, not 0"
            for number, life in enumerate(self.sensor.lives, 1)
            if life.how == STOPPED and life.code != 0
        ]
        until = time.monotonic() + VISITS_END_SECONDS
        while time.monotonic() < until and self.strangers.told.get("open") and self.strangers.alive():
            time.sleep(0.5)
        time.sleep(1.5)  # one more line of its counts
        if left := self.strangers.told.get("open"):
            self.problems.append(f"{left} strangers had not ended {VISITS_END_SECONDS:.0f} s after the sensor")
        if count := self.strangers.told.get("failures"):
            self.problems.append(f"strangers failed {count} times: see strangers.err")
        self.strangers.close()
        self.neighbours.close()
        self.follower.close()
        self.problems += [self.follower.failure] if self.follower.failure else []

    def judge(self, doing: Faults) -> Report:
        kernel = place.kernel_counters(self.place)
        evidence.put_together(self.place.disk, self.stage.removed)
        found, seen = self._hold()
        account = evidence.command(self.words, "account", str(self.place.data))
        counted = evidence.ledger(self.place.data / "ledger.jsonl")
        told = self.neighbours.told.get("counts", {})
        names = (
            "sessions_dropped",
            "sessions_truncated",
            "sessions_refused",
            "log_lines_lost",
            "watch_kernel_drops",
            "kernel_udp_drops",
        )
        beside = {**told, **{name: self.meter.total(name) for name in names}}
        where = "two network namespaces" if self.place.namespaces else f"loopback ({self.why_loopback})"
        minutes = (time.time() - self.began) / 60
        report = Report(
            self.seed, self.record, minutes, where, found, counted, seen, self.sensor.lives, doing.done,
            self.meter.trends(self.began), beside, kernel, account.text,
            self.meter.counted("sessions_dropped", "kernel_udp_drops"), self.descriptors,
        )  # fmt: skip
        report.unexplained += evidence.log_problems(self.sensor.log)
        report.unexplained += self.problems + evidence.account_problems(account, self.sensor.lives) + seen.problems
        if seen.lines < counted.lines:
            report.unexplained.append(f"the ledger counts {counted.lines} lines, the copies have {seen.lines}")
        report.judge_counts()
        return report

    def _hold(self) -> tuple[Judgement, evidence.Evidence]:
        """Notes against records."""
        paths = sorted((self.folder / "copies").iterdir())
        seen = evidence.Evidence()
        seen.read(paths)
        if self.record == "events":
            recovered = self.folder / "recovered.jsonl"
            said = evidence.command(self.words, "recover", *map(str, paths), "-o", str(recovered))
            (self.folder / "recover.txt").write_text(said.text, encoding="utf-8")
            if said.code or "left out" in said.text or "still open" in said.text:
                seen.problems.append(f"recover ended with {said.code}: {said.text.strip()[-300:]}")
            paths = [recovered]
        all_notes = notes.read(self.folder / "notes.jsonl")
        judge = Judge(all_notes, self.sensor.lives, self.record == "events", settings.DURATION, seen.syns)
        for number, record in enumerate(seen.records(paths)):
            spoil = SPOILED.get(number) if self.given.spoil else None
            if judged := spoil(record) if spoil else record:
                judge.add(judged)
        return judge.close(), seen


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments(sys.argv[1:] if argv is None else argv)
    chosen_faults(given.faults)
    names(given.without, "--without", strangers.NAMES)
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="tcppc-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        print(f"soak: --folder {folder}: expected an empty one", file=sys.stderr)
        return 2
    interrupts = Interrupts()
    janitor = Janitor()
    try:
        return _run(given, seed, folder.resolve(), janitor, interrupts)
    except (PlaceError, SensorError) as problem:
        print(f"soak: {problem}; see {folder}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"soak: interrupted; all is cleaned up but {folder}", file=sys.stderr)
        return 1
    finally:
        janitor.close()


def _run(given: argparse.Namespace, seed: int, folder: Path, janitor: Janitor, interrupts: Interrupts) -> int:
    soak = Soak(given, seed, folder, janitor)
    print(f"{soak.record}, {soak.place.targets}, data and logs in {folder}", flush=True)
    doing = soak.keep_going(interrupts)
    soak.stop()
    report = soak.judge(doing)
    text = "\n".join(report.lines())
    (folder / "soak.md").write_text(f"{text}\n", encoding="utf-8")
    (folder / "soak.json").write_text(json.dumps(report.values(), indent=1), encoding="utf-8")
    print(text)
    print(f"\n{folder}/soak.md and soak.json have this", flush=True)
    if not report.unexplained and not given.keep:
        _tidy(folder)
    return 1 if report.unexplained else 0


def _tidy(folder: Path) -> None:
    """What is large and nobody needs any more."""
    for name in ("copies", "sessions"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("notes.jsonl", "recovered.jsonl", "captures.log", "touched"):
        (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
