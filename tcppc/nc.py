"""An nc listener: received bytes to standard output as they come, and session records to a file where one is asked for.

What `nc -l` does, with many connections at once: each has its thread, and what one read gave goes to standard output in
one piece, under one lock. A reader of standard output that is slow holds the connections up, as nc's does; in memory is
only what the records keep of them, within the bounds of `Limits`.

Threads share the table of open connections (atomic dict operations), the output (its lock) and the books (theirs).
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tcppc import hostname
from tcppc.capture import sockets
from tcppc.capture.books import SESSION_CHARGE, Books, source_key
from tcppc.capture.files import DataFile, Naming, is_standard_output
from tcppc.capture.intake import Intake
from tcppc.capture.recorder import Recorder
from tcppc.capture.spill import Spill
from tcppc.capture.writer import Writer
from tcppc.clock import Zone
from tcppc.log import Log
from tcppc.records import Encoder, Session
from tcppc.sections import Limits

READ_BYTES = 65536
MOST_SWEPT_READS = 4096
# Out of descriptors or threads: those who wait stay in the back-log, and asking again at once would spin.
PAUSE_SECONDS = 0.1
MOST_CONNECTIONS = 4096
STOP_SECONDS = 5.0
UDP_BUFFER_BYTES = 8 << 20


@dataclass(frozen=True)
class Options:
    """What was asked for. `host` "" is every address of `families`; `timeout` is idle seconds, 0 for ever; `records`
    is the file for session records, "" for none."""

    port: int
    host: str = ""
    families: tuple[socket.AddressFamily, ...] = (socket.AF_INET, socket.AF_INET6)
    udp: bool = False
    keep: bool = False
    timeout: float = 0.0
    verbose: bool = False
    stdin: bool = True
    records: str = ""


class Ended(Exception):  # noqa: N818 - how it ends, not an error
    """SIGTERM or SIGINT came."""


class Records:
    """Session records of what is received."""

    def __init__(self, path: str) -> None:
        limits, zone = Limits(), Zone()
        self._limits = limits
        self._books = Books(limits)
        log = Log(zone)
        self._spill = Spill(None if is_standard_output(path) else Path(path).parent, limits.spill, self._books, log)
        self._intake = Intake(talkative=False)
        file = DataFile(Naming(path.replace("%", "%%"), 0, 0, zone), lambda line: None, lambda closed: None)
        self._writer = Writer(self._intake, self._books, log, Encoder(zone, hostname.name()), file)
        self._writer.start()

    def begin(self, session: Session) -> Recorder:
        """Who keeps what this session says."""
        bound, session.source = self._books.enter(source_key(session.src))
        if bound not in ("memory", "disk"):
            session.charge = SESSION_CHARGE
        most = self._limits
        return Recorder(session, self._books, self._intake, self._spill, most.session_bytes, most.session_payloads)

    def end(self, session: Session, closed: str) -> None:
        session.end, session.closed = time.time_ns(), closed
        self._books.leave(session.source)
        if session.charge:
            self._intake.put(session)
        else:
            self._books.drop("memory", 1, session.bytes)

    def datagram(self, session: Session) -> None:
        source = self._books.datagram(session.bytes, session.src)
        if source is not False:
            session.charge, session.source = session.bytes + SESSION_CHARGE, source
            self._intake.put(session)

    def stop(self) -> bool:
        """Write what there is; False where something was not kept."""
        return self._writer.stop(STOP_SECONDS) and not self._books.dropped


class Listener:
    """The listener of `options`; `run` serves to the end and returns the exit code. sockets.ListenError or OSError
    from the constructor where it cannot listen, or where its file cannot be made."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._output = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._first: socket.socket | None = None
        self._connected = threading.Event()
        self._gone = False  # does nobody read standard output any more?
        self._wake = os.eventfd(0)
        # A signal that comes just before select(2) must end it too: the main thread waits nowhere else.
        self._signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._ending = False
        self._listeners = list(_listen(options))
        self._records = Records(options.records) if options.records else None
        for address in (sock.getsockname() for sock in self._listeners):
            self._say(f"{'Bound' if options.udp else 'Listening'} on {sockets.zoned(address)} {address[1]}")

    @property
    def port(self) -> int:
        return int(self._listeners[0].getsockname()[1])

    def run(self) -> int:
        """Until the first connection has ended, or with `keep` until SIGTERM or SIGINT."""
        if self._options.stdin:
            threading.Thread(target=self._send_stdin, daemon=True).start()
        try:
            signal.set_wakeup_fd(self._signals[1])
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _end)
            if self._options.udp:
                self._read_datagrams()
            else:
                self._accept()
        except Ended:
            self._ending = True
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.set_wakeup_fd(-1)
            self._stop()
        kept = self._records.stop() if self._records else True
        return 0 if kept and not self._gone else 1

    def _stop(self) -> None:
        self._ending = True
        for sock in self._listeners:
            sock.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):  # closed meanwhile
                sock.shutdown(socket.SHUT_RDWR)
        until = time.monotonic() + STOP_SECONDS
        for thread in list(self._open.values()):
            thread.join(max(0.0, until - time.monotonic()))

    def _say(self, line: str) -> None:
        if self._options.verbose:
            print(line, file=sys.stderr, flush=True)

    def _put(self, data: bytes) -> bool:
        """To standard output, whole; False where nobody takes it, and then all ends."""
        with self._output:
            view = memoryview(data)
            try:
                while view:
                    try:
                        view = view[os.write(1, view) :]
                    except BlockingIOError:  # whom we share it with has made it so
                        room = select.poll()
                        room.register(1, select.POLLOUT)
                        room.poll()
            except OSError as problem:
                if not self._gone:
                    print(f"tcppc: standard output takes nothing more: {problem.strerror}", file=sys.stderr)
                self._gone = True
                os.eventfd_write(self._wake, 1)
        return not self._gone

    # TCP

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            for sock in self._listeners:
                selector.register(sock, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            selector.register(self._signals[0], selectors.EVENT_READ)
            while not self._gone:
                for key, _ in selector.select():
                    if len(self._open) >= MOST_CONNECTIONS:
                        time.sleep(PAUSE_SECONDS)
                    elif isinstance(key.fileobj, socket.socket) and self._admit(key.fileobj) and not self._options.keep:
                        for sock in self._listeners:
                            selector.unregister(sock)
                            sock.close()
                        while self._open:
                            selector.select()
                        return

    def _admit(self, listener: socket.socket) -> bool:
        """Accept one and serve it in a thread; without `keep` here, to its end. False where there was none."""
        try:
            sock, peer = listener.accept()
        except BlockingIOError:  # gone before it was accepted
            return False
        except OSError:  # no descriptor left; who waits goes on waiting
            time.sleep(PAUSE_SECONDS)
            return False
        sock.settimeout(self._options.timeout or None)
        self._say(f"Connection received on {sockets.plain(peer[0])} {peer[1]}")
        local = sock.getsockname()
        session = Session("tcp", sockets.plain(peer[0]), peer[1], sockets.plain(local[0]), local[1], time.time_ns())
        if self._first is None:
            self._first = sock
            self._connected.set()
        thread = threading.Thread(target=self._converse, args=(sock, session), daemon=True)
        self._open[sock] = thread
        try:
            thread.start()
        except RuntimeError:  # the machine has no thread left: this one is served here, the others wait
            self._converse(sock, session)
        return True

    def _converse(self, sock: socket.socket, session: Session) -> None:
        """One connection to its end."""
        keep = self._records.begin(session).keep if self._records else None
        closed = "shutdown"
        try:
            while data := sock.recv(READ_BYTES):
                if keep:
                    keep(data, time.time_ns())
                if not self._put(data):
                    return
            closed = "shutdown" if self._ending else "peer"
        except TimeoutError:
            closed = "timeout"
        except OSError as problem:
            closed = "reset" if isinstance(problem, ConnectionResetError) else "error"
        finally:
            if closed != "peer":
                self._sweep(sock, keep)
            if self._records:
                self._records.end(session, closed)
            sock.close()
            self._open.pop(sock, None)
            if not self._options.keep:
                os.eventfd_write(self._wake, 1)

    def _sweep(self, sock: socket.socket, keep: Callable[[bytes, int], None] | None) -> None:
        """What the kernel has of a connection that is over belongs to it; after the shutdown it takes nothing more."""
        with contextlib.suppress(OSError):  # gone already; what came before is there all the same
            sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):  # nothing more is there
            sock.setblocking(False)
            for _ in range(MOST_SWEPT_READS):
                if not (data := sock.recv(READ_BYTES)):
                    return
                if keep:
                    keep(data, time.time_ns())
                if not self._put(data):
                    return

    def _send_stdin(self) -> None:
        """What comes on standard input goes to the first client, as nc has it."""
        if _in_background():
            return
        self._connected.wait()
        with contextlib.suppress(OSError):  # the client went away, or there is no standard input
            while (data := os.read(0, READ_BYTES)) and self._first:
                self._first.sendall(data)

    # UDP

    def _read_datagrams(self) -> None:
        """All of them; without `keep` those of the first one's sender, as nc has it."""
        options = self._options
        with selectors.DefaultSelector() as selector:
            for number, sock in enumerate(self._listeners):
                selector.register(sock, selectors.EVENT_READ, number)
            selector.register(self._signals[0], selectors.EVENT_READ, None)
            chosen: tuple[socket.socket, tuple[str, int]] | None = None
            while True:
                ready = selector.select(options.timeout or None if chosen else None)
                if not ready and not options.keep:
                    return
                for key, _ in ready:
                    if key.data is None:
                        continue
                    ear = self._listeners[key.data]
                    data, peer = ear.recvfrom(65536)
                    if chosen is None:
                        chosen = (ear, peer[:2])
                        self._say(f"Connection received on {sockets.plain(peer[0])} {peer[1]}")
                    if (options.keep or chosen == (ear, peer[:2])) and not self._take_datagram(ear, data, peer):
                        return

    def _take_datagram(self, sock: socket.socket, data: bytes, peer: tuple[str, int]) -> bool:
        now = time.time_ns()
        local = sock.getsockname()
        if self._records:
            session = Session("udp", sockets.plain(peer[0]), peer[1], sockets.plain(local[0]), local[1], now)
            session.payloads, session.bytes = [(now, data)], len(data)
            self._records.datagram(session)
        return self._put(data)


