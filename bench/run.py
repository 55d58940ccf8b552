"""Measure the sensor beside a stdlib yardstick and any peer, and print one table. See README.md.

    python bench/run.py [--peer NAME='COMMAND with {port} and {file}'] [--quick] ...

Exit code 0: ours lost nothing (a missed target is marked in the table, no more); 1: ours lost something or
failed, or the harness could not go on; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from figures import Figure, Sample, Sizes, make_figures
from servers import BenchError, Contender, Server, split_command
from table import Samples, render
from tools import HERE, Tools, make_tools

GROUPS = ("tcp", "tcplog", "udp", "burst", "tls-rsa", "tls-ecdsa", "hold", "flood")


@dataclass
class Report:
    """What is known so far: `failures` are ours and decide the exit code, `notes` are everything else."""

    samples: Samples = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # a figure's name: why it was not measured

    def tell(self, contender: Contender, text: str) -> None:
        """Keep a line about a server, once."""
        lines = self.failures if contender.ours else self.notes
        if text not in lines:
            lines.append(text)


class Progress:
    """Where the run is, on standard error: one line rewritten on a terminal, else a line a step."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def step(self, text: str) -> None:
        """Show what is being done now."""
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        """Say something that stays."""
        print(f"\r\x1b[K{text}" if self._terminal else text, file=sys.stderr, flush=True)

    def done(self) -> None:
        """Leave an empty line behind on a terminal."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Benchmark:
    """The whole run: every figure, every server, in turn."""

    def __init__(self, contenders: list[Contender], tools: Tools, runs: int) -> None:
        self._contenders = contenders
        self._tools = tools
        self._runs = runs
        self._progress = Progress()
        self._started = 0
        self._shown: set[str] = set()  # whose output was shown already
        self.report = Report()

    def measure(self, figures: list[Figure]) -> None:
        """Measure all that can be measured; the report says what could not."""
        for figure in figures:
            missing = [self._tools.missing[name] for name in figure.needs if name in self._tools.missing]
            reason = figure.reason_not or "; ".join(missing)
            if reason:
                self.report.left_out[figure.name] = reason
            else:
                self._figure(figure)
        self._progress.done()

    def _figure(self, figure: Figure) -> None:
        """A B A B, so that what disturbs the machine for a while disturbs all servers alike."""
        able = [c for c in self._contenders if figure.kind in c.commands]
        taking_part = [c for c in able if c.ours or not figure.only_ours]
        taken = self.report.samples.setdefault(figure.name, {c.name: [] for c in taking_part})
        runs = min(self._runs, figure.most_runs)
        given_up: set[str] = set()
        for run in range(1, runs + 1):
            for contender in taking_part:
                if contender.name in given_up:
                    taken[contender.name].append(None)
                    continue
                self._progress.step(f"{figure.name}: run {run} of {runs}: {contender.name}")
                sample = self._sample(figure, contender)
                taken[contender.name].append(sample)
                if sample is None:
                    given_up.add(contender.name)

    def _sample(self, figure: Figure, contender: Contender) -> Sample | None:
        """One server started, measured and stopped; None when that failed."""
        self._started += 1
        folder = self._tools.folder / f"{self._started:03d}"
        certificate = self._tools.certificate(figure.certificate) if figure.certificate else None
        server = Server(contender.commands[figure.kind], folder, figure.proto, certificate)
        where = f"{figure.name}: {contender.name}"
        sample = None
        try:
            with server:
                sample = figure.measure(server, self._tools)
                faults = [*sample.faults, *end_faults(server, contender)]
            if sample.values["lost"] and contender.ours:
                faults.append(f"{sample.values['lost']:.0f} not recorded")
            if faults and contender.ours:
                # Nothing that a broken sensor does is a figure, least of all a good one.
                sample.values = {"lost": sample.values["lost"]}
        except (BenchError, OSError) as error:
            faults = ["it ended while it was measured" if server.died else str(error)]
        for fault in faults:
            self.report.tell(contender, f"{where}: {fault}")
        if faults and (contender.ours or sample is None) and where not in self._shown:
            self._shown.add(where)
            self._progress.line(f"{where}: {'; '.join(faults)}")
            for line in server.last_lines():
                self._progress.line(f"    its output: {line}")
        shutil.rmtree(folder, ignore_errors=True)
        return sample


def end_faults(server: Server, contender: Contender) -> list[str]:
    """Stop the server; what was wrong with it up to its end. A peer's own manner of ending is its affair."""
    if not server.alive() and not server.stopped:
        return ["it ended while it was measured"]
    code = server.stop()
    if not contender.ours:
        return []
    faults = [f"it ended with code {code}"] if code else []
    return [*faults, "a traceback is in its output"] if server.complained() else faults


