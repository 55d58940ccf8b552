"""The sensor's SYN watches: opened, or a line why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcppc.capture import capabilities
from tcppc.config import Config
from tcppc.listeners import StartError
from tcppc.netfilter import host
from tcppc.values import network
from tcppc.watch import scans, watcher
from tcppc.watch.ring import interface_gone
from tcppc.watch.watcher import Watch

if TYPE_CHECKING:
    from tcppc.sensor import Sensor


def terms(config: Config) -> watcher.Terms:
    given = config.watch
    rules = scans.Rules(
        given.ports, given.hosts, given.window, given.slow_ports, given.slow_hosts, given.slow_window, given.sources,
        given.memory // max(1, len(given.interface)),
    )  # fmt: skip
    own = tuple(map(network, given.address))
    return watcher.Terms(rules, own, given.record, not config.capture.quiet, given.udp)


def open_watches(made: Sensor) -> None:
    """A sensor goes on without what cannot be watched; where watching is all it has to do, that is a StartError."""
    for interface in made.config.watch.interface:
        try:
            made.watches.append(Watch(interface, terms(made.config), made.books, made.intake, made.log))
        except OSError as problem:
            text = f"Watch {interface}: {_why_no_watch(problem)}"
            if not made.servers:
                raise StartError(text) from None
            made.log(f"{text}; all else goes on.")


def _why_no_watch(problem: OSError) -> str:
    if isinstance(problem, PermissionError):
        grant = capabilities.how_to_grant(("CAP_NET_RAW",))
        return f"watching needs CAP_NET_RAW. To grant it: {grant}"
    if interface_gone(problem):
        return f"there is no such interface; expected any or one of {', '.join(host.interfaces())}"
    return str(problem.strerror or problem)
