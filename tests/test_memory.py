"""Nobody takes the memory that others need: shares, the spill file, and what comes back to the machine."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc.capture.books import Books
from tcppc.capture.shares import CEILINGS, LEAST_SHARE, SMALL, Shares, network_key, source_key
from tcppc.capture.spill import Piece, Spill
from tcppc.sections import Limits
from tests.conftest import Start
from tests.harness import PATIENCE, Sensor, payload, wait_until

MIB = 1 << 20


def configured(folder: Path, text: str) -> str:
    path = folder / "c.toml"
    path.write_text(text, encoding="ascii")
    return str(path)


def connect_from(sensor: Sensor, source: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", sensor.port), timeout=PATIENCE, source_address=(source, 0))


def held_open(sensor: Sensor, source: str, count: int, data: bytes) -> list[socket.socket]:
    socks = [connect_from(sensor, source) for _ in range(count)]
    for sock in socks:
        sock.sendall(data)
    return socks


def test_one_source_that_holds_large_sessions_costs_no_other_source_and_itself_no_byte(
    start: Start, tmp_path: Path
) -> None:
    sensor = start("-q", "-c", configured(tmp_path, "[limits]\nmemory = '8MiB'\n"))
    big = os.urandom(MIB)
    socks = held_open(sensor, "127.0.0.1", 24, big)
    for number in range(200):
        with connect_from(sensor, f"127.0.{number % 20 + 1}.7") as sock:
            sock.sendall(b"other %d" % number)
    for number in range(50):
        sensor.datagram(b"datagram %d" % number)
    others = sensor.records(250)
    assert sorted(payload(record) for record in others) == sorted(
        [b"other %d" % number for number in range(200)] + [b"datagram %d" % number for number in range(50)]
    )
    for sock in socks:
        sock.close()
    large = [record for record in sensor.records(274) if record["bytes"] == MIB]
    assert len(large) == 24
    assert all(payload(record) == big and "truncated" not in record for record in large)
    assert sensor.stop() == 0
    assert " truncated " not in sensor.log
    assert " held" not in sensor.log.splitlines()[-2]
    assert sensor.account().returncode == 0


def test_without_a_spill_file_a_source_is_cut_at_its_share_and_others_are_not(start: Start, tmp_path: Path) -> None:
    sensor = start("-q", "-c", configured(tmp_path, "[limits]\nmemory = '8MiB'\nspill = 0\n"))
    socks = held_open(sensor, "127.0.0.1", 12, bytes(MIB))
    for number in range(100):
        with connect_from(sensor, f"127.1.{number}.7") as sock:
            sock.sendall(b"other %d" % number)
    others = sensor.records(100)
    assert sorted(payload(record) for record in others) == sorted(b"other %d" % number for number in range(100))
    for sock in socks:
        sock.close()
    cut = [record for record in sensor.records(112) if record["bytes"] == MIB and record.get("truncated")]
    assert cut
    assert sum(len(payload(record)) for record in sensor.records(112)) < 3 * MIB  # a quarter, and what went between
    assert sensor.stop() == 0
    assert re.search(r"\d+ truncated \(source_memory\)", sensor.log)


def test_a_flood_of_datagrams_of_one_source_leaves_room_for_others(start: Start, tmp_path: Path) -> None:
    """The writer takes nothing meanwhile: its file is a folder."""
    sensor = start("-q", "-c", configured(tmp_path, "[limits]\nmemory = '4MiB'\n"))
    sensor.file.unlink()
    sensor.file.mkdir()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        flood.bind(("127.0.0.1", 0))
        for _ in range(300):
            flood.sendto(bytes(60_000), ("127.0.0.1", sensor.port))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.9.9.9", 0))
        for number in range(20):
            other.sendto(b"other %d" % number, ("127.0.0.1", sensor.port))
    for number in range(20):
        with connect_from(sensor, "127.8.8.8") as sock:
            sock.sendall(b"session %d" % number)
    sensor.said("holding it until it can be written")
    sensor.file.rmdir()
    sensor.said("Writing session data again")
    assert sensor.stop() == 0
    said = {payload(record) for record in map(_json, sensor.lines())}
    assert said >= {b"other %d" % number for number in range(20)} | {b"session %d" % number for number in range(20)}
    assert re.search(r"\d+ dropped \(source_memory\)", sensor.log)
    assert sensor.account().returncode == 0


def _json(line: bytes) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(line)
    return found


def test_event_lines_of_sessions_over_the_memory_are_whole_too(start: Start, tmp_path: Path) -> None:
    sensor = start("-q", "--record", "events", "-c", configured(tmp_path, "[limits]\nmemory = '4MiB'\n"))
    big = os.urandom(MIB)
    socks = held_open(sensor, "127.0.0.1", 8, big)
    for sock in socks:
        sock.close()
    wait_until(lambda: sum(b'"event":"end"' in line for line in sensor.lines()) == 8, "all ends")
    assert sensor.stop() == 0
    from tests.harness import tcppc

    done = tcppc("recover", str(sensor.file), "-o", str(tmp_path / "out.jsonl"))
    assert done.returncode == 0, done.stderr
    records = [_json(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [payload(record) == big for record in records] == [True] * 8


def test_replies_that_grow_leave_memory_too_and_are_whole_in_the_record(start: Start, tmp_path: Path) -> None:
    sensor = start("-q", "--persona", "shell", "-c", configured(tmp_path, "[limits]\nmemory = '4MiB'\n"))
    socks = [sensor.connect() for _ in range(6)]
    heard = [bytearray() for _ in socks]
    for _ in range(40):
        for sock, got in zip(socks, heard, strict=True):
            sock.sendall(b"cat /etc/passwd /etc/passwd /etc/passwd /etc/passwd\n")
            got += sock.recv(1 << 20)
    for number in range(30):
        with connect_from(sensor, f"127.2.{number}.2") as sock:
            sock.sendall(b"exit %d\n" % number)
    for sock, got in zip(socks, heard, strict=True):
        sock.shutdown(socket.SHUT_WR)
        while data := sock.recv(1 << 20):
            got += data
        sock.close()
    records = [record for record in sensor.records(36) if record["bytes"] > 1000]
    told = sorted(b"".join(b64decode(reply["data"]) for reply in record["replies"]) for record in records)
    assert told == sorted(map(bytes, heard))
    assert sensor.stop() == 0
    assert " truncated " not in sensor.log


def test_what_is_refused_by_a_bound_stands_in_the_file_as_limit_and_nothing_else_is_called_so(
    start: Start, tmp_path: Path
) -> None:
    sensor = start("-q", "-c", configured(tmp_path, "[limits]\nmemory = '64KiB'\nspill = 0\nsessions = 40\n"))
    socks = [sensor.connect() for _ in range(50)]  # half of the 40 at most are one source's
    wait_until(lambda: sum(map(_is_over, socks)) == 30, "those over the bound to be refused")
    for sock in socks:
        with contextlib.suppress(OSError):  # refused, and closed already
            sock.sendall(b"x" * 3000)
    socks += [sensor.connect() for _ in range(30)]  # now memory is out, too
    wait_until(lambda: sum(map(_is_over, socks)) >= 60, "those over the bound to be refused")
    for sock in socks:
        sock.close()
    assert sensor.stop() == 0
    closed = [record["closed"] for record in map(_json, sensor.lines()) if "closed" in record]
    refused = sum(map(int, re.findall(r"(\d+) refused", sensor.log.splitlines()[-2])))
    assert closed.count("limit") == refused > 0
    assert sensor.account().returncode == 0


def test_memory_that_large_sessions_held_goes_back_to_the_machine(start: Start, tmp_path: Path) -> None:
    patch = "import tcppc.oversight as o; o.TRIM_SECONDS = 0.1"
    sensor = start("-q", "-c", configured(tmp_path, "[limits]\nspill = 0\n"), patch=patch)
    before = resident(sensor)
    for sock in held_open(sensor, "127.0.0.1", 4, bytes(12 * MIB)):
        sock.close()
    sensor.records(4)
    wait_until(lambda: resident(sensor) < before + 24 * MIB, "the resident memory to shrink")


def _is_over(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def resident(sensor: Sensor) -> int:
    pages = int(Path(f"/proc/{sensor.process.pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("where", ["a connection's read", "what is kept", "the queue", "the text of a line"])
def test_out_of_memory_costs_nothing_but_what_is_told(start: Start, where: str) -> None:
    """MemoryError at a few moments, as a limit on the address space gives it."""
    at = {
        "a connection's read": ("tcppc.capture.conversation", "Conversation._serve", "in (2, 5)"),
        "what is kept": ("tcppc.capture.recorder", "Recorder.keep", "in (2, 5)"),
        "the queue": ("tcppc.capture.intake", "Intake.take", "in (3, 4, 9)"),
        "the text of a line": ("tcppc.records", "Encoder.whole", "in (2, 3, 4, 5)"),
    }[where]
    module, name, when = at
    owner, method = name.split(".")
    patch = (
        f"import itertools, {module} as m; real = m.{owner}.{method}; n = itertools.count(); "
        f"m.{owner}.{method} = lambda *a: (_ for _ in ()).throw(MemoryError()) if next(n) {when} else real(*a)"
    )
    sensor = start("-q", patch=patch)
    for number in range(20):
        sensor.send(b"%d" % number)
    assert len(sensor.records(20)) == 20
    assert sensor.stop() == 0
    assert "20 accepted, 0 open, " in sensor.log
    assert "20 recorded." in sensor.log
    assert " held" not in sensor.log.splitlines()[-2]
    kept = {payload(record) for record in map(_json, sensor.lines()) if not record.get("truncated")}
    if where in ("the queue", "the text of a line"):
        assert len(kept) == 20


ENTRIES = st.lists(st.tuples(st.integers(0, 1 << 62), st.binary(max_size=5000), st.integers(-1, 1000)), min_size=1)


@given(st.lists(ENTRIES, min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_what_is_stowed_comes_back_byte_for_byte_and_leaves_nothing(
    batches: list[list[tuple[int, bytes, int]]],
) -> None:
    books = Books(Limits())
    spill = Spill(Path("/tmp"), 64 * MIB, books, lambda line: None)
    source = books.enter("192.0.2.1")[1]
    piece: Piece | None = None
    for entries in batches:
        piece = spill.put(entries, piece, source)
        assert piece is not None
    assert piece is not None
    assert list(piece) == [entry for entries in batches for entry in entries]
    assert piece.count == sum(map(len, batches))
    assert books.stowed == source.stowed > 0
    piece.free()
    assert (books.stowed, source.stowed) == (0, 0)
    assert os.fstat(spill._fd).st_size == 0
    os.close(spill._fd)


def test_the_spill_file_is_bounded_has_no_name_and_gives_the_disk_back(tmp_path: Path) -> None:
    books = Books(Limits())
    spill = Spill(tmp_path, MIB, books, lambda line: None)
    pieces = [spill.put([(0, bytes(100_000), 0)], None, None) for _ in range(12)]
    assert pieces.count(None) == 2  # a MiB holds ten of 102,400 bytes
    assert list(tmp_path.iterdir()) == []
    blocks = os.fstat(spill._fd).st_blocks
    kept = [piece for piece in pieces if piece]
    kept[3].free()
    assert os.fstat(spill._fd).st_blocks < blocks
    assert [bytes(data) for piece in (kept[2], kept[4]) for _, data, _ in piece] == [bytes(100_000)] * 2
    os.close(spill._fd)


def test_one_source_has_a_quarter_of_the_spill_file(tmp_path: Path) -> None:
    books = Books(Limits())
    spill = Spill(tmp_path, MIB, books, lambda line: None)
    greedy, other = books.enter("192.0.2.1")[1], books.enter("198.51.100.1")[1]
    assert [bool(spill.put([(0, bytes(100_000), 0)], None, greedy)) for _ in range(4)] == [True, True, False, False]
    assert spill.put([(0, bytes(100_000), 0)], None, other)
    os.close(spill._fd)


def sources() -> Iterator[str]:
    yield from ("192.0.2.1", "192.0.2.2", "198.51.100.1", "2001:db8::1", "2001:db8:0:1::1", "2001:db8:1::1")


def test_networks_are_a_24_and_a_48() -> None:
    of = {address: network_key(source_key(address)) for address in sources()}
    assert of["192.0.2.1"] == of["192.0.2.2"] != of["198.51.100.1"]
    assert of["2001:db8::1"] == of["2001:db8:0:1::1"] != of["2001:db8:1::1"]


@given(st.lists(st.tuples(st.sampled_from(list(sources())), st.integers(0, 200_000), st.booleans()), max_size=80))
def test_shares_hold_and_every_byte_that_is_given_back_was_taken(steps: list[tuple[str, int, bool]]) -> None:
    books = Books(Limits(memory=4 * MIB))
    held: list[tuple[Any, int]] = []
    for address, size, comes in steps:
        source = books.enter(source_key(address))[1]
        if comes and books.take(size, source):
            held.append((source, size))
            assert source.held <= max(LEAST_SHARE, MIB) + 1024 * len(steps)
        elif held:
            owner, amount = held.pop()
            books.give(amount, owner)
        assert books.held <= 4 * MIB
    total = sum(size for _, size in held)
    assert books.held == total + 1024 * len(steps)


def test_a_session_may_hold_less_the_fuller_memory_is() -> None:
    shares = Shares(16 * MIB)
    source = shares.source("192.0.2.1")
    assert [shares.ceiling(held, None) for held in (0, 8 * MIB, 12 * MIB)] == list(CEILINGS)
    source.held = 4 * MIB
    assert shares.ceiling(0, source) == SMALL
