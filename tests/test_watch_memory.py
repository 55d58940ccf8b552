"""The watch's memory: whatever strangers send it stays within `watch.memory`, and no exception leaves it wrong."""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest

from tcppc.protocols.packet import SYN, Packet
from tcppc.watch import running, scans
from tcppc.watch.scans import Detector, Rules
from tests.netns import ROOT

SECOND = 1_000_000_000
BEGAN = 1_700_000_000 * SECOND
Knock = tuple[int, int, int]  # number of the source, of the host, port


def packet(src: int, dst: int, port: int, six: bool = False, proto: str = "tcp") -> Packet:
    if six:
        return Packet(proto, src.to_bytes(8, "big") + bytes(8), 5973, dst.to_bytes(16, "big"), port, SYN)
    return Packet(proto, (0x0B000000 + src).to_bytes(4, "big"), 5973, (0x0A000000 + dst).to_bytes(4, "big"), port, SYN)


def told_all(detector: Detector, now: int) -> int:
    number = 0
    while over := detector.ended(now):
        number += len(over)
    return number


def charges(detector: Detector) -> tuple[int, int]:
    """(all, of scans that go on), counted anew and in plain words."""
    going = sum(scan.measured() for order in detector._order for scan in order)
    sources = sum(
        80 + (scans.MOST_LOOSE * 31 + 128 if isinstance(records, bytearray) else (33 + len(records) + 15) // 16 * 16)
        for records in detector._sources.values()
    )
    return sources + going, going


def whole(detector: Detector) -> None:
    """Each source has whole records of different targets, and all scans that go on are in both tables."""
    for key, records in detector._sources.items():
        size = 15 if len(key) == 4 else 27
        each = [records[at : at + size] for at in range(0, len(records), size)]
        real = [record for record in each if record[2]]  # the others are room for more
        assert each == [bytes(size)] * (len(each) - len(real)) + real
        assert len(real) > len(each) // 2
        loose = isinstance(records, bytearray)  # of a source that is told no more
        assert 0 < len(each) <= (scans.MOST_LOOSE if loose else scans.MOST_TARGETS)
        assert len(records) == size * len(each)
        assert loose or len({record[:-8] for record in real}) == len(real)
    going = {scan: key for key, scans_of in detector._going.items() for scan in scans_of.values()}
    assert going == dict(detector._order[0]) | dict(detector._order[1])
    assert all(scan.slow == slow for slow, order in enumerate(detector._order) for scan in order)
    assert all(detector._going.values())


# Floods, each larger than the memory that it is given. Scaled down: the real ones are in bench/watch.py.


def once_each(sources: int) -> Iterator[Knock]:
    return ((source, 0, 80) for source in range(sources))


def in_turn(sources: int, ports: int) -> Iterator[Knock]:
    """All sources at one port, then all at the next one."""
    return ((source, 0, port) for port in range(ports) for source in range(sources))


def one_after_the_other(sources: int, ports: int) -> Iterator[Knock]:
    return ((source, 0, port) for source in range(sources) for port in range(ports))


def no_scan(sources: int, targets: int) -> Iterator[Knock]:
    """Each target another host and another port: the most that is remembered of a source."""
    return ((source, target, 1000 + target) for target in range(targets) for source in range(sources))


def sweeps(sources: int, hosts: int) -> Iterator[Knock]:
    return ((source, host, 80) for host in range(hosts) for source in range(sources))


def everything(ports: int, hosts: int) -> Iterator[Knock]:
    """One source, all ports of all hosts."""
    return ((0, host, port) for port in range(ports) for host in range(hosts))


FLOODS: dict[str, Callable[[], Iterator[Knock]]] = {
    "each source once": lambda: once_each(12_000),
    "66 ports each, in turn": lambda: in_turn(500, 66),
    "12 ports each, one after the other": lambda: one_after_the_other(2500, 12),
    "66 targets each, no scan": lambda: no_scan(500, 66),
    "many ports each": lambda: one_after_the_other(100, 200),
    "sweeps of 4096 hosts": lambda: sweeps(3, 4096),
    "sweeps of some hosts": lambda: sweeps(500, 40),
    "one source, everything": lambda: everything(100, 100),
    "one source, everything, hosts first": lambda: ((0, host, port) for host in range(100) for port in range(200)),
}
TELLING = 1 << 20  # what is being told while it is handed over


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("flood", FLOODS)
def test_no_flood_of_strangers_takes_more_than_the_memory(flood: str, six: bool) -> None:
    memory = 512 << 10
    gc.collect()
    tracemalloc.start()
    try:
        detector, now, early = Detector(Rules(memory=memory)), BEGAN, 0
        for number, knock in enumerate(FLOODS[flood]()):
            now += 20_000
            early += len([scan for scan in detector.probe(now, packet(*knock, six), "") if scan.ended])
            if not number % 2048:
                told_all(detector, now)
        assert tracemalloc.get_traced_memory()[1] <= memory + TELLING
        gc.collect()  # it empties the interpreter's own store of freed tuples, too
        assert tracemalloc.get_traced_memory()[0] <= memory
    finally:
        tracemalloc.stop()
    assert detector.forgotten or early
    assert (detector._held, detector._held_running) == charges(detector)
    whole(detector)


def test_who_was_silent_longest_is_forgotten_first_whatever_each_costs() -> None:
    detector, lot = Detector(Rules(memory=256 << 10)), Random(1)
    last: dict[int, int] = {}
    for number in range(20_000):
        source = lot.randrange(2000) if number % 3 else lot.randrange(20)
        detector.probe(BEGAN + number, packet(source, lot.randrange(200), lot.randrange(50000)), "")
        last.pop(source, None)
        last[source] = number
    kept = list(detector._sources)
    assert detector.forgotten > 1000
    assert kept == [packet(source, 0, 0).src for source in list(last)[-len(kept) :]]
    assert 100 < len(kept) < 2000


def test_to_make_room_costs_the_same_however_many_are_remembered() -> None:
    """In lines of code, since those do not depend on the machine."""

    def most_lines(memory: int, sources: int) -> int:
        detector, most = Detector(Rules(memory=memory)), 0
        for number in range(sources):
            one = packet(number, number % 70, number)
            if number < sources - 500:
                detector.probe(BEGAN + number, one, "")
            else:
                lines = Lines()
                with lines:
                    detector.probe(BEGAN + number, one, "")
                most = max(most, lines.count)
        assert detector.forgotten > 500
        return most

    assert most_lines(512 << 10, 3000) == most_lines(4 << 20, 20_000) < 60


def test_less_memory_after_a_reload_is_heeded_with_the_next_probe() -> None:
    detector = Detector(Rules(memory=2 << 20))
    for knock in no_scan(1000, 60):
        detector.probe(BEGAN, packet(*knock), "")
    assert detector.held > 1 << 20
    detector.rules = Rules(memory=256 << 10)
    detector.probe(BEGAN, packet(5000, 0, 1), "")
    assert detector.held <= 256 << 10
    assert packet(5000, 0, 1).src in detector._sources
    assert (detector._held, detector._held_running) == charges(detector)


def test_a_reload_while_probes_come_forgets_nobody() -> None:
    """Rules come from another thread, at any moment."""
    detector, stop = Detector(Rules(memory=2 << 20)), threading.Event()

    def reload() -> None:
        while not stop.is_set():
            detector.rules = Rules(memory=2 << 20, window=59.0)

    thread = threading.Thread(target=reload)
    thread.start()
    try:
        for source in range(300):
            for port in (0, 0):
                detector.probe(BEGAN, packet(source, 0, port), "")
    finally:
        stop.set()
        thread.join()
    detector.probe(BEGAN, packet(0, 0, 0), "")
    assert (len(detector), detector.forgotten) == (300, 0)
    assert (detector._held, detector._held_running) == charges(detector)


def test_memory_that_scans_give_back_is_there_for_sources_again() -> None:
    detector = Detector(Rules(memory=1 << 20))
    for knock in sweeps(30, 500):
        detector.probe(BEGAN, packet(*knock), "")
    assert detector._held_running > 200 << 10
    now = BEGAN + 100 * SECOND
    assert told_all(detector, now) > 0
    assert (detector._held_running, detector._going) == (0, {})
    for knock in once_each(10_000):
        detector.probe(now, packet(*knock), "")
    assert len(detector) > 2500
    assert (detector._held, detector._held_running) == charges(detector)


# Exceptions.


class FaultError(Exception):
    """What a test throws into the code."""


Place = tuple[str, int]  # file, line


class Lines:
    """Counts lines of the detector's code while it runs, and throws at the so many-th, of one place or of all."""

    def __init__(self, throw_at: int = 0, place: Place | None = None) -> None:
        self.count = 0
        self.thrown = False
        self._throw_at = throw_at
        self._place = place

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in (scans.__file__, running.__file__):
            return None
        if event == "line" and self._place in (None, (file, frame.f_lineno)):
            self.count += 1
            if self.count == self._throw_at:
                self.thrown = True
                raise FaultError
        return self._trace


def places(kind: type, without: set[str]) -> Iterator[Place]:
    """Where statements of its methods begin, but for those that handle exceptions."""
    tree = ast.parse(Path(sys.modules[kind.__module__].__file__ or "").read_text(encoding="utf-8"))
    (found,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    for function in found.body:
        if isinstance(function, ast.FunctionDef) and function.name not in without:
            handled = {
                inner for node in ast.walk(function) if isinstance(node, ast.ExceptHandler) for inner in ast.walk(node)
            }
            for node in ast.walk(function):
                if isinstance(node, ast.stmt) and node not in handled | {function} and not is_docstring(node):
                    yield sys.modules[kind.__module__].__file__ or "", node.lineno


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


OF_SETTINGS = {"__init__", "rules", "_go_by", "held", "__len__", "ended", "all_ended"}
PLACES = sorted({*places(Detector, OF_SETTINGS | {"_recount"}), *places(running.Running, set())})
RULES = Rules(ports=3, hosts=3, slow_ports=4, slow_hosts=4, window=2, slow_window=60, memory=32 << 10)


def asked(detector: Detector, lot: Random, now: int) -> Callable[[], object]:
    """Some probe of a few sources that scan, or one of many others."""
    if not lot.randrange(9):
        return lambda: detector.ended(now)
    if not lot.randrange(100):
        knocks = lot.choice((one_after_the_other(1, 90), sweeps(1, 40)))
        return lambda: [detector.probe(now, packet(2000, *knock[1:]), "") for knock in knocks]
    source = lot.choice((0, lot.randrange(6))) if lot.random() < 0.7 else lot.randrange(6, 1000)
    host = lot.choice((0, 0, lot.randrange(60)))
    one = packet(source, host, lot.randrange(120), source % 2 == 0, lot.choice(("tcp", "tcp", "udp")))
    return lambda: detector.probe(now, one, "")


def everything_asked(detector: Detector, lot: Random, now: int) -> Callable[[], object]:
    """A source that has so many scans that no more are told; some pauses end them."""
    if not lot.randrange(4):
        return lambda: detector.all_ended(now)
    source, six = lot.randrange(2), bool(lot.randrange(2))
    return lambda: [detector.probe(now, packet(source, *knock[1:], six), "") for knock in everything(22, 22)]


def test_an_exception_at_any_line_leaves_whole_entries_and_right_charges(monkeypatch: pytest.MonkeyPatch) -> None:
    thrown = thrown_into(RULES, Random(1), 20_000, asked)
    thrown |= thrown_into(RULES._replace(memory=128 << 10), Random(2), 15_000, asked)
    monkeypatch.setattr(scans, "MOST_LOOSE", 80)
    thrown |= thrown_into(RULES._replace(memory=1 << 20), Random(3), 150, everything_asked, set(PLACES) - thrown)
    missed = set(PLACES) - thrown  # of some 200: what only a recount, or bytes that an attacker chose, lead to
    assert len(missed) < 20, sorted(missed)


def thrown_into(
    rules: Rules,
    lot: Random,
    rounds: int,
    story: Callable[[Detector, Random, int], Callable[[], object]],
    places: Collection[Place] = PLACES,
) -> set[Place]:
    """The lines that an exception was thrown at; after each one all is as it should be."""
    detector, now = Detector(rules), BEGAN
    thrown: set[Place] = set()
    for _ in range(rounds):
        now += lot.randrange(SECOND // 30) if lot.randrange(1500) else 100 * SECOND
        left = sorted(place for place in places if place not in thrown)
        place = lot.choice(left if left and lot.random() < 0.7 else sorted(places))
        lines = Lines(lot.choice((1, 1, 2, 5)), place)
        ask = story(detector, lot, now)
        with lines, contextlib.suppress(FaultError):
            ask()
        if lines.thrown:
            thrown.add(place)
            detector.probe(now, packet(7000, 0, 0), "")  # whichever comes next finds it
            assert (detector._held, detector._held_running) == charges(detector)
            whole(detector)
    while detector.all_ended(now):
        pass
    assert (detector._held_running, detector._going) == (0, {})
    assert detector.held <= rules.memory
    return thrown


def test_a_recount_that_fails_is_done_again() -> None:
    detector, now = Detector(Rules(memory=1 << 20)), BEGAN
    for knock in no_scan(50, 30):
        detector.probe(now, packet(*knock), "")
    for throw_at in range(1, 200, 3):
        detector._whole, detector._held = False, -1
        lines = Lines(throw_at)
        with lines, contextlib.suppress(FaultError):
            detector.probe(now, packet(1, 1, 1), "")
        assert lines.thrown
        detector.probe(now, packet(1, 1, 1), "")
        assert (detector._held, detector._held_running) == charges(detector)
        whole(detector)


OUT_OF_MEMORY = """
import json, resource, sys
from tests.test_watch_memory import BEGAN, charges, once_each, packet, told_all, whole
from tcppc.watch.scans import Detector, Rules

detector = Detector(Rules())
failed = number = 0
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (3 << 20), resource.RLIM_INFINITY))
for number, knock in enumerate(once_each(60_000)):
    try:
        detector.probe(BEGAN + number, packet(*knock), "")
    except MemoryError:
        failed += 1
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
found = [scan for port in range(3) for scan in detector.probe(BEGAN + number, packet(9999, 0, port), "")]
whole(detector)
right = (detector._held, detector._held_running) == charges(detector)
print(json.dumps([failed, number, len(detector), detector.forgotten, right, len(found)]))
"""


def test_out_of_memory_half_is_forgotten_and_the_detector_goes_on() -> None:
    """`ulimit -v`, for real."""
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    failed, number, left, forgotten, right, found = json.loads(done.stdout)
    assert 0 < failed < number / 100
    assert forgotten > 1000
    assert left > 100
    assert right
    assert found == 1


def test_others_may_ask_at_any_time_how_much_is_remembered() -> None:
    """As a scrape of the metrics does."""
    detector, stop, faults = Detector(Rules(memory=1 << 20)), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                assert len(detector) + detector.forgotten + detector.held >= 0
            except Exception as problem:
                faults.append(problem)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for knock in once_each(20_000):
            detector.probe(BEGAN, packet(*knock), "")
    finally:
        stop.set()
        reader.join()
    assert not faults