def named(text: str) -> tuple[str, str]:
    """NAME=COMMAND in its two parts."""
    name, equals, command = text.partition("=")
    if not (equals and name.strip() and command.strip()):
        raise argparse.ArgumentTypeError(f"expected NAME='COMMAND', not '{text}'")
    if name.strip() in ("ours", "yardstick"):
        raise argparse.ArgumentTypeError(f"a peer can't be called '{name.strip()}'")
    return name.strip(), command


def plain_peer(text: str) -> tuple[str, list[str]]:
    """A --peer argument."""
    return peer(text, "port", "file")


def tls_peer(text: str) -> tuple[str, list[str]]:
    """A --peer-tls argument."""
    return peer(text, "port", "file", "cert", "key")


def peer(text: str, *placeholders: str) -> tuple[str, list[str]]:
    """The peer's name and the words of its command."""
    name, command = named(text)
    try:
        return name, split_command(command, *placeholders)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def groups(text: str) -> list[str]:
    """An --only argument."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"no figure '{name}'; there are {', '.join(GROUPS)}")
    return names


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, not '{text}'")
    return int(text)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the sensor beside the stdlib and beside peers.")
    add = parser.add_argument
    add("--peer", type=plain_peer, action="append", default=[], metavar="NAME='COMMAND'",
        help="another sensor to compare with; {port} and {file} stand in its command")  # fmt: skip
    add("--peer-tls", type=tls_peer, action="append", default=[], metavar="NAME='COMMAND'",
        help="the same for TLS, with {port}, {file}, {cert} and {key}")  # fmt: skip
    add("--runs", type=positive, metavar="N", help="runs of each figure (default 5, with --quick 2)")
    add("--only", type=groups, default=list(GROUPS), metavar="LIST", help=f"of {','.join(GROUPS)}")
    add("--sessions", type=positive, metavar="N", help="sessions a run (default 20000, with --quick 2000)")
    # A pace that every server keeps up with, so that CPU is compared and not loss.
    add("--pace", type=positive, default=5000, metavar="N", help="datagrams a second in udp (default 5000)")
    add("--quick", action="store_true", help="a tenth of everything: does it run, not how fast")
    return parser.parse_args(argv)


def make_sizes(sessions: int, pace: int, quick: bool) -> Sizes:
    """How much to send; a burst is always a whole one, for it is about one number of datagrams."""
    most = {"hold": 500, "hold_most": 0, "flood": 128, "flood_all": 16}
    if not quick:
        most = {"hold": 5000, "hold_most": 15000, "flood": 1024, "flood_all": 64}
    # A handshake takes about a millisecond of CPU, a plain session a tenth of that.
    return Sizes(sessions, max(1, sessions // 4), sessions, pace, 100_000, **most)


def make_contenders(args: argparse.Namespace) -> list[Contender]:
    """Ours, the yardstick, then the peers as they were named."""
    sensor = [sys.executable, "-m", "tcppc", "-p", "{port}", "-w", "{file}"]
    ours = {"plain": [*sensor, "-q"], "log": sensor, "tls": [*sensor, "-q", "-C", "{cert}", "-K", "{key}"]}
    yardstick = [sys.executable, str(HERE / "stdlib_server.py"), "--port", "{port}", "--file", "{file}"]
    peers: dict[str, dict[str, list[str]]] = {}
    for name, command in args.peer:
        # A peer is measured as it is: whether it can be quiet is for whoever writes its command.
        peers.setdefault(name, {}).update(plain=command, log=command)
    for name, command in args.peer_tls:
        peers.setdefault(name, {}).update(tls=command)
    contenders = [Contender("ours", "ours", ours), Contender("yardstick", "yardstick", {"plain": yardstick})]
    return [*contenders, *(Contender(name, "peer", commands) for name, commands in peers.items())]


def terminated(number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends the run as an exception, so that no server is left behind."""
    raise SystemExit(128 + number)


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit code."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sizes = make_sizes(args.sessions or (2000 if args.quick else 20000), args.pace, args.quick)
    figures = [figure for figure in make_figures(sizes) if figure.group in args.only]
    contenders = make_contenders(args)
    with tempfile.TemporaryDirectory(prefix="tcppc-bench-") as folder:
        tools = make_tools(Path(folder), tls=any(figure.certificate for figure in figures))
        benchmark = Benchmark(contenders, tools, args.runs or (2 if args.quick else 5))
        benchmark.measure(figures)
    report = benchmark.report
    print(render(figures, contenders, report.samples, report.left_out))
    for note in report.notes:
        print(f"note: {note}")
    for failure in report.failures:
        print(f"FAILED: {failure}")
    return 1 if report.failures else 0


def main(argv: list[str] | None = None) -> int:
    """The exit code of the whole."""
    signal.signal(signal.SIGTERM, terminated)
    args = parse(argv)
    try:
        return run(args)
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
