"""Kind `command`: a program or shell line, bounded in time and output."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from typing import IO

from tcppc.actions.job import Job, Outcome
from tcppc.log import quote

MOST_OUTPUT = 4096  # bytes of it that the log shows; more is read and thrown away
GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PIECE = 65536


def run(job: Job) -> Outcome:
    """Runs it with the record on its standard input; ends its whole process group when its time is up."""
    arguments = job.values.arguments(job.rule.action.command)
    environment = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/", "TZ": os.environ.get("TZ", "")}
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in environment.items() if value} | job.values.environment(),
            start_new_session=True,
            bufsize=0,
        )
    except OSError as problem:
        return Outcome(False, f"{arguments[0]}: {problem.strerror}")
    with process:
        output, in_time = _attend(process, job.text.encode("ascii"), time.monotonic() + job.timeout)
    shown = f": {quote(output)}" if output else ""
    if not in_time:
        return Outcome(False, f"ended after {job.timeout:g} s{shown}")
    code = process.returncode
    words = f"exit code {code}" if code >= 0 else f"ended by signal {-code}"
    return Outcome(code == 0, f"{words}{shown}")


def _attend(process: subprocess.Popen[bytes], text: bytes, until: float) -> tuple[bytes, bool]:
    """Feeds and reads it until it has ended; (its output's beginning, did it end in time?)."""
    assert process.stdin
    assert process.stdout
    kept = bytearray()
    with selectors.DefaultSelector() as selector:
        for pipe, event in ((process.stdin, selectors.EVENT_WRITE), (process.stdout, selectors.EVENT_READ)):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, event)
        waiting = memoryview(text)
        while process.poll() is None and time.monotonic() < until:
            # What it leaves running in the background may hold the pipe for ever: its own end is what counts.
            for key, _ in selector.select(0.05):
                if key.fileobj is process.stdin:
                    waiting = _feed(process.stdin, waiting, selector)
                else:
                    _read(process.stdout, kept, selector)
        in_time = process.poll() is not None
        if not in_time:
            _end(process)
        if process.stdout in {key.fileobj for key in selector.get_map().values()}:
            _read(process.stdout, kept, selector)
    return bytes(kept), in_time


def _feed(pipe: IO[bytes], waiting: memoryview, selector: selectors.BaseSelector) -> memoryview:
    try:
        waiting = waiting[os.write(pipe.fileno(), waiting[:_PIECE]) :]
    except BlockingIOError:
        return waiting
    except OSError:  # it does not want to read all of it
        waiting = waiting[len(waiting) :]
    if not waiting:
        selector.unregister(pipe)
        pipe.close()
    return waiting


def _read(pipe: IO[bytes], kept: bytearray, selector: selectors.BaseSelector) -> None:
    try:
        data = os.read(pipe.fileno(), _PIECE)
    except BlockingIOError:
        return
    kept += data[: MOST_OUTPUT - len(kept)]
    if not data:
        selector.unregister(pipe)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
