"""The ClientHello and its fingerprints, against published values and against bytes of all kinds."""

from __future__ import annotations

import hashlib
import json
import ssl
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc.protocols import client_hello
from tcppc.protocols.client_hello import ClientHello, looks_like, read

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "client_hellos.json").read_text(encoding="ascii")
)
HELLOS = [bytes.fromhex(vector["client_hello"]) for vector in VECTORS]
SNI, GROUPS, POINT_FORMATS, ALGORITHMS, ALPN, VERSIONS = 0, 10, 11, 13, 16, 43

a_hello = st.sampled_from(HELLOS)


def sized(size: int, content: bytes) -> bytes:
    return len(content).to_bytes(size, "big") + content


def numbers(*values: int) -> bytes:
    return struct.pack(f"!{len(values)}H", *values)


def records(message: bytes, *cuts: int, version: int = 0x0301) -> bytes:
    """`message` in TLS records that end at `cuts` and at its own end."""
    edges = sorted({0, len(message), *[cut for cut in cuts if cut < len(message)]})
    parts = [message[start:end] for start, end in pairwise(edges)]
    return b"".join([b"\x16" + numbers(version) + sized(2, part) for part in parts])


def hello(
    *extensions: tuple[int, bytes], ciphers: bytes = numbers(0x1301), version: int = 0x0303, tail: bytes = b""
) -> bytes:
    """A handshake message; without extensions it has no block for them, as in SSLv3."""
    block = b"".join([numbers(kind) + sized(2, body) for kind, body in extensions])
    body = numbers(version) + bytes(32) + sized(1, b"") + sized(2, ciphers) + sized(1, b"\0")
    return b"\1" + sized(3, body + (sized(2, block) if extensions else b"") + tail)


def alpn(*names: bytes) -> tuple[int, bytes]:
    return ALPN, sized(2, b"".join([sized(1, name) for name in names]))


def server_name(name: bytes, kind: int = 0) -> tuple[int, bytes]:
    return SNI, sized(2, bytes((kind,)) + sized(2, name))


def whole(data: bytes) -> ClientHello:
    found = read(data)
    assert found is not None
    return found


# Published values.


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
def test_published_values_come_out(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["client_hello"])
    found = whole(data)
    assert {key: getattr(found, key) for key in ("ja3", "ja4", "sni") if key in vector} == {
        key: vector[key] for key in ("ja3", "ja4", "sni") if key in vector
    }
    assert list(found.alpn) == vector["alpn"]
    assert found.raw == data


def test_there_are_enough_published_values() -> None:
    assert len({vector["ja4"] for vector in VECTORS if "ja4" in vector}) >= 8
    assert len({vector["ja3"] for vector in VECTORS if "ja3" in vector}) >= 3
    assert all(vector["source"] for vector in VECTORS)


def test_ja3_text_is_as_in_the_examples_of_its_authors() -> None:
    texts = {whole(data).ja3_text for data in HELLOS}
    assert "769,47-53-5-10-49161-49162-49171-49172-50-56-19-4,0-10-11,23-24-25,0" in texts
    assert "769,4-5-10-9-100-98-3-6-19-18-99,,," in texts


def test_ja4_r_is_as_in_the_example_of_its_authors() -> None:
    vector = next(vector for vector in VECTORS if vector["name"] == "the worked example of JA4")
    assert whole(bytes.fromhex(vector["client_hello"])).ja4_r == (
        "t13d1516h2_002f,0035,009c,009d,1301,1302,1303,c013,c014,c02b,c02c,c02f,c030,cca8,cca9"
        "_0005,000a,000b,000d,0012,0015,0017,001b,0023,002b,002d,0033,4469,ff01"
        "_0403,0804,0401,0503,0805,0501,0806,0601"
    )


