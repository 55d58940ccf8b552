"""argv to one call each: the only place that parses arguments, prints usage, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import contextlib
import enum
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tcppc import __version__, config, daemon, records, show, values
from tcppc.capture import sockets

PROGRAM = "tcppc"


class Exit(enum.IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2


class UsageError(Exception):
    """What was wrong with the arguments, in one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


# Flag names, the setting they set, and argparse's own words. One dash or two, as Go's flag package takes them.
_SETTINGS: tuple[tuple[tuple[str, ...], tuple[str, str], dict[str, Any]], ...] = (
    (("-H",), ("tcppc", "host"), {"action": "append", "metavar": "HOST"}),
    (("-p",), ("tcppc", "port"), {"metavar": "PORT"}),
    (("-t",), ("tcppc", "timeout"), {"metavar": "SECONDS"}),
    (("-w",), ("tcppc", "tcpFileFmt"), {"metavar": "FILE"}),
    (("-T",), ("tcppc", "rotInt"), {"metavar": "SECONDS"}),
    (("-offset",), ("tcppc", "rotOffset"), {"metavar": "SECONDS"}),
    (("-z",), ("tcppc", "timezone"), {"metavar": "ZONE"}),
    (("-R", "--nofile"), ("tcppc", "maxFdNum"), {"metavar": "NUMBER"}),
    (("-C",), ("tcppc", "x509Cert"), {"metavar": "FILE"}),
    (("-K",), ("tcppc", "x509Key"), {"metavar": "FILE"}),
    (("-L",), ("tcppc", "logFile"), {"metavar": "FILE"}),
    (("--tls",), ("capture", "tls"), {"metavar": "off|on|auto"}),
    (("--sensor",), ("capture", "sensor"), {"metavar": "NAME"}),
    (("-q", "--quiet"), ("capture", "quiet"), {"action": "store_const", "const": True}),
    (("--format",), ("files", "format"), {"metavar": "full|classic"}),
    (("-disable-tcp-server",), ("capture", "tcp"), {"action": "store_const", "const": False}),
    (("-disable-udp-server",), ("capture", "udp"), {"action": "store_const", "const": False}),
)

_EXAMPLES = """\
examples:
  tcppc -w 'data/tcppc-%Y%m%d.jsonl' -T 86400      one data file a day
  tcppc -H 0.0.0.0 -H :: -p 2323 -q                IPv4 and IPv6, no log line a session
  tcppc -c /etc/tcppc.toml                         settings from a file; flags win over it
  tcppc -C server.crt -K server.key                TLS only, as tcppc-go does it

commands (each has --help):
{commands}
"""


def _add_settings(parser: argparse.ArgumentParser) -> None:
    for names, (section, key), words in _SETTINGS:
        field = config.setting_of(section, key)
        default = config.toml_value(field.default)
        about = field.metadata["about"].replace("%", "%%")
        if words.get("action") == "store_const":
            text = "disable the TCP/TLS server" if key == "tcp" else "disable the UDP server" if key == "udp" else about
        else:
            text = f"{about} (default {default.replace('%', '%%')})"
        # -p also as --p, --quiet also as -quiet: Go's flag package takes either.
        spellings = [dash + name.lstrip("-") for name in names for dash in ("-", "--")]
        hidden = [spelling for spelling in spellings if spelling not in names]
        dest = f"{section}.{key}"
        parser.add_argument(*names, dest=dest, help=text, default=None, **words)
        parser.add_argument(*hidden, dest=dest, help=argparse.SUPPRESS, default=argparse.SUPPRESS, **words)
    parser.add_argument("-c", "--c", dest="file", metavar="FILE", default="", help="configuration file (TOML)")


def _overrides(arguments: argparse.Namespace) -> dict[tuple[str, str], tuple[str, Any]]:
    given = vars(arguments)
    return {
        place: (names[0], given[f"{place[0]}.{place[1]}"])
        for names, place, _ in _SETTINGS
        if given.get(f"{place[0]}.{place[1]}") is not None
    }


# The values that Go's strconv.ParseBool takes.
_GO_BOOLEAN = re.compile(
    r"(--?(?:disable-tcp-server|disable-udp-server|v|q|quiet))=(?:(1|t|true)|(?:0|f|false))", re.IGNORECASE
)


