"""`tcppc watch`."""

from __future__ import annotations

from collections.abc import Sequence

from tcppc import config, daemon
from tcppc.cli.arguments import SENSOR, Settings, UsageError, add_settings, given_actions, overrides, parser
from tcppc.netfilter import host

_EXAMPLES = """\
examples:
  tcppc watch -i eth0                              a line for each SYN and each scan
  tcppc watch -i eth0 -w 'data/syn-%Y%m%d.jsonl' -T 86400 -q    records, one file a day
  tcppc watch -i any --ports 5 --window 10m        five ports in ten minutes are a scan
  tcppc watch -i eth0 --address 10.0.3.0/24        and what these send is this host's own
  tcppc watch -c /etc/tcppc.toml -i eth0           what its [watch] and its [[action]] say

It needs CAP_NET_RAW. The sensor has the same watch in it: [watch] interface = "eth0" in its file.
"""

_OF_SENSOR = ("-w", "-T", "-offset", "-z", "-L", "--sensor", "-q", "--metrics")
SETTINGS: Settings = (
    (("-i", "--interface"), ("watch", "interface"), {"action": "append", "metavar": "IF"}),
    (("--address",), ("watch", "address"), {"action": "append", "metavar": "ADDRESS"}),
    (("--ports",), ("watch", "ports"), {"metavar": "N"}),
    (("--hosts",), ("watch", "hosts"), {"metavar": "N"}),
    (("--window",), ("watch", "window"), {"metavar": "SECONDS"}),
    *(setting for setting in SENSOR if setting[0][0] in _OF_SENSOR),
)


def watch_command(argv: Sequence[str]) -> int:
    flags = parser("watch", _EXAMPLES)
    add_settings(flags, SETTINGS)
    flags.add_argument(
        "--action", metavar="CMD", action="append", default=[], help="shell line to run at each scan, with tokens"
    )
    flags.add_argument("--block", metavar="SECONDS", help="block the source of each scan for so long, such as 1h")
    arguments = flags.parse_args(argv)
    given = overrides(arguments, SETTINGS) | {("capture", kind): ("watch", False) for kind in ("tcp", "udp", "rules")}

    more = given_actions(arguments, on="scan")
    if arguments.block is not None:
        more.append(("--block", {"on": "scan", "block": arguments.block}))

    def read() -> config.Config:
        try:
            return config.load(arguments.file, given, more)
        except config.ConfigError as problem:
            if "there is nothing to serve" in str(problem):
                known = ", ".join(host.interfaces())
                raise UsageError(f"-i is missing: expected any or one of {known}; see tcppc watch --help") from None
            raise

    return daemon.serve(read, lambda running: None)
