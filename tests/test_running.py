"""A scan that goes on: what it tells, and that it is charged with what it costs."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest

from tcppc.watch.running import MOST_HOSTS, MOST_PORTS_IN_SET, Running

SECOND = 1_000_000_000
BEGAN = 1_700_000_000 * SECOND


def port_scan(found: list[int]) -> Running:
    host = bytes([10, 0, 0, 5])
    return Running("ports", "tcp", b"abcd", 1, "", False, host, [(BEGAN, port) for port in found], BEGAN)


def sweep(length: int) -> Running:
    return Running("hosts", "tcp", bytes(length), 1, "", False, 22, [(BEGAN, address(length, 0))], BEGAN)


def address(length: int, number: int) -> bytes:
    return number.to_bytes(length, "big")


@pytest.mark.parametrize("number", [MOST_PORTS_IN_SET, MOST_PORTS_IN_SET + 1, 65536])
def test_ports_are_told_whether_they_are_a_set_or_a_map(number: int) -> None:
    scan = port_scan([0])
    for port in range(number):
        scan.cost += scan.add(BEGAN + port, port)
    scan.add(BEGAN + SECOND, 0)
    told = scan.told(BEGAN + SECOND, 60.0, ended=True)
    assert (told.ports, told.number, told.probes) == (((0, number - 1),), number, number + 2)
    assert (told.began, told.ended) == (BEGAN, BEGAN + SECOND)


def test_hosts_of_a_sweep_are_counted_up_to_a_bound() -> None:
    scan = sweep(4)
    for number in range(MOST_HOSTS + 100):
        scan.cost += scan.add(BEGAN, address(4, number))
    told = scan.told(BEGAN, 60.0, ended=True)
    assert (told.number, told.probes, len(told.hosts)) == (MOST_HOSTS, MOST_HOSTS + 101, 100)


def ports_one_by_one(scan: Running) -> None:
    for port in range(0, 65536, 7):
        scan.cost += scan.add(BEGAN, port)


def hosts_one_by_one(length: int) -> Callable[[Running], None]:
    def add(scan: Running) -> None:
        for number in range(MOST_HOSTS):
            scan.cost += scan.add(BEGAN, address(length, number))

    return add


@pytest.mark.parametrize(
    ("make", "grow"),
    [
        (lambda: port_scan([1, 2, 3]), lambda scan: None),
        (lambda: port_scan(list(range(1000, 1000 + MOST_PORTS_IN_SET))), lambda scan: None),
        (lambda: port_scan([1, 2, 3]), ports_one_by_one),
        (lambda: sweep(4), hosts_one_by_one(4)),
        (lambda: sweep(16), hosts_one_by_one(16)),
    ],
    ids=["three ports", "a full set", "a map", "hosts", "hosts of IPv6"],
)
def test_it_is_charged_with_what_it_costs_and_little_more(
    make: Callable[[], Running], grow: Callable[[Running], None]
) -> None:
    """With its places in the detector's tables, which are in CHARGE and not in this."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        scan = make()
        grow(scan)
        gc.collect()
        cost = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert scan.cost == scan.measured()
    assert cost <= scan.cost <= 1.35 * cost + 1280
