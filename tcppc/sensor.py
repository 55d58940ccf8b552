"""The sensor's parts, built from a Config: whatever is wrong is told before anything runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tcppc import acting, folders, metrics
from tcppc.actions.engine import Engine
from tcppc.capture import capabilities, limits, shorten
from tcppc.capture.books import Books
from tcppc.capture.copier import Copier
from tcppc.capture.files import DataFile, fixed_folder, is_standard_output
from tcppc.capture.intake import Intake
from tcppc.capture.keep import Keeper
from tcppc.capture.ledger import Ledger, LedgerInUse
from tcppc.capture.origin import Origin
from tcppc.capture.probe import Prober
from tcppc.capture.spill import Spill
from tcppc.capture.supervisor import Supervised, unwell
from tcppc.capture.syncer import Syncer
from tcppc.capture.tcp import TCPServer
from tcppc.capture.udp import UDPServer
from tcppc.capture.writer import Sink, Writer
from tcppc.clock import Zone
from tcppc.config import Config
from tcppc.listeners import StartError, open_sockets
from tcppc.log import Log
from tcppc.metrics import Metrics
from tcppc.prepare import Prepared, captures_of, keeping, prepare
from tcppc.rules import SensorRules
from tcppc.watch.watcher import Watch
from tcppc.watching import open_watches

# A write(2) or fsync(2) on a slow disk may take seconds; a writer that is held up longer is not well.
WRITER_STUCK_SECONDS = 30.0
# Longer than a busy disk takes: worth a word.
STUCK_SECONDS = 5.0
# Of what is not well, the status line names so many.
MOST_TOLD = 3


@dataclass
class Sensor:
    """The running parts."""

    config: Config
    log: Log
    books: Books
    intake: Intake
    writer: Writer
    file: DataFile | None
    keeper: Keeper | None
    ledger: Ledger | None
    spill: Spill
    syncer: Syncer
    copier: Copier
    tcp: list[TCPServer]
    udp: list[UDPServer]
    rules: SensorRules
    prober: Prober | None = None
    origin: Origin | None = None
    watches: list[Watch] = field(default_factory=list)
    engine: Engine | None = None
    metrics: Metrics | None = None

    def adopt(self, config: Config) -> None:
        """This configuration is in force from now on."""
        self.config = config

    @property
    def servers(self) -> list[TCPServer | UDPServer]:
        return [*self.tcp, *self.udp]

    def well(self) -> bool:
        """Do all listeners answer, does the writer turn, and does each helper thread do its work?"""
        return not self.unwell()

    def unwell(self) -> list[str]:
        """What is not well, a line each."""
        said = [f"writer: {self._held_up()}"] if self._held_up() else []
        said += [f"listener {_named(server)}: nobody waits there" for server in self.servers if not server.answers()]
        if self.prober:
            said += [f"listener {kind} {name}: no answer to a probe" for kind, name in self.prober.not_answering()]
        said += [f"copier: {hangs}"] if (hangs := self._copies_hang()) else []
        return said + unwell(self.supervised())

    def _held_up(self) -> str:
        """Why the writer does not get on; empty where it does."""
        seconds, where = self.writer.stuck()
        if where and seconds >= WRITER_STUCK_SECONDS:
            return f"writing to {where} has not returned for {seconds:.0f} s"
        seconds = time.monotonic() - self.writer.turned
        return f"held up for {seconds:.0f} s" if seconds >= WRITER_STUCK_SECONDS else ""

    def _copies_hang(self) -> str:
        """Why no copies are made; empty where they are."""
        seconds, where = self.copier.stuck()
        return (
            f"writing to captures {where} has not returned for {seconds:.0f} s"
            if where and seconds >= WRITER_STUCK_SECONDS
            else ""
        )

    def supervised(self) -> list[Supervised]:
        """Helper threads, which are started again where they fail."""
        copier = self.copier if self.copier.used else None
        parts = [self.keeper, self.prober, self.metrics, copier, *self.watches]
        found = [part.thread for part in parts if part]
        return found + (self.engine.all_threads() if self.engine else [])

    def threads_up(self) -> dict[str, bool]:
        """By name: does it do its work?"""
        up = {thread.name: thread.well for thread in self.supervised()} | {"writer": not self._held_up()}
        return up | ({"copier": False} if self._copies_hang() else {})

    def lives(self) -> bool:
        """Would a restart not make it better? A disk that hangs, or a listener that is busy, is no reason for one, and
        a kill would cost all that waits."""
        turning = self.writer.stuck()[0] > 0 or time.monotonic() - self.writer.turned < WRITER_STUCK_SECONDS
        return turning and all(server.answers() for server in self.servers) and (not self.prober or self.prober.well())

    def listener_changed(self, kind: str, name: str, alive: bool) -> None:
        """A probe found that a listener died, or lives again."""
        if alive:
            self.log(f"Probe of {kind} {name}: it answers again.")
        else:
            count = self.books.error("listener_dead")
            self.log(f"Probe of {kind} {name}: NO ANSWER: nothing is captured there ({count} times so far).")
        if self.ledger:
            self.ledger.listener(kind, name, alive)

    def status(self, before: tuple[float, int]) -> tuple[str, tuple[float, int]]:
        """One line for people, and the (time, sessions) from which the next one's rate is counted."""
        now, accepted = time.monotonic(), self.books.accepted
        rate = (accepted - before[1]) / max(1e-3, now - before[0])
        line = f"{self.books.open} sessions open, {accepted} accepted, {rate:.1f}/s, {self.books.recorded} recorded"
        if (seconds := self.writer.stuck()[0]) > STUCK_SECONDS:
            line += f"; WRITING HANGS for {seconds:.0f} s: nothing is recorded meanwhile"
        seconds, where = self.copier.stuck()
        if seconds > STUCK_SECONDS:
            line += f"; writing to captures {where} hangs for {seconds:.0f} s: no copies meanwhile"
        if wrong := self.unwell():
            more = f" and {len(wrong) - MOST_TOLD} more" if len(wrong) > MOST_TOLD else ""
            line += f"; NOT WELL: {'; '.join(wrong[:MOST_TOLD])}{more}"
        return line, (now, accepted)


