"""What strangers can make the sensor remember, beside sessions: each table has a bound (docs/operations.md)."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import threading
import time
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tcppc.actions import allow, blocks, command, rule
from tcppc.actions.allow import Allowed
from tcppc.actions.blocks import Blocker
from tcppc.actions.engine import Engine, Terms
from tcppc.actions.event import Event
from tcppc.actions.job import Job
from tcppc.actions.journal import Journal
from tcppc.actions.rule import Rule
from tcppc.actions.tokens import Values
from tcppc.capture.books import Books
from tcppc.capture.captures import MOST_REMEMBERED, Captures
from tcppc.clock import Zone
from tcppc.netfilter import blocking
from tcppc.personas import ftp, registry
from tcppc.personas.base import Findings, Place, Talk
from tcppc.personas.registry import Personas
from tcppc.records import TLS, Encoder, Session, most_characters
from tcppc.sections import Action, Limits
from tcppc.spoken import Spoken
from tests.conftest import Start
from tests.harness import wait_until
from tests.netns import SENSOR, Net
from tests.test_engine import FROM, configured
from tests.test_engine import blocks as command_blocks

HOUR = 3600 * 1_000_000_000


def event(number: int = 1, on: str = "connect", record: str = "{}", instant: int = 0) -> Event:
    src = (
        f"203.0.{number >> 8 & 255}.{number & 255}"
        if number < 1 << 16
        else f"2001:db8:{number >> 16:x}:{number & 65535:x}::1"
    )
    return Event(on, instant, "tcp", src, 1, "192.0.2.1", 22, "", False, lambda: record)


# Blocks.


def blocker(folder: Path, most: int = 1 << 20, per_hour: int = 1 << 20) -> Blocker:
    """Its thread is not started: as one that nft keeps waiting."""
    return Blocker(Journal(folder, Zone("UTC")), Allowed(), Books(Limits()), lambda line: None, most, per_hour)


def test_blocks_that_wait_for_nft_are_bounded_and_what_is_over_is_refused(tmp_path: Path) -> None:
    made = blocker(tmp_path)
    rule_of = Rule(1, Action(block=3600, name="a"))
    said = [made.block(rule_of, event(number)) for number in range(blocks.MOST_WAITING + 500)]
    assert len(made._waiting) == blocks.MOST_WAITING
    assert made.active() == blocks.MOST_WAITING
    assert [text for text in said if text] == [
        f"not blocked: {blocks.MOST_WAITING} wait already to be put in place (1 times so far)"
    ]
    assert made._books.actions["blocks_refused_waiting"] == 500


def test_blocks_whose_time_is_over_before_nft_takes_them_are_let_go(start: Start, net: Net, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nft").write_text("#!/bin/sh\necho 'Error: no room' >&2; exit 1\n")
    (tools / "nft").chmod(0o755)
    sensor = start(
        *configured(tmp_path, '[[action]]\nblock = 1\nproto = "tcp"\n'), hosts=("0.0.0.0",), port=12345,
        prefix=(*net.sensor.prefix, "env", f"PATH={tools}:/usr/sbin:/usr/bin:/sbin:/bin"),
        patch="import tcppc.actions.blocks as b; b.RETRY_SECONDS = 0.2",
    )  # fmt: skip
    net.attacker.python(FROM, "198.51.100.7", SENSOR[0], "12345")
    sensor.said("Blocks: some were over before they could be put in place (1 so far); all else goes on.")
    assert sensor.stop() == 0


def test_the_heap_of_blocks_holds_no_more_than_the_blocks_whatever_is_done_by_hand(tmp_path: Path) -> None:
    """A block that is taken away by hand or made anew leaves its old end in the heap."""
    made = blocker(tmp_path)
    rule_of = Rule(1, Action(block=3600, name="a"))
    for number in range(100):
        made.block(rule_of, event(number))
    keys = list(made._until)
    now = time.time_ns()
    for again in range(500):
        for key in keys:
            made._let_go(key)
            made._hold(key, now + HOUR + again)
    assert len(made._soonest) <= 2 * len(made._until) + blocks.SPARE
    made._expire(now + 2 * HOUR)
    assert (made._until, made._soonest, made._number.total()) == ({}, [], 0)


def test_out_of_memory_blocks_wait_and_are_put_in_place_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread goes on; nft itself is not asked here."""
    times, put, said = [0], list[str](), list[str]()

    def add(given: Any) -> None:
        times[0] += 1
        if times[0] == 2:  # the first one has those that an earlier run blocked
            raise MemoryError
        put.extend(str(block.network) for block in given)

    monkeypatch.setattr(blocks, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(blocking, "put_in_place", lambda *_: None)
    monkeypatch.setattr(blocking, "blocked", dict)
    monkeypatch.setattr(blocking, "add", add)
    made = blocker(tmp_path)
    made._say = said.append
    made.start(1, 2)
    assert made.block(Rule(1, Action(block=3600, name="a")), event(7)) == ""
    wait_until(lambda: put, "the block")
    made.stop(10)
    assert put == ["203.0.0.7/32"]
    assert "Blocks: MemoryError; they wait; all else goes on." in said
    assert made._books.actions["block_errors"] == 1
    assert made._books.actions["blocks"] == 1


def test_a_table_that_is_flushed_again_and_again_uses_up_no_blocks_of_the_hour(
    start: Start, net: Net, tmp_path: Path
) -> None:
    text = '[actions]\nblocks_per_hour = 3\n[[action]]\nname = "a"\nblock = "1h"\nproto = "tcp"\n'
    sensor = start(
        *configured(tmp_path, text), hosts=("0.0.0.0",), port=12345, prefix=net.sensor.prefix,
        patch="import tcppc.actions.blocks as b; b.RETRY_SECONDS = 0.2; b.FOLLOW_SECONDS = b.LOOK_SECONDS = 0.2",
    )  # fmt: skip
    net.attacker.python(FROM, "198.51.100.7", SENSOR[0], "12345")
    sensor.said("Blocked: 198.51.100.7")
    for times in range(1, 4):
        net.sensor.run("nft", "flush", "ruleset")
        brought_back = "Blocks: 1 networks are blocked, 1 of them brought back."
        wait_until(lambda: sensor.log.count(brought_back) >= times, f"the block for the {times}. time")  # noqa: B023
    for number in (21, 22):
        net.attacker.ip(f"addr add 198.51.100.{number}/32 dev veth0")
        net.attacker.python(FROM, f"198.51.100.{number}", SENSOR[0], "12345")
        wait_until(
            lambda: f"198.51.100.{number}" in command_blocks(net, tmp_path / "state", "list").stdout,  # noqa: B023
            "the new one",
        )
    assert sensor.stop() == 0


# Actions.


def engine_of(action: Action, memory: int = 1 << 20, queue: int = 10) -> tuple[Engine, Rule]:
    """Its threads are not started."""
    made = Rule(1, action)
    terms = Terms((made,), Allowed(), Encoder(Zone("UTC"), "s"), "s", 30.0, lambda instant: "now")
    return Engine(terms, Books(Limits(memory=memory)), lambda line: None, None, 1, queue, 0), made


def session(size: int = 10) -> Session:
    made = Session("tcp", "203.0.113.9", 1, "192.0.2.1", 22, 1)
    made.payloads.append((1, bytes(size)))
    return made


@pytest.mark.parametrize("digest", [0, 3600])
def test_no_record_is_made_for_which_there_is_no_memory(digest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many large sessions that end at once would else stand in memory whole, each in its own thread."""
    engine, _ = engine_of(Action(command="true", on=("end",), digest=digest), memory=4 << 20)
    sizes = []
    real = Encoder.whole

    def whole(self: Encoder, told: Session) -> str:
        sizes.append(told.bytes)
        return real(self, told)

    monkeypatch.setattr(Encoder, "whole", whole)
    for size in (10_000, 600_000, 5_000_000, 600_000, 600_000):
        made = session(size)
        made.bytes = size
        engine.session("end", made)
    assert sizes == [10_000, 600_000]
    assert engine._books.actions["dropped_memory"] == 3


def test_a_record_is_no_longer_than_was_reckoned() -> None:
    made = session(1000)
    made.spoken = Spoken("http", [(1, bytes(500), 0)] * 20)
    made.tls = TLS(bytes(300), "TLSv1.3", "x")
    for size in (0, 1, 2, 100_000):
        made.payloads.append((2, bytes(size)))
        assert len(Encoder(Zone("UTC"), "s").whole(made)) <= most_characters(made)


class Seen(Session):
    """A session whose end can be seen."""


@pytest.mark.parametrize("digest", [0, 3600])
def test_an_event_that_waits_holds_its_record_and_no_session(digest: float) -> None:
    """A digest may wait for a week, and a session's payloads are given back to the books once they are written."""
    made, _ = engine_of(Action(command="true", on=("end",), digest=digest))
    one = Seen("tcp", "203.0.113.9", 1, "192.0.2.1", 22, 1)
    one.payloads.append((1, bytes(100)))
    alive = weakref.ref(one)
    made.session("end", one)
    waiting = [job.event for job in made._jobs.queue if job] + [each.event for each in made._digests.values()]
    assert len(waiting) == 1
    del one
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("digest", [0, 3600])
def test_charges_of_records_that_wait_come_back_whatever_fails(digest: float) -> None:
    """Memory may run out for the record, for its job, or for the list of a digest; and the queue may be full."""
    lot = Random(1)

    def fails_now_and_then(what: str) -> str:
        if not lot.randrange(4):
            raise MemoryError
        return what

    made, of = engine_of(Action(command="true", digest=digest), queue=3)
    made._terms = replace(made._terms, stamp=lambda instant: fails_now_and_then("now"))
    for number in range(1000):
        one = replace(event(number), record=lambda: fails_now_and_then("x" * 100))
        made._ask([of], one)
        if not lot.randrange(3):
            made._tell_digests(all_of_them=True)
        assert made._held == sum(job.charge for job in made._jobs.queue if job) + sum(
            len(text) for each in made._digests.values() for text in each.texts
        )
        if not lot.randrange(6) and not made._jobs.empty():
            job = made._jobs.get()
            assert job
            made._give(job.charge)
    assert made._books.actions["failed"] > 100
    assert made._books.actions["dropped_queue"] > 0


def test_a_record_that_comes_while_its_digest_is_told_keeps_no_memory() -> None:
    """The thread that tells digests and those of sessions meet."""
    made, of = engine_of(Action(command="true", digest=3600), memory=64 << 20, queue=100_000)
    stop = threading.Event()

    def tell() -> None:
        while not stop.is_set():
            made._tell_digests(all_of_them=True)

    teller = threading.Thread(target=tell)
    teller.start()

    def send() -> None:
        for number in range(3000):
            made._act(of, event(number))

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    stop.set()
    teller.join()
    made._tell_digests(all_of_them=True)
    jobs = [job for job in made._jobs.queue if job]
    assert sum(job.count for job in jobs) == 12_000
    assert made._held == sum(job.charge for job in jobs) == sum(len("{}") * job.text.count("{}") for job in jobs)


def test_what_goes_wrong_with_an_event_costs_no_session() -> None:
    """Also before a rule is asked: out of memory as well."""

    class Broken(list[Any]):
        def __iter__(self) -> Any:
            raise MemoryError

    made, _ = engine_of(Action(command="true", on=("end",)))
    one = session()
    one.payloads = Broken()
    made.session("end", one)
    assert made._books.actions["failed"] == 1


def test_who_acted_last_is_remembered_for_so_many_sources_and_in_so_many_bytes() -> None:
    gc.collect()
    made = Rule(1, Action(command="true", once_per=3600, per="source+port"))
    tracemalloc.start()
    try:
        for number in range(rule.MOST_REMEMBERED + 5000):
            assert made.due(event(number, instant=number))
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(made._last) == rule.MOST_REMEMBERED
    assert not made.due(event(rule.MOST_REMEMBERED, instant=rule.MOST_REMEMBERED + 5000))
    assert made.due(event(1, instant=1))  # forgotten
    assert used < 18 << 20


def test_an_answer_about_a_source_may_be_forgotten_while_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allow, "MOST_REMEMBERED", 1)
    asked, faults = Allowed(), []

    def ask(first: int) -> None:
        try:
            for number in range(5000):
                asked.why(f"203.0.113.{(first + number) % 250}")
        except KeyError as problem:
            faults.append(problem)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_commands_that_cannot_be_ended_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that became another user's and sleeps: each stranger could have one more of them."""
    sleeping = [subprocess.Popen(["sleep", "1000"], start_new_session=True) for _ in range(command.MOST_LEFT)]
    job = Job(Rule(1, Action(command="true")), event(), Values({}), "{}", 1, 5.0)
    try:
        monkeypatch.setattr(command, "_left", [command._Process(each.pid, -1, -1) for each in sleeping])
        outcome = command.run(job)
        assert not outcome.well
        assert outcome.words == f"{command.MOST_LEFT} commands that could not be ended still run; not one more is begun"
        sleeping[0].kill()
        wait_until(lambda: command.run(job).well, "room for one more")
        assert len(command._left) == command.MOST_LEFT - 1
    finally:
        for each in sleeping:
            with contextlib.suppress(ChildProcessError):  # waited for by the code already
                each.kill()
                each.wait()


# Personas.


def personas() -> Personas:
    return Personas("silent", {("tcp", 21): "ftp", ("udp", 53): "dns"}, "", "seed")


def test_second_connections_that_are_awaited_are_bounded_in_number_and_bytes() -> None:
    found = personas()
    for number in range(registry.MOST_AWAITED + 50):
        place = Place(src=f"203.0.{number >> 8}.{number & 255}", dport=21, own_port=12345)
        found.talk(place)
        data = ftp.Data(found.identity, place)
        place.expect(40000, data)
        data.push(bytes(1 << 20))
        assert data._pending is not None
        assert len(data._pending) <= ftp.MOST_PENDING
    assert len(found._awaited) == registry.MOST_AWAITED
    assert registry.MOST_AWAITED * ftp.MOST_PENDING <= 16 << 20


def test_a_second_connection_that_never_comes_is_forgotten_with_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = personas()
    monkeypatch.setattr(registry, "AWAITED_SECONDS", 0.01)
    place = Place(dport=21, own_port=12345)
    found.talk(place)
    place.expect(40000, Talk(found.identity, place))
    time.sleep(0.02)
    found.talk(Place(src="203.0.113.99", dport=80))
    assert not found._awaited


def test_sources_of_datagrams_are_bounded_and_forgotten_once_their_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = personas()
    monkeypatch.setattr(registry, "MOST_SOURCES", 100)
    for number in range(300):
        assert found._rated(f"203.0.{number >> 8}.{number & 255}")
    assert list(found._sources) == [f"203.0.{number >> 8}.{number & 255}" for number in range(200, 300)]
    monkeypatch.setattr(registry, "UDP_SECONDS", -1.0)
    for number in range(200):
        found._rated(f"198.51.100.{number}")
    assert len(found._sources) < 10


def test_a_source_of_datagrams_is_answered_so_often_a_minute() -> None:
    found = personas()
    question = bytes.fromhex(
        "1234 0120 0001 0000 0000 0001 076578616d706c6503636f6d00 0001 0001 0000 2904d0 0000 0000 0000"
    )
    for number in range(registry.UDP_REPLIES + 5):
        _, reply = found.answer(question, Place(dport=53), Findings())
        assert bool(reply) == (number < registry.UDP_REPLIES)


# Captures.


def test_names_of_session_files_are_remembered_for_so_many_sessions(tmp_path: Path) -> None:
    made = Captures("", "single", "", Zone("UTC"), Books(Limits()), lambda line: None)
    names = {made._sid(session()) for _ in range(3)}
    assert len(names) == 3
    for number in range(MOST_REMEMBERED + 100):
        one = session()
        one.start = (number + 10) * 1000
        made._sid(one)
    assert len(made._used) == MOST_REMEMBERED
