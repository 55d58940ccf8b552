"""`tcppc actions` and `tcppc blocks`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from ipaddress import ip_address

from tcppc import acting, blocks, config
from tcppc.actions import tokens
from tcppc.actions.engine import would
from tcppc.actions.event import Event
from tcppc.actions.rule import Rule
from tcppc.cli.arguments import PROGRAM, Exit, UsageError, add_action, given_actions, operator, parser
from tcppc.clock import Zone
from tcppc.config import Config
from tcppc.records import Session, new_id
from tcppc.sections import MOMENTS
from tcppc.text import named
from tcppc.values import duration

_ACTION_EXAMPLES = """\
examples:
  tcppc actions --tokens                                what [SRC_IP] and the others become
  tcppc actions -c /etc/tcppc.toml --test 198.51.100.7:4444    what would be done when it touches port 4444?
  tcppc actions --action 'echo [SRC_IP] >> touched' --test 198.51.100.7:23
  tcppc actions -c /etc/tcppc.toml --test '[2001:db8::7]:80' --on payload --payload 'GET /'
  tcppc --action 'echo [SRC_IP] connected to [DEST_IP]:[DEST_PORT] >> out' -p 2323
"""
# As the unit has it.
MOST_WHY = 500
DEFAULT_FILE = "/etc/tcppc.toml"
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):(\d{1,5})")


def actions_command(argv: Sequence[str]) -> int:
    flags = parser("actions", _ACTION_EXAMPLES)
    flags.add_argument("-c", dest="file", metavar="FILE", default="", help="configuration file (TOML)")
    add_action(flags)
    what = flags.add_mutually_exclusive_group(required=True)
    what.add_argument("--tokens", action="store_true", help="list the tokens of a command, each with an example")
    what.add_argument("--test", metavar="IP:PORT", help="what would be done when this address touches this port?")
    flags.add_argument("--on", choices=MOMENTS, help="when (default: each of them)")
    flags.add_argument("--proto", choices=["tcp", "tls", "udp"], default="tcp", help="by which protocol (default tcp)")
    flags.add_argument("--payload", metavar="TEXT", default="", help="what it says, for match")
    given = flags.parse_args(argv)
    if given.tokens:
        for name, (about, example) in tokens.TOKENS.items():
            print(f"{f'[{name}]':<14} {about:<50} {example}")
        return Exit.DONE
    found = config.load(given.file, None, given_actions(given))
    return _test(found, given)


def _test(found: Config, given: argparse.Namespace) -> int:
    match = _ADDRESS.fullmatch(given.test)
    address, port = (match[1] or match[2], int(match[3])) if match else ("", 0)
    try:
        session = _session(address, port, given.proto, given.payload)
    except ValueError:
        raise UsageError(
            f"--test {given.test!r}: expected an address and a port such as 198.51.100.7:4444 or [2001:db8::7]:80"
        ) from None
    rules = acting.rules(found)
    if not rules:
        raise UsageError("there are no actions: expected [[action]] in the file of -c, or --action")
    allowed = acting.allowed(found)
    allowed.look()
    if why := allowed.why(address):
        print(f"Nothing: {address} is never acted upon: {why}.")
        return Exit.DONE
    moments = MOMENTS if given.on is None else [given.on]
    lines = [
        f"{rule.name}, on {on}: {line}" for rule in rules for on in moments for line in _would(found, rule, on, session)
    ]
    print("\n".join(lines) or "Nothing: no action is for this.")
    return Exit.DONE


def _session(address: str, port: int, proto: str, payload: str) -> Session:
    if not 0 < port < 65536:
        raise ValueError
    parsed = ip_address(address)
    text = str((parsed.version == 6 and parsed.ipv4_mapped) or parsed)
    now = time.time_ns()
    dst = "2001:db8::10" if ":" in text else "192.0.2.10"
    data = payload.encode("utf-8", "surrogateescape")
    made = Session(proto, text, 51324, dst, port, now, [(now, data)] if data else [], len(data))
    made.id = new_id(now)
    return made


def _would(found: Config, rule: Rule, on: str, session: Session) -> list[str]:
    terms = acting.terms(found)
    data = session.payloads[0][1] if session.payloads else b""
    spoofable = on in ("syn", "scan") or session.proto == "udp"
    event = Event(
        on, session.start, session.proto, session.src, session.sport, session.dst, session.dport, session.id,
        spoofable, lambda: terms.encoder.whole(session), data=data,
    )  # fmt: skip
    if not rule.wants(event):
        return []
    words = would(rule, event, event.values(terms.stamp(event.instant), terms.sensor, found.tcppc.port))
    return [f"{'only said in the log (dry_run): ' if rule.action.dry_run else ''}{line}" for line in words]


_BLOCK_EXAMPLES = """\
examples:
  tcppc blocks list                                 who is blocked, since when, until when, and why
  tcppc blocks add 198.51.100.7 --for 2d --why 'ssh guessing'
  tcppc blocks add 2001:db8:0:7::/64 --scope all    from the sensor too
  tcppc blocks remove 198.51.100.7                  and nobody else
  tcppc blocks flush                                all of them, and only them

