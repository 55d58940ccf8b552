"""Where packets come from: capture files, standard input, an interface."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import IO

from tcppc.flows import capture_files
from tcppc.flows.capture_files import HEAD_BYTES, CaptureError, Packet, Reader
from tcppc.flows.engine import Engine
from tcppc.flows.libpcap import WAIT_MS, Filter, Live

# Below, packet by packet is done before numpy has started.
WORTH_BYTES = 4 << 20
WORTH_SHARING = 16 << 20  # bytes of captures; below, a second process gains nothing
PACKED = 8  # times that a compressed capture is smaller, or so
LOOK_PACKETS = 1024  # between two looks at the clock and at who wants to stop
STANDARD_INPUT = "standard input"
Progress = Callable[[int], None]


def plain_size(name: str) -> int:
    """Bytes of a file that can be read many packets at once; 0 for any other."""
    many = _many()
    try:
        told = os.stat(name)
        if not many or not stat.S_ISREG(told.st_mode):  # a pipe's bytes come once
            return 0
        with open(name, "rb") as file:
            return told.st_size if many.fits(file.read(HEAD_BYTES)) else 0
    except OSError:  # it is said where it is to be read
        return 0


def _many() -> ModuleType | None:
    """What reads many packets at once, where numpy is installed."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # else numpy starts threads that have nothing to do here
    try:
        from tcppc.flows import batches
    except ImportError:
        return None
    return batches


class Stop:
    """Wanted by SIGINT or SIGTERM: what is being done is finished first, unless it waits for somebody."""

    def __init__(self) -> None:
        self.wanted = False
        self.waiting = False
        self._before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}

    def over(self) -> None:
        """Signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        again, self.wanted = self.wanted, True
        if self.waiting or (again and number == signal.SIGINT):
            raise KeyboardInterrupt


class Source:
    """A capture that is open."""

    def __init__(self, name: str) -> None:
        """OSError where it cannot be read."""
        self.name = STANDARD_INPUT if name == "-" else name
        self.file: IO[bytes] = sys.stdin.buffer if name == "-" else open(name, "rb")  # noqa: SIM115 - `read` does
        self.is_file = stat.S_ISREG(os.fstat(self.file.fileno()).st_mode)
        self.size = os.fstat(self.file.fileno()).st_size if self.is_file else 0

    def read(self, engine: Engine, wanted: Filter | None, progress: Progress, stop: Stop) -> None:
        """All of it. CaptureError where the rest cannot be read, with all before that done."""
        try:
            many = self._at_once(engine)
            if engine.share and engine.share.turns and not many:
                engine.share.turns.agreed(self.name, None)
            if many:
                many.read(self.file, self.name, engine, wanted, progress, lambda: stop.wanted)
            elif many := self._packed(engine):
                stream = capture_files.unpacked(self.file, self.name)
                many.read_stream(stream, self.name, engine, wanted, self._told(progress), lambda: stop.wanted)
            else:
                self._one_by_one(engine, wanted, progress, stop)
        finally:
            if self.file is not sys.stdin.buffer:
                self.file.close()

    def _at_once(self, engine: Engine) -> ModuleType | None:
        """Is it a plain file that is worth numpy's start, and where it is not begun?"""
        worth = self.size >= WORTH_BYTES or engine.share  # whose other process may have the same file open
        if not engine.takes_runs or not self.is_file or not worth or self.file.tell():
            return None
        many = _many()
        # Without moving the place in the file, which another process may share.
        return many if many and many.fits(os.pread(self.file.fileno(), HEAD_BYTES, 0)) else None

    def _packed(self, engine: Engine) -> ModuleType | None:
        """Is it such a file, compressed?"""
        if not engine.takes_runs or not self.is_file or self.size < WORTH_BYTES // PACKED:
            return None
        many = _many()
        try:
            with open(self.name, "rb") as file:
                stream = capture_files.unpacked(file, self.name)
                head = Reader(stream, self.name).maybe(HEAD_BYTES) if many and stream is not file else b""
        except (OSError, CaptureError):  # it is said where it is to be read
            return None
        return many if many and many.fits(head) else None

    def _told(self, progress: Progress) -> Callable[[], None]:
        done = 0

        def tell() -> None:
            nonlocal done
            now = self.file.tell()
            progress(now - done)
            done = now

        return tell

    def _one_by_one(self, engine: Engine, wanted: Filter | None, progress: Progress, stop: Stop) -> None:
        packets = capture_files.packets(capture_files.unpacked(self.file, self.name), self.name)
        done = 0
        for number, packet in enumerate(_watched(packets, stop, self.name, not self.is_file)):
            if wanted is None or wanted(packet):
                engine.packet(packet)
            if number % LOOK_PACKETS == 0:
                now = self.file.tell() if self.is_file else 0
                progress(now - done)
                done = now
                if stop.wanted:
                    return


def _watched(packets: Iterator[Packet], stop: Stop, name: str, waits: bool) -> Iterator[Packet]:
    """The same packets; who wants to stop need not wait for the next one, where one `waits` for it."""
    while True:
        stop.waiting = waits
        try:
            packet = next(packets, None)
        except OSError as problem:
            raise CaptureError(f"{name}: cannot be read: {problem.strerror}") from None
        stop.waiting = False
        if packet is None:
            return
        yield packet


def listen(live: Live, engine: Engine, stop: Stop) -> None:
    """Packets of an interface until somebody wants to stop, and those that had come by then."""
    stopped = 0
    for number, packet in enumerate(live):
        if stop.wanted:
            stopped = stopped or time.time_ns()
            if packet.instant > stopped if packet else time.time_ns() - stopped > 2 * WAIT_MS * 1_000_000:
                return
        if packet:
            engine.packet(packet)
        if packet is None or number % LOOK_PACKETS == 0:
            engine.sweep(time.time_ns())
