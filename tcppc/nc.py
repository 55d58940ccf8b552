"""An nc listener: received bytes to standard output as they come, and session records to a file where one is asked for.

What `nc -l` does, with many connections at once: each has its thread, and what one read gave goes to standard output in
one piece. A reader of standard output that is slow holds the connections up, as nc's does; in memory is only what the
records keep of them, within the bounds of `Limits`.

One thread accepts connections or reads datagrams; the main one waits for the end, and writes to nothing that could hold
it up. At the end nothing more is let in, what has arrived is taken, and what is missing then is said in one line. Each
step of it has its time, counted from its beginning; all of it takes ten seconds at most.

Threads share the table of open connections (atomic dict operations); Output and Records have locks of their own.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import socket
import threading
import time
from dataclasses import dataclass

from tcppc import ears
from tcppc.capture import sockets
from tcppc.capture.recorder import Recorder
from tcppc.clock import Zone
from tcppc.delivery import Missing, Output, Records
from tcppc.log import Log
from tcppc.records import Session
from tcppc.text import harmless

READ_BYTES = 65536
MOST_SWEPT_READS = 4096
# Out of descriptors or threads: those who wait stay in the back-log, and asking again at once would spin.
PAUSE_SECONDS = 0.1
MOST_CONNECTIONS = 4096
# From the beginning of the end: so long a slow reader of standard output is waited for,
OUTPUT_SECONDS = 2.0
# what has arrived is taken,
TAKE_SECONDS = 4.0
# threads are waited for, and (at least one more) the records file.
JOIN_SECONDS = 5.0
RECORDS_SECONDS = 6.0
# Reading datagrams away to count them is so fast that this is never reached.
COUNT_SECONDS = 0.5
LOG_SECONDS = 0.5


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


class Listener:
    """The listener of `options`; `run` serves to the end and returns the exit code. sockets.ListenError or OSError
    from the constructor where it cannot listen, or where its file cannot be made."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._open: dict[socket.socket, threading.Thread] = {}
        self._first: socket.socket | None = None
        self._connected = threading.Event()
        self._chosen: tuple[socket.socket, tuple[str, int]] | None = None
        self._wake = os.eventfd(0)
        # A signal that comes just before select(2) must end it too.
        self._signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._begun = 0.0  # when the end began (monotonic seconds)
        self._ending = False
        self._failures = 0  # threads that something of ours ended
        self._lost: dict[socket.socket, int] = {}  # datagrams that the kernel had no room for
        zone = Zone()
        self._log = Log(zone)
        self._output = Output(self._end)
        self._listeners = list(ears.listen(options.host, options.families, options.port, options.udp))
        # From here on somebody may have sent something.
        signal.set_wakeup_fd(self._signals[1])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self._end())
        self._records = Records(options.records, self._log, zone) if options.records else None
        with contextlib.suppress(RuntimeError):  # no thread: then standard error may hold us up
            self._log.start()
        for address in (sock.getsockname() for sock in self._listeners):
            self._say(f"{'Bound' if options.udp else 'Listening'} on {sockets.zoned(address)} {address[1]}")

    @property
    def port(self) -> int:
        return int(self._listeners[0].getsockname()[1])

    def run(self) -> int:
        """Until the first connection has ended, or with `keep` until SIGTERM or SIGINT."""
        if self._options.stdin:
            threading.Thread(target=self._send_stdin, daemon=True).start()
        serving = threading.Thread(target=self._serve, daemon=True)
        try:
            try:
                serving.start()
            except RuntimeError:  # the machine has no thread left
                self._serve()
            waiting = select.poll()
            waiting.register(self._signals[0], select.POLLIN)
            waiting.register(self._wake, select.POLLIN)
            while not self._ending:
                waiting.poll()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.set_wakeup_fd(-1)
            self._end()
        return self._finish(serving)

    def _serve(self) -> None:
        """What comes, to the end; then what has come by then."""
        udp = self._options.udp
        for step in (self._read_datagrams, self._rest_of_them) if udp else (self._accept, self._backlog):
            try:
                step()
            except Exception as problem:
                self._fail("Listening", problem)
            self._end()

    def _end(self) -> None:
        """The end begins. Takes no lock, since it is called where a signal comes, and may be called again."""
        if not self._ending:
            self._begun = time.monotonic()
            self._output.end(self._begun + OUTPUT_SECONDS)
            self._ending = True
        os.eventfd_write(self._wake, 1)
        for sock in list(self._open):
            ears.shut(sock)

    def _finish(self, serving: threading.Thread) -> int:
        """Wait for all threads, say what is missing, and return the exit code."""
        for thread in [serving, *self._open.values()]:
            if thread.ident:
                thread.join(max(0.0, self._begun + JOIN_SECONDS - time.monotonic()))
        late = len(self._open)
        noun = "datagram" if self._options.udp else "connection"
        parts = [f"standard output takes nothing more: {self._output.problem}"] if self._output.problem else []
        parts += [f"not ended in time: {Missing(late).counted(noun)}"] if late else []
        parts += self._never_taken()
        for sock in self._listeners:
            sock.close()
        if missing := self._output.missing():
            parts.append(f"missing on standard output: {missing.told(noun)}")
        if self._records:
            name = harmless(self._options.records)
            if missing := self._records.stop(max(1.0, self._begun + RECORDS_SECONDS - time.monotonic())):
                parts.append(f"missing in {name}: {missing.told(noun)}")
            if cut := self._records.cut:
                parts.append(f"cut in {name}: {cut.told(noun)}")
        if parts:
            self._log.write_text([f"tcppc: {'; '.join(parts)}\n"])
        self._log.stop(LOG_SECONDS)
        return 1 if parts or self._failures else 0

    def _take_no_more(self) -> None:
        """Have the kernel let nothing more in, so that taking what is there comes to an end."""
        for sock in self._listeners:
            if sock.fileno() >= 0 and sock not in self._lost:
                self._lost[sock] = 0
                with contextlib.suppress(OSError):  # a kernel before 4.12
                    self._lost[sock] = sockets.drops(sock) if self._options.udp else 0
                with contextlib.suppress(OSError):  # then the time for it ends it
                    sockets.take_no_more(sock)

    def _never_taken(self) -> list[str]:
        """In words: what came and was not read to the end, and what the kernel had no room for."""
        self._take_no_more()
        unread = Missing()
        for sock in self._listeners:
            with contextlib.suppress(OSError):  # closed already
                if self._options.udp:
                    self._count_away(sock, unread)
                elif not self._all_had():
                    unread.sessions += sockets.backlog(sock)
        told = unread.told("datagram") if self._options.udp else unread.counted("connection")
        parts = [f"never read: {told}"] if unread else []
        if lost := sum(self._lost.values()):
            parts.append(f"lost by the kernel, whose buffer was full: {Missing(lost).counted('datagram')}")
        return parts

    def _watch(self, selector: selectors.BaseSelector) -> None:
        """What there is to wait for: who comes, and the end."""
        for sock in self._listeners:
            selector.register(sock, selectors.EVENT_READ)
        selector.register(self._wake, selectors.EVENT_READ)
        selector.register(self._signals[0], selectors.EVENT_READ)

    def _say(self, line: str) -> None:
        if self._options.verbose:
            self._log.write_text([f"{line}\n"])

    def _fail(self, what: str, problem: Exception) -> None:
        self._failures += 1
        self._log.write_text([f"tcppc: {what} failed: {type(problem).__name__}: {problem}\n"])

    def _received(self, data: bytes, session: Session, recorder: Recorder | None) -> bool:
        """False where standard output takes nothing more."""
        if recorder:
            recorder.keep(data, time.time_ns())
        return self._output.put(data, session)

    # TCP

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            self._watch(selector)
            while not self._ending:
                for key, _ in selector.select():
                    if self._ending:
                        return
                    if len(self._open) >= MOST_CONNECTIONS:
                        time.sleep(PAUSE_SECONDS)
                    elif isinstance(key.fileobj, socket.socket) and self._admit(key.fileobj) and not self._options.keep:
                        for sock in self._listeners:
                            selector.unregister(sock)
                            sock.close()
                        while self._open and not self._ending:
                            selector.select()
                        return

    def _all_had(self) -> bool:
        """Without `keep` the first one is all there is."""
        return self._first is not None and not self._options.keep

    def _backlog(self) -> None:
        """Clients in the back-log are connected and may have sent: what has arrived is taken."""
        self._take_no_more()
        for sock in self._listeners:
            while not self._all_had() and sockets.backlog(sock) and not self._over():
                self._admit(sock)

    def _over(self) -> bool:
        return time.monotonic() > self._begun + TAKE_SECONDS

    def _admit(self, listener: socket.socket) -> bool:
        """Accept one and serve it in a thread; at the end here. False where there was none."""
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
        if self._ending:  # _end() may have looked just before
            ears.shut(sock)
            self._converse(sock, session)
            return True
        try:
            thread.start()
        except RuntimeError:  # the machine has no thread left: this one is served here, the others wait
            self._converse(sock, session)
        return True

    def _converse(self, sock: socket.socket, session: Session) -> None:
        """One connection to its end."""
        recorder = self._records.begin(session) if self._records else None
        closed = "shutdown"
        try:
            while data := sock.recv(READ_BYTES):
                if not self._received(data, session, recorder):
                    return
            closed = "shutdown" if self._ending else "peer"
        except TimeoutError:
            closed = "timeout"
        except OSError as problem:
            closed = "reset" if isinstance(problem, ConnectionResetError) else "error"
        except Exception as problem:
            closed = "error"
            self._fail("A connection", problem)
        finally:
            try:
                if closed != "peer":
                    self._sweep(sock, session, recorder)
            finally:
                if self._records and recorder:
                    self._records.end(recorder, closed)
                sock.close()
                self._open.pop(sock, None)
                if not self._options.keep:
                    os.eventfd_write(self._wake, 1)

    def _sweep(self, sock: socket.socket, session: Session, recorder: Recorder | None) -> None:
        """What the kernel has of a connection that is over belongs to it; after the shutdown it takes nothing more."""
        ears.shut(sock)
        with contextlib.suppress(OSError):  # nothing more is there
            sock.setblocking(False)
            for _ in range(MOST_SWEPT_READS):
                if not (data := sock.recv(READ_BYTES)):
                    return
                self._received(data, session, recorder)

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
            self._watch(selector)
            while not self._ending:
                ready = selector.select(options.timeout or None if self._chosen else None)
                if not ready and not options.keep:
                    return
                for key, _ in ready:
                    if isinstance(key.fileobj, socket.socket) and not self._ending:
                        self._take_datagram(key.fileobj)

    def _rest_of_them(self) -> None:
        """What lies in the sockets."""
        self._take_no_more()
        for sock in self._listeners:
            while not self._over() and self._take_datagram(sock):
                continue

    def _take_datagram(self, sock: socket.socket) -> bool:
        """Read one; False where there is none."""
        try:
            data, peer = sock.recvfrom(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if self._chosen is None:
            self._chosen = (sock, peer[:2])
            self._say(f"Connection received on {sockets.plain(peer[0])} {peer[1]}")
        if self._options.keep or self._chosen == (sock, peer[:2]):
            now = time.time_ns()
            local = sock.getsockname()
            session = Session("udp", sockets.plain(peer[0]), peer[1], sockets.plain(local[0]), local[1], now)
            session.payloads, session.bytes = [(now, data)], len(data)
            if self._records:
                self._records.datagram(session)
            self._output.put(data, session)
        return True

    def _count_away(self, sock: socket.socket, unread: Missing) -> None:
        """Datagrams that are still in it, of those that are wanted."""
        room = bytearray(READ_BYTES)
        until = time.monotonic() + COUNT_SECONDS
        while time.monotonic() < until:
            size, peer = sock.recvfrom_into(room, 0, socket.MSG_DONTWAIT)
            if self._options.keep or self._chosen in (None, (sock, peer[:2])):
                unread.sessions += 1
                unread.bytes += size


def _in_background() -> bool:
    """Would reading the terminal stop us?"""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) != os.getpgrp()
    except OSError:
        return True
