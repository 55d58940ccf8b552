"""Argument parsers: one for each command, with the flags that are settings.

Settings are one table, so that `tcppc`, `tcppc check` and conf/tcppc.toml say the same words about them.
"""

from __future__ import annotations

import argparse
import enum
import os
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from tcppc.problems import Misuse

PROGRAM = "tcppc"

# Every command and what it is for, as `tcppc --help` lists them.
ABOUT = {
    "serve": "the sensor: capture TCP, TLS and UDP to JSON Lines (what tcppc alone does)",
    "show": "sessions as a person reads them: text or hex, filters, -f to follow",
    "nc": "an nc listener: what is received to standard output",
    "account": "the ledger: was anything lost, when, and why?",
    "recover": "event lines, also of a killed sensor, to session records",
    "rules": "every port of this host to the sensor: print, apply, confirm, status, remove",
    "watch": "who knocks, at closed ports too: each SYN, port scans and sweeps",
    "actions": "what happens when somebody touches the sensor: tokens, a trial",
    "blocks": "who is blocked: list, add, remove, flush",
    "flows": "packets back into streams, as tcpflow does: files, a report, bodies of HTTP, sessions",
    "diff": "what the sensor recorded against what a packet capture saw",
    "personas": "what the sensor can say back: a list",
    "doctor": "is all well with the sensor here? proved from outside in",
    "check": "is this configuration, or this data file, sound?",
}


class Exit(enum.IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2


class UsageError(Misuse):
    """What was wrong with the arguments, in one line."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


# Flag names, the setting they set, and argparse's own words. One dash or two, as Go's flag package takes them.
Settings = tuple[tuple[tuple[str, ...], tuple[str, str], dict[str, Any]], ...]
SENSOR: Settings = (
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
    (("--record",), ("files", "record"), {"metavar": "sessions|events"}),
    (("--captures",), ("files", "captures"), {"metavar": "FILE"}),
    (("--logtype",), ("files", "logtype"), {"metavar": "single|multi"}),
    (("--session-dir",), ("files", "session_dir"), {"metavar": "DIR"}),
    (("--persona",), ("personas", "default"), {"metavar": "NAME"}),
    (("--metrics",), ("metrics", "listen"), {"metavar": "HOST:PORT"}),
    (("--mode",), ("rules", "mode"), {"metavar": "tproxy|redirect"}),
    (("-disable-tcp-server",), ("capture", "tcp"), {"action": "store_const", "const": False}),
    (("-disable-udp-server",), ("capture", "udp"), {"action": "store_const", "const": False}),
)


def add_settings(parser: argparse.ArgumentParser, settings: Settings = SENSOR) -> None:
    from tcppc import config  # not at the top: commands that take no settings begin without them

    for names, (section, key), words in settings:
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


def add_action(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--action",
        "-action",
        metavar="CMD",
        action="append",
        default=[],
        help="shell line to run at each connection, with tokens as [SRC_IP] (tcppc actions --tokens); may be repeated",
    )


def given_actions(arguments: argparse.Namespace, **settings: Any) -> list[tuple[str, dict[str, Any]]]:
    """Those of --action, as config.load takes them."""
    return [("--action", {"command": line, **settings}) for line in arguments.action]


def overrides(arguments: argparse.Namespace, settings: Settings = SENSOR) -> dict[tuple[str, str], tuple[str, Any]]:
    given = vars(arguments)
    return {
        place: (names[0], given[f"{place[0]}.{place[1]}"])
        for names, place, _ in settings
        if given.get(f"{place[0]}.{place[1]}") is not None
    }


# The values that Go's strconv.ParseBool takes.
_GO_BOOLEAN = re.compile(
    r"(--?(?:disable-tcp-server|disable-udp-server|v|q|quiet))=(?:(1|t|true)|(?:0|f|false))", re.IGNORECASE
)


def go_booleans(argv: Sequence[str]) -> list[str]:
    """-disable-udp-server=true as -disable-udp-server, and =false as nothing: Go's flag package takes both."""
    matches = [(argument, _GO_BOOLEAN.fullmatch(argument)) for argument in argv]
    return [match[1] if match else argument for argument, match in matches if not match or match[2]]


def parser(command: str, epilog: str, name: str | None = None) -> Parser:
    """For `tcppc COMMAND`; `name` where the command is not what is typed."""
    return Parser(
        prog=f"{PROGRAM} {command}".rstrip(),
        description=ABOUT[name or command],
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def operator() -> str:
    """Who types this, for what is kept of it."""
    return os.environ.get("SUDO_USER") or os.environ.get("USER") or f"uid {os.getuid()}"
