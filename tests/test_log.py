from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.clock import Zone
from tcppc.log import SHOWN_BYTES, Log, Seldom, quote


# Each pair was printed by Go's fmt.Printf("%q") of that []byte.
@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"Hello, TCPPC\n", r'"Hello, TCPPC\n"'),
        (b'nul\0\x01\xff\xe9\x7f\t\r\n"q"', r'"nul\x00\x01\xff\xe9\x7f\t\r\n\"q\""'),
        ('x"y\\x00é'.encode(), r'"x\"y\\x00é"'),
        (b"\a\b\f\v\\", r'"\a\b\f\v\\"'),
        ("\u200b\u2028\U000e0001".encode(), r'"\u200b\u2028\U000e0001"'),
        (b"", '""'),
    ],
)
def test_payloads_are_quoted_as_go_quotes_them(data: bytes, shown: str) -> None:
    assert quote(data) == shown


@given(st.binary(max_size=300))
def test_no_byte_of_a_stranger_reaches_the_terminal_raw(data: bytes) -> None:
    shown = quote(data)
    assert shown.isprintable()
    assert shown.encode()


def test_a_long_payload_is_cut_in_the_log() -> None:
    assert quote(b"A" * (SHOWN_BYTES + 1)) == '"' + "A" * SHOWN_BYTES + '"...'


def into_pipe() -> tuple[int, int, Log]:
    """(reading end, writing end, a log with its thread)."""
    reader, writer = os.pipe()
    log = Log(Zone("UTC"))
    log._fd, log._regular = writer, False
    log.start()
    return reader, writer, log


def read_all(reader: int) -> tuple[threading.Thread, bytearray]:
    held = bytearray()

    def read() -> None:
        while data := os.read(reader, 65536):
            held.extend(data)

    thread = threading.Thread(target=read)
    thread.start()
    return thread, held


def test_a_reader_that_does_not_read_costs_lines_and_no_time() -> None:
    reader, writer, log = into_pipe()
    line = "x" * 2000
    for _ in range(5000):  # more than the pipe and the queue hold; a write that waited would hang here
        log(line)
    assert log.lost > 0
    assert log.drain(0.1) > 0
    listener, held = read_all(reader)
    assert log.drain(30) == 0
    os.close(writer)
    listener.join()
    os.close(reader)
    lines = held.decode("ascii").splitlines()
    assert len(lines) + log.lost == 5000
    assert all(text.endswith(line) for text in lines)


def test_a_full_log_disk_is_counted_and_raises_nothing() -> None:
    log = Log(Zone("UTC"), "/dev/full")
    log("nobody will read this")
    assert log.lost == 1


def test_reopen_follows_a_file_that_was_moved(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(Zone("UTC"), str(path))
    log("before")
    path.rename(tmp_path / "log.1")
    log("still before")
    log.reopen()
    log("after")
    assert (tmp_path / "log.1").read_text(encoding="ascii").count("before") == 2
    assert path.read_text(encoding="ascii").endswith("after\n")


def test_lines_begin_as_gos_log_lines_do() -> None:
    assert Log(Zone("Asia/Tokyo")).prefix(1_555_425_752 * 10**9) == "2019/04/16 23:42:32 "


def test_many_threads_may_speak_at_once_into_a_pipe() -> None:
    reader, writer, log = into_pipe()
    listener, held = read_all(reader)

    def speak(name: int) -> None:
        for number in range(200):
            log(f"thread {name} line {number}")

    speakers = [threading.Thread(target=speak, args=(name,)) for name in range(8)]
    for speaker in speakers:
        speaker.start()
    for speaker in speakers:
        speaker.join()
    log.stop(30)
    os.close(writer)
    listener.join()
    os.close(reader)
    lines = held.decode("ascii").splitlines()
    assert len(lines) == 1600
    assert all(re.fullmatch(r"\S+ \S+ thread \d line \d+", line) for line in lines)


def test_a_line_longer_than_a_pipe_takes_at_once_comes_whole_or_not_at_all() -> None:
    reader, writer, log = into_pipe()
    for _ in range(500):
        log("L" * 20_000)
    assert log.lost > 0
    listener, held = read_all(reader)
    assert log.drain(30) == 0
    log("short")
    log.stop(30)
    os.close(writer)
    listener.join()
    os.close(reader)
    lines = held.decode("ascii").splitlines()
    assert len(lines) + log.lost == 501
    assert {len(line) for line in lines} == {20_020, 25}


def test_a_fifo_without_a_reader_is_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    log = Log(Zone("UTC"), str(path))
    log.start()
    log("first")
    log.reopen()
    log("second")
    log.stop(30)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    held = os.read(reader, 65536)
    os.close(reader)
    assert held.count(b"\n") == 2


def test_standard_error_that_somebody_made_non_blocking_loses_no_line() -> None:
    reader, writer, log = into_pipe()
    os.set_blocking(writer, False)
    for number in range(2000):
        log(f"{number} {'x' * 100}")
    listener, held = read_all(reader)
    assert log.drain(30) == 0
    os.close(writer)
    listener.join()
    os.close(reader)
    assert (len(held.splitlines()), log.lost) == (2000, 0)


def test_what_is_told_seldom_is_told_once_a_kind() -> None:
    seldom = Seldom(3600)
    assert [seldom.due("a"), seldom.due("a"), seldom.due("b"), seldom.due()] == [True, False, True, True]
