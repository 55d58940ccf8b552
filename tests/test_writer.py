from __future__ import annotations

import time
from pathlib import Path

from tcppc.capture.books import SESSION_CHARGE, Books
from tcppc.capture.files import DataFile, Naming
from tcppc.capture.intake import Intake
from tcppc.capture.writer import Writer
from tcppc.clock import Zone
from tcppc.log import Log
from tcppc.records import Encoder, Session
from tcppc.sections import Limits
from tests.harness import wait_until


class Desk:
    """A writer with all that it needs, on a real file."""

    def __init__(self, folder: Path, encoder: Encoder | None = None) -> None:
        self.path = folder / "d.jsonl"
        self.log_path = folder / "log"
        log = Log(Zone("UTC"), str(self.log_path))
        self.books = Books(Limits())
        self.intake = Intake(talkative=False)
        file = DataFile(Naming(str(self.path), 0, 0, Zone("UTC")), log, lambda _: None)
        self.writer = Writer(self.intake, self.books, log, encoder or Encoder(Zone("UTC"), "s"), file)
        self.writer.start()

    def put(self, number: int) -> None:
        _, source = self.books.enter("192.0.2.1")
        self.books.leave(source)
        session = Session("tcp", "192.0.2.1", number, "192.0.2.2", 2, 1, closed="peer")
        session.charge, session.source = SESSION_CHARGE, source
        self.intake.put(session)

    def lines(self) -> int:
        return self.path.read_bytes().count(b"\n")


class Choosy(Encoder):
    def line(self, session: Session) -> str:
        if session.sport % 10 == 3:
            raise ZeroDivisionError("thirteen")
        return super().line(session)


def test_what_cannot_be_encoded_costs_itself_alone_and_is_counted(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Choosy(Zone("UTC"), "s"))
    for number in range(100):
        desk.put(number)
    wait_until(lambda: desk.lines() == 90, "ninety lines")
    assert desk.writer.stop(5)
    assert desk.books.dropped == {"error": 10}
    assert desk.books.held == 0
    assert desk.books.recorded == 90
    assert "Failed to encode data as json: ZeroDivisionError: thirteen: Session: " in desk.log_path.read_text("utf-8")


def test_a_round_that_fails_does_not_end_the_thread(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    def bug() -> None:
        raise LookupError("a bug")

    desk.writer.change(bug)
    wait_until(lambda: "LookupError: a bug; going on." in desk.log_path.read_text("utf-8"), "the bug to be told")
    desk.put(1)
    wait_until(lambda: desk.lines() == 1, "the line after it")
    assert desk.writer.stop(5)


def test_all_memory_is_given_back_and_all_is_counted_once_written(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for number in range(5000):
        desk.put(number)
    assert desk.writer.stop(5)
    assert desk.lines() == desk.books.recorded == desk.books.lines == desk.books.accepted == 5000
    assert desk.books.bytes_written == desk.path.stat().st_size
    assert (desk.books.held, desk.books.open) == (0, 0)


def test_a_stop_is_bounded_where_the_disk_takes_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.path.unlink()
    desk.path.mkdir()
    for number in range(10):
        desk.put(number)
    begin = time.monotonic()
    assert not desk.writer.stop(1)
    assert time.monotonic() - begin < 10
    assert desk.books.dropped == {"disk": 10}
