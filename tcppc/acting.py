"""The sensor's actions, as the configuration has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tcppc import folders
from tcppc.actions import registry
from tcppc.actions.allow import Allowed
from tcppc.actions.blocks import Blocker
from tcppc.actions.engine import Engine, Terms
from tcppc.actions.journal import Journal
from tcppc.actions.rule import Rule, RuleError
from tcppc.capture import capabilities
from tcppc.clock import Zone
from tcppc.config import Config, ConfigError
from tcppc.netfilter import tools
from tcppc.problems import Few
from tcppc.records import Encoder
from tcppc.values import network

if TYPE_CHECKING:
    from tcppc.sensor import Sensor

STOP_SECONDS = 5.0


def rules(config: Config) -> tuple[Rule, ...]:
    """ConfigError for an action that cannot be done as it is written."""
    found = []
    for number, action in enumerate(config.action, 1):
        try:
            found.append(Rule(number, action))
            registry.check(found[-1])
        except RuleError as problem:
            where = action.name or f"number {number}"
            raise ConfigError(f"{config.source or 'the command line'}: [[action]] {where}: {problem}") from None
    return tuple(found)


def allowed(config: Config) -> Allowed:
    """Load balancers too: their addresses are nobody's who means harm."""
    return Allowed(map(network, (*config.actions.allow, *config.capture.proxy_protocol)))


def journal(config: Config) -> Journal:
    """The undo log of blocks. NoFolder where there is none for it."""
    return Journal(folders.state(config.capture.state_dir), Zone(config.tcppc.timezone))


def terms(config: Config) -> Terms:
    zone = Zone(config.tcppc.timezone)
    encoder = Encoder(zone, config.sensor)
    return Terms(rules(config), allowed(config), encoder, config.sensor, config.actions.timeout, zone.stamp)


def warnings(config: Config, found: Sequence[Rule]) -> list[str]:
    """What the person who wrote it should know, a line each, of many the first ones."""
    told: list[str] = []
    few = Few(told.append)
    said = [line for rule in found for line in rule.warnings()]
    if not config.watch.interface:
        said += [
            f'{rule.name}: on = "{on}" never happens: [watch] has no interface'
            for rule in found
            for on in ("syn", "scan")
            if on in rule.action.on
        ]
    for line in said:
        few(line)
    few.over()
    return told


def build(made: Sensor, now: Terms) -> Engine | None:
    """None where there is nothing to do."""
    config = made.config
    if not now.rules:
        return None
    blocker = _blocker(made, now)
    for line in warnings(config, now.rules):
        made.log(f"Actions: {line}.")
    port = made.servers[0].port if made.servers else 0
    return Engine(now, made.books, made.log, blocker, port, config.actions.queue, config.actions.concurrency)


def _blocker(made: Sensor, now: Terms) -> Blocker | None:
    """None where nothing is to be blocked, or nothing can be; then it is said."""
    if not any(rule.action.block and not rule.action.dry_run for rule in now.rules):
        return None
    if not tools.available("nft"):
        made.log("Blocks: nft is missing: install the package nftables; nobody is blocked, all else goes on.")
        return None
    if not capabilities.has("CAP_NET_ADMIN"):
        grant = capabilities.how_to_grant(("CAP_NET_ADMIN",))
        made.log(f"Blocks: nobody is blocked: it needs CAP_NET_ADMIN; all else goes on. To grant it: {grant}.")
        return None
    given = made.config.actions
    try:
        kept = journal(made.config)
    except folders.NoFolder as problem:  # a block that nobody can take back by name is none
        made.log(f"Blocks: nobody is blocked: {problem}; all else goes on.")
        return None
    return Blocker(kept, now.allowed, made.books, made.log, given.blocks, given.blocks_per_hour)


def use(made: Sensor) -> None:
    """Have servers and watches tell it what happens."""
    for server in made.servers:
        server.actions = made.engine
    for watch in made.watches:
        watch.act = made.engine.sighting if made.engine else None


def start(made: Sensor) -> None:
    if made.engine:
        if made.engine.blocker:
            made.engine.blocker.start(made.servers[0].port if made.servers else 0, made.config.rules.mark)
        made.engine.start()


def stop(made: Sensor, seconds: float) -> None:
    if made.engine:
        made.engine.stop(min(STOP_SECONDS, seconds))
        if made.engine.blocker:
            made.engine.blocker.stop(1.0)
