"""`tcppc doctor`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tcppc import config, doctor, knocking
from tcppc.cli.arguments import Exit, add_settings, overrides, parser

_EXAMPLES = """\
examples:
  sudo tcppc doctor -c /etc/tcppc.toml       the sensor that this file is for
  sudo tcppc doctor -p 2323 -w 'data/tcppc-%Y%m%d.jsonl'   one that was started with flags: give the same

Each line is ok, BAD with what to do, or - for what could not be looked at; the exit code is 1 where something is BAD.
As root it knocks from a network namespace of its own at ssh and at a port each of TCP and UDP, IPv4 and IPv6, and looks
for what it sent in the data file: those records, `tcppc doctor` and a random word, stay there.
"""
_COLOURS = {"ok": "\x1b[32m", "BAD": "\x1b[31m", "-": "\x1b[33m"}


def doctor_command(argv: Sequence[str]) -> int:
    flags = parser("doctor", _EXAMPLES)
    add_settings(flags)
    arguments = flags.parse_args(argv)
    given = config.load(arguments.file, overrides(arguments))
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    findings = 0
    for look in (doctor.look, knocking.look):
        for state, about, text in look(given):
            shown = f"{_COLOURS[state]}{state:<4}\x1b[0m" if coloured else f"{state:<4}"
            print(f"{shown} {about:<9} {text}", flush=True)
            findings += state == "BAD"
    if findings:
        print(f"\n{findings} to mend.")
        return Exit.FAILED
    return Exit.DONE
