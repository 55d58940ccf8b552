"""The sensor's life: started, reloaded and stopped in a fixed order.

Start: log, descriptors, certificates, sockets, data file, then threads, so that whatever is wrong is told before
anything runs. Stop: listeners, sessions, writer, so that what was received reaches the file.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address

from tcppc import acting, watching
from tcppc.capture import capabilities
from tcppc.capture.files import fixed_folder
from tcppc.capture.tcp import TCPServer
from tcppc.capture.udp import UDPServer
from tcppc.clock import Zone
from tcppc.config import Config, ConfigError, changed
from tcppc.listeners import StartError
from tcppc.netfilter.tools import RulesError
from tcppc.notify import Notifier
from tcppc.records import Encoder
from tcppc.sensor import Sensor, build, captures_of, check, naming, needed, terms, tls_context, use_personas

# Virtual, not resident: a thread touches two or three pages of it; OpenSSL's RSA needs some tens of kB.
STACK_BYTES = 512 * 1024
# Sessions are freed by reference counts; the cycle collector only needs to look now and then.
GC_THRESHOLD = 50_000
SESSIONS_SECONDS = 5.0
WRITER_SECONDS = 5.0
STATUS_SECONDS = 10.0
# For so long all sessions must have come from one private address before it is taken for a gateway that hides who they
# are of; and so many, since a host that is alone with its sensor may well try it now and then.
GATEWAY_SECONDS = 3600.0
GATEWAY_SESSIONS = 10

# Settings that are read once: a reload says that they need a restart.
_FIXED = {
    "tcppc": ("host", "port", "logFile", "maxFdNum"),
    "capture": ("tcp", "udp", "udp_buffer", "rules"),
    "watch": ("interface",),
    "metrics": ("listen",),
    "actions": ("concurrency", "queue", "blocks", "blocks_per_hour"),
    "rules": ("interface", "address", "excepted", "mode", "mark", "table", "take_over", "ssh"),
}


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
    if sensor.prober:
        sensor.prober.start()
    acting.start(sensor)
    if sensor.metrics:
        sensor.metrics.start()
        log(f"Metrics: http://{sensor.metrics.name}/metrics")
    for watch in sensor.watches:
        watch.start()
        log(f"Watch: {watch.interface}")
    # Nothing of start-up is garbage: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 100)


def _put_rules(sensor: Sensor) -> None:
    """The listeners are open and their back-logs take who comes. StartError where the rules cannot be had."""
    if not sensor.config.capture.rules:
        sensor.rules.tidy_up()
        return
    try:
        sensor.rules.apply(sensor.config, sensor.servers[0].port)
    except RulesError as problem:
        raise StartError(f"capture.rules: {problem}") from None


def _settle_capabilities(sensor: Sensor) -> None:
    """What is not needed from here on is given back, before there is a second thread."""
    before, wanted = capabilities.held(), needed(sensor.config)
    if not before & ~capabilities.bits(wanted):
        return
    if capabilities.keep_only(wanted):
        kept = [name for name in wanted if capabilities.has(name)]
        sensor.log(f"Capabilities: {', '.join(kept) or 'none'} kept, all others given back.")
    else:
        sensor.log("Capabilities: those not needed could not be given back: the kernel or the unit refuses capset(2).")


def _stop(sensor: Sensor) -> int:
    """Ends everything in order; returns the exit code."""
    sensor.rules.remove()
    if sensor.prober:
        sensor.prober.stop()
    for server in sensor.servers:
        server.stop()
    for watch in sensor.watches:
        watch.stop(1.0)
    left = sum(server.join(SESSIONS_SECONDS) for server in sensor.servers)
    if left:
        sensor.log(f"{left} sessions did not end in time.")
    acting.stop(sensor)
    if sensor.metrics:
        sensor.metrics.stop()
    whole = sensor.writer.stop(WRITER_SECONDS)
    if sensor.keeper:
        sensor.keeper.stop(1.0)
    sensor.log(f"Sessions: {sensor.books.summary()}, {sensor.books.recorded} recorded.")
    sensor.log("Exit.")
    return 0 if whole else 1


def _reload(sensor: Sensor, read: Callable[[], Config]) -> None:
    """SIGHUP: files anew, configuration anew; a wrong one changes nothing."""
    log = sensor.log
    log.reopen()
    try:
        new = read()
        check(new)
        context = tls_context(new, log)
    except ConfigError as problem:
        sensor.writer.change(sensor.writer.reopen)
        log(f"Reload refused, the configuration stays as it was: {problem}")
        return
    except Exception as problem:  # a fault of ours, or of a plug-in: the sensor goes on all the same
        sensor.writer.change(sensor.writer.reopen)
        said = f"{type(problem).__name__}: {problem}".encode("unicode_escape").decode("ascii")
        log(f"Reload refused, the configuration stays as it was: {said[:500]}")
        return
    old, sensor.config = sensor.config, new
    if fixed := changed(old, new, _FIXED):
        log(f"Reload: {', '.join(fixed)} will be as the file says after a restart.")
    sensor.books.set_limits(new.limits)
    sensor.intake.talkative = not new.capture.quiet
    sensor.intake.steps = new.files.record == "events"
    conditions = terms(new, context)
    for server in sensor.tcp:
        server.set_terms(conditions)
    use_personas(sensor, conditions.personas)
    for watch in sensor.watches:
        watch.set_terms(watching.terms(new))
    _reload_actions(sensor, new)
    zone = log.zone = Zone(new.tcppc.timezone)
    encoder = Encoder(zone, new.sensor, new.files.format)
    sensor.writer.change(lambda: sensor.writer.set_encoder(encoder))
    sensor.writer.captures = captures_of(new, sensor.books, log)
    _reload_file(sensor, new)
    # After the new name is set: the file that is opened next must not be the old one again.
    sensor.writer.change(sensor.writer.reopen)
    log("Reloaded.")


def _reload_actions(sensor: Sensor, new: Config) -> None:
    """Rules anew; the queue, its workers and the blocks stay. The first action, and the first block, need a restart."""
    found = acting.terms(new)
    if sensor.engine:
        sensor.engine.set_terms(found)
        for line in acting.warnings(new, found.rules):
            sensor.log(f"Actions: {line}.")
    blocks = any(rule.action.block and not rule.action.dry_run for rule in found.rules)
    if found.rules and (not sensor.engine or (blocks and not sensor.engine.blocker)):
        sensor.log("Reload: [[action]] begins to be used after a restart.")


def _reload_file(sensor: Sensor, new: Config) -> None:
    sensor.keep_to(new)
    if sensor.file and new.tcppc.tcpFileFmt:
        file, renamed = sensor.file, naming(new)
        if sensor.ledger:
            sensor.ledger.zone, sensor.ledger.sensor = renamed.zone, new.sensor
            if fixed_folder(new.tcppc.tcpFileFmt) != sensor.ledger.folder:
                sensor.log(f"Reload: the ledger stays {sensor.ledger.path} until a restart.")

        def rename() -> None:
            file.naming = renamed

        sensor.writer.change(rename)
    elif bool(sensor.file) != bool(new.tcppc.tcpFileFmt):
        sensor.log("Reload: tcppc.tcpFileFmt begins or ends to be used after a restart.")


class GatewayWatch:
    """Warns where something in front of the sensor, such as a container's port forwarding, hides all sources."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._next = time.monotonic() + GATEWAY_SECONDS
        self._warned: str | bytes = ""

    def due(self) -> float:
        """Seconds until there is something to look at, some at least."""
        return max(0.01, self._next - time.monotonic())

    def look(self) -> None:
        """Once each GATEWAY_SECONDS: was there one source only, and a private one?"""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + GATEWAY_SECONDS
        key, sessions = self._sensor.books.turn_sources()
        if not key or sessions < GATEWAY_SESSIONS or key == self._warned:
            return
        address = ip_address(key.ljust(16, b"\0") if isinstance(key, bytes) else key)
        if address.is_private:
            self._warned = key
            self._sensor.log(
                f"All {sessions} sessions of the last {GATEWAY_SECONDS / 60:.0f} minutes came from {address}, a "
                "private address: something in front of this sensor hides who they are of. Give a container the host's "
                "network, or let a load balancer speak the PROXY protocol (capture.proxy_protocol)."
            )


def _attend(sensor: Sensor, notifier: Notifier, signals: set[signal.Signals], read: Callable[[], Config]) -> None:
    """Until SIGTERM or SIGINT: reload at SIGHUP; tell a service manager how it is, and feed its watchdog while all
    listeners answer."""
    line, since = sensor.status((time.monotonic(), 0))
    notifier.ready(line)
    pause = min(STATUS_SECONDS, notifier.watchdog_seconds or STATUS_SECONDS) if notifier.wanted else GATEWAY_SECONDS
    gateway = GatewayWatch(sensor)
    while True:
        came = signal.sigtimedwait(signals, min(pause, gateway.due()))
        if came is None:
            gateway.look()
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
    try:
        _put_rules(sensor)
        _settle_capabilities(sensor)
        _start(sensor)
    except BaseException:
        sensor.rules.remove()
        raise
    started(sensor)
    notifier = Notifier()
    _attend(sensor, notifier, signals, read)
    notifier.stopping()
    # They stay blocked: a second one must not cost what the first one is bringing into the file, in bounded time.
    return _stop(sensor)