def _go_booleans(argv: Sequence[str]) -> list[str]:
    """-disable-udp-server=true as -disable-udp-server, and =false as nothing: Go's flag package takes both."""
    matches = [(argument, _GO_BOOLEAN.fullmatch(argument)) for argument in argv]
    return [match[1] if match else argument for argument, match in matches if not match or match[2]]


def _parser(command: str, about: str, epilog: str) -> _Parser:
    return _Parser(
        prog=f"{PROGRAM} {command}".rstrip(),
        description=about,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _serve(argv: Sequence[str]) -> int:
    commands = "\n".join(f"  tcppc {name:<40}{about}" for name, (about, _) in COMMANDS.items())
    parser = _parser("", COMMANDS["serve"][0], _EXAMPLES.format(commands=commands))
    _add_settings(parser)
    parser.add_argument("-v", "--v", "--version", action="store_true", dest="version", help="show version and exit")
    parser.add_argument(
        "--hints", action="store_true", help="once it serves, say on standard output what to type to try it"
    )
    arguments = parser.parse_args(_go_booleans(argv))
    if arguments.version:
        print(__version__)
        return Exit.DONE
    overrides = _overrides(arguments)

    def started(sensor: daemon.Sensor) -> None:
        if arguments.hints:
            print(_hints(sensor), flush=True)

    return daemon.serve(lambda: config.load(arguments.file, overrides), started)


def _hints(sensor: daemon.Sensor) -> str:
    """Where it listens, where the file is, what to type: for someone who sees tcppc for the first time."""
    servers = sensor.servers
    port = servers[0].server_address[1]
    file = os.path.abspath(sensor.file.path) if sensor.file else "none (give -w FILE)"
    return "\n".join(
        [
            "",
            f"tcppc listens on {', '.join(dict.fromkeys(server.name for server in servers))}, TCP (TLS too) and UDP.",
            f"Sessions go to   {file}",
            "Try it from another terminal (Ctrl+C there ends what waits, Ctrl+C here ends tcppc):",
            f"  echo hello | nc -w 1 127.0.0.1 {port}",
            f"  echo hello | nc -u -w 1 127.0.0.1 {port}",
            f"  curl -k -m 2 https://127.0.0.1:{port}/index",
            f"  tail -n 3 {file}" if sensor.file else "",
            "",
        ]
    )


_CHECK_EXAMPLES = """\
examples:
  tcppc check -c /etc/tcppc.toml           is this configuration sound? print what is in force
  tcppc check -p 2323 -w data.jsonl        the same for flags
  tcppc check --records data.jsonl         does every line keep to the record's schema?
"""


def _check(argv: Sequence[str]) -> int:
    parser = _parser("check", COMMANDS["check"][0], _CHECK_EXAMPLES)
    _add_settings(parser)
    parser.add_argument(
        "--records", metavar="FILE", nargs="+", help="hold data files against the record's schema instead"
    )
    arguments = parser.parse_args(_go_booleans(argv))
    if arguments.records:
        return _check_records(arguments.records)
    found = config.load(arguments.file, _overrides(arguments))
    daemon.check(found)
    print(config.as_toml(found))
    return Exit.DONE


def _check_records(paths: Sequence[str]) -> int:
    from tcppc import schema

    bad = 0
    for path in paths:
        try:
            lines, problems = schema.check_file(path)
        except schema.SchemaError as problem:
            raise UsageError(str(problem)) from None
        except OSError as problem:
            raise UsageError(f"{path}: cannot be read: {problem.strerror}") from None
        for problem_line in problems:
            print(f"{path}:{problem_line}", file=sys.stderr)
        print(f"{path}: {lines} records, {len(problems)} not as the schema says")
        bad += len(problems)
    return Exit.FAILED if bad else Exit.DONE


_SHOW_EXAMPLES = """\
examples:
  tcppc show data.jsonl                          every session of a file, as text or hex
  tcppc show -f data/                            sessions as they come, across rotations
  tcppc show --port 22,8000-8999 --since 1h data/
  tcppc show --source 198.51.100.0/24 data/*.gz
  tcppc show --raw 019d9e1a-... data/ > payload  the bytes of one session, as received
"""


def _show(argv: Sequence[str]) -> int:
    parser = _parser("show", COMMANDS["show"][0], _SHOW_EXAMPLES)
    parser.add_argument("paths", nargs="+", metavar="FILE|DIR", type=Path)
    parser.add_argument("-f", "--follow", action="store_true", help="show what comes from now on, until Ctrl+C")
    parser.add_argument("--raw", metavar="ID", help="write the bytes of the session with this id, and nothing else")
    parser.add_argument(
        "--source", metavar="NET", action="append", default=[], help="only from this address or network"
    )
    parser.add_argument("--port", metavar="PORTS", action="append", default=[], help="only to these, as 22,8000-8999")
    parser.add_argument("--proto", action="append", default=[], choices=["tcp", "tls", "udp"])
    parser.add_argument("--since", metavar="WHEN", default="", help="a time stamp, or how long ago: 90s, 10m, 2h, 1d")
    parser.add_argument("--until", metavar="WHEN", default="", help="the same")
    parser.add_argument("--max", metavar="BYTES", default="4096", help="shown of each payload (default 4096)")
    given = parser.parse_args(argv)
    try:
        wanted = show.Filter(
            sources=tuple(values.network(text) for text in given.source),
            ports=tuple(span for text in given.port for span in values.ports(text)),
            protos=tuple(given.proto),
            since=values.moment(given.since, time.time_ns()) if given.since else 0,
            until=values.moment(given.until, time.time_ns()) if given.until else 0,
        )
        most = values.size(1)(given.max)
        found = show.follow(given.paths) if given.follow else show.read_files(_all_files(given.paths))
        if given.raw:
            return _show_raw(found, given.raw)
        return _show_sessions(found, wanted, most)
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise UsageError(f"{problem.filename}: cannot be read: {problem.strerror}") from None
    except show.DataError as problem:
        raise UsageError(str(problem)) from None
    except ValueError as problem:
        raise UsageError(f"expected {problem}") from None


def _all_files(paths: Sequence[Path]) -> list[Path]:
    return [file for path in paths for file in show.data_files(path)]


def _show_sessions(found: Iterable[dict[str, Any] | None], wanted: show.Filter, most: int) -> int:
    """Heading in bold on a terminal; lines that are no records are counted at the end."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    broken = 0
    with contextlib.suppress(KeyboardInterrupt):  # how -f ends
        for record in found:
            try:
                if record is None or not wanted.fits(record):
                    broken += record is None
                    continue
                head, *rest = show.show(record, most)
            except (ValueError, KeyError, TypeError):
                broken += 1
                continue
            print("\n".join([f"{bold}{head}{plain}", *rest]), flush=True)
    if broken:
        print(f"{PROGRAM}: {broken} lines are no records and were passed over", file=sys.stderr)
    return Exit.DONE


def _show_raw(found: Iterable[dict[str, Any] | None], wanted: str) -> int:
    for record in found:
        if record is not None and record.get("id") == wanted:
            sys.stdout.buffer.write(records.payload_bytes(record))
            sys.stdout.buffer.flush()
            return Exit.DONE
    raise UsageError(f"there is no session with the id {wanted!r} in these files")


Command = Callable[[Sequence[str]], int]
COMMANDS: dict[str, tuple[str, Command]] = {
    "serve": ("the sensor: capture TCP, TLS and UDP to JSON Lines (what tcppc alone does)", _serve),
    "show": ("sessions as a person reads them: text or hex, filters, -f to follow", _show),
    "check": ("is this configuration, or this data file, sound?", _check),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every expected error is one line on standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = "serve"
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
    try:
        if name not in COMMANDS:
            raise UsageError(f"there is no command {name!r}; expected one of {', '.join(COMMANDS)}, or flags alone")
        return COMMANDS[name][1](arguments)
    except (UsageError, config.ConfigError) as problem:
        print(f"{PROGRAM}: {problem}", file=sys.stderr)
        return Exit.USAGE
    except (daemon.StartError, sockets.ListenError) as problem:
        print(f"{PROGRAM}: {problem}", file=sys.stderr)
        return Exit.FAILED
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.FAILED
