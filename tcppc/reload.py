"""SIGHUP: files anew, configuration anew. A reload is one act: everything is built first, then each part adopts it.

What cannot be built changes nothing; adopting cannot fail, and were it to, the other parts go on all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tcppc import acting
from tcppc.capture.files import fixed_folder
from tcppc.config import Config, ConfigError, changed
from tcppc.prepare import Prepared, keeping, prepare
from tcppc.sensor import Sensor, sinks

# Settings that are read once: a reload says that they need a restart.
_FIXED = {
    "tcppc": ("host", "port", "logFile", "maxFdNum"),
    "capture": ("tcp", "udp", "udp_buffer", "rules"),
    "watch": ("interface",),
    "metrics": ("listen",),
    "actions": ("concurrency", "queue", "blocks", "blocks_per_hour"),
    "rules": ("interface", "address", "excepted", "mode", "mark", "table", "take_over", "ssh"),
}


def reload(sensor: Sensor, read: Callable[[], Config]) -> None:
    """Raises nothing but what the machine itself does: a wrong configuration is refused, and the old one stays."""
    log = sensor.log
    log.reopen()
    notes: list[str] = []
    try:
        prepared = prepare(read(), notes.append)
    except ConfigError as problem:
        sensor.writer.change(sensor.writer.reopen)
        log(f"Reload refused, the configuration stays as it was: {problem}")
        return
    except Exception as problem:  # a fault of ours, or of a plug-in: the sensor goes on all the same
        sensor.writer.change(sensor.writer.reopen)
        said = f"{type(problem).__name__}: {problem}".encode("unicode_escape").decode("ascii")
        log(f"Reload refused, the configuration stays as it was: {said[:500]}")
        return
    log.write(notes)
    old, new = sensor.config, prepared.config
    for line in _restarts(sensor, old, new, prepared):
        log(f"Reload: {line}")
    for adopt in _parts(sensor, prepared):
        try:
            adopt()
        except Exception as problem:  # a fault of ours: the other parts have to be told all the same
            sensor.books.error("reload_errors")
            log(f"Reload: {type(problem).__name__}: {problem}; the rest is adopted.")
    log("Reloaded.")


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
    followers = sinks(new, sensor.books, sensor.log)

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
