"""`tcppc flows`: its flags, which are tcpflow's. streams.py does what they say."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from tcppc import __version__
from tcppc.cli import streams
from tcppc.cli.arguments import Exit, Parser, UsageError, parser
from tcppc.cli.opening import tell
from tcppc.cli.wanted import Wanted
from tcppc.flows.console import Form
from tcppc.flows.names import DEFAULT, SILENT_LETTERS, Template, TemplateError
from tcppc.flows.report import HASHES
from tcppc.flows.scanners import installed
from tcppc.flows.stream import MOST_SEEK
from tcppc.flows.stream_files import MOST_OPEN
from tcppc.values import size, whole

_EXAMPLES = """\
examples:
  tcppc flows -r capture.pcap -o out          one file a direction of each TCP connection, and a report
  tcppc flows -r capture.pcap -o out port 80 and host 198.51.100.7      what an expression says
  tcppc flows -a -o out -l *.pcap.gz          several captures, as one; bodies of HTTP as files too
  tcppc flows -r - -o out < capture.pcapng    from standard input
  tcppc flows -i eth0 -o out -q port 25       what an interface sees, until Ctrl-C
  tcppc flows -c -r capture.pcap              payloads on the screen as they arrived
  tcppc flows -r capture.pcap -FX -X -        no files, the report on standard output
  tcppc flows -r capture.pcap -o out -Ft -I   the time before each name, and when each byte came
  tcppc flows -r capture.pcap -o out -T '%A/%B.%b'    names of one's own
  tcppc flows -r capture.pcap --udp --json sessions.jsonl -FX    sessions, for tcppc show

