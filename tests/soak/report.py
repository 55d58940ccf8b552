"""The end of a soak as text: a table for the terminal that is Markdown as well, and all of it as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.soak.evidence import Evidence, Ledger
from tests.soak.faults import Done
from tests.soak.judge import Absent, Judgement, Row
from tests.soak.meter import Trend, shown
from tests.soak.sensor import Life

MOST_SHOWN = 20
COUNT_SLACK = 2.0  # seconds between a drop and the scrape that tells of it


@dataclass
class Report:
    """Everything that is told. `unexplained` decides the exit code."""

    seed: int
    record: str
    minutes: float
    where: str
    judgement: Judgement
    ledger: Ledger
    evidence: Evidence
    lives: list[Life]
    faults: list[Done]
    trends: list[Trend]
    beside: dict[str, Any]
    kernel: dict[str, int]
    account: str
    counted: list[tuple[float, float, int]]  # when the sensor's metrics counted drops, and how many
    descriptors: dict[str, int]
    unexplained: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def judge_counts(self) -> None:
        """Hold what is missing against what the ledger counts as dropped, and add up all that nothing explains."""
        found, ledger = self.judgement, self.ledger
        self.unexplained += found.findings
        drops, kernel = sum(ledger.dropped.values()), ledger.errors["kernel_udp_drops"]
        if any(life.how != "stopped" for life in self.lives):
            # What a killed sensor had counted since its ledger's last line is known from its metrics and the kernel.
            drops = max(drops, int(self.beside.get("sessions_dropped", 0)))
            kernel = max(kernel, self.kernel.get("buffer", 0), int(self.beside.get("kernel_udp_drops", 0)))
        lost = kernel + self.kernel.get("reassembly", 0)
        tcp, udp = found.absent["tcp"], found.absent["udp"]
        unexplained_udp = max(0, len(udp) - lost)
        if (too_many := unexplained_udp + len(tcp) - drops) > 0:
            told = f"{too_many} of {len(tcp) + len(udp)} that are in no record are counted nowhere"
            self.unexplained.append(
                f"{told} (dropped: {drops}, lost by the kernel: {lost}); at a time without a count:"
            )
            self.unexplained += uncounted([*tcp, *(udp if unexplained_udp else [])], self.counted)[:too_many]
        watch = ledger.errors["watch_kernel_drops"] + ledger.errors["sightings_not_recorded"]
        watch = max(watch, int(self.beside.get("watch_kernel_drops", 0)))
        if len(found.unseen) > watch:
            told = f"{len(found.unseen)} connections without a SYN in the watch's lines, which lost {watch}:"
            self.unexplained += [told, *(one.what for one in sorted(found.unseen))]
        if (over := sum(ledger.dropped.values()) - found.gone.total()) > 0:
            self.unexplained.append(f"the ledger counts {over} more as dropped than are missing")
        self._bound("truncated", found.truncated, ledger.truncated)
        self._bound("refused", found.refused, ledger.refused)
        if self.evidence.garbled > sum(life.how != "stopped" for life in self.lives):
            self.unexplained.append(f"{self.evidence.garbled} lines of the data files are no records")
        for trend in self.trends:
            if trend.grows:
                self.unexplained.append(
                    f"{trend.name} grows: {shown(trend.name, trend.slope)} a minute for {trend.minutes} minutes"
                )

    def _bound(self, name: str, records: int, counted: Counter[str]) -> None:
        by_cause = sum(count for cause, count in counted.items() if not cause.startswith("reply_"))
        told = max(by_cause, int(self.beside.get(f"sessions_{name}", 0)))
        if records > told:
            self.unexplained.append(f"{records} records are {name} by a bound; the ledger counts {told}")

    def lines(self) -> list[str]:
        return [*self._head(), *self._sent(), *self._counts(), *self._itself(), *self._faults(), *self._verdict()]

    def _head(self) -> list[str]:
        return [
            f"# Soak, seed {self.seed}",
            "",
            f"{self.minutes:.1f} minutes, record = {self.record}, {self.where}. {len(self.lives)} lives of the sensor: "
            + ", ".join(f"{_seconds(life):.0f} s {life.how} ({life.code})" for life in self.lives)
            + ".",
            "",
        ]

    def _sent(self) -> list[str]:
        heads = ("what was sent", "sent", "bytes", "recorded", "bytes", "cut", "sensor ended", "met a stop", "kill -9",
                 "missing", "UNEXPLAINED")  # fmt: skip
        rows = [(name, *_values(row)) for name, row in sorted(self.judgement.rows.items())]
        sums = Row()
        for row in self.judgement.rows.values():
            for name, value in asdict(row).items():
                setattr(sums, name, getattr(sums, name) + value)
        return [*table(heads, [*rows, ("all", *_values(sums))]), ""]

    def _counts(self) -> list[str]:
        ledger, found = self.ledger, self.judgement
        beside = {name: count for name, count in self.beside.items() if isinstance(count, int)}
        groups = (
            ("dropped", ledger.dropped), ("refused", ledger.refused), ("truncated", ledger.truncated),
            ("errors", ledger.errors), ("kernel, datagrams", self.kernel), ("event lines", self.evidence.events),
            ("beside", beside),
        )  # fmt: skip
        rows = [
            ("ledger: accepted", ledger.accepted), ("ledger: recorded", ledger.recorded),
            ("ledger: open at a stop", ledger.open), ("ledger: lines", ledger.lines),
            ("lines in the copies", self.evidence.lines),
            *((f"{group}: {name}", count) for group, counts in groups for name, count in sorted(counts.items())),
            ("in no record: tcp", found.gone["tcp"]), ("in no record: udp", found.gone["udp"]),
            ("SYNs that the watch does not have", len(found.unseen)),
            ("truncated records", found.truncated), ("refused records", found.refused),
            ("not connected: nobody was there", found.not_connected),
            ("bytes lost by kill -9", found.kill_bytes),
        ]  # fmt: skip
        return [*table(("counted", "how many"), [(name, f"{count:,}") for name, count in rows]), "", *self._account()]

    def _account(self) -> list[str]:
        return ["`tcppc account` says:", "", *(f"    {line}" for line in self.account.splitlines()), ""]

    def _itself(self) -> list[str]:
        if not self.trends:
            return ["Too short to say whether memory, threads or descriptors grow.", ""]
        rows = [
            (
                trend.name, shown(trend.name, trend.first), shown(trend.name, trend.last),
                f"{shown(trend.name, trend.slope)} a minute", shown(trend.name, trend.most),
                "GROWS" if trend.grows else "flat",
            )
            for trend in self.trends
        ]  # fmt: skip
        minutes = self.trends[0].minutes
        heads = (
            "the sensor",
            "least of the first minute",
            "of the last",
            "slope",
            "most",
            f"{minutes} minutes watched",
        )
        return [*table(heads, rows), ""]

    def _faults(self) -> list[str]:
        counts = Counter(done.name for done in self.faults)
        return [*table(("fault", "times"), [(name, str(count)) for name, count in sorted(counts.items())]), ""]

    def _verdict(self) -> list[str]:
        lines = [f"note: {note}" for note in self.notes]
        if not self.unexplained:
            return [*lines, "Unexplained: 0."]
        lines += [f"Unexplained: {len(self.unexplained)}.", ""]
        lines += [f"- {line}" for line in self.unexplained[:MOST_SHOWN]]
        if len(self.unexplained) > MOST_SHOWN:
            lines.append(f"- {len(self.unexplained) - MOST_SHOWN} more; the JSON file has all")
        return lines

    def values(self) -> dict[str, Any]:
        return {
            "seed": self.seed, "record": self.record, "minutes": self.minutes, "where": self.where,
            "sent": {name: asdict(row) for name, row in sorted(self.judgement.rows.items())},
            "ledger": vars(self.ledger), "kernel": self.kernel, "beside": self.beside,
            "lives": [asdict(life) for life in self.lives], "faults": [asdict(done) for done in self.faults],
            "trends": [asdict(trend) for trend in self.trends],
            "descriptors": self.descriptors, "unexplained": self.unexplained, "notes": self.notes,
        }  # fmt: skip


def uncounted(absent: list[Absent], counted: list[tuple[float, float, int]]) -> list[str]:
    """Those first that are of a time when nothing was counted as dropped."""
    left = sorted(absent)
    explained = []
    for begin, end, count in counted:
        near = [one for one in left if begin - COUNT_SLACK <= one.instant / 1e9 <= end + COUNT_SLACK][:count]
        explained += near
        left = sorted(set(left) - set(near))
    return [one.what for one in [*left, *explained]]


def _values(row: Row) -> tuple[str, ...]:
    return tuple(f"{value:,}" for value in asdict(row).values())


def _seconds(life: Life) -> float:
    return (life.gone - life.began) / 1e9


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown that is in columns as it stands: the first to the left, the others to the right."""
    every = [tuple(heads), *map(tuple, rows)]
    widths = [max(len(row[column]) for row in every) for column in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.rjust(width) if column else cell.ljust(width)
                          for column, (cell, width) in enumerate(zip(row, widths, strict=True))) + " |"
        for row in every
    ]  # fmt: skip
    rule = "| " + " | ".join("-" * (width - 1) + (":" if column else "-") for column, width in enumerate(widths)) + " |"
    return [lines[0], rule, *lines[1:]]
