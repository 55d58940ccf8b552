"""SIGHUP: files anew, configuration anew. A reload is one act: everything is built first, then each part adopts it.

What cannot be built changes nothing; adopting cannot fail, and were it to, the other parts go on all the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tcppc import acting
from tcppc.capture.files import LEDGER, fixed_folder, is_standard_output
from tcppc.capture.ledger import in_use
from tcppc.config import Config, ConfigError, changed
from tcppc.prepare import Prepared, keeping, prepare
from tcppc.sensor import Sensor, sinks

SLOW_SECONDS = 5.0
BUILD_STACK_BYTES = 8 << 20  # virtual: plug-ins are foreign code

# Settings that are read once: a reload says that they need a restart.
_FIXED = {
    "tcppc": ("host", "port", "logFile", "maxFdNum"),
    "capture": ("tcp", "udp", "udp_buffer", "rules"),
    "watch": ("interface",),
    "metrics": ("listen",),
    "actions": ("concurrency", "queue", "blocks", "blocks_per_hour"),
    "rules": ("interface", "address", "excepted", "mode", "mark", "table", "take_over", "ssh"),
}


class _Building:
    """A configuration that is read and built in a thread of its own."""

    def __init__(self, read: Callable[[], Config]) -> None:
        self.notes: list[str] = []
        self.prepared: Prepared | None = None
        self.problem: BaseException | None = None
        self.begun = time.monotonic()
        self.told = False  # that it takes long
        self._thread = threading.Thread(target=self._run, args=(read,), name="reload", daemon=True)
        before = threading.stack_size(BUILD_STACK_BYTES)
        try:
            self._thread.start()
        except RuntimeError:  # no thread can be had: then here
            self._run(read)
        finally:
            threading.stack_size(before)

    def _run(self, read: Callable[[], Config]) -> None:
        try:
            self.prepared = prepare(read(), self.notes.append)
        except BaseException as problem:  # told where it is asked for
            self.problem = problem

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()


class Reloads:
    """Reloads, one after the other. What one waits for (a name server, a disk that hangs) holds up neither the stop nor
    the watchdog: it is built aside, and adopted in the main thread. Belongs to that."""

    def __init__(self, sensor: Sensor, read: Callable[[], Config]) -> None:
        self._sensor = sensor
        self._read = read
        self._building: _Building | None = None
        self._again = False

    @property
    def going(self) -> bool:
        return self._building is not None

    def ask(self) -> None:
        """Begin one, or another one behind the one that goes on: what that has read already may be old."""
        if self._building:
            self._again = True
            return
        self._sensor.log.reopen()
        self._building = _Building(self._read)

    def step(self) -> bool:
        """True where one was just brought to its end. Raises nothing but what the machine itself does: a wrong
        configuration is refused, and the old one stays."""
        building = self._building
        if building is None:
            return False
        if not building.done:
            took = time.monotonic() - building.begun
            if took > SLOW_SECONDS and not building.told:
                building.told = True
                self._sensor.log(
                    f"Reload: reading the configuration and its files has not returned for {took:.0f} s; "
                    "all goes on as it was."
                )
            return False
        self._building = None
        if self._again:
            self._again = False
            self.ask()
        _finish(self._sensor, building)
        return True


def _finish(sensor: Sensor, building: _Building) -> None:
    log, problem, prepared = sensor.log, building.problem, building.prepared
    if prepared is None:
        if problem and not isinstance(problem, Exception):
            raise problem
        sensor.writer.change(sensor.writer.reopen)
        said = str(problem)
        if not isinstance(problem, ConfigError):  # a fault of ours, or of a plug-in: the sensor goes on all the same
            said = f"{type(problem).__name__}: {problem}".encode("unicode_escape").decode("ascii")[:500]
        log(f"Reload refused, the configuration stays as it was: {said}")
        return
    old, new = sensor.config, prepared.config
    if (folder := _others(sensor, new)) is not None:
        sensor.writer.change(sensor.writer.reopen)
        log(
            f"Reload refused, the configuration stays as it was: {folder}: another sensor writes its data files there; "
            "expected a folder for each"
        )
        return
    log.write(building.notes)
    for line in _restarts(sensor, old, new, prepared):
        log(f"Reload: {line}")
    for adopt in _parts(sensor, prepared):
        try:
            adopt()
        except Exception as problem:  # a fault of ours: the other parts have to be told all the same
            sensor.books.error("reload_errors")
            log(f"Reload: {type(problem).__name__}: {problem}; the rest is adopted.")
    log("Reloaded.")


def _others(sensor: Sensor, new: Config) -> Path | None:
    """The folder of data files, where it is another sensor's."""
    pattern = new.tcppc.tcpFileFmt
    if not sensor.ledger or not pattern or is_standard_output(pattern):
        return None
    folder = fixed_folder(pattern)
    try:
        return folder if not sensor.ledger.stands_for(folder) and in_use(folder / LEDGER) else None
    except OSError:  # there is no ledger, or none that we may read
        return None


