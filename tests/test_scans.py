"""What is a scan and what is not, and that memory stays bounded whatever comes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc.protocols.packet import SYN, Packet
from tcppc.sightings import Scan, scan_said
from tcppc.watch.scans import MOST_RUNNING_OF_SOURCE, Detector, Rules
from tests.plain_scans import Plain

SECOND = 1_000_000_000


def knock(src: str, dst: str, port: int, proto: str = "tcp") -> Packet:
    def packed(text: str) -> bytes:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)

    return Packet(proto, packed(src), 5973, packed(dst), port, SYN)


class Story:
    """Probes told to a detector: (second, source, destination, port)."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.detector = Detector(rules or Rules())

    def probe(self, second: float, src: str, dst: str, port: int, proto: str = "tcp") -> list[str]:
        found = self.detector.probe(round(second * SECOND), knock(src, dst, port, proto), "")
        return [scan_said(scan) for scan in found]


def test_three_ports_within_a_minute_as_tcpcap() -> None:
    story = Story()
    assert story.probe(0, "192.0.2.56", "10.0.0.5", 81) == []
    assert story.probe(1, "192.0.2.56", "10.0.0.5", 80) == []
    assert story.probe(59, "192.0.2.56", "10.0.0.5", 82) == [
        "Port scan detected: 192.0.2.56 -> 10.0.0.5 on ports 80,81,82"
    ]
    assert story.probe(59.5, "192.0.2.56", "10.0.0.5", 83) == []
    (over,) = story.detector.ended(200 * SECOND)
    assert scan_said(over) == "Port scan ended: 192.0.2.56 -> 10.0.0.5: 4 ports, 4 probes in 59.5 s"
    assert (over.ports, over.ended) == (((80, 83),), round(59.5 * SECOND))


@pytest.mark.parametrize(
    "probes",
    [
        [(0, "192.0.2.56", "10.0.0.5", 80)] * 50,  # the same port again and again
        [(0, "192.0.2.56", "10.0.0.5", 80), (1, "192.0.2.56", "10.0.0.5", 81), (62, "192.0.2.56", "10.0.0.5", 82)],
        [(0, "192.0.2.56", "10.0.0.5", 80), (1, "192.0.2.57", "10.0.0.5", 81), (2, "192.0.2.58", "10.0.0.5", 82)],
        [(0, "192.0.2.56", "10.0.0.5", 80), (1, "192.0.2.56", "10.0.0.6", 81), (2, "192.0.2.56", "10.0.0.7", 82)],
    ],
)
def test_what_is_no_scan(probes: list[tuple[float, str, str, int]]) -> None:
    story = Story()
    assert [found for probe in probes for found in story.probe(*probe)] == []


def test_udp_and_tcp_ports_are_counted_apart() -> None:
    story = Story()
    for second, proto in enumerate(["tcp", "udp", "tcp", "udp"]):
        assert story.probe(second, "192.0.2.56", "10.0.0.5", 80 + second, proto) == []
    assert story.probe(5, "192.0.2.56", "10.0.0.5", 99, "udp") == [
        "UDP port scan detected: 192.0.2.56 -> 10.0.0.5 on ports 81,83,99"
    ]


def test_one_port_of_many_hosts_is_a_sweep() -> None:
    story = Story(Rules(hosts=3))
    found = [story.probe(second, "2001:db8::1", f"2001:db8:5::{second}", 22) for second in range(1, 5)]
    assert found == [
        [],
        [],
        ["Sweep detected: 2001:db8::1 -> port 22 on 2001:db8:5::1,2001:db8:5::2,2001:db8:5::3"],
        [],
    ]
    (over,) = story.detector.ended(100 * SECOND)
    assert scan_said(over) == "Sweep ended: 2001:db8::1 -> port 22: 4 hosts, 4 probes in 3.0 s"


