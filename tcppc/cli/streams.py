"""`tcppc flows`, behind its flags: sources, engine and listeners put together, and run."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, TextIO, cast

from tcppc import folders
from tcppc.cli.arguments import PROGRAM, Exit, UsageError
from tcppc.cli.opening import become, first_source, output, source, tell
from tcppc.cli.progress import Progress
from tcppc.cli.wanted import Wanted
from tcppc.flows import alerts, libpcap, report, scanners, sharing, sources
from tcppc.flows.alerts import Alerts
from tcppc.flows.capture_files import CaptureError
from tcppc.flows.capture_writer import Kept, Writer
from tcppc.flows.console import Console, InOrder
from tcppc.flows.engine import UDP_IDLE_NS, Engine, Rules
from tcppc.flows.findx import Findx
from tcppc.flows.flow import Flow
from tcppc.flows.listener import Listener
from tcppc.flows.packets import Reading, Totals
from tcppc.flows.report import Report
from tcppc.flows.scanners import Scanners
from tcppc.flows.sources import Source, Stop
from tcppc.flows.stream_files import StreamFiles
from tcppc.problems import Failure, Few
from tcppc.values import duration

if TYPE_CHECKING:  # they need h11 and numpy
    from tcppc.flows.http_bodies import Bodies
    from tcppc.flows.turns import Turns


class _Run:
    """One of them. The first source is open before rights are given up, and all files are made behind that."""

    def __init__(self, wanted: Wanted, stop: Stop) -> None:
        self._wanted = wanted
        self._inputs = [*wanted.captures, *wanted.after]
        self._stop = stop
        self._tells = alerts.tells(wanted.settings)  # before any descriptor is ours
        self.code = Exit.DONE
        self._damaged = Few(tell)  # captures
        self._filter = libpcap.Filter(wanted.expression) if wanted.expression else None
        self._first = first_source(wanted.captures)
        self._live = None if wanted.captures or wanted.after else self._listen()
        if wanted.user:
            become(wanted.user)
        self._failed: list[str] = []
        self._outputs: list[TextIO] = []
        self._told: Report | None = None
        self._json: TextIO | None = None
        self._scanners: Scanners | None = None
        self._kept: Kept | None = None
        self._of_http: Bodies | None = None
        # From here on there may be two of us, of which the other one is told nothing and tells nobody.
        shared = self._shared()
        self._fragment = _fragment() if shared else None
        self._other = _other() if self._fragment else None
        self._is_other = bool(self._other and self._other.is_it)
        self._turns: Turns | None = None
        self._lost: sharing.Ended | None = None  # the other one is gone, in the middle of it
        try:
            self._prepare()
        except BaseException:
            if self._other:
                self._other.give_up()
            raise

    def _prepare(self) -> None:
        """All that is written to."""
        wanted = self._wanted
        rules = Rules(
            wanted.most_seek,
            wanted.most_bytes,
            self._nanoseconds("tcp_timeout", 0),
            self._nanoseconds("udp_timeout", UDP_IDLE_NS),
            wanted.first_wins,
        )
        template, folder = wanted.template, wanted.folder
        # Bodies are shown once their streams are whole: until then those wait where nobody sees them.
        self._hidden = (
            tempfile.TemporaryDirectory(prefix="tcppc-", dir=folders.temporary())
            if wanted.console and "http" in wanted.scanners
            else None
        )
        if self._hidden:
            template, folder = template.with_suffix(""), self._hidden.name
        self._files = StreamFiles(folder, template, wanted.most_open)
        self._writer = self._unhandled()
        reading = Reading(wanted.udp, wanted.tunnels, wanted.checksums, self._writer)
        self._totals = Totals()
        self._engine = Engine(self._files, template, rules, reading, self._listeners(), self._totals, self._share())

    def _shared(self) -> bool:
        """Are two processes of use, and is it the same what each of them does by itself?"""
        wanted = self._wanted
        alone = wanted.console or wanted.keep or wanted.index or wanted.json or wanted.scanners or wanted.unhandled
        settings = wanted.settings.keys() - {"enable_report"}
        if alone or wanted.checksums or settings or not wanted.template.counts_nothing or not sharing.of_use():
            return False
        sizes = [sources.plain_size(name) for name in self._inputs]
        return sum(sizes) >= sources.WORTH_SHARING and all(sizes)

    def _share(self) -> sharing.Share | None:
        if not self._other:
            return None
        number = int(self._is_other)
        from tcppc.flows.turns import Turns

        # The other one begins: this one has the report's beginning to write meanwhile.
        self._turns = Turns(1 - number, self._other.line, self._other.memory)
        return sharing.Share(number, self._turns)

    def _nanoseconds(self, name: str, default: int) -> int:
        if name not in self._wanted.settings:
            return default
        try:
            return int(duration(0, 1e9)(self._wanted.settings[name]) * 10**9)
        except ValueError as problem:
            raise UsageError(f"-S {name}: expected {problem}") from None

    def _listen(self) -> libpcap.Live:
        wanted = self._wanted
        interface = wanted.interface or libpcap.default_interface()
        live = libpcap.Live(interface, wanted.promiscuous, wanted.expression)
        if not wanted.quiet:
            print(f"{PROGRAM}: listening on {interface}", file=sys.stderr, flush=True)
        return live

    def _listeners(self) -> list[Listener]:
        """The report comes behind those whose findings it tells, and commands last: they may take files away."""
        wanted = self._wanted
        found: list[Listener] = []
        console = None
        if wanted.console:
            kind = InOrder if wanted.in_order else Console
            console = kind(sys.stdout.buffer, wanted.console, self._shown_name)
            if not self._hidden:
                found.append(console)
        if wanted.keep:
            self._kept = Kept(wanted.folder, wanted.template.with_suffix(".pcap"), wanted.most_open)
            found.append(self._kept)
        if wanted.json:
            from tcppc.clock import Zone
            from tcppc.flows.sessions import Sessions
            from tcppc.records import Encoder

            file = self._json = sys.stdout if wanted.json == "-" else self._output(wanted.json)
            encoder = Encoder(Zone(), "")
            sessions = Sessions(lambda each: print(encoder.line(each), file=file), first_wins=wanted.first_wins)
            found.append(sessions)
        if wanted.index and not wanted.template.no_files:
            found.append(Findx(self._files))
        if scans := self._scans():
            self._scanners = Scanners(self._files, scans)
            found.append(self._scanners)
        told = self._told = self._report()
        if "http" in wanted.scanners:
            found.append(self._bodies(told, console.message if console else None))
        if told:
            found.append(told)
        if self._tells.closed:
            found.append(Alerts(self._files, self._tells.opened, self._tells.closed))
        return found

    def _bodies(self, told: Report | None, show: Callable[..., None] | None) -> Listener:
        try:
            from tcppc.flows.http_bodies import Bodies
        except ImportError:
            raise UsageError("-e http: the package h11 is missing: pip install 'tcppc[http]'") from None
        self._of_http = Bodies(self._files, self._wanted.inflate, told, self._tells.bodies, show)
        return self._of_http

    def _scans(self) -> dict[str, scanners.Scan]:
        names = [name for name in self._wanted.scanners if name not in ("http", "python")]
        found = {name: scanners.plug_in(name) for name in names}
        if "python" in self._wanted.scanners:
            found["python"] = scanners.python(self._wanted.settings)
        return found

    def _shown_name(self, flow: Flow) -> str:
        name = self._wanted.template.path(flow.named)
        return name if self._wanted.folder == "." else f"{self._wanted.folder}/{name}"

    def _output(self, name: str, follow: bool = True) -> TextIO:
        file = output(name, self._inputs, follow)
        self._outputs.append(file)
        return file

    def _unhandled(self) -> Writer | None:
        name = self._wanted.unhandled
        return Writer(cast(IO[bytes], output(name, self._inputs).detach())) if name else None

    def _report(self) -> Report | None:
        wanted = self._wanted
        if wanted.settings.get("enable_report", "").upper() == "NO" or wanted.report == "":
            return None
        if self._fragment and self._is_other:
            return Report(self._fragment, self._files, self._totals, (), wanted.hashes, whole=False)
        name = wanted.report or os.path.join(wanted.folder, report.NAME)
        file = sys.stdout if name == "-" else self._output(name, follow=bool(wanted.report))
        if name != "-" and not wanted.quiet:
            print(f"reportfilename: {name}", file=sys.stderr)
        results = self._scanners.results if self._scanners else lambda flow: ""
        return Report(file, self._files, self._totals, self._inputs, wanted.hashes, results)

    def run(self) -> Exit:
        stop, begun = self._stop, time.monotonic()
        if self._other and self._other.is_it:
            self._other.tell(self._half(stop))
        try:
            self._work(stop)
        except BaseException as problem:
            if self._other:
                self._other.give_up()
            for file in self._outputs:  # what they still hold has nowhere to go
                with contextlib.suppress(OSError):
                    file.close()
            if isinstance(problem, OSError) and problem.filename is None:
                problem.filename = "an output (-X, --json, -w or the console)"
            raise
        self._damaged.over()
        few = Few(tell)
        for fault in self._failed:
            few(fault)
        few.over()
        if self._failed:
            tell(f"{len(self._failed)} streams lack something in their files, as the report says")
            self.code = Exit.FAILED
        if stop.wanted and not self._live:
            tell("stopped before the end of the captures; what was read is written")
            self.code = Exit.FAILED
        if not self._wanted.quiet:
            print(self._summary(time.monotonic() - begun), file=sys.stderr)
        return self.code

    def _work(self, stop: Stop) -> None:
        names = self._inputs
        size = sum(os.path.getsize(name) for name in names if os.path.isfile(name))
        progress = Progress("packets to streams", 0 if self._is_other else size)
        try:
            if self._live:
                self._hear(self._live, stop)
            for number, name in enumerate(names):
                if stop.wanted:
                    break
                self._engine.begins = number < len(self._wanted.captures)
                self._read(name, self._first if number == 0 else None, progress, stop)
                if self._turns and self._turns.over:
                    stop.wanted = True
        except KeyboardInterrupt:  # what is done is kept
            stop.wanted = True
        except sharing.Ended as problem:  # it says why where it is asked for what it did
            self._lost = problem
        except BaseException:
            if self._other and not self._is_other:
                self._other.give_up()  # it waits for us
            raise
        finally:
            progress.done()
            if self._turns and stop.wanted:
                self._turns.leave()
            self._engine.finish(lambda: self._join(stop))
            if self._writer:
                self._writer.close()
            if self._json and self._json is not sys.stdout:
                self._json.close()
            if self._hidden:
                self._hidden.cleanup()

    def _half(self, stop: Stop) -> Exception | tuple[Totals, list[str]]:
        """In the other process: what this one must know of it."""
        try:
            self._work(stop)
        except OSError as problem:
            return problem
        return self._lost if self._lost and not stop.wanted else (self._totals, self._failed)

    def _join(self, stop: Stop) -> None:
        """What the other process did becomes a part of this one's."""
        self._failed = list(self._files.failed.values())
        if not self._other or self._is_other or self._other.given_up:
            return
        if stop.wanted:
            self._other.stop()
        found = self._other.result()
        if isinstance(found, Exception):
            raise found
        if self._lost:
            raise self._lost
        totals, failed = found
        self._failed += failed
        self._totals.streams += totals.streams
        self._totals.bytes += totals.bytes
        self._totals.most_open += totals.most_open
        if self._told and self._fragment:
            self._fragment.seek(0)
            self._told.add(self._fragment)

    def _read(self, name: str, opened: Source | None, progress: Progress, stop: Stop) -> None:
        """One capture; what is wrong with it costs the others nothing."""
        before = self._totals.packets
        try:
            (opened or self._source(name)).read(self._engine, self._filter, progress, stop)
        except (CaptureError, libpcap.PcapError) as problem:
            progress.done()
            if not self._is_other:
                self._damaged(str(problem))
            self.code = Exit.FAILED
        if self._wanted.verbose and not self._is_other:
            progress.done()
            tell(f"{name}: {self._totals.packets - before} packets; {self._engine.open_now} streams are remembered")

    def _source(self, name: str) -> Source:
        try:
            return source(name)
        except CaptureError:
            if self._turns:  # which shall not wait for it
                self._turns.agreed(name, None)
            raise

    def _hear(self, live: libpcap.Live, stop: Stop) -> None:
        sources.listen(live, self._engine, stop)
        if not stop.wanted:
            tell(f"the interface ended: {live.why_it_ended()}")
            self.code = Exit.FAILED
        if lost := live.lost():
            tell(f"{lost} packets came too fast and were lost: an expression, or a faster disk, would help")
        live.close()

    def _summary(self, seconds: float) -> str:
        totals = self._totals
        said = f"{totals.packets} packets, {totals.streams} streams, {totals.bytes} bytes in {seconds:.1f} s"
        passed = [f"{count} {why}" for why, count in sorted(totals.passed_over.items())]
        if totals.wrong_checksums:
            said += f"; {totals.wrong_checksums} packets with wrong checksums"
        if totals.lacking or totals.overlapping:
            said += f"; {totals.lacking} datagrams lacked fragments, {totals.overlapping} had overlapping ones"
        if self._writer and self._writer.left_out:
            said += f"; {self._writer.left_out} packets of another link type are not in {self._wanted.unhandled}"
        if self._kept and self._kept.left_out:
            said += f"; {self._kept.left_out} packets of another link type than their stream's first are left out"
        if self._of_http and self._of_http.problems:
            said += f"; {self._of_http.problems} messages are broken, or could not be inflated: kept as far as they go"
        if self._scanners and self._scanners.failed:
            said += f"; plug-ins failed {self._scanners.failed} times, as the report says"
        return f"{said}; passed over: {', '.join(passed)}" if passed else said


def _other() -> sharing.Other | None:
    from tcppc.flows import turns  # it needs numpy

    try:
        return sharing.Other(turns.BYTES)
    except OSError:  # one process does all of it, as where there is one processor
        return None


def _fragment() -> TextIO:
    """What the other process writes of the report: both have it open."""
    return tempfile.TemporaryFile("w+", encoding="utf-8", prefix="tcppc-", dir=folders.temporary())


def run(wanted: Wanted) -> Exit:
    """UsageError where it cannot begin."""
    stop = Stop()
    try:
        return _Run(wanted, stop).run()
    except KeyboardInterrupt:
        raise Failure("interrupted twice: ended at once; the report, and files of streams, are not whole") from None
    except (libpcap.PcapError, alerts.AlertError, scanners.ScannerError) as problem:
        raise UsageError(str(problem)) from None
    finally:
        stop.over()
