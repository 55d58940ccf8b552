"""The sensor as a whole: built from a Config, started, reloaded and stopped in a fixed order.

Start: log, descriptors, certificates, sockets, data file, then threads, so that whatever is wrong is told before
anything runs. Stop: listeners, sessions, writer, so that what was received reaches the file.
"""

from __future__ import annotations

import gc
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tcppc.capture import certificate, limits, sockets, tls
from tcppc.capture.books import Books
from tcppc.capture.conversation import Terms
from tcppc.capture.files import DataFile, Naming
from tcppc.capture.intake import Intake
from tcppc.capture.keep import Keeper
from tcppc.capture.tcp import TCPServer
from tcppc.capture.udp import UDPServer
from tcppc.capture.writer import Writer
from tcppc.clock import Zone
from tcppc.config import Config, ConfigError, changed
from tcppc.log import Log
from tcppc.notify import Notifier
from tcppc.records import Encoder

# Virtual, not resident: a thread touches two or three pages of it; OpenSSL's RSA needs some tens of kB.
STACK_BYTES = 512 * 1024
# Sessions are freed by reference counts; the cycle collector only needs to look now and then.
GC_THRESHOLD = 50_000
SESSIONS_SECONDS = 5.0
WRITER_SECONDS = 5.0
STATUS_SECONDS = 10.0
# A write(2) or fsync(2) on a slow disk may take seconds; a writer that is held up longer is not well.
WRITER_STUCK_SECONDS = 30.0

# Settings that are read once: a reload says that they need a restart.
_FIXED = {
    "tcppc": ("host", "port", "logFile", "maxFdNum"),
    "capture": ("tcp", "udp", "udp_buffer"),
}


class StartError(Exception):
    """Why the sensor cannot start, in one line: exit code 1."""


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
    tcp: list[TCPServer]
    udp: list[UDPServer]

    @property
    def servers(self) -> list[TCPServer | UDPServer]:
        return [*self.tcp, *self.udp]

    def well(self) -> bool:
        """Do all listeners answer, and does the writer turn?"""
        return time.monotonic() - self.writer.turned < WRITER_STUCK_SECONDS and all(
            server.answers() for server in self.servers
        )

    def status(self, before: tuple[float, int]) -> tuple[str, tuple[float, int]]:
        """One line for people, and the (time, sessions) from which the next one's rate is counted."""
        now, accepted = time.monotonic(), self.books.accepted
        rate = (accepted - before[1]) / max(1e-3, now - before[0])
        line = f"{self.books.open} sessions open, {accepted} accepted, {rate:.1f}/s, {self.writer.recorded} recorded"
        return line, (now, accepted)


