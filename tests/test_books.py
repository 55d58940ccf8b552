from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tcppc.capture.books import SESSION_CHARGE, Books, Source, source_key
from tcppc.sections import Limits


def test_a_source_is_an_ipv4_address_or_an_ipv6_64() -> None:
    assert source_key("192.0.2.1") != source_key("192.0.2.2")
    assert source_key("2001:db8::1") == source_key("2001:db8::ffff:1")
    assert source_key("2001:db8::1") != source_key("2001:db8:0:1::1")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60), st.integers(1, 6), st.integers(0, 4))
def test_the_books_balance_whatever_comes_and_goes(steps: list[tuple[str, bool]], most: int, per_source: int) -> None:
    books = Books(Limits(sessions=most, sessions_per_source=per_source, memory=20 * SESSION_CHARGE))
    inside: list[tuple[Source, str]] = []
    for source, comes in steps:
        if comes:
            before = books.open
            bound, entered = books.enter(source)
            inside.append((entered, bound))
            if before >= most:
                assert bound in ("sessions", "memory")
            elif sum(1 for name, _ in inside[:-1] if name.key == source) >= books.max_source:
                assert bound in ("sessions_per_source", "memory")
        elif inside:
            name, bound = inside.pop()
            books.leave(name)
            if bound != "memory":
                books.give(SESSION_CHARGE, name)
        assert books.open == len(inside)
    for name, bound in inside:
        books.leave(name)
        if bound != "memory":
            books.give(SESSION_CHARGE, name)
    assert (books.open, books.held) == (0, 0)
    assert len(books._shares) == 0


def test_memory_is_never_held_over_its_bound() -> None:
    books = Books(Limits(memory=100_000))
    bulk = sum(1000 for _ in range(200) if books.take(1000))
    first = sum(1000 for _ in range(200) if books.take(1000, small=True))
    assert (bulk, bulk + first) == (75_000, 93_000)  # 12 and 15 sixteenths
    entered = [books.enter("x")[0] for _ in range(10)]
    assert entered == [""] * 6 + ["memory"] * 4
    assert books.held <= 100_000
    assert books.datagram(1, "192.0.2.1") is False
    assert books.dropped["memory"] == 1
    books.scarce = "disk"
    assert books.enter("x")[0] == "disk"


def test_the_summary_names_what_is_not_zero() -> None:
    books = Books(Limits(sessions=1))
    books.enter("a")
    books.enter("b")
    books.error("accept_EMFILE", 3)
    assert books.summary() == "2 accepted, 2 open, 1 refused (sessions), 3 accept_EMFILE"


def test_a_network_leaves_an_eighth_of_the_sessions_to_others_and_its_sources_of_the_spill_file_half() -> None:
    books = Books(Limits(sessions=64), 1000)
    inside = [books.enter(f"192.0.2.{number % 4}") for number in range(64)]
    assert [bound for bound, _ in inside].count("") == 56
    assert {bound for bound, _ in inside[56:]} == {"sessions_per_network"}
    for _, source in inside[56:]:
        books.leave(source)
    assert [books.enter(f"198.51.100.{number}")[0] for number in range(8)] == [""] * 8
    taken = [books.stow(10, source, 100) for _, source in inside[:8]]
    assert taken == [True] * 5 + [False] * 3


def test_one_source_that_is_given_more_may_have_it() -> None:
    books = Books(Limits(sessions=64, sessions_per_source=64), 1000)
    assert [books.enter("192.0.2.1")[0] for _ in range(64)] == [""] * 64


def test_what_is_missing_at_the_end_is_a_late_threads_or_stays_missing() -> None:
    books = Books(Limits(), 1000)
    for _ in range(5):
        books.leave(books.enter("192.0.2.1")[1])
    books.end(2)
    assert dict(books.dropped) == {"stop": 2}
    assert books.accepted - sum(books.dropped.values()) == 3
