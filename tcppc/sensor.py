"""The sensor's parts, built from a Config: whatever is wrong is told before anything runs."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tcppc import acting, metrics
from tcppc.actions.engine import Engine
from tcppc.capture import capabilities, captures, certificate, keep, limits, sockets, tls
from tcppc.capture.books import Books
from tcppc.capture.captures import Captures
from tcppc.capture.conversation import Terms
from tcppc.capture.files import LEDGER, DataFile, Naming
from tcppc.capture.intake import Intake
from tcppc.capture.keep import Keeper
from tcppc.capture.ledger import Ledger
from tcppc.capture.origin import Origin
from tcppc.capture.probe import Prober
from tcppc.capture.regular import is_regular
from tcppc.capture.supervisor import Supervised, unwell
from tcppc.capture.tcp import TCPServer
from tcppc.capture.udp import UDPServer
from tcppc.capture.writer import Writer
from tcppc.clock import Zone
from tcppc.config import Config, ConfigError, persona_table
from tcppc.listeners import StartError, open_sockets
from tcppc.log import Log
from tcppc.metrics import Metrics
from tcppc.personas.registry import Personas
from tcppc.records import Encoder
from tcppc.rules import SensorRules
from tcppc.values import network
from tcppc.watch.watcher import Watch
from tcppc.watching import open_watches

# A write(2) or fsync(2) on a slow disk may take seconds; a writer that is held up longer is not well.
WRITER_STUCK_SECONDS = 30.0
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
    tcp: list[TCPServer]
    udp: list[UDPServer]
    rules: SensorRules
    prober: Prober | None = None
    origin: Origin | None = None
    watches: list[Watch] = field(default_factory=list)
    engine: Engine | None = None
    metrics: Metrics | None = None

    @property
    def servers(self) -> list[TCPServer | UDPServer]:
        return [*self.tcp, *self.udp]

    def well(self) -> bool:
        """Does it capture: do all listeners answer, and does the writer turn? What does not can be mended by a restart
        alone; helper threads come back by themselves, and a restart would cost the sessions that are open."""
        return not self._not_capturing()

    def unwell(self) -> list[str]:
        """All that is not well, a line each: what `well` asks for, and each helper thread."""
        return self._not_capturing() + unwell(self.supervised())

    def _not_capturing(self) -> list[str]:
        said = []
        stuck = time.monotonic() - self.writer.turned
        if stuck >= WRITER_STUCK_SECONDS:
            said.append(f"writer: held up for {stuck:.0f} s")
        said += [f"listener {_named(server)}: nobody waits there" for server in self.servers if not server.answers()]
        if self.prober:
            said += [f"listener {kind} {name}: no answer to a probe" for kind, name in self.prober.not_answering()]
        if not self.servers:  # watching is all there is to do
            said += [f"watch {watch.interface}: nothing is seen" for watch in self.watches if not watch.well()]
        return said

    def supervised(self) -> list[Supervised]:
        """Helper threads, which are started again where they fail."""
        parts = [self.keeper, self.prober, self.metrics, *self.watches]
        found = [part.thread for part in parts if part]
        return found + (self.engine.all_threads() if self.engine else [])

    def threads_up(self) -> dict[str, bool]:
        """By name: does it do its work?"""
        up = {thread.name: thread.well for thread in self.supervised()}
        return up | {"writer": time.monotonic() - self.writer.turned < WRITER_STUCK_SECONDS}

    def keep_to(self, config: Config) -> None:
        """Have the keeper go by these settings. Without a data file of its own, none in that place is its to tend."""
        if self.keeper:
            terms = keeping(config)
            self.keeper.set_terms(terms if self.file else replace(terms, pattern=""))

    def look(self) -> None:
        """What is looked at from time to time, by the prober's thread: rules, and threads that could not be started."""
        self._start_again()
        self.rules.look()

    def _start_again(self) -> None:
        for thread in self.supervised():
            thread.look()

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
        self._start_again()
        if wrong := self.unwell():
            more = f" and {len(wrong) - MOST_TOLD} more" if len(wrong) > MOST_TOLD else ""
            line += f"; NOT WELL: {'; '.join(wrong[:MOST_TOLD])}{more}"
        return line, (now, accepted)