def _named(server: TCPServer | UDPServer) -> str:
    return f"{'TCP' if isinstance(server, TCPServer) else 'UDP'} {server.name}"


def sinks(config: Config, books: Books, log: Log, copier: Copier) -> list[tuple[str, Sink]]:
    """Who is told of each session once it is recorded."""
    found: list[tuple[str, Sink]] = []
    if config.metrics.listen:
        found.append(("metrics", books.tally))
    if captures := captures_of(config, books, log):
        found.append(("captures", partial(copier.put, captures)))
    return found


def _open_log(config: Config, zone: Zone, books: Books) -> Log:
    try:
        return Log(zone, config.tcppc.logFile, lambda lines: books.error("log_lines_lost", lines))
    except OSError as problem:
        raise StartError(f"Failed to open log file: {config.tcppc.logFile}: {problem.strerror}") from None


def _state_folder(config: Config) -> Path | None:
    try:
        return folders.state(config.capture.state_dir)
    except folders.NoFolder:  # as of a number without a name: what would be kept there is not
        return None


def _ledger_folder(config: Config) -> tuple[Path | None, bool]:
    """(where the ledger stands, is the data file a stream): beside the data files; of a stream or a device, which have
    no place beside them, in the state folder."""
    pattern = config.tcppc.tcpFileFmt
    if is_standard_output(pattern) or pattern.startswith(("/dev/", "/proc/")):
        state = _state_folder(config)
        return state / "stream" if state else None, True
    return fixed_folder(pattern), False


def _claim(ledger: Ledger, stream: bool, log: Log) -> bool:
    """Take the folder; StartError where another sensor has it. False for a stream, which goes without a ledger then."""
    try:
        ledger.claim()
    except LedgerInUse as problem:
        if not stream:
            raise StartError(str(problem)) from None
        log(f"{problem}; this one keeps none.")
        return False
    return True