def test_a_slow_scan_is_found_over_hours() -> None:
    story = Story()
    found = [story.probe(600 * number, "192.0.2.56", "10.0.0.5", number) for number in range(1, 12)]
    assert [bool(each) for each in found] == [False] * 9 + [True, False]
    assert found[9] == ["Slow port scan detected: 192.0.2.56 -> 10.0.0.5 on ports 1,2,3,4,5,6,7,8,9,10"]


def test_addresses_of_one_ipv6_network_are_one_source() -> None:
    story = Story()
    for number in (1, 2):
        assert story.probe(number, f"2001:db8::{number}", "2001:db8:5::1", number) == []
    assert len(story.probe(3, "2001:db8::3", "2001:db8:5::1", 3)) == 1


def test_a_scan_begins_again_after_it_was_over() -> None:
    story = Story()
    for port in range(5):
        story.probe(port, "192.0.2.56", "10.0.0.5", port)
    assert len(story.detector.ended(300 * SECOND)) == 1
    assert [bool(story.probe(300 + port, "192.0.2.56", "10.0.0.5", 100 + port)) for port in range(3)] == [
        False,
        False,
        True,
    ]
    assert len(story.detector.all_ended(301 * SECOND)) == 1
    assert story.detector.all_ended(302 * SECOND) == []


def test_a_source_that_scans_everything_is_told_some_times_not_thousands() -> None:
    story = Story()
    told = [
        found
        for port in range(1, 200)
        for host in range(50)
        for found in story.probe(port / 100, "192.0.2.56", f"10.0.0.{host}", port)
    ]
    assert 0 < len(told) <= MOST_RUNNING_OF_SOURCE + 1


def test_a_flood_of_spoofed_sources_is_forgotten_first_come_first() -> None:
    detector = Detector(Rules(sources=2000))
    for number in range(10_000):
        src = f"11.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        assert detector.probe(number, knock(src, "10.0.0.5", 80), "") == []
    assert len(detector) <= 2000
    assert detector.forgotten >= 8000


def test_sources_that_are_silent_for_long_are_forgotten() -> None:
    detector = Detector(Rules(slow_window=100))
    for number in range(100):
        detector.probe(0, knock(f"11.0.0.{number}", "10.0.0.5", 80), "")
    for number in range(100):
        detector.probe(200 * SECOND, knock(f"12.0.0.{number}", "10.0.0.5", 80), "")
    assert len(detector) <= 101
    assert detector.forgotten == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 3), st.integers(0, 6), st.integers(0, 6), st.booleans()),
        max_size=200,
    )
)
def test_each_scan_that_begins_ends_once(probes: list[tuple[int, int, int, int, bool]]) -> None:
    detector = Detector(Rules(ports=3, hosts=3, slow_ports=4, slow_hosts=4, slow_window=120))
    began: list[Scan] = []
    ended: list[Scan] = []
    for second, src, dst, port, udp in sorted(probes):
        ended += detector.ended(second * SECOND)
        packet = knock(f"192.0.2.{src}", f"10.0.0.{dst}", port, "udp" if udp else "tcp")
        began += detector.probe(second * SECOND, packet, "")
    ended += detector.all_ended(401 * SECOND)
    assert len(began) == len(ended)
    for scan in began:
        assert scan.number >= 3
        assert not scan.ended
        assert scan.instant - scan.began <= scan.window * SECOND
    assert all(scan.ended for scan in ended)


def test_many_ports_of_one_scan_are_told_as_ranges() -> None:
    story = Story()
    for port in range(1, 1001):
        story.probe(port / 1000, "192.0.2.56", "10.0.0.5", port * 2 if port > 500 else port)
    (over,) = story.detector.all_ended(10 * SECOND)
    assert over.number == 1000
    assert over.ports[0] == (1, 500)
    assert over.ports[1] == (1002, 1002)
    assert len(over.ports) == 100


def each_ended(detector: Detector, instant: int, all_of_them: bool = False) -> Iterator[Scan]:
    """They are told in portions, as the watch asks for them."""
    while over := detector.all_ended(instant) if all_of_them else detector.ended(instant):
        yield from over