Blocks end by themselves. Each one made or taken away is a line of blocks.jsonl in the state folder.
"""


def blocks_command(argv: Sequence[str]) -> int:
    flags = parser("blocks", _BLOCK_EXAMPLES)
    flags.add_argument(
        "-c", dest="file", metavar="FILE", help=f"configuration file (default {DEFAULT_FILE}, where it is)"
    )
    flags.add_argument("what", choices=["list", "add", "remove", "flush"])
    flags.add_argument("address", nargs="*", metavar="ADDRESS", help="an IPv4 address, or an IPv6 address or /64")
    flags.add_argument("--for", dest="seconds", metavar="SECONDS", default="1h", help="how long, as 2d (default 1h)")
    flags.add_argument("--why", default="", help="for the undo log")
    flags.add_argument("--scope", choices=["host", "all"], default=None, help="all: from the sensor too (default host)")
    flags.add_argument("--json", action="store_true", help="list: a line of JSON each")
    given = flags.parse_intermixed_args(argv)
    if bool(given.address) != (given.what in ("add", "remove")):
        raise UsageError(f"{given.what} takes {'no ' if given.address else 'an '}address; see tcppc blocks --help")
    file = given.file if given.file is not None else DEFAULT_FILE if os.path.lexists(DEFAULT_FILE) else ""
    found = config.load(file)
    try:
        networks = [blocks.parse(text) for text in given.address]
        seconds: float = duration(1, 366 * 86400)(given.seconds)
    except ValueError as problem:
        raise UsageError(f"expected {problem}") from None
    if len(given.why) > MOST_WHY:
        raise UsageError(f"--why: expected {MOST_WHY} characters at most, not {len(given.why)}")
    if given.what == "list":
        return _list(found, given.json)
    by = named(operator())
    why = named(given.why)
    if given.what == "add":
        done = blocks.add(found, networks, seconds, given.scope or "host", why, by)
        zone = Zone(found.tcppc.timezone)
        words = f"blocked until {zone.seconds(time.time_ns() + round(seconds * 1e9))}"
    else:
        done = blocks.remove(found, networks if given.what == "remove" else None, given.scope, why, by)
        words = "blocked no more"
    for network in done:
        print(f"{blocks.shown(network)} is {words}.")
    if not done:
        print("Nobody was blocked." if given.what == "flush" else "Not blocked: nothing was done.")
    return Exit.DONE if done or given.what == "flush" else Exit.FAILED


def _list(found: Config, as_json: bool) -> int:
    rows, said = blocks.listed(found)
    if said:
        print(f"{PROGRAM}: {said}", file=sys.stderr)
    for row in rows:
        if as_json:
            print(json.dumps(row))
        else:
            why = " ".join(filter(None, (row["by"], f"on {row['on']}" if row["on"] else "", row["why"])))
            print(f"{row['network']:<24} {row['scope']:<5} since {row['since']}  until {row['until']}  {why}")
    if not rows and not as_json and not said:
        print("Nobody is blocked.")
    return Exit.FAILED if said else Exit.DONE
