"""Lines on their way into the file: what waits, and the batch that is made of it.

Belongs to the writer's thread. What cannot be encoded is counted and told, and costs itself alone; what finds no memory
stays, and is tried again in smaller batches.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tcppc.capture.books import Books
from tcppc.capture.intake import Line
from tcppc.capture.shorten import shorten
from tcppc.capture.talk import Talk
from tcppc.log import Log
from tcppc.records import Encoder, Session, Step
from tcppc.sightings import Sighting

# A batch is at most this many sessions or bytes of payload, so that memory for its text stays small.
BATCH_SESSIONS = 2000
BATCH_BYTES = 4 << 20
PIECE_CHARACTERS = 1 << 20
# So often a line that finds no memory is tried alone before it is given up.
MEMORY_TRIES = 30


_T = TypeVar("_T")


def surely(make: Callable[[], _T]) -> _T:
    """What must not be left out for want of memory: it is tried again until there is some. `make` begins nothing that
    it does not end."""
    for _ in range(MEMORY_TRIES * 10):
        try:
            return make()
        except MemoryError:
            time.sleep(0.1)
    return make()


def parted(items: list[Line], count: int, lines: bytes, written: int) -> tuple[list[Line], bytes]:
    """What is written of a batch, and the lines that are not."""
    return items[:count], lines[written:]


@dataclass(slots=True)
class Batch:
    """Lines that are ready, and what they are of: one line each, in the same order. A large session is alone, without
    lines: they are made piece by piece."""

    lines: bytes
    items: list[Line]


class Batches:
    """What waits to be written."""

    def __init__(self, books: Books, log: Log, talk: Talk, encoder: Encoder) -> None:
        self._books = books
        self._log = log
        self._talk = talk
        self._encoder = encoder
        self._waiting: list[Line] = []
        self._batch: Batch | None = None
        self._cut: list[Session] = []  # the last one that was shortened
        self._most = BATCH_SESSIONS
        self._starved = 0  # tries without memory, one after the other

    def set_encoder(self, encoder: Encoder) -> None:
        """Lines are made so from the next batch on."""
        self._encoder = encoder

    def __len__(self) -> int:
        batch = self._batch
        return len(self._waiting) + (len(batch.items) if batch else 0)

    def add(self, lines: Iterable[Line]) -> None:
        self._waiting += lines

    def current(self) -> Batch:
        """The batch that is being written, or the next one."""
        self._batch = self._batch or self._encode()
        return self._batch

    def written(self) -> None:
        """The current batch is in the file."""
        self._batch = None
        self._starved = 0

    def take_all(self) -> list[Line]:
        """Nothing waits any more: the caller has it."""
        items = self._waiting_first()
        self._waiting, self._batch = [], None
        return items

    def shorten(self, most: int) -> None:
        """The first line is larger than `most` bytes, and no file takes it: as much of its session as fits, or nothing
        of it, is kept."""
        self._waiting, self._batch = self._waiting_first(), None
        item = self._waiting[0]
        try:
            if isinstance(item, Session) and item not in self._cut and shorten(item, most, self._encoder.line):
                self._cut = [item]
                self._books.cut("file_size")
                self._log(f"A record is larger than a file may be, {most:,} bytes (ulimit -f), and cut: "
                          f"{self._talk.name(item)}")  # fmt: skip
                return
            problem: Exception = OSError(errno.EFBIG, f"its record is larger than a file may be, {most:,} bytes")
        except Exception as found:  # MemoryError, or the spill file's
            problem = found
        del self._waiting[0]
        self.lose(item, problem, "disk")

    def _waiting_first(self) -> list[Line]:
        """All that waits, what is in the batch first."""
        return (self._batch.items if self._batch else []) + self._waiting

    def pieces(self, session: Session) -> Iterator[bytes]:
        gathered: list[str] = []
        size = 0
        for text in self._encoder.in_pieces(session):
            gathered.append(text)
            size += len(text)
            if size >= PIECE_CHARACTERS:
                yield "".join(gathered).encode("ascii")
                gathered, size = [], 0
        gathered.append("\n")
        yield "".join(gathered).encode("ascii")

    def _encode(self) -> Batch:
        """As much of what waits as makes a batch; what cannot be encoded is counted and told, not kept."""
        items: list[Line] = []
        lines: list[str] = []
        charge = taken = 0
        line, step, sighting = self._encoder.line, self._encoder.step, self._encoder.sighting
        try:
            for item in self._waiting:
                if taken >= self._most:
                    break
                try:
                    if isinstance(item, Session):
                        if item.stowed or (item.spoken and item.spoken.stowed):
                            if not taken:
                                items, taken = [item], 1
                            break
                        lines.append(line(item))
                    elif isinstance(item, Step):
                        lines.append(step(item))
                    else:
                        lines.append(sighting(item))
                except MemoryError:
                    raise
                except Exception as problem:  # a bug of ours; every other session goes on
                    taken += 1
                    self.lose(item, problem)
                    continue
                taken += 1
                charge += item.charge
                items.append(item)
                if charge >= BATCH_BYTES:
                    break
            lines.append("")
            batch = Batch("\n".join(lines).encode("ascii"), items)
        except MemoryError:
            self._starve(taken)
            raise
        del self._waiting[:taken]
        self._most = BATCH_SESSIONS
        return batch

    def _starve(self, taken: int) -> None:
        """No memory for the text of so many lines: fewer next time; a single one is given up after a while."""
        self._most = max(1, taken // 2)
        self._starved += self._most == 1
        if self._starved > MEMORY_TRIES and self._waiting:
            self._starved = 0
            self.lose(self._waiting.pop(0), MemoryError("out of memory"), "memory")

    def lose(self, item: Line, problem: Exception, cause: str = "error") -> None:
        failed = "write session data" if cause == "disk" else "encode data as json"
        what = f"Failed to {failed}: {type(problem).__name__}: {problem}"
        if isinstance(item, Sighting):
            self._books.error("sightings_not_recorded")
            self._books.give_sightings(item.charge)
            self._log(what)
            return
        session = item if isinstance(item, Session) else item.session
        if item is session:
            self._books.lose(cause, [session])
            session.free()
        else:
            self._books.give(item.charge, session.source)
        self._log(f"{what}: {self._talk.name(session)}")
