"""TCP sessions, from outside: real sockets against a real sensor."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import time

import pytest

from tests.conftest import Start
from tests.harness import payload, wait_until


def test_a_session_is_one_record_with_what_was_sent(start: Start) -> None:
    sensor = start("-sensor", "tokyo-1")
    with sensor.connect() as sock:
        sport = sock.getsockname()[1]
        sock.sendall(b"hello\n")
        sensor.said('(1 payloads): "hello\\n" (6 bytes)')
        sock.sendall(b"again\n")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    (record,) = sensor.records(1)
    assert list(record)[:3] == ["timestamp", "flow", "payloads"]
    assert record["flow"] == {
        "proto": "tcp", "src": "127.0.0.1", "sport": sport, "dst": "127.0.0.1", "dport": sensor.port,
    }  # fmt: skip
    assert [(piece["index"], piece["data"]) for piece in record["payloads"]] == [(0, "aGVsbG8K"), (1, "YWdhaW4K")]
    assert record["closed"] == "peer"
    assert record["bytes"] == 12
    assert record["sensor"] == "tokyo-1"
    assert (
        record["timestamp"] <= record["payloads"][0]["timestamp"] <= record["payloads"][1]["timestamp"] <= record["end"]
    )


# glutton logged reads of exactly its buffer's size as nothing; tcppc-go's fork broke on a first read of one byte.
@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 1025, 2048, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 1 << 20])
def test_reads_of_any_size_are_kept_whole(start: Start, size: int) -> None:
    sensor = start("-q")
    data = bytes(index % 251 for index in range(size))
    sensor.send(data)
    (record,) = sensor.records(1)
    assert payload(record) == data
    assert record["bytes"] == size
    assert "truncated" not in record


def test_a_connection_without_data_is_a_record(start: Start) -> None:
    sensor = start()
    sensor.send(b"")
    (record,) = sensor.records(1)
    assert record["payloads"] == []
    assert record["bytes"] == 0
    assert record["closed"] == "peer"


def test_a_first_read_of_one_byte_is_kept_as_it_came(start: Start) -> None:
    sensor = start()
    with sensor.connect() as sock:
        sock.sendall(b"G")
        sensor.said('"G" (1 bytes)')
        sock.sendall(b"ET / HTTP/1.0\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
    (record,) = sensor.records(1)
    assert payload(record) == b"GET / HTTP/1.0\r\n\r\n"
    assert len(record["payloads"]) == 2


def test_a_reset_is_told_apart_from_a_close(start: Start) -> None:
    sensor = start()
    with sensor.connect() as sock:
        sock.sendall(b"bye")
        sensor.said("(3 bytes)")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    (record,) = sensor.records(1)
    assert record["closed"] == "reset"
    assert payload(record) == b"bye"
    assert "Aborted: " in sensor.said("Aborted: ")


# honeytrap left no event where the first bytes could not be read.
def test_a_connection_that_is_reset_at_once_is_a_record(start: Start) -> None:
    sensor = start()
    for _ in range(20):
        with sensor.connect() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    records = sensor.records(20)
    assert {record["closed"] for record in records} == {"reset"}
    assert {record["flow"]["src"] for record in records} == {"127.0.0.1"}
    assert sensor.stop() == 0


def test_an_idle_session_ends_after_the_timeout(start: Start) -> None:
    sensor = start("-t", "0.3")
    with sensor.connect() as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b""
    (record,) = sensor.records(1)
    assert record["closed"] == "timeout"
    assert payload(record) == b"x"


def test_a_trickle_ends_at_the_longest_duration(start: Start, tmp_path: object) -> None:
    sensor = start("-c", config(tmp_path, "[limits]\nduration = 0.7"), "-t", "0.5")
    with sensor.connect() as sock, contextlib.suppress(ConnectionError):
        while not sensor.lines():
            sock.sendall(b".")
            time.sleep(0.1)
    (record,) = sensor.records(1)
    assert record["closed"] == "limit"
    assert record["bytes"] >= 5


def test_a_duration_below_the_timeout_ends_an_idle_session(start: Start, tmp_path: object) -> None:
    sensor = start("-c", config(tmp_path, "[limits]\nduration = 0.3"))
    with sensor.connect() as sock:
        assert sock.recv(1) == b""
    assert sensor.records(1)[0]["closed"] == "limit"


def config(folder: object, text: str) -> str:
    path = f"{folder}/tcppc.toml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def test_bytes_over_the_bound_are_counted_and_not_kept(start: Start, tmp_path: object) -> None:
    sensor = start("-c", config(tmp_path, "[limits]\nsession_bytes = 1000"))
    sensor.send(bytes(300_000))
    (record,) = sensor.records(1)
    assert len(payload(record)) == 1000
    assert record["bytes"] == 300_000
    assert record["truncated"] is True
    sensor.stop()
    assert "1 truncated (session_bytes)" in sensor.log


def test_payloads_over_the_bound_are_counted_and_not_kept(start: Start, tmp_path: object) -> None:
    sensor = start("-c", config(tmp_path, "[limits]\nsession_payloads = 2"))
    with sensor.connect() as sock:
        for number in range(1, 5):
            sock.sendall(b"x")
            if number < 3:
                sensor.said(f"({number} payloads)")
            time.sleep(0.05)
    (record,) = sensor.records(1)
    assert len(record["payloads"]) == 2
    assert record["bytes"] == 4
    assert record["truncated"] is True


def test_memory_over_the_bound_cuts_payloads_and_says_so(start: Start, tmp_path: object) -> None:
    sensor = start("-c", config(tmp_path, '[limits]\nmemory = "64KiB"\nspill = 0'))
    sensor.send(bytes(1 << 20))
    (record,) = sensor.records(1)
    assert record["bytes"] == 1 << 20
    assert record["truncated"] is True
    assert len(payload(record)) < 65536
    sensor.send(b"after it there is room again")
    assert payload(sensor.records(2)[1]) == b"after it there is room again"
    sensor.stop()
    assert "1 truncated (memory)" in sensor.log


def test_sessions_over_the_bound_are_recorded_and_closed(start: Start, tmp_path: object) -> None:
    sensor = start("-c", config(tmp_path, "[limits]\nsessions = 2\nsessions_per_source = 2"))
    with sensor.connect(), sensor.connect():
        sensor.said("(#Sessions: 2)")
        with sensor.connect() as third:
            with contextlib.suppress(ConnectionResetError):
                assert third.recv(1) == b""
            (record,) = sensor.records(1)
            assert record["closed"] == "limit"
    sensor.records(3)
    sensor.send(b"room again")
    assert payload(sensor.records(4)[-1]) == b"room again"
    sensor.stop()
    assert "1 refused (sessions)" in sensor.log


def test_one_source_cannot_take_all_sessions(start: Start, tmp_path: object) -> None:
    sensor = start("-c", config(tmp_path, "[limits]\nsessions = 4"))
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(sensor.connect())
        sensor.said("(#Sessions: 2)")
        refused = stack.enter_context(sensor.connect())
        with contextlib.suppress(ConnectionResetError):
            assert refused.recv(1) == b""
        assert sensor.records(1)[0]["closed"] == "limit"
        other = stack.enter_context(
            socket.create_connection(("127.0.0.1", sensor.port), source_address=("127.0.0.2", 0), timeout=10)
        )
        other.sendall(b"another source")
        sensor.said('"another source"')
    sensor.stop()
    assert "1 refused (sessions_per_source)" in sensor.log


def test_running_out_of_descriptors_neither_ends_nor_spins(start: Start) -> None:
    sensor = start("-disable-udp-server")
    pid = sensor.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    in_use = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use + 4, hard))
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(sensor.connect())
        sensor.said("Failed to accept a new connection: EMFILE")
        before = sensor.cpu_seconds()
        time.sleep(1.0)
        assert sensor.cpu_seconds() - before < 0.3
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        sensor.said("(#Sessions: 20)")
    sensor.records(20)
    assert sensor.stop() == 0
    assert sensor.log.count("EMFILE") == 2  # once when it began, once in the counts at the end
    assert "20 accepted" in sensor.log


def test_ipv6_and_ipv4_on_one_port(start: Start) -> None:
    sensor = start(hosts=("127.0.0.1", "::1"))
    sensor.send(b"four")
    sensor.send(b"six", host="::1")
    flows = {payload(record): record["flow"] for record in sensor.records(2)}
    assert (flows[b"four"]["src"], flows[b"four"]["dst"]) == ("127.0.0.1", "127.0.0.1")
    assert (flows[b"six"]["src"], flows[b"six"]["dst"]) == ("::1", "::1")
    assert "[::1]:" in sensor.log


def test_the_ipv6_wildcard_alone_takes_ipv4_too_and_writes_it_as_ipv4(start: Start) -> None:
    sensor = start(hosts=("::",))
    sensor.send(b"mapped")
    sensor.datagram(b"mapped too")
    for record in sensor.records(2):
        assert (record["flow"]["src"], record["flow"]["dst"]) == ("127.0.0.1", "127.0.0.1")


def test_a_name_is_resolved(start: Start) -> None:
    sensor = start(hosts=("localhost",))
    sensor.send(b"by name")
    assert payload(sensor.records(1)[0]) == b"by name"


def test_many_sessions_at_once_each_keep_their_own_bytes(start: Start) -> None:
    sensor = start("-q")
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(sensor.connect()) for _ in range(300)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%d" % number)
        wait_until(lambda: sensor.threads() >= 300, "a thread for each connection")
    records = sensor.records(300)
    assert sorted(int(payload(record)) for record in records) == list(range(300))
    wait_until(lambda: sensor.threads() < 12, "the threads to end")
