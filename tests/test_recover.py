"""Event lines: what a sensor writes, what is made of it again, whatever was cut."""

from __future__ import annotations

import json
import signal
import ssl
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc import clock, records
from tcppc.recover import Assembler, assembled
from tests.conftest import Start
from tests.harness import FULL, PATIENCE, Sensor, payload, tcppc, wait_until

BEGIN = 1_776_473_494 * clock.NANOSECONDS
PIECES = st.lists(st.binary(min_size=1, max_size=8), max_size=4)


def events_of(number: int, handshake: list[bytes], pieces: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """(the record of a session, its event lines) as the sensor would write either."""
    session = records.Session("tcp", "198.51.100.7", number, "192.0.2.10", 80, BEGIN + number)
    encoder = records.Encoder(clock.Zone("UTC"), "tokyo-1")
    lines = [encoder.step(records.Step(session, "start", 0, session.start))]
    for index, data in enumerate(handshake):
        lines.append(encoder.step(records.Step(session, "payload", index, BEGIN, data)))
    if handshake:
        session.proto, session.tls = "tls", records.TLS(version="TLSv1.3", cipher="c")
        lines.append(encoder.step(records.Step(session, "tls", len(handshake), BEGIN)))
    for index, data in enumerate(pieces, len(handshake)):
        session.payloads.append((BEGIN + index, data))
        lines.append(encoder.step(records.Step(session, "payload", index, BEGIN + index, data)))
    session.bytes, session.end, session.closed = len(b"".join(pieces)), BEGIN + 99, "peer"
    lines.append(encoder.line(session))
    record = json.loads(encoder.whole(session))
    return record, [line.encode() + b"\n" for line in lines]


def objects(text: bytes) -> list[dict[str, Any] | None]:
    return [record for _, record in records.read_lines(iter(text.splitlines(keepends=True)))]


@given(st.lists(st.tuples(PIECES, PIECES), min_size=1, max_size=4), st.randoms())
def test_lines_in_any_order_become_the_records_of_session_mode(
    sessions: list[tuple[list[bytes], list[bytes]]], order: Any
) -> None:
    made = [events_of(number, *session) for number, session in enumerate(sessions, 1)]
    lines = [line for _, own in made for line in own]
    order.shuffle(lines)
    assembler = Assembler()
    found = [record for line in lines if (record := assembler.add(json.loads(line)))]
    assert sorted(found, key=lambda record: record["id"]) == [record for record, _ in made]
    assert list(assembler.rest()) == []
    assert [assembler.add(json.loads(line)) for line in lines] == [None] * len(lines)


@given(st.lists(st.tuples(PIECES, PIECES), min_size=1, max_size=3), st.data())
def test_a_file_cut_anywhere_gives_each_session_that_began_once(
    sessions: list[tuple[list[bytes], list[bytes]]], data: Any
) -> None:
    made = [events_of(number, *session) for number, session in enumerate(sessions, 1)]
    text = b"".join(line for _, own in made for line in own)
    cut = text[: data.draw(st.integers(0, len(text)))]
    kept = cut.count(b"\n")
    found = [record for record in assembled(iter(objects(cut))) if record]
    begun = len([line for line in text.splitlines()[:kept] if b'"event":"start"' in line])
    assert len(found) in (begun, begun + 1)  # the last line may be whole but for its line feed
    for record, (whole, _) in zip(found, made, strict=False):
        assert record["id"] == whole["id"]
        if record["closed"] == "peer":
            assert record == whole
        elif record["flow"]["proto"] == whole["flow"]["proto"]:
            assert record["payloads"] == whole["payloads"][: len(record["payloads"])]


KEYS = st.sampled_from(
    ["timestamp", "event", "id", "flow", "index", "data", "tls", "proto", "payloads", "closed", "bytes"]
)
ODD: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just({}) | st.just([])
)


@given(KEYS, ODD)
def test_a_line_with_anything_in_it_is_taken_or_refused(key: str, value: object) -> None:
    _, lines = events_of(1, [b"h"], [b"p"])
    changed = [json.loads(line) | {key: value} for line in lines]
    for record in assembled(iter(changed)):
        assert record is None or "payloads" in record or "event" not in record


