"""`tcppc [serve]` and `tcppc check`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tcppc import __version__, acting, config, daemon, prepare, sensor, show
from tcppc.capture.files import LEDGER
from tcppc.cli import standard
from tcppc.cli.arguments import (
    ABOUT,
    PROGRAM,
    Exit,
    UsageError,
    add_action,
    add_settings,
    given_actions,
    go_booleans,
    overrides,
    parser,
)
from tcppc.personas import registry
from tcppc.problems import Few

_EXAMPLES = """\
examples:
  tcppc -w 'data/tcppc-%Y%m%d.jsonl' -T 86400      one data file a day
  tcppc -H 0.0.0.0 -H :: -p 2323 -q                IPv4 and IPv6, no log line a session
  tcppc -c /etc/tcppc.toml                         settings from a file; flags win over it
  tcppc -C server.crt -K server.key                TLS only, as tcppc-go does it

commands (each has --help):
{commands}
"""


def serve(argv: Sequence[str]) -> int:
    commands = "\n".join(f"  tcppc {name:<40}{about}" for name, about in ABOUT.items())
    flags = parser("", _EXAMPLES.format(commands=commands), "serve")
    add_settings(flags)
    flags.add_argument("-v", "--v", "--version", action="store_true", dest="version", help="show version and exit")
    flags.add_argument(
        "--hints", action="store_true", help="once it serves, say on standard output what to type to try it"
    )
    add_action(flags)
    arguments = flags.parse_args(go_booleans(argv))
    if arguments.version:
        print(__version__)
        return Exit.DONE
    given = overrides(arguments)

    def started(running: sensor.Sensor) -> None:
        if arguments.hints:
            try:
                print(_hints(running), flush=True)
            except standard.OutputError as problem:  # the sensor has better to do than to end for that
                running.log(f"--hints: {problem}; the sensor goes on.")

    return daemon.serve(lambda: config.load(arguments.file, given, given_actions(arguments)), started)


def _hints(running: sensor.Sensor) -> str:
    """Where it listens, where the file is, what to type: for someone who sees tcppc for the first time."""
    servers = running.servers
    port = servers[0].server_address[1]
    file = os.path.abspath(running.file.path) if running.file else "none (give -w FILE)"
    return "\n".join(
        [
            "",
            f"tcppc listens on {', '.join(dict.fromkeys(server.name for server in servers))}, TCP (TLS too) and UDP.",
            f"Sessions go to   {file}",
            "Try it from another terminal (Ctrl+C there ends what waits, Ctrl+C here ends tcppc):",
            f"  echo hello | nc -w 1 127.0.0.1 {port}",
            f"  echo hello | nc -u -w 1 127.0.0.1 {port}",
            f"  curl -k -m 2 https://127.0.0.1:{port}/index",
            f"  tail -n 3 {file}" if running.file else "",
            "",
        ]
    )


_CHECK_EXAMPLES = """\
examples:
  tcppc check -c /etc/tcppc.toml           is this configuration sound? print what is in force
  tcppc check -p 2323 -w data.jsonl        the same for flags
  tcppc check --records data.jsonl         does every line keep to the record's schema?
"""


def check(argv: Sequence[str]) -> int:
    flags = parser("check", _CHECK_EXAMPLES)
    add_settings(flags)
    flags.add_argument(
        "--records", metavar="FILE", nargs="+", help="hold data files against the record's schema instead"
    )
    add_action(flags)
    arguments = flags.parse_args(go_booleans(argv))
    if arguments.records:
        return _check_records(arguments.records)
    found = config.load(arguments.file, overrides(arguments), given_actions(arguments))
    prepare.check(found)
    for line in acting.warnings(found, acting.rules(found)):
        print(f"{PROGRAM}: {line}", file=sys.stderr)
    print(config.as_toml(found))
    return Exit.DONE


def _check_records(paths: Sequence[str]) -> int:
    from tcppc import schema

    bad, few = 0, Few(lambda line: print(line, file=sys.stderr))
    for path in paths:
        if os.path.basename(path) == LEDGER and len(paths) > 1:
            print(f"{path}: the ledger, not looked at here: tcppc account does")
            continue
        try:
            lines, wrong = schema.check_file(path, few)
        except (schema.SchemaError, show.DataError) as problem:
            raise UsageError(str(problem)) from None
        except OSError as problem:
            raise UsageError(f"{path}: cannot be read: {problem.strerror}") from None
        print(f"{path}: {lines} records, {wrong} not as the schema says")
        bad += wrong
    few.over()
    return Exit.FAILED if bad else Exit.DONE


_PERSONA_EXAMPLES = """\
examples:
  tcppc personas                              all there are
  tcppc personas -c /etc/tcppc.toml           those of its [personas] folder too
  tcppc --persona auto -w data.jsonl          the persona that fits what the client speaks
"""


def personas(argv: Sequence[str]) -> int:
    flags = parser("personas", _PERSONA_EXAMPLES)
    flags.add_argument("-c", dest="file", metavar="FILE", default="", help="configuration file (TOML)")
    given = config.load(flags.parse_args(argv).file).personas
    try:
        found = registry.known(given.folder)
    except ValueError as problem:
        raise config.ConfigError(str(problem)) from None
    for name, kind in sorted(found.items()):
        serves = " ".join(word for word, made in (("tcp", kind.talk), ("udp", kind.answerer)) if made)
        print(f"{name:<12} {serves or '-':<8} {kind.about}")
    return Exit.DONE
