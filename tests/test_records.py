from __future__ import annotations

import json
import uuid
from base64 import b64decode

import communityid
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc import clock, records, schema

INSTANTS = st.integers(0, 4_000_000_000 * clock.NANOSECONDS)
PORTS = st.integers(0, 65535)
V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(str)
ADDRESSES = st.one_of(st.tuples(V4, V4), st.tuples(V6, V6))
TEXTS = st.one_of(st.none(), st.text(max_size=30))
TLS = st.one_of(
    st.none(), st.builds(records.TLS, hello=st.binary(max_size=80), version=TEXTS, cipher=TEXTS, error=TEXTS)
)


@st.composite
def sessions(draw: st.DrawFn) -> records.Session:
    src, dst = draw(ADDRESSES)
    return records.Session(
        proto=draw(st.sampled_from(["tcp", "tls", "udp"])),
        src=src,
        sport=draw(PORTS),
        dst=dst,
        dport=draw(PORTS),
        start=draw(INSTANTS),
        payloads=draw(st.lists(st.tuples(INSTANTS, st.binary(max_size=100)), max_size=4)),
        bytes=draw(st.integers(0, 1 << 60)),
        end=draw(INSTANTS),
        closed=draw(st.sampled_from(["", "peer", "reset", "timeout", "limit", "shutdown", "error"])),
        truncated=draw(st.booleans()),
        tls=draw(TLS),
    )


@given(sessions(), st.text(max_size=20))
def test_whatever_a_session_holds_its_line_is_one_line_of_the_schema(session: records.Session, sensor: str) -> None:
    line = records.Encoder(clock.Zone("Asia/Tokyo"), sensor).line(session)
    assert line.isascii()
    assert "\n" not in line
    record = json.loads(line)
    jsonschema.Draft202012Validator(schema.schema()).validate(record)
    assert list(record)[:3] == ["timestamp", "flow", "payloads"]
    assert clock.parse(record["timestamp"]) == session.start
    assert [b64decode(piece["data"]) for piece in record["payloads"]] == [data for _, data in session.payloads]
    assert records.payload_bytes(record) == b"".join(data for _, data in session.payloads)
    assert record.get("sensor", "") == sensor
    assert record.get("truncated", False) == session.truncated


@given(sessions())
def test_classic_has_tcppc_gos_three_keys_and_null_for_nothing(session: records.Session) -> None:
    record = json.loads(records.Encoder(clock.Zone("UTC"), "x", "classic").line(session))
    assert list(record) == ["timestamp", "flow", "payloads"]
    assert list(record["flow"]) == ["proto", "src", "sport", "dst", "dport"]
    assert (record["payloads"] is None) == (not session.payloads)


@given(ADDRESSES, PORTS, PORTS, st.sampled_from(["tcp", "udp"]))
def test_the_community_id_is_the_reference_librarys(ends: tuple[str, str], sport: int, dport: int, proto: str) -> None:
    src, dst = ends
    make = communityid.FlowTuple.make_tcp if proto == "tcp" else communityid.FlowTuple.make_udp
    expected = communityid.CommunityID().calc(make(src, dst, sport, dport))
    assert records.community_id(proto, src, sport, dst, dport) == expected
    assert records.community_id(proto, dst, dport, src, sport) == expected


def test_the_community_id_of_the_published_example() -> None:
    # https://github.com/corelight/community-id-spec, baseline for tcp.pcap with the default seed
    assert (
        records.community_id("tcp", "128.232.110.120", 34855, "66.35.250.204", 80) == "1:LQU9qZlK+B5F3KDmev6m5PMibrg="
    )


@given(INSTANTS)
def test_an_id_is_a_uuid_of_version_7_that_tells_its_time(instant: int) -> None:
    made = uuid.UUID(records.new_id(instant))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == instant // 1_000_000


@given(INSTANTS, st.integers(250, 10**12))
def test_ids_sort_by_time(instant: int, later: int) -> None:
    # The twelve bits of the fraction tell instants apart that are 244.2 ns or more apart.
    assert records.new_id(instant) < records.new_id(instant + later)


def test_ids_of_one_instant_differ() -> None:
    assert len({records.new_id(1_700_000_000_000_000_000) for _ in range(10_000)}) == 10_000


def test_a_half_line_is_told_and_the_next_line_is_read() -> None:
    lines = [
        b'{"a":1}\n',
        b'{"timestamp":"2026-\n',
        b"\n",
        b"[1]\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"b":2}\n',
    ]
    assert list(records.read_lines(iter(lines))) == [
        (1, {"a": 1}),
        (2, None),
        (4, None),
        (5, None),
        (6, None),
        (7, {"b": 2}),
    ]


@given(st.binary(max_size=200))
def test_reading_lines_raises_nothing(data: bytes) -> None:
    for number, _ in records.read_lines(iter(data.split(b"\n"))):
        assert number >= 1


@pytest.mark.parametrize(
    "record", [{}, {"payloads": 5}, {"payloads": [{"data": "%%%"}]}, {"payloads": [{}]}, {"payloads": ["x"]}]
)
def test_payloads_that_break_the_contract_are_a_value_error(record: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="payloads are not as"):
        records.payload_bytes(record)
