"""A small HTTP server for an operator's pages: one thread, no connection waits for another one.

Whoever connects may be a stranger, where the port is left open by mistake. So each connection has one request and a
time for it, a request has a bound, and so have connections: who comes when all places are taken gets the place of the
one that has dawdled longest. Pages that cost something are made one at a time, with pauses; others do not wait for
them. Its thread is the caller's, who starts `serve`.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from tcppc.capture import sockets

MOST_CONNECTIONS = 64
BACKLOG = 1024  # those that the kernel takes meanwhile; a full one would hold up who comes next by a second
HEAD_SECONDS = 2.0
ANSWER_SECONDS = 10.0
HEAD_BYTES = 8192
READ_BYTES = 4096
ACCEPTS = 64  # in one turn, so that those who are connected have theirs
WORK_SHARE = 0.2  # of its time, what pages that cost something may take: the interpreter is the capture's first
ACCEPT_PAUSE_SECONDS = 0.1  # where no descriptor is left: asked again at once, it would spin
WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Request:
    """The first line and the headers, names in lower case."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "text/plain; charset=utf-8"),)


def page(status: int, text: str) -> Answer:
    return Answer(status, text.encode("utf-8", "backslashreplace"))


def parse(head: bytes) -> Request | None:
    """A request's head, up to its empty line; None for what is none."""
    lines = head.decode("latin-1").replace("\r\n", "\n").split("\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[0].isalpha() or not words[2].startswith("HTTP/1.") or not lines[0].isprintable():
        return None
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return Request(words[0], words[1], headers)


def as_bytes(answer: Answer, body: bool) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    lines += [f"Content-Length: {len(answer.body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1") + (answer.body if body else b"")


@dataclass
class _Connection:
    sock: socket.socket
    until: float
    head: bytearray = field(default_factory=bytearray)
    work: Callable[[], bytes] | None = None  # makes its answer
    answer: memoryview | None = None  # what is left of it to be sent
    sent: bool = False  # all of it; the client's end is waited for, so that none of it is lost

    @property
    def idle(self) -> bool:
        return self.sent or not (self.work or self.answer)


class Server:
    """`answer(request)` is asked in `serve`'s thread and returns an answer, or, where that costs something, a function
    that makes it; `failed` is told of what either raises. OSError from the constructor where the address cannot be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        answer: Callable[[Request], Answer | Callable[[], Answer]],
        failed: Callable[[Exception], None],
    ) -> None:
        self._listener = _listener(host, port)
        self._listener.setblocking(False)
        self.address = self._listener.getsockname()
        self._answer = answer
        self._failed = failed
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False

    def stop(self) -> None:
        """Have `serve` return soon."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """After `serve` has returned."""
        self._listener.close()
        os.close(self._wake)

    def serve(self) -> None:
        """Until `stop`. It may be called again where it raised."""
        turns = _Turns(self._listener, self._wake, self._respond)
        try:
            while not self._stopping:
                turns.turn()
        finally:
            turns.close()

    def _respond(self, head: bytes) -> bytes | Callable[[], bytes]:
        request = parse(head)
        if request is None:
            return as_bytes(page(400, "expected a request of HTTP\n"), body=True)
        body = request.method != "HEAD"
        try:
            answer = self._answer(request)
        except Exception as problem:  # of one request, whose client sees it
            return as_bytes(self._failure(problem), body)
        return as_bytes(answer, body) if isinstance(answer, Answer) else lambda: as_bytes(self._made(answer), body)

    def _made(self, work: Callable[[], Answer]) -> Answer:
        try:
            return work()
        except Exception as problem:  # the same
            return self._failure(problem)

    def _failure(self, problem: Exception) -> Answer:
        self._failed(problem)
        return page(500, "failed: see the log\n")


class _Turns:
    """The connections of one `serve`, in the order in which they came."""

    def __init__(
        self, listener: socket.socket, wake: int, respond: Callable[[bytes], bytes | Callable[[], bytes]]
    ) -> None:
        self._listener = listener
        self._respond = respond
        self._rested = 0.0  # when the next page that costs something may be made
        self._connections: dict[int, _Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(wake, selectors.EVENT_READ)

    def close(self) -> None:
        for connection in list(self._connections.values()):
            self._end(connection)
        self._selector.close()

    def turn(self) -> None:
        at_work = any(connection.work for connection in self._connections.values())
        rest = max(0.0, self._rested - time.monotonic()) if at_work else WAIT_SECONDS
        for key, _ in self._selector.select(min(rest, WAIT_SECONDS)):
            if key.fileobj is self._listener:
                self._accept()
            elif connection := self._connections.get(key.fd):
                self._go_on(connection)
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if now >= connection.until:
                self._end(connection)
            elif connection.work and now >= self._rested:
                self._do(connection, connection.work)
                now = time.monotonic()

    def _do(self, connection: _Connection, work: Callable[[], bytes]) -> None:
        begun = time.monotonic()
        self._begin_answer(connection, work())
        ended = time.monotonic()
        self._rested = ended + (ended - begun) * (1 / WORK_SHARE - 1)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:  # no more for now
                return
            except ConnectionAbortedError:  # gone again
                continue
            except OSError:  # no descriptor left, most likely: those that are held are all that can be done about it
                if self._connections:
                    self._make_place()
                else:
                    time.sleep(ACCEPT_PAUSE_SECONDS)
                return
            if len(self._connections) >= MOST_CONNECTIONS:
                self._make_place()
            sock.setblocking(False)
            connection = _Connection(sock, time.monotonic() + HEAD_SECONDS)
            self._connections[sock.fileno()] = connection
            self._selector.register(sock, selectors.EVENT_READ)
            self._go_on(connection)

    def _make_place(self) -> None:
        """The oldest goes: of those that have not asked yet or have their answer, else of those that wait for one."""
        self._end(min(self._connections.values(), key=lambda each: 0 if each.idle else 1 if each.work else 2))

    def _go_on(self, connection: _Connection) -> None:
        try:
            if connection.answer is None:
                self._read(connection)
            elif not connection.sent:
                self._send(connection)
            elif not connection.sock.recv(READ_BYTES):
                self._end(connection)
        except BlockingIOError:  # not yet
            return
        except OSError:  # a client that went away
            self._end(connection)

    def _read(self, connection: _Connection) -> None:
        piece = connection.sock.recv(READ_BYTES)
        if not piece:
            self._end(connection)
            return
        head = connection.head
        head += piece
        ended = _end_of(head)
        if ended < 0:
            if len(head) > HEAD_BYTES:
                self._begin_answer(connection, as_bytes(page(431, "the request is too long\n"), body=True))
            return
        answer = self._respond(bytes(head[:ended]))
        connection.until = time.monotonic() + ANSWER_SECONDS
        if isinstance(answer, bytes):
            self._begin_answer(connection, answer)
        else:
            connection.work = answer
            self._selector.unregister(connection.sock)  # what follows a request is not looked at

    def _begin_answer(self, connection: _Connection, answer: bytes) -> None:
        if connection.work:
            self._selector.register(connection.sock, selectors.EVENT_WRITE)
        else:
            self._selector.modify(connection.sock, selectors.EVENT_WRITE)
        connection.work, connection.answer = None, memoryview(answer)
        connection.until = time.monotonic() + ANSWER_SECONDS
        try:
            self._send(connection)
        except BlockingIOError:  # the selector tells when there is room
            return
        except OSError:  # a client that went away
            self._end(connection)

    def _send(self, connection: _Connection) -> None:
        assert connection.answer is not None
        connection.answer = connection.answer[connection.sock.send(connection.answer) :]
        if not connection.answer:
            connection.sent = True
            connection.until = time.monotonic() + HEAD_SECONDS
            connection.sock.shutdown(socket.SHUT_WR)
            self._selector.modify(connection.sock, selectors.EVENT_READ)

    def _end(self, connection: _Connection) -> None:
        del self._connections[connection.sock.fileno()]
        if not connection.work:
            self._selector.unregister(connection.sock)
        connection.sock.close()


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sockets.set_v6only(sock, alone=True)  # "::" takes IPv4 too
        sock.bind(sockets.bound((family, host), port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _end_of(head: bytearray) -> int:
    """Where the empty line begins, -1 where there is none yet."""
    found = [at for at in (head.find(b"\r\n\r\n"), head.find(b"\n\n")) if at >= 0]
    return min(found) if found else -1
