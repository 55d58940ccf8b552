"""What the sensor counts, for Prometheus, and whether it is well, over HTTP.

Everything is read from the books at a scrape: a session costs nothing more for it. No label is ever made of an address
or of a stranger's bytes; ports are labels for the TOP_PORTS busiest ones alone.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tcppc import __version__, httpd
from tcppc.capture import sockets
from tcppc.capture.supervisor import Supervised, described
from tcppc.config import Config, ConfigError
from tcppc.values import host_and_port

if TYPE_CHECKING:
    from tcppc.sensor import Sensor

TOP_PORTS = 20
STOP_SECONDS = 5.0
SAY_AGAIN_SECONDS = 60.0


# Told from the start with 0: the first of a kind must be an increase that an alert sees.
_KNOWN = {
    "refused": ("sessions", "sessions_per_source", "sessions_per_network", "threads"),
    "truncated": (
        "session_bytes", "session_payloads", "memory", "source_memory", "no_memory", "disk", "datagram_size",
    ),
    "dropped": ("disk", "stuck", "stop", "memory", "source_memory", "error"),
    "accept": ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED"),
    "errors": (
        "disk_failures", "writer_errors", "session_errors", "persona_errors", "listener_dead", "watch_errors",
        "thread_restarts", "keeper_errors", "captures_failed", "writer_stuck", "memory_errors", "spill_failures",
        "files_not_synced", "ledger_lines_lost", "log_lines_lost",
    ),
    "removed": ("keep_bytes", "reserve", "session_dir"),
    "actions": ("run", "failed", "suppressed", "allowed", "dropped_queue", "dropped_memory", "dropped_stop"),
}  # fmt: skip


def check(config: Config) -> None:
    """ConfigError where the package for it is missing."""
    if config.metrics.listen:
        try:
            import prometheus_client  # noqa: F401
        except ImportError:
            raise ConfigError(
                "metrics.listen (--metrics): the package prometheus-client is missing: pip install 'tcppc[metrics]'"
            ) from None


class Collector:
    """The sensor's numbers as metric families, at each scrape anew."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor

    def collect(self) -> Iterator[Any]:
        yield from self._sessions()
        yield from self._writing()
        yield from self._disk()
        yield from self._trouble()
        yield from self._watching()
        yield from self._itself()

    def _sessions(self) -> Iterator[Any]:
        books = self._sensor.books
        counts = books.counts()
        datagrams = books.datagrams
        if self._sensor.servers:
            started = {("tcp",): counts["accepted"] - datagrams, ("udp",): datagrams}
            yield _counter("sessions_started", "Connections accepted and datagrams read.", ("proto",), started)
        yield _gauge("sessions_open", "Sessions open now.", counts["open"])
        yield _counter("sessions_ended", "Sessions recorded, by how they closed.", ("proto", "cause"), books.ended)
        for name, about, label in (
            ("refused", "Sessions closed at once by a bound.", "bound"),
            ("truncated", "Sessions whose payloads a bound cut.", "bound"),
            ("dropped", "Sessions that reached no file.", "cause"),
        ):
            values = {(key,): counts[name].get(key, 0) for key in {*_KNOWN[name], *counts[name]}}
            yield _counter(f"sessions_{name}", about, (label,), values)
        yield _counter("received_bytes", "Bytes received in recorded sessions.", (), {(): counts["bytes_in"]})
        yield _counter("payloads", "Payloads of recorded sessions.", (), {(): books.payloads})
        busiest = heapq.nlargest(TOP_PORTS, list(books.ports.items()), key=lambda item: item[1])
        yield _counter(
            "port_sessions", f"Recorded sessions of the {TOP_PORTS} ports touched most.", ("proto", "port"),
            {(proto, str(port)): count for (proto, port), count in busiest},
        )  # fmt: skip

    def _writing(self) -> Iterator[Any]:
        sensor = self._sensor
        counts = sensor.books.counts()
        yield _gauge("held_bytes", "Bytes of the memory bound in use.", sensor.books.held)
        yield _gauge("memory_limit_bytes", "The memory bound, limits.memory.", sensor.books.limits.memory)
        yield _gauge("spill_bytes", "Bytes of large sessions in the spill file.", sensor.books.stowed)
        yield _gauge(
            "writer_stuck_seconds", "Since when a write has not returned; 0 while none hangs.", sensor.writer.stuck()[0]
        )
        yield _counter("dropped_bytes", "Bytes in sessions that reached no file.", (), {(): counts["bytes_dropped"]})
        yield _gauge("queue_items", "Sessions and events on their way to the writer.", len(sensor.intake))
        yield _counter("lines_written", "Lines written to data files.", (), {(): counts["lines"]})
        yield _counter("written_bytes", "Bytes written to data files.", (), {(): counts["bytes"]})
        turns = sensor.file.turns if sensor.file else 0
        yield _counter("rotations", "Data files opened after the first.", (), {(): max(0, turns)})
        yield _counter("log_lines_lost", "Log lines that their destination did not take.", (), {(): sensor.log.lost})

    def _trouble(self) -> Iterator[Any]:
        errors = self._sensor.books.counts()["errors"]
        yield _counter("kernel_udp_drops", "Datagrams lost by the kernel.", (), {(): errors.pop("kernel_udp_drops", 0)})
        yield _counter(
            "watch_kernel_drops", "Packets that the watch lost.", (), {(): errors.pop("watch_kernel_drops", 0)}
        )
        yield _counter(
            "watch_sources_forgotten", "Sources that the watch forgot to make room for others.", (),
            {(): errors.pop("watch_sources_forgotten", 0)},
        )  # fmt: skip
        accept = {name: count for name, count in errors.items() if name.startswith("accept_")}
        yield _counter(
            "accept_errors", "Errors of accept(2), by name.", ("error",),
            {(name,): 0 for name in _KNOWN["accept"]}
            | {(name.removeprefix("accept_"),): count for name, count in accept.items()},
        )  # fmt: skip
        yield _counter(
            "errors", "Other things that went wrong, by name.", ("name",),
            {(name,): 0 for name in _KNOWN["errors"]}
            | {(name,): count for name, count in errors.items() if name not in accept},
        )  # fmt: skip

    def _watching(self) -> Iterator[Any]:
        sensor, books = self._sensor, self._sensor.books
        with books.lock:
            seen, scans, actions = dict(books.seen), dict(books.scans), dict(books.actions)
        yield _counter("tcpcap_processed_conns", "SYNs seen; tcpcap's name.", (), {(): seen.get("syn", 0)}, "")
        blocked = actions.pop("blocks", 0)
        yield _counter("tcpcap_processed_blocks", "Sources blocked; tcpcap's name.", (), {(): blocked}, "")
        yield _counter(
            "watch_packets", "Packets the watch looked at.", ("kind",),
            {(kind,): seen.get(kind, 0) for kind in ("syn", "probe", "datagram")},
        )  # fmt: skip
        yield _counter(
            "scans", "Scans found.", ("kind", "proto", "window"),
            {(kind, proto, "slow" if slow else "short"): count for (kind, proto, slow), count in scans.items()},
        )  # fmt: skip
        sources = sum(len(watch.detector) for watch in sensor.watches)
        yield _gauge("watch_sources", "Sources that the watch remembers.", sources)
        held = sum(watch.detector.held for watch in sensor.watches)
        yield _gauge("watch_held_bytes", "Bytes that the watch remembers sources and scans in.", held)
        yield _counter(
            "actions", "Actions by what became of them.", ("result",),
            {(name,): actions.get(name, 0) for name in {*_KNOWN["actions"], *actions}},
        )  # fmt: skip
        blocker = sensor.engine.blocker if sensor.engine else None
        yield _gauge("blocks_active", "Networks blocked now.", blocker.active() if blocker else 0)

    def _itself(self) -> Iterator[Any]:
        sensor = self._sensor
        yield _gauge("threads", "Threads of the process.", threading.active_count())
        yield _gauge("healthy", "1 while /healthz says ok.", int(not sensor.unwell()))
        yield _gauge("listeners_dead", "Listeners that do not answer.", sensor.prober.dead() if sensor.prober else 0)
        up = _gauge(
            "thread_up", "1 while the thread does its work, 0 while it waits to be started again.", None, ("thread",)
        )
        for name, well in sorted(sensor.threads_up().items()):
            up.add_metric((name,), int(well))
        yield up
        restarts = {(thread.name,): thread.restarts for thread in sensor.supervised()}
        yield _counter("thread_restarts", "How often a thread had to be started again.", ("thread",), restarts)
        build = _gauge("build_info", "Version of tcppc.", None, ("version",))
        build.add_metric((__version__,), 1)
        yield build

    def _disk(self) -> Iterator[Any]:
        keeper = self._sensor.keeper
        if keeper is None:
            return
        gone = {(why,): keeper.gone.get(why, 0) for why in {*_KNOWN["removed"], *keeper.gone}}
        yield _counter("files_removed", "Files removed to bound the disk, by the bound.", ("why",), gone)
        free = _gauge("disk_free_bytes", "Free space of the disks that files are written to.", None, ("folder",))
        reserve = _gauge("disk_reserve_bytes", "What files.reserve keeps free of it.", None, ("folder",))
        for folder, (disk, kept) in sorted(keeper.disks.items()):
            free.add_metric((folder,), disk.free)
            reserve.add_metric((folder,), kept)
        yield free
        yield reserve


