from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.clock import Zone
from tcppc.log import SHOWN_BYTES, Log, quote


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


def test_a_reader_that_does_not_read_costs_lines_and_no_time() -> None:
    reader, writer = os.pipe()
    log = Log(Zone("UTC"))
    log._fd = writer
    log._look()
    line = "x" * 200
    for _ in range(1000):  # three times what a pipe holds; a write that waited would hang here
        log(line)
    assert log.lost > 0
    held = os.read(reader, 1 << 20).decode("ascii").splitlines()
    assert len(held) + log.lost == 1000
    assert all(text.endswith(line) for text in held)
    os.close(reader)
    os.close(writer)


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
    reader, writer = os.pipe()
    log = Log(Zone("UTC"))
    log._fd = writer
    log._look()
    problems: list[BaseException] = []
    held = bytearray()

    def speak(name: int) -> None:
        try:
            for number in range(200):
                log(f"thread {name} line {number}")
        except BaseException as problem:
            problems.append(problem)

    def read() -> None:
        while data := os.read(reader, 65536):
            held.extend(data)

    listener = threading.Thread(target=read)
    listener.start()
    speakers = [threading.Thread(target=speak, args=(name,)) for name in range(8)]
    for speaker in speakers:
        speaker.start()
    for speaker in speakers:
        speaker.join()
    os.close(writer)
    listener.join()
    os.close(reader)
    assert problems == []
    lines = held.decode("ascii").splitlines()
    assert len(lines) + log.lost == 1600
    assert all(re.fullmatch(r"\S+ \S+ thread \d line \d+", line) for line in lines)


def test_a_line_longer_than_a_pipe_takes_at_once_never_waits_and_never_runs_into_the_next() -> None:
    reader, writer = os.pipe()
    log = Log(Zone("UTC"))
    log._fd = writer
    log._look()
    for _ in range(20):
        log("L" * 20_000)  # the pipe holds 65,536 bytes: a write that waited would hang here
    assert log.lost > 0
    os.read(reader, 1 << 20)
    log("short")
    assert re.fullmatch(r"\n\S+ \S+ short\n", os.read(reader, 65536).decode("ascii"))
    os.close(reader)
    os.close(writer)
