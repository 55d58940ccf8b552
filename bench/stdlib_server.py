"""The yardstick: the same sensor with the standard library and nothing else.

`socketserver.ThreadingTCPServer` and `ThreadingUDPServer` used as their documentation says: a thread for
each request, `settimeout`, `recv(4096)` until the end, `json.dumps`, a line a session written under a lock.
It is meant to be what a competent person writes in an afternoon; nothing in it is slow on purpose, and
nothing is tuned. It keeps no bound, rotates nothing, and forgets the sessions that are open when it ends.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import signal
import socket
import socketserver
import sys
import threading
import time
from typing import Any, TextIO

TIMEOUT_SECONDS = 60
READ_BYTES = 4096

Address = tuple[str, int]
Payload = tuple[int, bytes]
"""When it was read (ns since the epoch) and what."""


def rfc3339(time_ns: int) -> str:
    """The time with nine digits after the second, in the local zone."""
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    local = time.localtime(seconds)
    zone = time.strftime("%z", local)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{fraction:09d}{zone[:3]}:{zone[3:]}"


class Output:
    """The file all sessions go to; any thread may write."""

    def __init__(self, path: str) -> None:
        self._file: TextIO = open(path, "a", encoding="ascii", buffering=1)  # noqa: SIM115 (lives as long as we do)
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._sensor = socket.gethostname()

    def write(
        self,
        proto: str,
        peer: Address,
        here: Address,
        began: int,
        payloads: list[Payload],
        closed: str,
    ) -> None:
        """Write one session as one line; `began` in ns since the epoch."""
        record: dict[str, Any] = {
            "timestamp": rfc3339(began),
            "flow": {"proto": proto, "src": peer[0], "sport": peer[1], "dst": here[0], "dport": here[1]},
            "payloads": [
                {"index": index, "timestamp": rfc3339(when), "data": base64.b64encode(data).decode("ascii")}
                for index, (when, data) in enumerate(payloads)
            ],
            "id": f"{began:016x}-{next(self._numbers):08x}",
            "end": rfc3339(time.time_ns()),
            "closed": closed,
            "bytes": sum(len(data) for _, data in payloads),
            "sensor": self._sensor,
        }
        line = json.dumps(record, separators=(",", ":")) + "\n"
        with self._lock:
            self._file.write(line)

    def close(self) -> None:
        """Close the file once no other thread is writing."""
        with self._lock:
            self._file.close()


class TCPServer(socketserver.ThreadingTCPServer):
    """A thread a connection. The backlog of 5 that it has by default would make it lose connections."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024
    output: Output


class UDPServer(socketserver.ThreadingUDPServer):
    """A thread a datagram."""

    daemon_threads = True
    max_packet_size = 65535
    output: Output


class TCPHandler(socketserver.BaseRequestHandler):
    """Reads one connection to its end."""

    request: socket.socket
    server: TCPServer

    def handle(self) -> None:
        """Collect what comes and write it when nothing more does."""
        began = time.time_ns()
        payloads: list[Payload] = []
        closed = "peer"
        here = self.request.getsockname()
        self.request.settimeout(TIMEOUT_SECONDS)
        try:
            while data := self.request.recv(READ_BYTES):
                payloads.append((time.time_ns(), data))
        except TimeoutError:
            closed = "timeout"
        except ConnectionError:
            closed = "reset"
        self.server.output.write("tcp", self.client_address, here, began, payloads, closed)


class UDPHandler(socketserver.BaseRequestHandler):
    """Writes one datagram."""

    request: tuple[bytes, socket.socket]
    server: UDPServer

    def handle(self) -> None:
        """A datagram is a session of its own."""
        now = time.time_ns()
        data, sock = self.request
        self.server.output.write("udp", self.client_address, sock.getsockname(), now, [(now, data)], "peer")


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="The sensor as the standard library alone makes it.")
    parser.add_argument("--port", type=int, required=True, help="TCP and UDP port, on all addresses")
    parser.add_argument("--file", required=True, help="JSON Lines file to append to")
    args = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    output = Output(args.file)
    servers = (TCPServer(("0.0.0.0", args.port), TCPHandler), UDPServer(("0.0.0.0", args.port), UDPHandler))
    for server in servers:
        server.output = output
        threading.Thread(target=server.serve_forever, daemon=True).start()
    stop.wait()
    for server in servers:
        server.shutdown()
        server.server_close()
    output.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