@pytest.mark.parametrize(
    ("name", "characters"),
    [  # the table of JA4.md, and the rules before it
        (b"h2", "h2"),
        (b"http/1.1", "h1"),
        (b"a", "aa"),
        (b"", "00"),
        (b"\xab", "ab"),
        (b"\x20", "20"),
        (b"\xab\xcd", "ad"),
        (b"\x20\x61", "21"),
        (b"\x30\xab", "3b"),
        (b"\x61\x20", "60"),
        (b"\x30\x31\xab\xcd", "3d"),
        (b"\x30\xab\xcd\x31", "01"),
    ],
)
def test_ja4_takes_two_characters_of_the_first_alpn_name(name: bytes, characters: str) -> None:
    assert whole(records(hello(alpn(name, b"h2")))).ja4[8:10] == characters


@pytest.mark.parametrize(
    ("version", "offered", "shown"),
    [
        (0x0300, (), "s3"),
        (0x0301, (), "10"),
        (0x0302, (), "11"),
        (0x0303, (), "12"),
        (0x0002, (), "s2"),
        (0x0499, (), "00"),
        (0x0303, (0x0303, 0x0304, 0x0302), "13"),
        (0x0303, (0xFAFA, 0x0303), "12"),
        (0x0303, (0x7A7A,), "12"),
        (0x0303, (0x7F1C,), "00"),
    ],
)
def test_ja4_shows_the_highest_version_offered(version: int, offered: tuple[int, ...], shown: str) -> None:
    extensions = [(VERSIONS, sized(1, numbers(*offered)))] if offered else []
    assert whole(records(hello(*extensions, version=version))).ja4[1:3] == shown


def test_ja4_of_empty_lists_is_zeros_not_a_hash() -> None:
    assert whole(records(hello(ciphers=b""))).ja4 == "t12i000000_000000000000_000000000000"
    only_name = whole(records(hello(server_name(b"x"), alpn(b"h2"), ciphers=numbers(0x0A0A))))
    assert only_name.ja4 == "t12d0002h2_000000000000_000000000000"


def test_ja4_without_signature_algorithms_has_no_underscore_in_what_is_hashed() -> None:
    found = whole(records(hello((0x0033, b""), (0x000A, b""))))
    assert found.ja4.split("_")[2] == hashlib.sha256(b"000a,0033").hexdigest()[:12]


def test_ja4_counts_stop_at_99() -> None:
    many = [(0x1000 + number, b"") for number in range(120)]
    found = whole(records(hello(*many, ciphers=numbers(*range(1, 151)))))
    assert found.ja4[4:8] == "9999"
    assert len(found.ja4) == 36


def test_grease_changes_no_fingerprint() -> None:
    groups, algorithms = sized(2, numbers(29, 23)), sized(2, numbers(0x0403, 0x0804))
    plain = whole(records(hello((GROUPS, groups), (ALGORITHMS, algorithms))))
    for grease in range(0x0A0A, 0x10000, 0x1010):
        found = whole(
            records(
                hello(
                    (grease, b"\0"),
                    (GROUPS, sized(2, numbers(grease, 29, 23))),
                    (ALGORITHMS, sized(2, numbers(0x0403, grease, 0x0804))),
                    ciphers=numbers(grease, 0x1301),
                )
            )
        )
        assert (found.ja3, found.ja4) == (plain.ja3, plain.ja4)
        assert found.ciphers == (grease, 0x1301)


# What is read.


def test_every_field_is_as_on_the_wire() -> None:
    message = hello(
        server_name(b"sensor.example"),
        (GROUPS, sized(2, numbers(29, 23))),
        (POINT_FORMATS, sized(1, b"\0\1")),
        (ALGORITHMS, sized(2, numbers(0x0804, 0x0403))),
        alpn(b"h2", b"http/1.1"),
        (VERSIONS, sized(1, numbers(0x0304, 0x0303))),
        ciphers=numbers(0x1302, 0x1301),
    )
    data = records(message)
    assert read(data) == ClientHello(
        raw=data,
        record_version=0x0301,
        legacy_version=0x0303,
        ciphers=(0x1302, 0x1301),
        extensions=(SNI, GROUPS, POINT_FORMATS, ALGORITHMS, ALPN, VERSIONS),
        groups=(29, 23),
        point_formats=(0, 1),
        signature_algorithms=(0x0804, 0x0403),
        supported_versions=(0x0304, 0x0303),
        sni="sensor.example",
        alpn=("h2", "http/1.1"),
    )


