"""`tcppc flows`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tcppc.cli.arguments import PROGRAM, Exit, UsageError, parser
from tcppc.cli.progress import Progress
from tcppc.flows import capture_files, helper
from tcppc.flows.capture_files import CaptureError
from tcppc.flows.engine import Engine, Totals
from tcppc.flows.names import Template, TemplateError
from tcppc.flows.stream import MOST_SEEK
from tcppc.flows.stream_files import MOST_OPEN, StreamFiles
from tcppc.values import size, whole

# Below, packet by packet is done before numpy has started.
WORTH_BYTES = 4 << 20

_EXAMPLES = """\
examples:
  tcppc flows -r capture.pcap -o out          one file a direction of each TCP connection
  tcppc flows -l -o out *.pcap.gz             several captures, as one
  tcppc flows -r - -o out < capture.pcapng    from standard input
  tcppc flows -r capture.pcap -o out -Ft      with the time before each name
  tcppc flows -r capture.pcap -o out -T '%A/%B.%b'    names of one's own
"""


def flows_command(argv: Sequence[str]) -> int:
    flags = parser("flows", _EXAMPLES)
    flags.add_argument(
        "-r", dest="captures", metavar="FILE", action="append", default=[], help="a capture; - for stdin"
    )
    flags.add_argument("-l", dest="listed", action="store_true", help="all arguments are captures")
    flags.add_argument("-o", dest="folder", metavar="DIR", default=".", help="where the files go (default here)")
    flags.add_argument("-T", dest="template", metavar="TEMPLATE", help="names, such as %%A.%%a-%%B.%%b%%V%%v%%C%%c")
    flags.add_argument("-F", dest="letters", metavar="LETTERS", default="", help="k, m, g, t, T before names; c, X, M")
    flags.add_argument("-m", dest="seek", metavar="BYTES", default=str(MOST_SEEK), help="further away is a new stream")
    flags.add_argument("-b", dest="most", metavar="BYTES", help="of each stream no more are written")
    flags.add_argument("-f", dest="open", metavar="N", default=str(MOST_OPEN), help=f"files open (default {MOST_OPEN})")
    flags.add_argument("-q", dest="quiet", action="store_true", help="no summary")
    flags.add_argument("files", metavar="FILE", nargs="*", help="with -l: captures")
    given = flags.parse_intermixed_args(argv)
    captures = [*given.captures, *(given.files if given.listed else [])]
    if given.files and not given.listed:
        raise UsageError(f"{given.files[0]!r}: expected -r before a capture, or -l; expressions are not taken yet")
    if not captures:
        raise UsageError("-r is missing: expected a capture; see tcppc flows --help")
    try:
        template = Template(given.template, given.letters) if given.template else Template(letters=given.letters)
        seek, most = size(1, 1 << 31)(given.seek), size(0)(given.most) if given.most else -1
        files = StreamFiles(given.folder, template, whole(1, 1 << 20)(given.open), helper.of_use())
    except TemplateError as problem:
        raise UsageError(str(problem)) from None
    except ValueError as problem:
        raise UsageError(f"expected {problem}") from None
    return _run(captures, Engine(files, template, seek, most), given.quiet)


def _run(captures: Sequence[str], engine: Engine, quiet: bool) -> int:
    begun, code = time.monotonic(), Exit.DONE
    progress = Progress("packets to streams", sum(os.path.getsize(name) for name in captures if os.path.isfile(name)))
    try:
        for name in captures:
            try:
                _read(name, engine, progress)
            except CaptureError as problem:
                progress.done()
                print(f"{PROGRAM}: {problem}", file=sys.stderr)
                code = Exit.FAILED
            except OSError as problem:
                if problem.filename != name:
                    raise
                progress.done()
                print(f"{PROGRAM}: {name}: cannot be read: {problem.strerror}", file=sys.stderr)
                code = Exit.FAILED
    except KeyboardInterrupt:  # what is done is kept
        code = Exit.FAILED
    finally:
        totals = engine.finish()
        progress.done()
    if not quiet:
        print(_summary(totals, time.monotonic() - begun), file=sys.stderr)
    return code


def _read(name: str, engine: Engine, progress: Progress) -> None:
    if name == "-":
        _feed(capture_files.unpacked(sys.stdin.buffer, "standard input"), "standard input", engine, progress)
        return
    if _at_once(name, engine):
        from tcppc.flows import batches

        batches.read(name, engine, progress)
        return
    with capture_files.open_capture(Path(name)) as file:
        _feed(file, name, engine, progress)


def _at_once(name: str, engine: Engine) -> bool:
    """A plain file that is worth numpy's start, where that is installed."""
    if not engine.takes_runs or not os.path.isfile(name) or os.path.getsize(name) < WORTH_BYTES:
        return False
    try:
        from tcppc.flows import batches
    except ImportError:
        return False
    with open(name, "rb") as file:
        return batches.fits(file.read(24))


def _feed(file: IO[bytes], name: str, engine: Engine, progress: Progress) -> None:
    for packet in capture_files.packets(file, name):
        engine.packet(packet)
        progress(len(packet.data) + 16)


def _summary(totals: Totals, seconds: float) -> str:
    said = f"{totals.packets} packets, {totals.streams} streams, {totals.bytes} bytes in {seconds:.1f} s"
    passed = [f"{count} {why}" for why, count in sorted(totals.passed_over.items())]
    return f"{said}; passed over: {', '.join(passed)}" if passed else said
