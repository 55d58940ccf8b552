"""`tcppc rules`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tcppc import config, rules
from tcppc.cli.arguments import Exit, Settings, UsageError, add_settings, overrides, parser
from tcppc.netfilter import found, kernel, plan
from tcppc.values import duration

_EXAMPLES = """\
examples:
  tcppc rules --interface eth0                       print what would be done
  tcppc rules --interface eth0 --apply --confirm 60  do it, and undo it unless --keep is typed within a minute
  tcppc rules --keep                                 yes, I still reach this host
  tcppc rules --status                               what is in place; does the sensor answer behind it?
  tcppc rules --remove                               take all of it away
  tcppc rules --interface eth0 --except 25,9100-9200    leave mail and the monitoring alone
  tcppc rules --interface eth0 --address 192.0.2.0/24   a network that is routed to this host
  tcppc rules --interface eth0 --mode redirect          NAT, for a kernel without TPROXY
  tcppc rules -c /etc/tcppc.toml --apply             as its section [rules] says
"""

_SETTINGS: Settings = (
    (("--interface",), ("rules", "interface"), {"action": "append", "metavar": "NAME"}),
    (("--address",), ("rules", "address"), {"action": "append", "metavar": "ADDRESS"}),
    (("--except",), ("rules", "excepted"), {"metavar": "PORTS"}),
    (("--port", "-p"), ("tcppc", "port"), {"metavar": "PORT"}),
    (("--mode",), ("rules", "mode"), {"metavar": "tproxy|redirect"}),
    (("--mark",), ("rules", "mark"), {"metavar": "N"}),
    (("--table",), ("rules", "table"), {"metavar": "N"}),
    (("--ssh",), ("rules", "ssh"), {"metavar": "PORTS"}),
    (("--take-over",), ("rules", "take_over"), {"action": "store_const", "const": True}),
)


def rules_command(argv: Sequence[str]) -> int:
    flags = parser("rules", _EXAMPLES)
    add_settings(flags, _SETTINGS)
    flags.add_argument("--tcp", action="store_true", help="TCP alone (with --udp: both, as without either)")
    flags.add_argument("--udp", action="store_true", help="UDP alone")
    what = flags.add_mutually_exclusive_group()
    what.add_argument("--apply", action="store_true", help="put the rules in place, all of them or none")
    what.add_argument("--keep", action="store_true", help="those applied with --confirm stay")
    what.add_argument("--remove", action="store_true", help="take away all that --apply put in place")
    what.add_argument("--status", action="store_true", help="what is in place; exit code 0 where all is well")
    flags.add_argument("--confirm", metavar="SECONDS", help="with --apply: for so long, unless --keep is typed")
    arguments = flags.parse_args(argv)
    confirm = _seconds(arguments)
    given = config.load(arguments.file, overrides(arguments, _SETTINGS) | _kinds(arguments))
    if arguments.keep:
        return _keep()
    if arguments.remove:
        print("Taken away." if kernel.remove() else "Nothing of tcppc's was in place.")
        return Exit.DONE
    if arguments.status:
        lines, well = rules.status(found.look(), given.tcppc.port)
        print("\n".join(lines))
        return Exit.DONE if well else Exit.FAILED
    wanted, to_know = rules.make(given, given.tcppc.port, confirm=confirm)
    for line in to_know:
        print(line, file=sys.stderr)
    if not arguments.apply:
        print(plan.script(wanted), end="")
        return Exit.DONE
    return _apply(wanted)


def _seconds(arguments: argparse.Namespace) -> int:
    if arguments.confirm is None:
        return 0
    if not arguments.apply:
        raise UsageError("--confirm goes with --apply; see tcppc rules --help")
    try:
        seconds: float = duration(1, 86400)(arguments.confirm)
    except ValueError as problem:
        raise UsageError(f"--confirm {arguments.confirm}: expected {problem}") from None
    return round(seconds)


def _kinds(arguments: argparse.Namespace) -> dict[tuple[str, str], tuple[str, bool]]:
    """--tcp and --udp: each alone means that one alone."""
    if not arguments.tcp and not arguments.udp:
        return {}
    return {("capture", kind): (f"--{kind}", getattr(arguments, kind)) for kind in ("tcp", "udp")}


def _keep() -> int:
    print("The rules stay." if kernel.keep() else "The rules stay; they were in place for good already.")
    return Exit.DONE


def _apply(wanted: plan.Plan) -> int:
    before = found.look()
    if said := kernel.apply(wanted):
        print(said, file=sys.stderr)
    if wanted.confirm:  # before anything is said: who does not take it must not keep the rules from going away
        try:
            kernel.tidy_up_later(wanted.confirm)
        except OSError as problem:  # the kernel lets them expire all the same
            print(f"No process can be started to tidy up: {problem.strerror}; then --remove does it.", file=sys.stderr)
    for line in plan.describe(wanted):
        print(line)
    if wanted.confirm and before.interfaces:
        print("They replace those that were in place, which will not come back by themselves.")
    if wanted.confirm:
        print(
            f"They go away in {wanted.confirm} seconds unless you type, best in a new ssh session: tcppc rules --keep"
        )
    else:
        print("To undo it: tcppc rules --remove")
    return Exit.DONE
