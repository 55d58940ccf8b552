"""`tcppc nc`: an nc listener's arguments, in OpenBSD's order and in the traditional one."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from tcppc import nc, values
from tcppc.capture import sockets
from tcppc.cli.arguments import UsageError, parser
from tcppc.config import ConfigError
from tcppc.problems import Failure

_EXAMPLES = """\
examples:
  tcppc nc -lk 12345 > out.bin            all that comes, of all connections at once
  tcppc nc -l -p 12345 -s 127.0.0.1       the traditional order; ends after the first connection
  tcppc nc -luk 12345 > out.bin           datagrams
  tcppc nc -lkv 12345 -o sessions.jsonl   session records as well; who connects on standard error

docs/migrating.md has the lines of nc, ncat and socat beside these.
"""


class RunError(Failure):
    """Why it cannot listen, in one line: exit code 1."""


# poll(2) and epoll_wait(2) take milliseconds as an int.
MOST_SECONDS = 2_147_483


def listen(argv: Sequence[str]) -> int:
    flags = parser("nc", _EXAMPLES)
    flags.add_argument("-l", action="store_true", dest="listen", help="listen; tcppc never connects to anybody")
    flags.add_argument("-k", action="store_true", dest="keep", help="go on after the first connection; many at once")
    flags.add_argument("-u", action="store_true", dest="udp", help="UDP: without -k of the first one's sender only")
    flags.add_argument("-n", action="store_true", help="no names are looked up; they never are, but of HOST and -s")
    flags.add_argument("-v", action="store_true", dest="verbose", help="say on standard error who connects")
    flags.add_argument("-d", action="store_true", dest="detached", help="do not read standard input")
    flags.add_argument("-w", metavar="SECONDS", default="0", help="end a connection that says nothing for so long")
    flags.add_argument("-p", metavar="PORT", default="", help="the port to listen on, where none follows")
    flags.add_argument("-s", metavar="ADDRESS", default="", help="the address to listen on (default: all)")
    flags.add_argument("-4", action="store_true", dest="four", help="IPv4 only")
    flags.add_argument("-6", action="store_true", dest="six", help="IPv6 only")
    flags.add_argument("-o", metavar="FILE", default="", dest="records", help="session records to this file as well")
    flags.add_argument("where", nargs="*", metavar="[HOST] PORT", help="the port, or the address and the port")
    given = flags.parse_intermixed_args(argv)
    if not given.listen:
        raise UsageError("tcppc nc listens only, and never connects to anybody: expected -l; see tcppc nc --help")
    if given.four and given.six:
        raise UsageError("-4 and -6 contradict each other: expected one of them, or none for both families")
    host, port = _where(given.where, given.p, given.s)
    families = (
        (socket.AF_INET,) if given.four else (socket.AF_INET6,) if given.six else (socket.AF_INET, socket.AF_INET6)
    )
    try:
        options = nc.Options(
            port=_port(port, "udp" if given.udp else "tcp"),
            host=host,
            families=families,
            udp=given.udp,
            keep=given.keep,
            timeout=values.duration(0, MOST_SECONDS)(given.w),
            verbose=given.verbose,
            stdin=not given.detached and not given.udp,
            records=given.records,
        )
    except ValueError as problem:
        raise UsageError(f"expected {problem}") from None
    try:
        return nc.Listener(options).run()
    except sockets.ListenError as problem:
        raise ConfigError(str(problem)) from None
    except OSError as problem:
        raise RunError(f"cannot listen: {problem.filename}: {problem.strerror}") from None


def _where(words: list[str], port: str, address: str) -> tuple[str, str]:
    """(host, port) of either order; UsageError where they contradict each other."""
    if port and len(words) == 1 and not words[0].isdigit():
        words = [words[0], port]
    elif port and words:
        raise UsageError(f"the port is given twice, as -p {port} and as {words[-1]}: expected it once")
    elif port:
        words = [port]
    if not 1 <= len(words) <= 2:
        raise UsageError("expected a port, as in tcppc nc -l 12345 or tcppc nc -l -p 12345")
    host = words[0] if len(words) == 2 else ""
    if host and address and host != address:
        raise UsageError(f"the address is given twice, as -s {address} and as {host}: expected it once")
    return host or address, words[-1]


def _port(text: str, proto: str) -> int:
    if text.isascii() and text.isalpha():
        try:
            return socket.getservbyname(text, proto)
        except OSError:
            raise ValueError(f"a port from 0 to 65535 or a service's name, not {text!r}") from None
    try:
        return int(values.whole(0, 65535)(text))
    except ValueError:
        raise ValueError(f"a port from 0 to 65535 or a service's name, not {text!r}") from None