-S takes: """
SCANNERS = ("http", "md5", "python")
_SILENT_SCANNERS = ("tcpdemux",)  # tcpflow's own, always on
SETTINGS = {
    "tcp_timeout": "seconds without a packet after which a stream is over",
    "udp_timeout": "the same for datagrams (default 60)",
    "enable_report": "NO: no report.xml",
    "tcp_cmd": "a command for each stream that ended; its file's path is put behind it",
    "tcp_alert_fd": "a descriptor that is told open and close of each file",
    "http_cmd": "a command for each body",
    "http_alert_fd": "a descriptor that is told each body",
    "py_path": "the folder of a plug-in's module",
    "py_module": "its module",
    "py_function": "and its function",
}


class _Naming(argparse.Action):
    """-F and -T in the order in which they were given: a template drops the letters before it."""

    def __call__(self, parser: Any, given: argparse.Namespace, value: Any, option: str | None = None) -> None:
        if option == "-T":
            given.template = value
            given.letters = "".join(letter for letter in given.letters if letter in SILENT_LETTERS)
        else:
            given.letters += value


def _flags() -> Parser:
    known = "\n          ".join(f"{name:14} {about}" for name, about in SETTINGS.items())
    flags = parser("flows", f"{_EXAMPLES}{known}\n")
    _input(flags)
    _files(flags)
    _report(flags)
    _console(flags)
    _said(flags)
    return flags


def _input(flags: Parser) -> None:
    of = flags.add_argument_group("where packets come from").add_argument
    of(
        "-r",
        dest="captures",
        metavar="FILE",
        action="append",
        default=[],
        help="a capture; - for stdin; may be repeated",
    )
    of("-R", dest="after", metavar="FILE", action="append", default=[], help="after -r: streams end here, none begin")
    of("-l", dest="listed", action="store_true", help="all arguments are captures")
    of(
        "-i",
        dest="interface",
        metavar="IF",
        help="an interface, until Ctrl-C; without -r and -i the first one there is",
    )
    of("-p", dest="promiscuous", action="store_false", help="with -i: not promiscuous")
    of("-U", "--relinquish-privileges", dest="user", metavar="USER", help="be that user once the first input is open")
    of("--udp", action="store_true", help="datagrams too: names end in .udp")
    of("--tunnels", action="store_true", help="what is in IP in IP, GRE and VXLAN, in place of them")
    of("--checksums", action="store_true", help="count wrong ones")
    of("words", metavar="EXPRESSION", nargs="*", help="which packets (pcap-filter(7)); with -l: captures")


def _files(flags: Parser) -> None:
    of = flags.add_argument_group("files").add_argument
    of("-o", dest="folder", metavar="DIR", help="where they go (default: here)")
    of("-T", dest="template", metavar="TEMPLATE", action=_Naming, help=f"names; default {DEFAULT}".replace("%", "%%"))
    of("-F", dest="letters", metavar="LETTERS", action=_Naming, default="", help="k m g t T before names; c X M")
    of("-b", dest="most", metavar="BYTES", help="of each stream no more are written")
    of(
        "-m",
        dest="seek",
        metavar="BYTES",
        default=str(MOST_SEEK),
        help=f"further away is a new stream (default {MOST_SEEK})",
    )
    of("-f", dest="open", metavar="N", default=str(MOST_OPEN), help=f"open at once (default {MOST_OPEN})")
    of("--first-wins", action="store_true", help="of bytes that came twice and differ; else the last")
    of("-I", dest="index", action="store_true", help="when each byte came: NAME.findx")
    of("-K", dest="keep", action="store_true", help="a capture a stream, in place of its bytes")
    of("-w", dest="unhandled", metavar="FILE", help="a capture of the IP packets that are of no stream")
    of("--json", metavar="FILE", help="each connection as a session record (docs/record.md); - for stdout")


def _report(flags: Parser) -> None:
    of = flags.add_argument_group("report and plug-ins").add_argument
    of("-X", dest="report", metavar="FILE", help="the report (default DIR/report.xml); - for stdout")
    of("--hash", action="append", choices=HASHES, default=[], help="of each file in the report; -FM is --hash md5")
    of("-a", dest="scanners", action="append_const", const="all", default=[], help="all of -e")
    of(
        "-e",
        "-E",
        dest="scanners",
        metavar="NAME",
        action="append",
        default=[],
        help="http, md5, python, or a plug-in's name",
    )
    of("-x", dest="without", metavar="NAME", action="append", default=[], help="not that one")
    of("-Z", dest="inflate", action="store_false", help="bodies as they were sent, compressed")
    of("-S", dest="settings", metavar="NAME=VALUE", action="append", default=[], help="see below")


def _console(flags: Parser) -> None:
    of = flags.add_argument_group("console, in place of files").add_argument
    of("-c", dest="console", action="store_true", help="payloads as they arrive, with names")
    of("-C", dest="bare", action="store_true", help="without names")
    of("-D", dest="hex", action="store_true", help="in hex")
    of("-B", dest="raw", action="store_true", help="raw: else what cannot be printed is a dot")
    of("-s", dest="strip", action="store_true", help="dots, with -B too")
    of("-g", dest="colour", action="store_true", help="blue from the client, red from the server")
    of("-0", dest="feeds", action="store_false", help="no line feed behind a packet")
    of("-J", dest="as_json", action="store_true", help="as JSON")
    of("--in-order", action="store_true", help="each byte once, in its stream's order")


def _said(flags: Parser) -> None:
    of = flags.add_argument_group("what is said").add_argument
    of("-q", dest="quiet", action="store_true", help="no summary")
    of("-v", dest="verbose", action="store_true", help="each capture, and what each passed over")
    of("-d", dest="level", metavar="N", default="1", help="0 is -q, 10 and more -v")
    of("-V", "--version", action="version", version=f"tcppc {__version__}")


def flows_command(argv: Sequence[str]) -> int:
    given = _flags().parse_intermixed_args(argv)
    if given.listed:
        given.captures += given.words
        given.words = []
        if not given.captures:
            raise UsageError("-l without captures: expected their names behind it")
    elif not given.captures and not given.interface and len(given.words) == 1 and os.path.isfile(given.words[0]):
        raise UsageError(f"{given.words[0]!r} is a file, not an expression: expected -r before it, or -l")
    if given.interface and given.captures + given.after:
        raise UsageError("-i with -r: expected one of them")
    try:
        wanted = _wanted(given)
    except TemplateError as problem:
        raise UsageError(str(problem)) from None
    if not wanted.quiet:
        for words in _idle(given, wanted):
            tell(words)
    return Exit(streams.run(wanted))


def _number(name: str, parse: Any, value: str) -> int:
    try:
        return int(parse(value))
    except ValueError as problem:
        raise UsageError(f"{name} {value!r}: expected {problem}") from None


def _wanted(given: argparse.Namespace) -> Wanted:
    console = given.console or given.bare
    for flag, on in (("-D", given.hex), ("-g", given.colour), ("-J", given.as_json), ("--in-order", given.in_order)):
        if on and not console:
            raise UsageError(f"{flag} without -c or -C: expected one of them, it is a form of theirs")
    letters = given.letters + ("X" if (console or given.keep) and "X" not in given.letters else "")
    template = Template(given.template, letters) if given.template else Template(letters=letters)
    scanners = _scanners(given)
    hashes = dict.fromkeys([*given.hash, *(["md5"] if "M" in letters or "md5" in scanners else [])])
    level = _number("-d", whole(0, 1 << 31), given.level)
    form = Form(not given.bare, given.hex, given.raw and not given.strip, given.feeds, given.colour, given.as_json)
    return Wanted(
        captures=given.captures,
        after=given.after,
        interface=given.interface or "",
        promiscuous=given.promiscuous,
        user=given.user or "",
        udp=given.udp,
        tunnels=given.tunnels,
        checksums=given.checksums,
        expression=" ".join(given.words),
        folder=given.folder or ".",
        template=template,
        most_bytes=_number("-b", size(0), given.most) if given.most is not None else -1,
        most_seek=_number("-m", size(1, 1 << 31), given.seek),
        most_open=_number("-f", whole(1, 1 << 20), given.open),
        first_wins=given.first_wins,
        index=given.index and not console,
        keep=given.keep and not console,
        unhandled=given.unhandled or "",
        json=given.json or "",
        report=given.report or ("" if console and not given.folder else None),
        hashes=list(hashes),
        scanners=[name for name in scanners if name != "md5"],
        inflate=given.inflate,
        console=form if console else None,
        in_order=given.in_order,
        settings=_settings(given.settings),
        quiet=given.quiet or level == 0,
        verbose=given.verbose or level >= 10,
    )


def _idle(given: argparse.Namespace, wanted: Wanted) -> list[str]:
    """What was given and does nothing."""
    console, http = wanted.console is not None, "http" in wanted.scanners
    files = not wanted.template.no_files
    found = [
        (given.index and not (files and wanted.index), "-I: no files are made to stand beside"),
        (given.keep and console, "-K: with -c and -C no files are made"),
        (bool(wanted.hashes) and not files, "-FM, --hash: no files are made to be hashed"),
        (http and not files and not console, "-e http: bodies are read from the streams' files, and none are made"),
        (not console and (given.raw or given.strip or not given.feeds), "-B, -s and -0 are forms of -c and -C"),
        (not given.promiscuous and bool(given.captures), "-p is for -i"),
        (not http and not given.inflate, "-Z is for -e http"),
        (not http and bool({"http_cmd", "http_alert_fd"} & wanted.settings.keys()), "-S http_…: is for -e http"),
    ]
    return [f"{words}: it does nothing here" for idle, words in found if idle]


def _scanners(given: argparse.Namespace) -> list[str]:
    """Names of -e and -a, without those of -x."""
    names = []
    for name in given.scanners:
        # Python's needs settings: -a alone would be an error without them.
        names += ["http", "md5", *installed()] if name == "all" else [] if name in _SILENT_SCANNERS else [name]
    without = SCANNERS if "all" in given.without else given.without
    return [name for name in dict.fromkeys(names) if name not in without]


def _settings(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in SETTINGS:
            raise UsageError(f"-S {text!r}: expected NAME=VALUE with one of {', '.join(SETTINGS)}")
        found[name] = value
    return found