def _end(number: int, frame: object) -> None:
    raise Ended


def _in_background() -> bool:
    """Would reading the terminal stop us?"""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) != os.getpgrp()
    except OSError:
        return True


def _listen(options: Options) -> Iterator[socket.socket]:
    """A socket for each address; OSError where none can be had, ListenError for a name that has none."""
    wildcard = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
    hosts = [options.host] if options.host else [wildcard[family] for family in options.families]
    addresses = [(family, host) for family, host in sockets.resolve(hosts) if family in options.families]
    if not addresses:
        raise sockets.ListenError(f"{options.host!r} has no address of the family that was asked for")
    port, served = options.port, 0
    for number, (family, host) in enumerate(addresses, 1):
        try:
            sock = _open(family, host, port, options.udp)
        except OSError as problem:
            if not sockets.lacks(family, problem):
                raise OSError(problem.errno, problem.strerror, sockets.shown(host, port)) from None
            # A host without IPv6 is served on IPv4, where both were meant, and the other way round.
            if number == len(addresses) and not served:
                words = f"{sockets.lacking(family, problem)}; expected {sockets.instead(family)}"
                raise OSError(problem.errno, words, sockets.shown(host, port)) from None
            continue
        port, served = port or sock.getsockname()[1], served + 1
        yield sock


def _open(family: socket.AddressFamily, host: str, port: int, udp: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0 if udp else 1)
        sockets.set_v6only(sock, False)
        sock.bind(sockets.bound((family, host), port))
        if udp:
            sockets.set_receive_buffer(sock, UDP_BUFFER_BYTES)
        else:  # urgent data stays where it is in the stream; accepted sockets inherit it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            sock.listen(sockets.LARGEST_BACKLOG)
            sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