RULES = st.builds(
    Rules,
    ports=st.sampled_from([0, 2, 3, 5]),
    hosts=st.sampled_from([0, 2, 4]),
    window=st.sampled_from([5.0, 60.0]),
    slow_ports=st.sampled_from([0, 3, 5]),
    slow_hosts=st.sampled_from([0, 3, 5]),
    slow_window=st.sampled_from([60.0, 200.0]),
    sources=st.sampled_from([1, 2, 3, 100]),
    memory=st.just(1 << 20),
)


@settings(max_examples=250, deadline=None)
@given(RULES, st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2))
def test_what_is_found_is_what_the_plain_words_say(
    rules: Rules, seed: int, sources: int, hosts: int, ports: int, kinds: int
) -> None:
    """Few of each, so that there are scans; pauses, so that they end; more sources than are remembered."""
    detector, plain, lot, second = Detector(rules), Plain(rules), Random(seed), 1_700_000_000
    for _ in range(120):
        if lot.random() < 0.3:
            second += lot.choice((0, 1, 3, 20, 70))
            assert list(each_ended(detector, second * SECOND)) == plain.ended(second * SECOND)
        src, dst, port = lot.randrange(sources), lot.randrange(hosts), lot.randrange(ports)
        six = kinds == 2 and lot.random() < 0.5
        addresses = (f"2001:db8:{src}::{port}", f"2001:db8:5::{dst}") if six else (f"192.0.2.{src}", f"10.0.0.{dst}")
        packet = knock(*addresses, port, "udp" if kinds and lot.random() < 0.5 else "tcp")
        assert detector.probe(second * SECOND, packet, "nmap") == plain.probe(second * SECOND, packet, "nmap")
    assert list(each_ended(detector, second * SECOND, all_of_them=True)) == plain.ended(
        second * SECOND, all_of_them=True
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 40]), st.sampled_from([4, 300, 5000]), st.sampled_from([2, 90]))
def test_what_is_found_is_what_the_plain_words_say_of_many_ports_and_hosts(
    seed: int, sources: int, ports: int, hosts: int
) -> None:
    """So many that targets are forgotten, that a source has as many scans as are told, and that ports become a map."""
    rules, lot = Rules(), Random(seed)
    detector, plain, now = Detector(rules), Plain(rules), 1_700_000_000 * SECOND
    for _ in range(900):
        now += lot.randrange(SECOND // 4) if lot.randrange(40) else lot.randrange(70 * SECOND)
        if not lot.randrange(10):
            assert list(each_ended(detector, now)) == plain.ended(now)
        packet = knock(
            f"192.0.2.{lot.randrange(sources)}", f"10.0.0.{lot.randrange(hosts)}", lot.randrange(ports), "tcp"
        )
        assert detector.probe(now, packet, "") == plain.probe(now, packet, "")
    assert list(each_ended(detector, now, all_of_them=True)) == plain.ended(now, all_of_them=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_bytes_that_look_like_another_target_mislead_nobody(seed: int, six: bool) -> None:
    """Ports, addresses and instants of the same few bytes: one target is found in the middle of another's record."""
    rules, lot = Rules(ports=4, hosts=4, slow_ports=5, slow_hosts=5, window=1), Random(seed)
    detector, plain = Detector(rules), Plain(rules)
    now = int.from_bytes(b"\6" * 8, "big")
    for _ in range(150):
        now += lot.choice((0, 0, SECOND // 10, 1 << 32))
        dst = bytes(lot.choice((6, 6, 6, 17)) for _ in range(16 if six else 4))
        port = int.from_bytes(bytes(lot.choice((6, 17, 0)) for _ in range(2)), "big")
        packet = Packet(lot.choice(("tcp", "udp")), dst, 5973, dst, port, SYN)._replace(src=bytes(len(dst)))
        assert detector.probe(now, packet, "") == plain.probe(now, packet, "")