def terms(config: Config, context: ssl.SSLContext | None) -> Terms:
    return Terms(
        timeout=round(config.tcppc.timeout * 1e9),
        duration=round(config.limits.duration * 1e9),
        session_bytes=config.limits.session_bytes,
        session_payloads=config.limits.session_payloads,
        tls_mode=config.tls_mode,
        context=context,
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
    except sockets.ListenError as problem:
        raise ConfigError(str(problem)) from None
    if config.files.compress == "zstd":
        try:
            import zstandard  # noqa: F401
        except ImportError:
            raise ConfigError(
                "files.compress = zstd: the package zstandard is missing: pip install 'tcppc[zstd]'"
            ) from None


def _naming(config: Config) -> Naming:
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
    intake = Intake(talkative=not config.capture.quiet)
    file = keeper = None
    if config.tcppc.tcpFileFmt:
        file = DataFile(_naming(config), log, lambda path: keeper.closed(path) if keeper else None)
        keeper = Keeper(config.tcppc.tcpFileFmt, config.files.compress, config.files.keep_bytes, lambda: file.path, log)
    encoder = Encoder(zone, config.sensor, config.files.format)
    try:
        writer = Writer(intake, books, log, encoder, file, config.tcppc.maxFdNum)
    except (OSError, ValueError) as problem:
        raise StartError(
            f"Failed to set maximum number of file descriptors: {config.tcppc.maxFdNum}: {problem}"
        ) from None
    books.set_limits(config.limits, limits.sessions_possible(writer.descriptors))
    _say_settings(config, log, writer.descriptors, books.max_sessions)
    context = tls_context(config, log)
    sensor = Sensor(config, log, books, intake, writer, file, keeper, [], [])
    _open_sockets(sensor, terms(config, context))
    return sensor


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


def _open_sockets(sensor: Sensor, terms_now: Terms) -> None:
    config, log = sensor.config, sensor.log
    addresses = sockets.resolve(config.tcppc.host)
    alone = all(family != socket.AF_INET for family, _ in addresses)
    port = config.tcppc.port
    kind = "TCP"
    try:
        for address in addresses if config.capture.tcp else ():
            server = TCPServer(
                address, port, alone=alone, terms=terms_now, books=sensor.books, intake=sensor.intake, log=log
            )
            sensor.tcp.append(server)
            port = port or server.port  # a free one was taken: the same one for all
        kind = "UDP"
        for address in addresses if config.capture.udp else ():
            sensor.udp.append(
                UDPServer(
                    address,
                    port,
                    alone=alone,
                    buffer=config.capture.udp_buffer,
                    books=sensor.books,
                    intake=sensor.intake,
                    log=log,
                )
            )
    except (OSError, OverflowError) as problem:
        for opened in sensor.servers:
            opened.server_close()
        where = sockets.shown(address[1], port)
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        hint = "; ports below 1024 need CAP_NET_BIND_SERVICE" if isinstance(problem, PermissionError) else ""
        raise StartError(f"Failed to listen {kind} socket: {where}: {reason}{hint}") from None
    if not all(server.transparent for server in sensor.servers):
        log(
            "Failed to set socket option (IP_TRANSPARENT): it needs CAP_NET_ADMIN or CAP_NET_RAW; "
            "serving without, on this port only."
        )


def _start(sensor: Sensor) -> None:
    log = sensor.log
    threading.stack_size(STACK_BYTES)
    try:
        sensor.writer.start()
    except OSError as problem:
        raise StartError(
            f"Failed to create a session file: {problem.filename or sensor.config.tcppc.tcpFileFmt}: {problem.strerror}"
        ) from None
    if sensor.keeper:
        sensor.keeper.start()
    mode = {"on": "TLS", "auto": "TCP, TLS where a client speaks it", "off": "TCP"}[sensor.config.tls_mode]
    groups: Iterable[tuple[str, str, list[TCPServer] | list[UDPServer]]] = (
        (mode, "TLS" if mode == "TLS" else "TCP", sensor.tcp),
        ("UDP", "UDP", sensor.udp),
    )
    for said, kind, servers in groups:
        if servers:
            log(f"Server Mode: {said}")
        for server in servers:
            log(f"Listen: {server.name}")
            try:
                server.start()
            except RuntimeError as problem:
                raise StartError(f"Failed to start a thread: {problem}; TasksMax or ulimit -u may be too low") from None
        if servers:
            log(f"Start {kind} server.")
    # Nothing of start-up is garbage: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 100)


def _stop(sensor: Sensor) -> int:
    """Ends everything in order; returns the exit code."""
    for server in sensor.servers:
        server.stop()
    left = sum(server.join(SESSIONS_SECONDS) for server in sensor.servers)
    if left:
        sensor.log(f"{left} sessions did not end in time.")
    whole = sensor.writer.stop(WRITER_SECONDS)
    if sensor.keeper:
        sensor.keeper.stop(1.0)
    sensor.log(f"Sessions: {sensor.books.summary()}, {sensor.writer.recorded} recorded.")
    sensor.log("Exit.")
    return 0 if whole else 1


def _reload(sensor: Sensor, read: Callable[[], Config]) -> None:
    """SIGHUP: files anew, configuration anew; a wrong one changes nothing."""
    log = sensor.log
    log.reopen()
    sensor.writer.change(sensor.writer.reopen)
    try:
        new = read()
        check(new)
        context = tls_context(new, log)
    except ConfigError as problem:
        log(f"Reload refused, the configuration stays as it was: {problem}")
        return
    old, sensor.config = sensor.config, new
    if fixed := changed(old, new, _FIXED):
        log(f"Reload: {', '.join(fixed)} will be as the file says after a restart.")
    sensor.books.set_limits(new.limits)
    sensor.intake.talkative = not new.capture.quiet
    for server in sensor.tcp:
        server.set_terms(terms(new, context))
    zone = log.zone = Zone(new.tcppc.timezone)
    encoder = Encoder(zone, new.sensor, new.files.format)
    sensor.writer.change(lambda: sensor.writer.set_encoder(encoder))
    _reload_file(sensor, new)
    log("Reloaded.")


def _reload_file(sensor: Sensor, new: Config) -> None:
    if sensor.keeper:
        sensor.keeper.pattern, sensor.keeper.compress = new.tcppc.tcpFileFmt, new.files.compress
        sensor.keeper.keep_bytes = new.files.keep_bytes
    if sensor.file and new.tcppc.tcpFileFmt:
        file, naming = sensor.file, _naming(new)

        def rename() -> None:
            file.naming = naming

        sensor.writer.change(rename)
    elif bool(sensor.file) != bool(new.tcppc.tcpFileFmt):
        sensor.log("Reload: tcppc.tcpFileFmt begins or ends to be used after a restart.")


def _attend(sensor: Sensor, notifier: Notifier, signals: set[signal.Signals], read: Callable[[], Config]) -> None:
    """Until SIGTERM or SIGINT: reload at SIGHUP; tell a service manager how it is, and feed its watchdog while all
    listeners answer."""
    line, since = sensor.status((time.monotonic(), 0))
    notifier.ready(line)
    pause = min(STATUS_SECONDS, notifier.watchdog_seconds or STATUS_SECONDS)
    while True:
        # Without a manager nothing has to be told, and the main thread sleeps until a signal comes.
        came = signal.sigtimedwait(signals, pause) if notifier.wanted else signal.sigwaitinfo(signals)
        if came is None:
            line, since = sensor.status(since)
            notifier.tell(f"STATUS={line}", *(["WATCHDOG=1"] if sensor.well() else []))
        elif came.si_signo == signal.SIGHUP:
            notifier.reloading()
            _reload(sensor, read)
            notifier.ready(line)
        else:
            return


def serve(read: Callable[[], Config], started: Callable[[Sensor], None]) -> int:
    """Run the sensor until SIGTERM or SIGINT; SIGHUP reloads by calling `read` again. Returns the exit code.

    `started` is called once it serves. ConfigError and StartError mean that nothing was started.
    """
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    # Blocked before any thread is there, so that only sigwait below ever takes them.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    sensor = build(read())
    _start(sensor)
    started(sensor)
    notifier = Notifier()
    _attend(sensor, notifier, signals, read)
    notifier.stopping()
    # They stay blocked: a second one must not cost what the first one is bringing into the file, in bounded time.
    return _stop(sensor)