def _counter(
    name: str, about: str, labels: tuple[str, ...], values: Mapping[Any, float], prefix: str = "tcppc_"
) -> Any:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"{prefix}{name}", about, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _gauge(name: str, about: str, value: float | None, labels: tuple[str, ...] = ()) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"tcppc_{name}", about, labels=labels)
    if value is not None:
        family.add_metric((), value)
    return family


class Metrics:
    """Serves /metrics and /healthz. OSError from the constructor where the address cannot be had."""

    def __init__(self, listen: str, sensor: Sensor) -> None:
        import prometheus_client
        from prometheus_client import CollectorRegistry, ProcessCollector

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collector(sensor))
        ProcessCollector(registry=registry)
        self._sensor = sensor
        self._metrics = prometheus_client.make_wsgi_app(registry)
        self._said = -SAY_AGAIN_SECONDS
        self._server = httpd.Server(*host_and_port(listen), self._answer, self._failed)
        self.thread = Supervised("metrics", self._server.serve, sensor.log, sensor.books.error)

    @property
    def name(self) -> str:
        return sockets.named(self._server.address)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.thread.stop()
        self._server.stop()
        if self.thread.join(STOP_SECONDS):
            self._server.close()

    def _answer(self, request: httpd.Request) -> httpd.Answer | Callable[[], httpd.Answer]:
        path, _, query = request.target.partition("?")
        if path == "/metrics":
            return partial(self._scrape, request, query)
        if path != "/healthz":
            return httpd.page(404, "/metrics or /healthz\n")
        if request.method not in ("GET", "HEAD"):
            return httpd.page(405, "GET or HEAD\n")
        unwell = self._sensor.unwell()
        return httpd.page(503 if unwell else 200, "\n".join([*unwell, ""]) if unwell else "ok\n")

    def _scrape(self, request: httpd.Request, query: str) -> httpd.Answer:
        """By prometheus_client's own application, which knows what a scraper can take."""
        told: list[Any] = []
        environ = {
            "REQUEST_METHOD": "GET" if request.method == "HEAD" else request.method,
            "PATH_INFO": "/metrics",
            "QUERY_STRING": query,
            "HTTP_ACCEPT": request.headers.get("accept"),
            "HTTP_ACCEPT_ENCODING": request.headers.get("accept-encoding"),
        }
        body = b"".join(self._metrics(environ, lambda *status: told.extend(status)))
        return httpd.Answer(int(told[0][:3]), body, tuple(told[1]))

    def _failed(self, problem: Exception) -> None:
        count = self._sensor.books.error("metrics_errors")
        if time.monotonic() - self._said >= SAY_AGAIN_SECONDS:
            self._said = time.monotonic()
            self._sensor.log(f"Metrics: {described(problem)} ({count} times so far); going on.")


def build(made: Sensor) -> Metrics | None:
    """None where none is asked for; where the address cannot be had, a line in the log, and the sensor goes on."""
    listen = made.config.metrics.listen
    if not listen:
        return None
    try:
        return Metrics(listen, made)
    except OSError as problem:
        made.log(f"Metrics {listen}: {problem.strerror or problem}; there are none, all else goes on.")
        return None
