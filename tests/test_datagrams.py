"""Who began a UDP flow, within a bound."""

from __future__ import annotations

import gc
import tracemalloc

from tcppc.watch.datagrams import FLOW_CHARGE, LEAST_FLOWS, Flows


def address(number: int, length: int = 4) -> bytes:
    return (0x0B000000 + number).to_bytes(length, "big")


def test_an_answer_to_an_own_question_is_known_and_a_strangers_datagram_is_not() -> None:
    flows = Flows(1 << 20)
    assert flows.ours(address(1), 53, 40000, outgoing=True)
    assert flows.ours(address(1), 53, 40000, outgoing=False)
    assert not flows.ours(address(1), 53, 40001, outgoing=False)
    assert not flows.ours(address(1), 40000, 53, outgoing=False)
    # What is answered stays a stranger's.
    assert not flows.ours(address(1), 53, 40001, outgoing=True)
    assert not flows.ours(address(1), 53, 40001, outgoing=False)


def test_what_strangers_begin_is_forgotten_before_what_is_in_use() -> None:
    flows = Flows(0)
    assert flows.ours(address(0), 53, 40000, outgoing=True)
    for number in range(20 * LEAST_FLOWS):
        assert not flows.ours(address(number), 1, 2, outgoing=False)
        if not number % (LEAST_FLOWS // 2):
            assert flows.ours(address(0), 53, 40000, outgoing=False)
    assert len(flows) <= 2 * LEAST_FLOWS


def test_a_flood_of_made_up_datagrams_stays_within_the_memory() -> None:
    memory = 2 << 20
    gc.collect()
    tracemalloc.start()
    try:
        flows = Flows(memory)
        for number in range(60_000):
            flows.ours(address(number, 16), 1, 2, outgoing=False)
        assert tracemalloc.get_traced_memory()[1] <= memory
    finally:
        tracemalloc.stop()
    assert len(flows) >= memory // (2 * FLOW_CHARGE)


def test_a_reload_with_less_memory_is_heeded() -> None:
    flows = Flows(2 << 20)
    for number in range(5000):
        flows.ours(address(number), 1, 2, outgoing=False)
    flows.memory = 0
    for number in range(2 * LEAST_FLOWS):
        flows.ours(address(number), 3, 4, outgoing=False)
    assert len(flows) <= 2 * LEAST_FLOWS