def event_lines(sensor: Sensor) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sensor.lines()]


def recovered(*arguments: str) -> list[dict[str, Any]]:
    done = tcppc("recover", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_each_line_is_there_when_it_happens(start: Start) -> None:
    sensor = start("--record", "events")
    with sensor.connect() as sock:
        wait_until(lambda: len(sensor.lines()) == 1, "the start")
        for count in (2, 3):
            sock.sendall(b"piece")
            wait_until(lambda count=count: len(sensor.lines()) == count, "the payload")  # type: ignore[misc]
    wait_until(lambda: len(sensor.lines()) == 4, "the end")
    assert [line["event"] for line in event_lines(sensor)] == ["start", "payload", "payload", "end"]
    sensor.datagram(b"whole")
    wait_until(lambda: len(sensor.lines()) == 5, "the datagram")
    assert payload(event_lines(sensor)[-1]) == b"whole"
    assert sensor.stop() == 0
    assert tcppc("check", "--records", str(sensor.file)).returncode == 0
    assert sensor.account().returncode == 0


def test_what_ended_is_the_record_that_session_mode_writes(start: Start, tmp_path: Path) -> None:
    flags = ("--sensor", "tokyo-1")
    found = []
    for number, mode in enumerate(("sessions", "events")):
        sensor = start(*flags, "--record", mode, file=f"{number}/d.jsonl")
        sensor.send(b"GET / HTTP/1.0\r\n\r\n")
        sensor.send(b"")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(sensor.connect(), server_hostname="example.org") as tls:
            tls.sendall(b"inside")
        sensor.send(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")  # a ClientHello that is none
        sensor.datagram(b"u")
        ended = sensor.file
        wait_until(lambda ended=ended: ended.read_bytes().count(b'"closed":') == 4, "all to end")  # type: ignore[misc]
        assert sensor.stop() == 0
        done = tcppc("recover", str(sensor.file), "-o", str(tmp_path / f"{mode}.jsonl"))
        assert done.returncode == 0, done.stderr
        assert tcppc("check", "--records", str(tmp_path / f"{mode}.jsonl")).returncode == 0
        lines = (tmp_path / f"{mode}.jsonl").read_bytes().splitlines()
        found.append([bare(json.loads(line)) for line in lines])
    assert sorted(found[0], key=json.dumps) == sorted(found[1], key=json.dumps)
    assert len(found[0]) == 5


def bare(record: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between two sessions that say the same."""
    kept = {
        key: value for key, value in record.items() if key not in ("timestamp", "id", "end", "community_id", "flow")
    }
    kept["payloads"] = [piece["data"] for piece in record["payloads"]]
    kept["proto"] = record["flow"]["proto"]
    if "tls" in kept:
        kept["tls"] = sorted(kept["tls"])  # keys only: a ClientHello has random bytes
    if b64decode(record["payloads"][0]["data"] if record["payloads"] else "").startswith(b"\x16"):
        kept["payloads"] = []
    return kept


def test_sessions_cut_by_kill_9_are_lost_with_what_they_sent_and_never_given_twice(
    start: Start, tmp_path: Path
) -> None:
    sensor = start("--record", "events")
    sensor.send(b"ended")
    with sensor.connect() as sock:
        sock.sendall(b"one ")
        wait_until(lambda: len(sensor.lines()) == 5, "the payload")
        sock.sendall(b"two")
        wait_until(lambda: len(sensor.lines()) == 6, "the payload")
        sensor.kill()
    output = str(tmp_path / "out" / "sessions.jsonl")
    (tmp_path / "out").mkdir()
    for _ in range(2):
        assert tcppc("recover", str(sensor.file), "-o", output).returncode == 0
        found = [json.loads(line) for line in Path(output).read_bytes().splitlines()]
        assert [(record["closed"], payload(record)) for record in found] == [("peer", b"ended"), ("lost", b"one two")]
        assert found[1]["bytes"] == 7
        assert found[1]["end"] == found[1]["payloads"][1]["timestamp"]


def test_sessions_of_a_sensor_that_runs_are_left_until_they_end(start: Start) -> None:
    killed = start("--record", "events")
    with killed.connect() as sock:
        sock.sendall(b"killed")
        wait_until(lambda: len(killed.lines()) == 2, "the payload")
        killed.kill()
    sensor = start("--record", "events")
    with sensor.connect() as sock:
        sock.sendall(b"open")
        wait_until(lambda: len(sensor.lines()) == 4, "the payload")
        done = tcppc("recover", str(sensor.file))
        assert [payload(json.loads(line)) for line in done.stdout.splitlines()] == [b"killed"]
        assert "1 still open" in done.stderr
        assert "no end yet, or lost" in tcppc("show", str(sensor.file)).stdout
    wait_until(lambda: len(sensor.lines()) == 5, "the end")
    assert sensor.stop() == 0
    assert [(record["closed"], payload(record)) for record in recovered(str(sensor.folder))] == [
        ("peer", b"open"),
        ("lost", b"killed"),
    ]


def test_a_session_across_files_is_one_record(start: Start) -> None:
    sensor = start("--record", "events", "-T", "1", file="d-%H%M%S.jsonl")
    with sensor.connect() as sock:
        sock.sendall(b"first ")
        wait_until(lambda: len(list(sensor.folder.glob("d-*.jsonl"))) == 3, "the third file")
        sock.sendall(b"third")
    assert sensor.stop() == 0
    files = sorted(sensor.folder.glob("d-*.jsonl"))
    assert [payload(record) for record in recovered(*map(str, reversed(files)))] == [b"first third"]
    done = tcppc("recover", *map(str, files[2:]))
    assert (done.returncode, done.stdout) == (1, "")
    assert "1 sessions left out: they begin in a file that was not given" in done.stderr
    assert sensor.account().returncode == 0


def test_a_reload_changes_the_mode_for_new_sessions(start: Start, tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text("", encoding="ascii")
    sensor = start("-c", str(settings))
    with sensor.connect() as before:
        before.sendall(b"before")
        sensor.said("Received: ")
        settings.write_text('[files]\nrecord = "events"\n', encoding="ascii")
        sensor.signal(signal.SIGHUP)
        sensor.said("Reloaded.")
        sensor.send(b"after")
        before.sendall(b", and on")
    assert sensor.stop() == 0
    assert sorted(payload(record) for record in recovered(str(sensor.file))) == [b"after", b"before, and on"]
    assert [line.get("event") for line in event_lines(sensor)].count(None) == 1


def test_a_full_disk_holds_event_lines_too(start: Start) -> None:
    import resource

    sensor = start("-q", "--record", "events", patch=FULL)
    sensor.send(b"x" * 60_000)
    wait_until(lambda: b'"event":"end"' in sensor.file.read_bytes(), "the end")
    size = sensor.file.stat().st_size
    resource.prlimit(sensor.process.pid, resource.RLIMIT_FSIZE, (size + 300, -1))
    for number in range(10):
        sensor.send(b"%d" % number)
    sensor.said("holding it until it can be written")
    resource.prlimit(sensor.process.pid, resource.RLIMIT_FSIZE, (-1, -1))
    sensor.said("Writing session data again")
    assert sensor.stop() == 0
    assert sorted(payload(record) for record in recovered(str(sensor.file)))[:10] == [b"%d" % n for n in range(10)]
    assert sensor.account().returncode == 0


@pytest.mark.parametrize("content", [b"\x00\x01\n", b'{"event":"start","id":7}\n', b'{"event":"payload"}', b"[]\n"])
def test_what_is_no_event_line_is_counted_and_passed_over(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "d.jsonl"
    whole, lines = events_of(1, [], [b"x"])
    file.write_bytes(b"".join(lines) + content)
    done = tcppc("recover", str(file))
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "1 lines passed over" in done.stderr
    assert json.loads(done.stdout) == whole


def test_events_and_classic_contradict_each_other() -> None:
    done = tcppc("--record", "events", "--format", "classic", timeout=PATIENCE)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "record = events goes with format = full" in done.stderr