def test_a_hello_of_sslv3_without_extensions_is_read() -> None:
    found = whole(records(hello(version=0x0300), version=0x0300))
    assert (found.record_version, found.legacy_version, found.extensions) == (0x0300, 0x0300, ())
    assert found.sni is None


def test_the_hello_that_this_pythons_openssl_sends_is_read() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2", "http/1.1"])
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="sensor.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    data = out.read()
    found = whole(data)
    assert (found.sni, found.alpn, found.raw) == ("sensor.example", ("h2", "http/1.1"), data)
    assert found.ja4.startswith(("t13d", "t12d"))


def test_names_that_are_no_ascii_come_out_as_latin_1_and_survive_json() -> None:
    every_byte = bytes(range(1, 256))
    found = whole(records(hello(server_name(every_byte), alpn(every_byte))))
    assert found.sni is not None
    assert found.sni.encode("latin-1") == found.alpn[0].encode("latin-1") == every_byte
    assert json.loads(json.dumps([found.sni, found.alpn[0]])) == [found.sni, found.alpn[0]]
    assert json.dumps(found.sni).isascii()


@pytest.mark.parametrize("kind", [SNI, GROUPS, ALGORITHMS, ALPN, VERSIONS, POINT_FORMATS])
@pytest.mark.parametrize("body", [b"", b"\0", b"\xff\xff", b"\0\2\0", b"\0\3\0\0\1", b"\4\0\1"])
def test_an_extension_with_a_broken_body_counts_by_its_type(kind: int, body: bytes) -> None:
    found = whole(records(hello((kind, body))))
    assert found.extensions == (kind,)
    assert found.ja4[3:8] == ("d0101" if kind == SNI else "i0101")
    assert found.sni is None
    assert found.alpn == ()


def test_of_an_extension_that_comes_twice_the_first_is_read() -> None:
    found = whole(records(hello(server_name(b"one"), server_name(b"two"))))
    assert (found.sni, found.extensions) == ("one", (SNI, SNI))


def test_names_of_other_types_are_no_host_names() -> None:
    assert whole(records(hello(server_name(b"x", kind=9)))).sni is None
    both = (SNI, sized(2, b"\x09" + sized(2, b"x") + b"\0" + sized(2, b"host")))
    assert whole(records(hello(both))).sni == "host"