def build(config: Config) -> tuple[Sensor, Prepared]:
    """Everything that can fail, before anything runs. StartError or ConfigError with nothing left open but what
    the process's end closes."""
    notes: list[str] = []
    prepared = prepare(config, notes.append)
    zone = prepared.zone
    books = Books(config.limits)
    log = _open_log(config, zone, books)
    intake = Intake(talkative=not config.capture.quiet, steps=config.files.record == "events")
    syncer = Syncer(log, books.error)
    file = ledger = folder = None
    # Always there: a reload may bring files that it has to bound.
    keeper = Keeper(
        keeping(config, bool(config.tcppc.tcpFileFmt)),
        lambda: file.path if file else "",
        log,
        books.error,
        lambda *went: ledger.removed(*went) if ledger else None,
    )
    if pattern := config.tcppc.tcpFileFmt:
        folder, stream = _ledger_folder(config)
        if folder:
            ledger = Ledger(pattern, zone, config.sensor, books, log, folder, _state_folder(config))
            ledger = ledger if _claim(ledger, stream, log) else None
        else:
            log("The ledger of a stream has no folder: capture.state_dir takes one; none is kept.")
        file = DataFile(prepared.naming, log, keeper.closed, ledger, syncer)
    spill = Spill(folder, config.limits.spill, books, log)
    copier = Copier(books, log)
    followers = sinks(config, books, log, copier)
    try:
        writer = Writer(intake, books, log, prepared.encoder, file, config.tcppc.maxFdNum, followers)
    except (OSError, ValueError) as problem:
        raise StartError(
            f"Failed to set maximum number of file descriptors: {config.tcppc.maxFdNum}: {problem}"
        ) from None
    books.set_limits(config.limits, limits.sessions_possible(writer.descriptors))
    _say_settings(config, log, writer.descriptors, books.max_sessions)
    log.write(notes)
    made = Sensor(
        config, log, books, intake, writer, file, keeper, ledger, spill, syncer, copier, [], [], SensorRules(log)
    )
    try:
        _open(made, prepared)
    except BaseException:
        if ledger:
            ledger.release()
        raise
    return made, prepared


def _open(made: Sensor, prepared: Prepared) -> None:
    """What listens and watches, and what acts upon it."""
    config, log = made.config, made.log
    if config.rules.mode == "redirect":
        made.origin = Origin(log)
    open_sockets(made, prepared.terms)
    for server in made.udp:
        server.set_personas(prepared.for_datagrams)
    open_watches(made)
    made.engine = acting.build(made, prepared.actions)
    acting.use(made)
    made.metrics = metrics.build(made)
    made.prober = Prober(made.tcp, made.udp, log, made.listener_changed, made.rules.look, made.books.error)
    _say_missing(made)


def _say_settings(config: Config, log: Log, descriptors: int, sessions: int) -> None:
    given = config.tcppc
    log(f"Maximum number of file descriptors: {descriptors}")
    if sessions < min(config.limits.sessions, 1000):
        log(f"Only {sessions} sessions at once fit into that; the limits of this process or its unit can be raised.")
    log(f"Timezone: {given.timezone}")
    log(f"Timeout: {given.timeout:g}")
    if given.tcpFileFmt:
        log(
            f"Session data file: {given.tcpFileFmt} "
            f"(Rotate every {given.rotInt} seconds w/ {given.rotOffset} seconds offset)"
        )
        if (most := shorten.most()) < shorten.ENTRY_CHARACTERS + config.limits.session_bytes * 4 // 3:
            log(
                f"Files have {most:,} bytes at most (ulimit -f, LimitFSIZE): records of sessions that say more than "
                f"{most * 3 // 4:,} bytes are cut."
            )
    else:
        log("Session data file: none.")
        log("!!!CAUTION!!! Session data will not be written to files.")
    if given.x509Cert:
        log(f"Certificate: {given.x509Cert}, Key: {given.x509Key}")


def _say_missing(made: Sensor) -> None:
    """Each capability that would be of use and is not there: what it is for, and how to grant it."""
    grant = capabilities.how_to_grant(("CAP_NET_ADMIN",))
    if not all(server.transparent for server in made.servers):
        made.log(
            "Failed to set socket option (IP_TRANSPARENT): it needs CAP_NET_ADMIN or CAP_NET_RAW; "
            f"serving without, on this port only. To grant it: {grant}."
        )
    wanted = made.config.capture.udp_buffer
    if made.udp and min(server.buffer for server in made.udp) < wanted and not capabilities.has("CAP_NET_ADMIN"):
        made.log(
            f"The UDP buffer is {made.udp[0].buffer} bytes, not {wanted}: it needs CAP_NET_ADMIN, or "
            f"net.core.rmem_max raised. To grant it: {grant}."
        )