def _named(server: TCPServer | UDPServer) -> str:
    return f"{'TCP' if isinstance(server, TCPServer) else 'UDP'} {server.name}"


def personas(config: Config) -> Personas | None:
    """What is said back, None for nothing. ConfigError for a persona that is none."""
    given = config.personas
    try:
        found = Personas(given.default, persona_table(given), given.folder, config.sensor)
    except ValueError as problem:
        where = f"{config.source}: " if config.source else ""
        raise ConfigError(f"{where}[personas] {problem}") from None
    return None if found.silent else found


def captures_of(config: Config, books: Books, log: Log) -> Captures | None:
    """thp's files, where they are asked for."""
    given = config.files
    if not given.captures and not given.session_dir:
        return None
    zone = Zone(config.tcppc.timezone)
    return Captures(given.captures, given.logtype, given.session_dir, zone, books, log, given.captures_bytes)


def keeping(config: Config) -> keep.Terms:
    """What the keeper goes by."""
    given = config.files
    others = (
        config.source, config.tcppc.logFile, config.tcppc.x509Cert, config.tcppc.x509Key, given.captures,
        given.captures and captures.before(given.captures),
    )  # fmt: skip
    return keep.Terms(
        config.tcppc.tcpFileFmt, given.compress, given.keep_bytes, given.reserve, given.session_dir,
        given.session_dir_bytes, given.session_dir_files, bool(config.tcppc.rotInt or given.file_bytes),
        frozenset(os.path.abspath(path) for path in others if path),
    )  # fmt: skip


def use_personas(made: Sensor, found: Personas | None) -> None:
    """For datagrams from now on; sessions have them in their terms."""
    for server in made.udp:
        server.personas = found if found and found.for_datagrams else None


def terms(config: Config, context: ssl.SSLContext | None) -> Terms:
    return Terms(
        timeout=round(config.tcppc.timeout * 1e9),
        duration=round(config.limits.duration * 1e9),
        session_bytes=config.limits.session_bytes,
        session_payloads=config.limits.session_payloads,
        tls_mode=config.tls_mode,
        context=context,
        proxies=tuple(map(network, config.capture.proxy_protocol)),
        personas=personas(config),
    )


def tls_context(config: Config, say: Callable[[str], None]) -> ssl.SSLContext | None:
    """What TLS is answered with; None where it is off or, in mode auto, where no certificate can be had."""
    if config.tls_mode == "off" or not config.capture.tcp:
        return None
    given = config.tcppc
    if given.x509Cert:
        try:
            return tls.context([(given.x509Cert, given.x509Key)])
        except ssl.SSLError as problem:
            raise ConfigError(
                f"-C {given.x509Cert} -K {given.x509Key}: {tls.reason(problem)}; expected a PEM certificate and its key"
            ) from None
        except OSError as problem:
            raise ConfigError(
                f"-C {given.x509Cert} -K {given.x509Key}: {problem.strerror}; expected two PEM files that can be read"
            ) from None
    folder = Path(config.capture.state_dir) if config.capture.state_dir else certificate.default_folder()
    try:
        return tls.context(certificate.pairs(folder))
    except certificate.CertificateError as problem:
        say(f"TLS is recognised but not answered: {problem}.")
    except (ssl.SSLError, OSError) as problem:
        say(
            f"TLS is recognised but not answered: the certificates in {folder}: {problem}; "
            "remove them to have new ones made."
        )
    return None


