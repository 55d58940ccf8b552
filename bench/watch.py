"""What the watch's memory holds, and how many probes a second it looks at. See README.md.

    python bench/watch.py                          what a source and a scan cost, floods, probes a second
    python bench/watch.py --against OLD/scans.py   the same speed beside that of another detector, in one run
    python bench/watch.py --memory 64 --sources 70000 --only floods    at their real size: minutes

Exit code 0: all floods stayed within the memory by tracemalloc; 1: one did not; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import multiprocessing
import resource
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tcppc.protocols.packet import SYN, Packet
from tcppc.watch import scans

Knock = tuple[int, int, int]  # numbers of source and host, port
BEGAN, STEP = 1_781_265_089_000_000_000, 20_000  # ns: 50,000 a second
ROUND = 8192  # packets of a block of the ring
RUNS = 5


def packet(knock: Knock, six: bool = False) -> Packet:
    src, dst, port = knock
    if six:
        return Packet("tcp", src.to_bytes(8, "big") + bytes(8), 5973, dst.to_bytes(16, "big"), port, SYN)
    return Packet("tcp", (0x0B000000 + src).to_bytes(4, "big"), 5973, (0x0A000000 + dst).to_bytes(4, "big"), port, SYN)


def once(sources: int) -> Iterator[Knock]:
    return ((source, 0, 80) for source in range(sources))


def ports_in_turn(sources: int, ports: int) -> Iterator[Knock]:
    return ((source, 0, port) for port in range(ports) for source in range(sources))


def ports_of_each(sources: int, ports: int) -> Iterator[Knock]:
    return ((source, 0, 1000 + port) for source in range(sources) for port in range(ports))


def no_scan(sources: int, targets: int) -> Iterator[Knock]:
    return ((source, target, 1000 + target) for target in range(targets) for source in range(sources))


def sweep(sources: int, hosts: int) -> Iterator[Knock]:
    return ((source, host, 80) for host in range(hosts) for source in range(sources))


def everything(ports: int, hosts: int) -> Iterator[Knock]:
    return ((0, host, port) for port in range(ports) for host in range(hosts))


def feed(detector: Any, knocks: Iterator[Knock], six: bool = False) -> None:
    now = BEGAN
    for number, knock in enumerate(knocks):
        now += STEP
        detector.probe(now, packet(knock, six), "")
        if not number % ROUND:
            while detector.ended(now):
                pass


# What each costs.


def cost(knocks: Callable[[int], Iterator[Knock]], number: int, six: bool, scan: bool) -> tuple[float, float]:
    """(bytes by tracemalloc, bytes by what it is charged with) of one of so many."""
    detector = scans.Detector(scans.Rules(ports=3 if scan else 0, hosts=0, memory=1 << 30))
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for at, knock in enumerate(knocks(number)):
        detector.probe(BEGAN + at, packet(knock, six), "")
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / number, detector.held / number


COSTS: dict[str, tuple[Callable[[int], Iterator[Knock]], int, bool]] = {
    "a source with 1 target": (once, 50_000, False),
    "a source with 3 targets": (lambda number: no_scan(number, 3), 20_000, False),
    "a source with 64 targets": (lambda number: no_scan(number, 64), 3_000, False),
    "a source that scans 66 ports": (lambda number: ports_of_each(number, 66), 1_000, True),
    "a source that scans 1000 ports": (lambda number: ports_of_each(number, 1000), 300, True),
}


def tell_costs() -> None:
    print(f"{'bytes of':34}{'IPv4':>8}{'charged':>9}{'IPv6':>8}{'charged':>9}")
    for name, (knocks, number, scan) in COSTS.items():
        figures = [figure for six in (False, True) for figure in cost(knocks, number, six, scan)]
        print(f"{name:34}{figures[0]:8.0f}{figures[1]:9.0f}{figures[2]:8.0f}{figures[3]:9.0f}")


# Floods.


def flood(name: str, sources: int, memory: int, traced: bool, answer: Any) -> None:
    """In a process of its own: (peak by tracemalloc or growth of the largest RSS, sources left, forgotten)."""
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if traced:
        tracemalloc.start()
    detector = scans.Detector(scans.Rules(memory=memory))
    feed(detector, FLOODS[name](sources), name.endswith("IPv6"))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = tracemalloc.get_traced_memory()[1] if traced else (after - before) * 1024
    answer.send((used, len(detector), detector.forgotten))


FLOODS: dict[str, Callable[[int], Iterator[Knock]]] = {
    "made-up sources, 1 target each": lambda sources: once(10 * sources),
    "made-up sources, 66 ports each in turn": lambda sources: ports_in_turn(sources, 66),
    "the same, IPv6": lambda sources: ports_in_turn(sources, 66),
    "made-up sources, 66 ports at once": lambda sources: ports_of_each(sources, 66),
    "made-up sources, 66 hosts and ports": lambda sources: no_scan(sources, 66),
    "40 sweeps of 4200 hosts, IPv6": lambda sources: sweep(40, 4200),
    "one source, all ports of 50 hosts": lambda sources: everything(min(65536, sources), 50),
}


def tell_floods(sources: int, memory: int) -> bool:
    """Was none over?"""
    print(
        f"\n{f'floods, {memory >> 20} MiB':44}{'traced peak, MB':>16}{'RSS grows, MB':>15}{'left':>9}{'forgotten':>11}"
    )
    within = True
    for name in FLOODS:
        figures = []
        for traced in (True, False):
            here, there = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(
                target=flood, args=(name, sources, memory, traced, there)
            )
            process.start()
            there.close()
            try:
                figures.append(here.recv())
            except EOFError:
                sys.exit(f"bench/watch.py: {name}: its process ended with {process.exitcode}")
            process.join()
        (peak, _, _), (grown, left, forgotten) = figures
        within = within and peak <= memory
        print(f"{name:44}{peak / 1e6:16.1f}{grown / 1e6:15.1f}{left:9}{forgotten:11}", flush=True)
    return within


# Speed.

SPEEDS: dict[str, Callable[[], Iterator[Knock]]] = {
    "made-up sources": lambda: once(300_000),
    "the same sources again and again": lambda: ((number % 50_000, 0, 80) for number in range(300_000)),
    "sources with 2 ports": lambda: ports_in_turn(100_000, 2),
    "sources with 66 ports": lambda: ports_in_turn(2_000, 66),
    "port scans of 1500 ports": lambda: ports_in_turn(100, 1500),
    "sweeps of 3000 hosts": lambda: sweep(50, 3000),
    "9 targets, no scan": lambda: no_scan(20_000, 9),
    "64 targets, no scan": lambda: no_scan(2_000, 64),
    "one source, everything": lambda: everything(600, 250),
}


def nanoseconds(module: Any, packets: list[Packet]) -> float:
    """CPU time of one probe."""
    detector = module.Detector(module.Rules())
    probe, now = detector.probe, BEGAN
    began = time.process_time()
    for number, each in enumerate(packets):
        now += STEP
        probe(now, each, "")
        if not number % ROUND:
            while detector.ended(now):
                pass
    return (time.process_time() - began) / len(packets) * 1e9


def loaded(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("other_scans", path)
    if spec is None or spec.loader is None:
        sys.exit(f"bench/watch.py: {path}: expected a scans.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def tell_speed(against: str) -> None:
    modules: list[Any] = [scans, *([loaded(against)] if against else [])]
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # as the sensor has it
    titles = "".join(f"{title:>{width}}" for title, width in (("other, ns", 12), ("ours / other", 14)) if against)
    print(f"\n{'a probe':34}{'ours, ns':>10}{'a second':>11}{titles}")
    for name, knocks in SPEEDS.items():
        packets = [packet(knock) for knock in itertools.islice(knocks(), 300_000)]
        runs = [[nanoseconds(module, packets) for module in modules] for _ in range(RUNS)]
        ours = statistics.median(run[0] for run in runs)
        line = f"{name:34}{ours:10.0f}{1e9 / ours:11,.0f}"
        if against:
            ratio = statistics.median(run[0] / run[1] for run in runs)
            line += f"{statistics.median(run[1] for run in runs):12.0f}{ratio:14.2f}"
        print(line, flush=True)


def main() -> int:
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    flags.add_argument("--sources", type=int, default=8000, help="made-up sources of a flood (default: %(default)s)")
    flags.add_argument("--memory", type=int, default=8, metavar="MIB", help="watch.memory (default: %(default)s)")
    flags.add_argument("--against", default="", metavar="FILE", help="another scans.py to measure beside ours")
    flags.add_argument("--only", choices=("costs", "floods", "speed"), default="", help="this part alone")
    given = flags.parse_args()
    within = True
    if given.only in ("", "costs"):
        tell_costs()
    if given.only in ("", "floods"):
        within = tell_floods(given.sources, given.memory << 20)
    if given.only in ("", "speed"):
        tell_speed(given.against)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
