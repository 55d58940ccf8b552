"""The sensor's life: started, attended and stopped in a fixed order.

Start: log, descriptors, certificates, sockets, data file, then threads, so that whatever is wrong is told before
anything runs. Stop: listeners, sessions, writer, so that what was received reaches the file. Whatever happens in the
main thread between them, it ends by the stop.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable

from tcppc import acting
from tcppc.capture import capabilities
from tcppc.capture.tcp import TCPServer
from tcppc.capture.udp import UDPServer
from tcppc.config import Config
from tcppc.listeners import StartError
from tcppc.netfilter.tools import RulesError
from tcppc.notify import Notifier
from tcppc.oversight import (
    LOOK_SECONDS,
    CopierWatch,
    GatewayWatch,
    MemoryWatch,
    ThreadWatch,
    WriterWatch,
    keep_little_free_memory,
)
from tcppc.prepare import Prepared, needed
from tcppc.problems import NO_THREAD, is_lack_of_threads
from tcppc.reload import Reloads
from tcppc.sensor import Sensor, build

# Virtual, not resident: a thread touches two or three pages of it; OpenSSL's RSA needs some tens of kB.
STACK_BYTES = 512 * 1024
# Sessions are freed by reference counts; the cycle collector only needs to look now and then.
GC_THRESHOLD = 50_000
STATUS_SECONDS = 10.0
RELOAD_LOOK_SECONDS = 0.02  # how often a reload that is being built is looked at
# limits.stop = 0: what systemd is asked to wait for, and less than the ten seconds that docker stop gives.
STOP_SECONDS_SYSTEMD = 60.0
STOP_SECONDS = 8.0


def _start(sensor: Sensor) -> None:
    """All of it, or nothing: what runs already is stopped again."""
    threading.stack_size(STACK_BYTES)
    keep_little_free_memory()
    sensor.log.start()
    try:
        _start_writing(sensor)
    except BaseException:
        if sensor.file:
            sensor.file.close()
        if sensor.ledger:
            sensor.ledger.end(1.0)  # nothing was taken, and nothing is lost
        raise
    try:
        _start_serving(sensor)
    except BaseException:
        _Stop(sensor, STOP_SECONDS).run()
        raise
    # Nothing of start-up is garbage: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 100)


def _start_writing(sensor: Sensor) -> None:
    if sensor.ledger:
        sensor.ledger.begin(record=sensor.config.files.record)
    try:
        sensor.writer.start()
    except OSError as problem:
        raise StartError(
            f"Failed to create a session file: {problem.filename or sensor.config.tcppc.tcpFileFmt}: {problem.strerror}"
        ) from None


def _start_serving(sensor: Sensor) -> None:
    log = sensor.log
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
            server.start()
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


def _put_rules(sensor: Sensor) -> None:
    """The listeners are open and their back-logs take who comes. StartError where the rules cannot be had."""
    if not sensor.config.capture.rules:
        sensor.rules.tidy_up()
        return
    try:
        sensor.rules.apply(sensor.config, sensor.servers[0].port)
    except RulesError as problem:
        raise StartError(f"capture.rules: {problem}") from None


def _settle_capabilities(sensor: Sensor, prepared: Prepared) -> None:
    """What is not needed from here on is given back, before there is a second thread."""
    before, wanted = capabilities.held(), needed(prepared)
    if not before & ~capabilities.bits(wanted):
        return
    if capabilities.keep_only(wanted):
        kept = [name for name in wanted if capabilities.has(name)]
        sensor.log(f"Capabilities: {', '.join(kept) or 'none'} kept, all others given back.")
    else:
        sensor.log("Capabilities: those not needed could not be given back: the kernel or the unit refuses capset(2).")


class _Stop:
    """Ends everything in order, within `seconds`. A step that raises is told, and the next one is done."""

    def __init__(self, sensor: Sensor, seconds: float) -> None:
        self._sensor = sensor
        self._until = time.monotonic() + seconds
        self._seconds = seconds
        self._late = 0  # threads of listeners and sessions that have not ended

    def _left(self, part: float = 1.0, least: float = 0.5) -> float:
        """Seconds for a step that may use this part of what is left."""
        return max(least, (self._until - time.monotonic()) * part)

    def _step(self, what: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as problem:  # what is not ended ends with the process; what was received has to be written
            self._sensor.log(f"Stop: {what}: {type(problem).__name__}: {problem}; going on.")

    def run(self) -> int:
        """Returns the exit code."""
        sensor = self._sensor
        self._step("rules", sensor.rules.remove)
        if prober := sensor.prober:
            self._step("probe", prober.stop)
        for server in sensor.servers:
            self._step(server.name, lambda server=server: server.stop(self._left(0.5)))  # type: ignore[misc]
        for watch in sensor.watches:
            self._step("watch", lambda watch=watch: watch.stop(1.0))  # type: ignore[misc]
        self._step("sessions", self._join)
        self._step("actions", lambda: acting.stop(sensor, self._left(0.3)))
        if metrics := sensor.metrics:
            self._step("metrics", metrics.stop)
        whole = self._write()
        sensor.log(f"Sessions: {sensor.books.summary()}, {sensor.books.recorded} recorded.")
        sensor.log("Exit.")
        sensor.log.stop(1.0)
        return 0 if whole and not sensor.books.open and not sensor.books.dropped["stop"] else 1

    def _join(self) -> None:
        self._late = sum(server.join(self._left(0.6)) for server in self._sensor.servers)
        if self._late:
            self._sensor.log(f"{self._late} sessions did not end in time.")

    def _write(self) -> bool:
        """True where nothing was given up."""
        sensor = self._sensor
        whole = False
        sensor.copier.hurry()
        try:
            whole = sensor.writer.stop(self._left(0.7, 1.0))
        except Exception as problem:
            sensor.log(f"Stop: writer: {type(problem).__name__}: {problem}; going on.")
        sensor.books.end(self._late)
        self._step("captures", lambda: sensor.copier.stop(self._left(0.7)))
        if keeper := sensor.keeper:
            self._step("keeper", lambda: keeper.stop(1.0))
        for path in sensor.syncer.wait(self._left(0.5)):
            sensor.log(f"Failed to sync {path}: the disk has not taken it in {self._seconds:.0f} s; the kernel has it.")
        if waiting := sensor.log.drain(1.0):
            sensor.books.error("log_lines_lost", waiting)
        if ledger := sensor.ledger:
            self._step("ledger", lambda: ledger.end(self._left(1.0, 1.0)))
        return whole


def _look(looks: Iterable[Callable[[], None]], sensor: Sensor) -> None:
    for look in looks:
        try:
            look()
        except Exception as problem:  # who looks must not end what is looked at
            if not sensor.books.error("oversight_errors") % 60:
                sensor.log(f"Oversight: {type(problem).__name__}: {problem}; going on.")


def _attend(sensor: Sensor, notifier: Notifier, signals: set[signal.Signals], read: Callable[[], Config]) -> None:
    """Until SIGTERM or SIGINT: reload at SIGHUP; look each second whether all gets on; tell a service manager how it
    is, and feed its watchdog while all listeners answer."""
    line, since = sensor.status((time.monotonic(), 0))
    notifier.ready(line)
    pause = min(STATUS_SECONDS, notifier.watchdog_seconds or STATUS_SECONDS)
    looks = [
        WriterWatch(sensor).look,
        CopierWatch(sensor).look,
        ThreadWatch(sensor).look,
        MemoryWatch(lambda: sensor.books.held).look,
        GatewayWatch(sensor).look,
    ]
    reloads = Reloads(sensor, read)
    due = time.monotonic() + pause
    looked = 0.0
    while True:
        came = signal.sigtimedwait(signals, RELOAD_LOOK_SECONDS if reloads.going else LOOK_SECONDS)
        # Interrupted just as its time runs out (SIGCONT), CPython 3.11 returns what was never filled in.
        if came is not None and came.si_signo not in signals:
            came = None
        if came is not None and came.si_signo != signal.SIGHUP:
            return
        if not reloads.going or time.monotonic() - looked >= LOOK_SECONDS:
            looked = time.monotonic()
            _look(looks, sensor)
        if came is not None:
            notifier.reloading()
            reloads.ask()
        if reloads.step():
            notifier.ready(line)
        elif notifier.wanted and time.monotonic() >= due:
            due = time.monotonic() + pause
            line, since = sensor.status(since)
            notifier.tell(f"STATUS={line}", *(["WATCHDOG=1"] if sensor.lives() else []))


def serve(read: Callable[[], Config], started: Callable[[Sensor], None]) -> int:
    """Run the sensor until SIGTERM or SIGINT; SIGHUP reloads by calling `read` again. Returns the exit code.

    `started` is called once it serves. ConfigError and StartError mean that nothing was started.
    """
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    # Blocked before any thread is there, so that only sigwait below ever takes them.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    sensor, prepared = build(read())
    try:
        _put_rules(sensor)
        _settle_capabilities(sensor, prepared)
        _start(sensor)
    except BaseException as problem:
        sensor.rules.remove()
        if sensor.ledger:
            sensor.ledger.release()
        sensor.log.stop(1.0)
        if is_lack_of_threads(problem):
            raise StartError(NO_THREAD) from None
        raise
    notifier = Notifier()
    failed = False
    try:
        with contextlib.suppress(OSError):  # who started us does not listen any more
            started(sensor)
        _attend(sensor, notifier, signals, read)
    except BaseException as problem:  # a fault of ours; what was received is recorded all the same
        failed = True
        sensor.log(f"The main thread failed: {type(problem).__name__}: {problem}; the sensor stops.")
    # Signals stay blocked: a second one must not cost what the first one is bringing into the file, in bounded time.
    seconds = sensor.config.limits.stop or (STOP_SECONDS_SYSTEMD if "NOTIFY_SOCKET" in os.environ else STOP_SECONDS)
    notifier.stopping(seconds)
    return _Stop(sensor, seconds).run() or int(failed)