# What is refused.


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no TLS record"),
        (b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", "no TLS record"),
        (records(hello((21, b""), tail=b"\0\0\0")), "3 bytes after"),
        (records(hello(ciphers=b"\0\1\2")), "odd number"),
        (records(b"\1" + sized(3, b"\3\3" + bytes(10))), "whose random should have 32 bytes"),
        (records(b"\1" + sized(3, b"\3\3" + bytes(32) + sized(1, bytes(33)) + bytes(9))), "session id"),
        (records(b"\1" + sized(3, b"\3\3" + bytes(33) + b"\xff\xff")), "cipher suites should have 65535"),
        (records(hello(tail=b"\0\2\0\0")), "extensions end within a header"),
        (records(hello(tail=b"\0\5\0\0\0\2\0")), "extension 0 is 1 bytes longer"),
        (records(hello()[:20]) + b"\x15\3\1\0\2\2" + bytes(20), "a record of type 21, version 3.1"),
        (records(hello(), 3)[:8] + b"\x16\3\1\0\0", "a record of 0 bytes"),
        (records(b"\1" + sized(3, bytes(client_hello.MAX_CLIENT_HELLO)), 9), "over the limit"),
        (records(b"\1" + sized(3, bytes(2000)), *range(2000)), "more than 1024 records"),
    ],
)
def test_what_is_no_hello_is_refused_in_one_line(data: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        read(data)
    assert len(str(caught.value).splitlines()) == 1


def test_a_hello_up_to_the_limit_is_read_and_one_byte_more_is_not() -> None:
    headers_of_more_records = 3 * 5
    body = bytes(client_hello.MAX_CLIENT_HELLO - len(records(hello((21, b"")))) - headers_of_more_records)
    data = records(hello((21, body)), 16384, 32768, 49152)
    assert len(data) == client_hello.MAX_CLIENT_HELLO
    assert whole(data).raw == data
    with pytest.raises(ValueError, match="over the limit"):
        read(records(hello((21, body + b"\0")), 16384, 32768, 49152))


# Promises for bytes of all kinds.


@pytest.mark.parametrize("data", HELLOS, ids=[vector["name"] for vector in VECTORS])
def test_a_hello_in_one_byte_pieces_is_none_until_whole(data: bytes) -> None:
    assert [read(data[:size]) for size in range(len(data))] == [None] * len(data)
    assert read(data) is not None


@given(data=a_hello, cuts=st.lists(st.integers(1, 600), max_size=40), cut=st.integers(0, 10_000))
def test_a_hello_over_several_records_is_the_same_hello(data: bytes, cuts: list[int], cut: int) -> None:
    message = data[5:]
    split = records(message, *cuts)
    found, plain = whole(split), whole(data)
    assert (found.ja3, found.ja4, found.sni) == (plain.ja3, plain.ja4, plain.sni)
    assert found.raw == split
    assert read(split[: cut % len(split)]) is None


@given(data=a_hello, more=st.binary(max_size=50))
def test_bytes_after_the_hello_are_not_looked_at(data: bytes, more: bytes) -> None:
    assert read(data + more) == read(data)


def agree(data: bytes) -> None:
    """`looks_like` and `read` say the same of `data`, and neither raises anything but ValueError."""
    verdict = looks_like(data)
    assert looks_like(data[:6]) is verdict
    try:
        found = read(data)
    except ValueError:
        assert verdict is not None
        return
    assert verdict is not False
    if found is not None:
        assert verdict is True
        assert len(found.ja4) == 36
        assert len(found.ja3) == 32
        assert data.startswith(found.raw)
    if verdict is None:
        assert found is None


@given(data=st.binary(max_size=300))
def test_any_bytes_give_a_hello_none_or_value_error(data: bytes) -> None:
    agree(data)


@given(body=st.binary(max_size=300), minor=st.integers(0, 5), size=st.integers(-2, 2))
def test_any_bytes_in_a_record_give_a_hello_none_or_value_error(body: bytes, minor: int, size: int) -> None:
    message = b"\1" + max(0, len(body) + size).to_bytes(3, "big") + body
    agree(records(message, version=0x0300 + minor))


@settings(max_examples=1000)
@given(
    data=a_hello,
    edits=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 3), st.binary(max_size=3)), max_size=5),
)
def test_any_mutation_of_a_hello_gives_a_hello_none_or_value_error(
    data: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    for at, gone, new in edits:
        data = data[:at] + new + data[at + gone :]
    agree(data)


@pytest.mark.parametrize(
    ("head", "verdict"),
    [
        (b"", None),
        (b"\x16", None),
        (b"\x16\x03", None),
        (b"\x16\x03\x01", None),
        (b"\x16\x03\x01\x02", None),
        (b"\x16\x03\x01\x41", None),
        (b"\x16\x03\x01\x02\x00", None),
        (b"\x16\x03\x01\x02\x00\x01", True),
        (b"\x16\x03\x00\x41\x00\x01", True),
        (b"\x16\x03\x04\x00\x01\x01", True),
        (b"G", False),
        (b"\x16\x02", False),
        (b"\x16\xfe\xfd", False),
        (b"\x16\x03\x05", False),
        (b"\x16\x03\x01\x42", False),
        (b"\x16\x03\x01\x00\x00", False),
        (b"\x16\x03\x01\x41\x01", False),
        (b"\x16\x03\x01\x02\x00\x02", False),
    ],
)
def test_looks_like_decides_as_soon_as_the_bytes_tell(head: bytes, verdict: bool | None) -> None:
    assert looks_like(head) is verdict
    agree(head)
