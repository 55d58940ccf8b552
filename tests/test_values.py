from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc import values

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.text(max_size=5), max_size=3),
)
CONVERTERS = [
    values.text, values.texts, values.switch, values.choice("", "a", "b"), values.whole(0, 9), values.size(0),
    values.duration(0, 100), values.free_space,
]  # fmt: skip


@given(ANYTHING, st.sampled_from(CONVERTERS))
def test_converters_raise_nothing_but_value_error(value: Any, convert: values.Converter) -> None:
    try:
        convert(value)
    except ValueError as problem:
        assert str(problem)


@pytest.mark.parametrize(
    ("written", "bytes_"),
    [
        (65536, 65536),
        ("65536", 65536),
        ("64KiB", 65536),
        ("64 kB", 64000),
        ("1.5M", 1_500_000),
        ("2GiB", 2 << 30),
        ("1k", 1000),
    ],
)
def test_sizes(written: Any, bytes_: int) -> None:
    assert values.size(0)(written) == bytes_


@pytest.mark.parametrize("written", ["", "KiB", "-1", -1, True, "1e9", "64 XiB", None, 1.5])
def test_wrong_sizes_say_what_is_expected(written: Any) -> None:
    with pytest.raises(ValueError, match="a size from 0 to"):
        values.size(0)(written)


@pytest.mark.parametrize(
    ("written", "seconds"), [(60, 60), ("60", 60), ("250ms", 0.25), ("1.5h", 5400), ("7d", 604800), (0.5, 0.5)]
)
def test_durations(written: Any, seconds: float) -> None:
    assert values.duration(0, 1e9)(written) == seconds


@pytest.mark.parametrize("written", ["", "h", "-5", -5, True, "1 week", None, float("nan"), float("inf")])
def test_wrong_durations_say_what_is_expected(written: Any) -> None:
    with pytest.raises(ValueError, match="a duration from"):
        values.duration(0, 100)(written)


@pytest.mark.parametrize(
    ("given", "value"),
    [("", ""), ("5%", "5%"), (" 0.5 % ", "0.5%"), ("50%", "50%"), ("2GiB", 2 << 30), (0, 0), ("0", 0), (4096, 4096)],
)
def test_free_space_is_a_size_or_a_share(given: str | int, value: str | int) -> None:
    assert values.free_space(given) == value
    assert values.free_space(values.free_space(given)) == value


@pytest.mark.parametrize("given", ["0%", "51%", "99%", "%", "a lot", True, -1, 1.5, None, ["5%"]])
def test_what_is_no_free_space_is_told_what_would_be(given: object) -> None:
    with pytest.raises(ValueError, match='a size such as "2GiB", a share of the disk from "1%" to "50%"'):
        values.free_space(given)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (10 << 30, "10.0 GiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert values.size_text(count) == text
