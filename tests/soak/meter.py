"""Memory, threads and descriptors of the sensor, each second, and whether they grow.

What strangers hold goes up and down; what a leak holds stays. So the least of each minute is looked at, of the last
life alone, some minutes after it began.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
WARM_SECONDS = 300.0
SHORT_WARM = 0.25  # of a run that is too short for that
ENOUGH_MINUTES = 8  # least of so many minutes: fewer prove nothing
# What a growth over the time that was watched may be: of the least at its begin, and beside it.
MAY_GROW = {"memory": (0.25, 24 * MIB), "threads": (0.25, 24), "descriptors": (0.25, 24)}


@dataclass
class Sample:
    at: float  # Unix time
    life: int
    memory: int
    threads: int
    descriptors: int
    metrics: dict[str, float]


@dataclass
class Trend:
    """Of one of them, in the time that was watched."""

    name: str
    first: int  # the least of the first minute
    last: int
    slope: float  # of the least of each minute, by minute
    most: int
    minutes: int

    @property
    def grows(self) -> bool:
        share, beside = MAY_GROW[self.name]
        return self.minutes >= ENOUGH_MINUTES and self.slope * self.minutes > self.first * share + beside


class Meter:
    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._last: dict[int, dict[str, float]] = {}  # the last metrics of each life

    def look(self, pid: int, life: int, at: float, metrics: dict[str, float]) -> None:
        """Take a sample; none where the process is gone."""
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            return
        values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "VmRSS" not in values:  # it ends
            return
        memory, threads = int(values["VmRSS"].split()[0]) * 1024, int(values["Threads"])
        self.samples.append(Sample(at, life, memory, threads, descriptors, metrics))
        if metrics:
            self._last[life] = metrics

    def total(self, name: str) -> int:
        """A counter of the sensor over all its lives, as far as they were scraped."""
        return int(sum(metrics.get(name, 0.0) for metrics in self._last.values()))

    def counted(self, *names: str) -> list[tuple[float, float, int]]:
        """(from, to, how many) of these counters together, wherever one went up."""
        found = []
        for before, after in itertools.pairwise(self.samples):
            if before.life == after.life and before.metrics and after.metrics:
                more = sum(after.metrics.get(name, 0.0) - before.metrics.get(name, 0.0) for name in names)
                found += [(before.at, after.at, int(more))] if more > 0 else []
        return found

    def trends(self, began: float) -> list[Trend]:
        """Of the last life, without its first minutes and those of the run. Empty where that leaves less than two."""
        if not self.samples:
            return []
        end = self.samples[-1].at
        of_last = [sample for sample in self.samples if sample.life == self.samples[-1].life]
        start = max(
            began + min(WARM_SECONDS, SHORT_WARM * (end - began)), of_last[0].at + min(60.0, (end - began) / 10)
        )
        watched = [sample for sample in of_last if sample.at >= start]
        minutes: dict[int, list[Sample]] = {}
        for sample in watched:
            minutes.setdefault(int((sample.at - start) // 60), []).append(sample)
        whole = [samples for samples in minutes.values() if len(samples) >= 20]
        if len(whole) < 2:
            return []
        found = []
        for name in MAY_GROW:
            least = [min(getattr(sample, name) for sample in samples) for samples in whole]
            most = max(getattr(sample, name) for sample in watched)
            found.append(Trend(name, least[0], least[-1], slope(least), most, len(whole)))
        return found


def held(pid: int) -> dict[str, int]:
    """What a process has open, by kind or name; for who looks for what is never closed."""
    found: Counter[str] = Counter()
    folder = Path(f"/proc/{pid}/fd")
    for descriptor in folder.iterdir() if folder.exists() else ():
        with contextlib.suppress(OSError):  # closed meanwhile
            found[re.sub(r"\[\d+\]|\d{6,}", "", os.readlink(descriptor))] += 1
    return dict(found.most_common())


def slope(values: list[int]) -> float:
    """Of the straight line that fits them best, a step."""
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    above = sum((number - middle) * (value - mean) for number, value in enumerate(values))
    return above / sum((number - middle) ** 2 for number in range(count))


def shown(name: str, value: float) -> str:
    return f"{value / MIB:,.1f} MiB" if name == "memory" else f"{value:,.0f}"