def _parts(sensor: Sensor, prepared: Prepared) -> Iterator[Callable[[], object]]:
    """One call for each part, in the order in which they are told."""
    new = prepared.config
    yield lambda: sensor.adopt(new)
    yield lambda: sensor.books.set_limits(new.limits)
    yield lambda: sensor.spill.set_most(new.limits.spill)
    yield lambda: sensor.intake.adopt(talkative=not new.capture.quiet, steps=new.files.record == "events")
    for tcp in sensor.tcp:
        yield lambda server=tcp: server.set_terms(prepared.terms)  # type: ignore[misc]
    for udp in sensor.udp:
        yield lambda server=udp: server.set_personas(prepared.for_datagrams)  # type: ignore[misc]
    for watch in sensor.watches:
        yield lambda each=watch: each.set_terms(prepared.watch)  # type: ignore[misc]
    if engine := sensor.engine:
        yield lambda: engine.set_terms(prepared.actions)
    yield lambda: sensor.log.set_zone(prepared.zone)
    if ledger := sensor.ledger:
        yield lambda: ledger.adopt(prepared.zone, new.sensor)
    if keeper := sensor.keeper:
        yield lambda: keeper.adopt(keeping(new, sensor.file is not None))
    yield lambda: sensor.writer.change(_of_the_writer(sensor, prepared))


def _of_the_writer(sensor: Sensor, prepared: Prepared) -> Callable[[], None]:
    """What its own thread does between two batches. The file is closed after the new name is set: the one that is
    opened next must not be the old one again."""
    new = prepared.config
    followers = sinks(new, sensor.books, sensor.log, sensor.copier)

    def adopt() -> None:
        sensor.writer.adopt(prepared.encoder, followers)
        if sensor.file and new.tcppc.tcpFileFmt:
            sensor.file.set_naming(prepared.naming)
        sensor.writer.reopen()

    return adopt


def _restarts(sensor: Sensor, old: Config, new: Config, prepared: Prepared) -> Iterator[str]:
    """What begins to be used after a restart alone, and what the person who wrote it should know, a line each."""
    if fixed := changed(old, new, _FIXED):
        yield f"{', '.join(fixed)} will be as the file says after a restart."
    rules = prepared.actions.rules
    blocks = any(rule.action.block and not rule.action.dry_run for rule in rules)
    if rules and (not sensor.engine or (blocks and not sensor.engine.blocker)):
        yield "[[action]] begins to be used after a restart."
    if sensor.engine:
        yield from (f"Actions: {line}." for line in acting.warnings(new, rules))
    if bool(sensor.file) != bool(new.tcppc.tcpFileFmt):
        yield "tcppc.tcpFileFmt begins or ends to be used after a restart."
    elif sensor.ledger and not sensor.ledger.stands_for(fixed_folder(new.tcppc.tcpFileFmt)):
        yield f"the ledger stays {sensor.ledger.path} until a restart."
