"""`tcppc diff`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tcppc import difference, folders, records
from tcppc.cli.arguments import PROGRAM, Exit, UsageError, parser
from tcppc.cli.progress import Progress
from tcppc.clock import Zone
from tcppc.difference import Side
from tcppc.flows import libpcap
from tcppc.flows.capture_files import CaptureError
from tcppc.flows.engine import Engine
from tcppc.flows.names import Template
from tcppc.flows.packets import Reading
from tcppc.flows.sessions import Sessions
from tcppc.flows.sources import Source, Stop
from tcppc.flows.stream_files import StreamFiles
from tcppc.show import DataError, damage, data_lines, open_data
from tcppc.values import whole

_EXAMPLES = """\
examples:
  tcppc diff tcppc-20261120.jsonl capture.pcap                  what one saw and the other missed
  tcppc diff tcppc-20261120.jsonl capture.pcap dst host 192.0.2.10 and not port 22    of these packets

Exit 0: all agree; 1: something differs. TLS: the ClientHellos are compared. Datagrams are sessions of their own.
"""


def diff_command(argv: Sequence[str]) -> int:
    flags = parser("diff", _EXAMPLES)
    flags.add_argument("sessions", metavar="SESSIONS", help="a data file of the sensor, or of tcppc flows --json")
    flags.add_argument("capture", metavar="CAPTURE", help="packets of the same time")
    flags.add_argument("words", metavar="EXPRESSION", nargs="*", help="which of its packets (pcap-filter(7))")
    flags.add_argument("-n", dest="most", metavar="N", default="20", help="of each kind so many are shown (default 20)")
    given = flags.parse_args(argv)
    try:
        most = whole(0, 1 << 31)(given.most)
    except ValueError as problem:
        raise UsageError(f"-n {given.most!r}: expected {problem}") from None
    with tempfile.TemporaryFile(prefix="tcppc-", dir=folders.temporary()) as spool:
        try:
            wanted = libpcap.Filter(" ".join(given.words)) if given.words else None
            one = _recorded(Path(given.sessions))
            other, damage = _captured(given.capture, wanted, spool)
            found = difference.compare(one, other)
        except (libpcap.PcapError, DataError) as problem:
            raise UsageError(str(problem)) from None
        except ValueError as problem:
            raise UsageError(f"{given.sessions}: {problem}") from None
    for line in difference.lines(found, given.sessions, given.capture, most):
        print(line)
    if damage:
        print(f"{PROGRAM}: {damage}; what comes behind it was not compared", file=sys.stderr)
    return Exit.DONE if found.same and not damage else Exit.FAILED


def _recorded(path: Path) -> Side:
    """By the number of the line."""
    return Side(_lines(path), lambda wanted: {at: record for at, record in _lines(path) if at in wanted})


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_data(path) as file:
        try:
            yield from ((number, record) for number, record in records.read_lines(data_lines(file)) if record)
        except damage() as problem:
            raise DataError(f"{path}: is damaged: {problem}") from None


def _captured(name: str, wanted: libpcap.Filter | None, spool: IO[bytes]) -> tuple[Side, str]:
    """(what `tcppc flows --udp --json` would write, by its place in the spool; what is wrong with the capture)."""
    encoder = records.Encoder(Zone("UTC"), "")
    template = Template(letters="X")
    sessions = Sessions(lambda session: spool.write(encoder.line(session).encode() + b"\n"))
    engine = Engine(
        StreamFiles(folders.temporary(), template), template, reading=Reading(udp=True), listeners=[sessions]
    )
    source = Source(name)
    progress, stop, damage = Progress("packets to sessions", source.size), Stop(), ""
    try:
        source.read(engine, wanted, progress, stop)
    except CaptureError as problem:
        damage = str(problem)
    finally:
        progress.done()
        engine.finish()

    def again(places: Collection[int]) -> dict[int, dict[str, Any]]:
        found = {}
        for place in places:
            spool.seek(place)
            found[place] = json.loads(spool.readline())
        return found

    if stop.wanted:  # a half of it would be a false answer
        raise KeyboardInterrupt
    stop.over()
    return Side(_places(spool), again), damage


def _places(spool: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    at = 0
    spool.seek(0)
    for line in spool:
        yield at, json.loads(line)
        at += len(line)
