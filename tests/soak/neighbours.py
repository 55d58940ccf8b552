"""What stands beside the sensor on its host: a web server that its webhook calls, a syslog socket, and a scraper of its
metrics. A program of its own, in the sensor's network namespace.

    python -m tests.soak.neighbours FOLDER HOOK METRICS

Each second it prints a line of JSON with what it counted and scraped. `hang` and `go on` on its standard input are for
the web server; the end of its input ends it.
"""

from __future__ import annotations

import http.server
import json
import re
import socket
import sys
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path

HANG_SECONDS = 60.0
_SAMPLE = re.compile(r"^(tcppc_\w+?)(?:_total)?(?:\{([^}]*)\})? ([0-9.e+-]+)$", re.MULTILINE)
_WANTED = ("sessions_started", "sessions_open", "sessions_ended", "sessions_dropped", "sessions_refused",
           "sessions_truncated", "kernel_udp_drops", "held_bytes", "queue_items", "actions", "watch_packets",
           "log_lines_lost", "healthy", "lines_written", "watch_kernel_drops", "errors")  # fmt: skip

counts: Counter[str] = Counter()
going = threading.Event()


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        going.wait(HANG_SECONDS)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        counts["webhooks"] += 1
        counts["webhook events"] += int(json.loads(body).get("count", 1))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return  # the counts say it


def syslog(path: str) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(path)
    while sock.recv(65536):
        counts["syslog messages"] += 1


def scraped(metrics: str) -> dict[str, float]:
    """Sums over all labels, and for started and ended sessions and actions each label too."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=3) as reply:
        text = reply.read().decode("utf-8")
    found: defaultdict[str, float] = defaultdict(float)
    for name, labels, value in _SAMPLE.findall(text):
        short = name.removeprefix("tcppc_")
        if short in _WANTED:
            found[short] += float(value)
            if labels:
                found[f"{short}{{{labels}}}"] += float(value)
    return dict(found)


def tell(metrics: str) -> None:
    while True:
        told: dict[str, object] = {"at": time.time(), "counts": dict(counts)}
        try:
            told["metrics"] = scraped(metrics)
        except (OSError, ValueError):  # it restarts, or is stopped for a moment
            counts["scrapes failed"] += 1
        print(json.dumps(told), flush=True)
        time.sleep(1)


def main() -> int:
    folder, hook, metrics = sys.argv[1:]
    host, _, port = hook.rpartition(":")
    server = http.server.ThreadingHTTPServer((host, int(port)), Hook)
    server.daemon_threads = True
    going.set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=syslog, args=(str(Path(folder) / "syslog"),), daemon=True).start()
    threading.Thread(target=tell, args=(metrics,), daemon=True).start()
    for line in sys.stdin:
        (going.clear if line.strip() == "hang" else going.set)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
