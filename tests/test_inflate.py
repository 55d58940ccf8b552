"""Content codings undone, each by what real encoders make, with a bound that bombs meet."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterator

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tcppc.flows import inflate
from tcppc.flows.inflate import CodingError, codings, inflated


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    return made.compress(data) + made.flush()


ENCODERS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def parts(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("name", ENCODERS)
@given(data=st.binary(max_size=3000), size=st.integers(1, 200))
def test_what_was_encoded_in_parts_of_any_size(name: str, data: bytes, size: int) -> None:
    assert b"".join(inflated(parts(ENCODERS[name](data), size), [name], 1 << 20)) == data


@given(st.binary(min_size=1, max_size=3000), st.lists(st.sampled_from(list(ENCODERS)), min_size=2, max_size=4))
def test_one_in_the_other(data: bytes, names: list[str]) -> None:
    sent = data
    for name in names:
        sent = ENCODERS[name](sent)
    assert b"".join(inflated([sent], codings(", ".join(names)), 1 << 20)) == data


def test_deflate_without_its_header_and_gzip_of_members() -> None:
    data = b"hello " * 99
    assert b"".join(inflated([raw_deflate(data)], ["deflate"], 1 << 20)) == data
    assert b"".join(inflated([gzip.compress(b"one") + gzip.compress(b"two")], ["gzip"], 99)) == b"onetwo"


def test_names_as_they_are_sent() -> None:
    assert codings(" GZip") == ["gzip"]
    assert codings("x-gzip, BR,identity,") == ["gzip", "br"]
    assert codings("") == []


@pytest.mark.parametrize("name", ENCODERS)
def test_a_bomb_is_stopped_at_its_bound(name: str) -> None:
    bomb = ENCODERS[name](bytes(64 << 20))
    got, most = 0, 5 << 20
    with pytest.raises(CodingError, match=f"more than {most} bytes"):  # noqa: PT012
        for part in inflated([bomb], [name], most):
            assert len(part) <= inflate.PART_BYTES * 2
            got += len(part)
    assert got == most


def test_a_bomb_in_a_bomb_is_stopped_too() -> None:
    bomb = gzip.compress(gzip.compress(bytes(256 << 20)))
    assert len(bomb) < 2000
    with pytest.raises(CodingError, match="more than"):
        list(inflated([bomb], ["gzip", "gzip"], 1 << 20))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("gzip", gzip.compress(b"x" * 99, mtime=0)[:-9], "it ends within"),
        ("br", brotli.compress(b"hello" * 99)[:-3], "it ends within"),
        ("gzip", b"no gzip at all", "incorrect header check"),
        ("br", b"\xff" * 20, "."),
        ("zstd", b"nothing of the kind", "."),
        ("compress", b"x", "not known"),
        (",".join(["gzip"] * 5), b"x", "5 codings"),
    ],
)
def test_what_is_broken_is_said(name: str, data: bytes, words: str) -> None:
    with pytest.raises(CodingError, match=words):
        list(inflated([data], codings(name), 1000))


@pytest.mark.parametrize("name", ENCODERS)
@given(data=st.binary(max_size=300))
def test_any_bytes_end(name: str, data: bytes) -> None:
    try:
        for part in itertools.islice(inflated([data], [name], 1 << 16), 100):
            assert len(part) <= 1 << 16
    except CodingError:
        pass


def test_codings_in_one_another_are_bounded_each() -> None:
    """An inner one that gives much, and an outer one that makes nothing of it."""
    nothing = b"\x1f\x8b\x08\0\0\0\0\0\0\3" + b"\0\0\0\xff\xff" * (4 << 20)  # gzip of empty blocks
    budget = inflate.Budget(5 << 20)
    with pytest.raises(CodingError, match="all bodies together"):
        list(inflated([gzip.compress(nothing)], ["gzip", "gzip"], 1 << 20, budget))


def test_a_member_that_ends_with_a_part() -> None:
    first, second = gzip.compress(b"one", mtime=0), gzip.compress(b"two", mtime=0)
    assert b"".join(inflated([first, second], ["gzip"], 99)) == b"onetwo"