def check(config: Config) -> None:
    """ConfigError for what only a look at this machine can tell: certificates, names, packages."""
    try:
        if config.tcppc.x509Cert:
            tls_context(config, lambda _: None)
        sockets.resolve(config.tcppc.host)
        personas(config)
        acting.rules(config)
        metrics.check(config)
    except sockets.ListenError as problem:
        raise ConfigError(str(problem)) from None
    if os.path.basename(config.tcppc.tcpFileFmt) == LEDGER:
        raise ConfigError(f"tcpFileFmt (-w) {config.tcppc.tcpFileFmt}: {LEDGER} is the ledger's name; expected another")
    others = {os.path.abspath(path) for path in (config.tcppc.tcpFileFmt, config.tcppc.logFile) if path}
    given = config.files.captures
    if given and (
        os.path.abspath(given) in others
        or os.path.basename(given) == LEDGER
        or (os.path.lexists(given) and not is_regular(given))
    ):
        raise ConfigError(f"files.captures (--captures) {given}: expected a file of its own, and no link to one")
    if (
        config.files.session_dir
        and os.path.exists(config.files.session_dir)
        and not os.path.isdir(config.files.session_dir)
    ):
        raise ConfigError(f"files.session_dir (--session-dir) {config.files.session_dir}: expected a folder")
    if config.files.compress == "zstd":
        try:
            import zstandard  # noqa: F401
        except ImportError:
            raise ConfigError(
                "files.compress = zstd: the package zstandard is missing: pip install 'tcppc[zstd]'"
            ) from None


def naming(config: Config) -> Naming:
    given = config.tcppc
    return Naming(given.tcpFileFmt, given.rotInt, given.rotOffset, Zone(given.timezone), config.files.file_bytes)


def build(config: Config) -> Sensor:
    """Everything that can fail, before anything runs. StartError or ConfigError with nothing left open but what
    the process's end closes."""
    check(config)
    zone = Zone(config.tcppc.timezone)
    try:
        log = Log(zone, config.tcppc.logFile)
    except OSError as problem:
        raise StartError(f"Failed to open log file: {config.tcppc.logFile}: {problem.strerror}") from None
    books = Books(config.limits)
    intake = Intake(talkative=not config.capture.quiet, steps=config.files.record == "events")
    file = ledger = None
    # Always: a reload may bring files that it has to bound.
    keeper = Keeper(
        keeping(config),
        lambda: file.path if file else "",
        log,
        books.error,
        lambda *went: ledger.removed(*went) if ledger else None,
    )
    if pattern := config.tcppc.tcpFileFmt:
        ledger = Ledger(pattern, zone, config.sensor, books, log)
        file = DataFile(naming(config), log, keeper.closed, ledger)
    encoder = Encoder(zone, config.sensor, config.files.format)
    thp = captures_of(config, books, log)
    try:
        writer = Writer(intake, books, log, encoder, file, config.tcppc.maxFdNum, ledger)
    except (OSError, ValueError) as problem:
        raise StartError(
            f"Failed to set maximum number of file descriptors: {config.tcppc.maxFdNum}: {problem}"
        ) from None
    writer.captures = thp
    books.set_limits(config.limits, limits.sessions_possible(writer.descriptors))
    _say_settings(config, log, writer.descriptors, books.max_sessions)
    context = tls_context(config, log)
    made = Sensor(config, log, books, intake, writer, file, keeper, ledger, [], [], SensorRules(log))
    if config.rules.mode == "redirect":
        made.origin = Origin(log)
    conditions = terms(config, context)
    open_sockets(made, conditions)
    use_personas(made, conditions.personas)
    open_watches(made)
    made.engine = acting.build(made)
    acting.use(made)
    made.metrics = metrics.build(made)
    writer.metered = made.metrics is not None
    made.prober = Prober(made.tcp, made.udp, log, made.listener_changed, made.look, books.error)
    _say_missing(made)
    return made


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


def needed(config: Config) -> tuple[str, ...]:
    """Capabilities that the sensor uses, where it has them, once its sockets are open."""
    wanted: tuple[str, ...] = capabilities.FILES
    said = personas(config)
    answers = said is not None and said.for_datagrams and config.capture.udp
    blocks = any(action.block for action in config.action)
    if config.capture.rules or config.rules.mode == "redirect" or answers or blocks:
        wanted = (*wanted, "CAP_NET_ADMIN")
    return (*wanted, "CAP_NET_BIND_SERVICE") if answers else wanted
