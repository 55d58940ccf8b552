"""The report: DFXML, a fileobject a stream, written as the streams end.

The form is that of the DFXML schema 2.0.0 (dfxml-working-group/dfxml_schema); what tcpflow tells of a stream besides
stands in its own namespace, with its own names, of which `startime` is spelled so.
"""

from __future__ import annotations

import contextlib
import getpass
import html
import os
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TextIO

from tcppc import __version__, hostname
from tcppc.flows.flow import Flow
from tcppc.flows.listener import Listener
from tcppc.flows.packets import Totals, shown
from tcppc.flows.stream_files import StreamFiles
from tcppc.protocols.packet import TCP
from tcppc.text import named

NAME = "report.xml"
HASHES = ("md5", "sha1", "sha256", "sha512")
MOST_GAPS_TOLD = 1000  # of one stream, one by one; all are counted
_BEGIN = f"""\
<?xml version='1.0' encoding='UTF-8'?>
<dfxml xmlns='http://www.forensicswiki.org/wiki/Category:Digital_Forensics_XML' \
xmlns:dc='http://purl.org/dc/elements/1.1/' xmlns:tcpflow='http://afflib.org/tcpflow/' version='2.0.0'>
  <metadata>
    <dc:type>Feature Extraction</dc:type>
  </metadata>
  <creator>
    <program>tcppc</program>
    <version>{__version__}</version>
"""
_LIBRARIES = ("numpy", "h11", "Brotli", "zstandard")
_PLAIN = re.compile(r"[\w./ :,+-]*", re.ASCII).fullmatch  # what nearly all is: as it stands
_CONTROL = {code: "\ufffd" for code in [*range(32), 0x7F, 0xFFFE, 0xFFFF] if code not in (9, 10, 13)}


def text(value: str) -> str:
    """As XML 1.0 takes it: without control characters and halves of characters."""
    if _PLAIN(value):
        return value
    return html.escape(named(value).translate(_CONTROL), quote=False)


def attribute(value: str) -> str:
    return f"'{html.escape(named(value).translate(_CONTROL))}'"


@lru_cache(maxsize=1 << 12)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def stamp(instant: int) -> str:
    """xs:dateTime, with as many digits as the instant (ns) has: none, six or nine."""
    seconds, rest = divmod(instant, 10**9)
    if not rest:
        return f"{_second(seconds)}Z"
    micro, nano = divmod(rest, 1000)
    return f"{_second(seconds)}.{rest:09d}Z" if nano else f"{_second(seconds)}.{micro:06d}Z"


class Report(Listener):
    """Of the streams in `files`, to `file`. `results` gives what plug-ins found in a stream, as elements. Where it is
    not the `whole`, fileobjects alone are written, for `add` of another."""

    def __init__(
        self,
        file: TextIO,
        files: StreamFiles,
        totals: Totals,
        captures: Sequence[str],
        hashes: Sequence[str] = (),
        results: Callable[[Flow], str] = lambda flow: "",
        whole: bool = True,
    ) -> None:
        self._file = file
        self._files = files
        self._totals = totals
        self._hashes = hashes
        self._results = results
        self._begun = time.monotonic()
        self._whole = whole
        if whole:
            file.write(_BEGIN + _environment() + _sources(captures))

    def settle(self) -> None:
        self._file.flush()

    def ended(self, flow: Flow) -> None:
        name = self._files.name(flow.file)
        shown_name = f"    <filename>{text(self._files.shown(name))}</filename>\n" if name else ""
        hashes = "".join(digests(self._files.content(flow.file), self._hashes)) if name and self._hashes else ""
        if flow.file in self._files.failed:
            shown_name += f"    <error>{text(self._files.failed[flow.file])}</error>\n"
        self._file.write(
            f"  <fileobject>\n{shown_name}    <filesize>{flow.stream.size}</filesize>\n{hashes}{_told(flow)}"
            f"{self._results(flow)}  </fileobject>\n"
        )

    def part(self, flow: Flow, name: str, content: Iterable[bytes], size: int, offset: int, length: int) -> None:
        """A file that was made of `length` bytes of a stream, from `offset` on."""
        stream = self._files.name(flow.file)
        hashes = "".join(digests(content, self._hashes)) if self._hashes else ""
        self._file.write(
            f"  <fileobject>\n    <filename>{text(self._files.shown(name))}</filename>\n"
            f"    <filesize>{size}</filesize>\n    <byte_runs><byte_run file_offset='{offset}' len='{length}'"
            f" tcpflow:of={attribute(self._files.shown(stream))}/></byte_runs>\n{hashes}  </fileobject>\n"
        )

    def add(self, fragment: TextIO) -> None:
        """What another one has written, before `finish`."""
        self._file.flush()
        shutil.copyfileobj(fragment.buffer, self._file.buffer, 1 << 20)  # without reading it as text

    def finish(self) -> None:
        if not self._whole:
            self._file.flush()
            return
        self._file.write(_usage(time.monotonic() - self._begun))
        totals = self._totals
        numbers = {
            "max_open_flows": totals.most_open, "total_flows": totals.streams, "total_packets": totals.packets,
            "total_bytes": totals.bytes,
        }  # fmt: skip
        odd = {
            "wrong_checksums": totals.wrong_checksums, "datagrams_lacking_fragments": totals.lacking,
            "datagrams_of_overlapping_fragments": totals.overlapping,
        }  # fmt: skip
        numbers |= {tag: number for tag, number in odd.items() if number}
        for tag, number in numbers.items():
            self._file.write(f"  <tcpflow:{tag}>{number}</tcpflow:{tag}>\n")
        for why, number in sorted(totals.passed_over.items()):
            self._file.write(f"  <tcpflow:passed_over packets='{number}' why={attribute(why)}/>\n")
        self._file.write("</dfxml>\n")
        self._file.flush()
        if self._file is not sys.stdout:
            self._file.close()


def digests(parts: Iterable[bytes], names: Sequence[str]) -> list[str]:
    """An element a hash of what the parts are together."""
    import hashlib  # takes longer than many a capture

    made = [hashlib.new(name, usedforsecurity=False) for name in names]
    for part in parts:
        for each in made:
            each.update(part)
    return [
        f"    <hashdigest type='{name.upper()}'>{each.hexdigest()}</hashdigest>\n"
        for name, each in zip(names, made, strict=True)
    ]


def _told(flow: Flow) -> str:
    """What there is to say of it beside its bytes."""
    named, stream = flow.named, flow.stream
    said = (
        f"    <tcpflow:tcpflow startime='{stamp(flow.first)}' endtime='{stamp(flow.last)}'"
        f"{_ends(named.dst_mac, named.src_mac, named.src, named.dst)} srcport='{named.sport}' dstport='{named.dport}'"
        f" packets='{flow.packets}'"
    )
    gaps = stream.gaps if stream.seen != stream.size else []
    odd = stream.out_of_order or stream.violations or flow.conflicts or gaps or stream.gaps_forgotten
    if odd or flow.captured != flow.sent or named.protocol != TCP:
        said += _counts(flow, gaps)
    else:
        said += f" len='{flow.sent}'"
    vlan = f" vlan='{named.vlan}'" if named.vlan >= 0 else ""
    said += f"{vlan} connection='{named.pair}'"
    if not gaps:
        return f"{said}/>\n"
    told = [f"      <tcpflow:gap offset='{at}' len='{size}'/>\n" for at, size in gaps[:MOST_GAPS_TOLD]]
    return f"{said}>\n{''.join(told)}    </tcpflow:tcpflow>\n"


def _counts(flow: Flow, gaps: Sequence[tuple[int, int]]) -> str:
    """Those that are not 0."""
    stream, protocol = flow.stream, flow.named.protocol
    counts = {
        "out_of_order_count": stream.out_of_order, "violations": stream.violations, "len": flow.sent,
        "caplen": flow.captured if flow.captured != flow.sent else 0, "protocol": protocol if protocol != TCP else 0,
        "overlapping_bytes_that_differ": flow.conflicts, "gaps": len(gaps),
        "gap_bytes": sum([size for _, size in gaps]), "gaps_forgotten": stream.gaps_forgotten,
    }  # fmt: skip
    return "".join([f" {name}='{number}'" for name, number in counts.items() if number])


@lru_cache(maxsize=1 << 12)
def _ends(dst_mac: bytes, src_mac: bytes, src: bytes, dst: bytes) -> str:
    macs = f" mac_daddr='{dst_mac.hex(':')}'" if dst_mac else ""
    macs += f" mac_saddr='{src_mac.hex(':')}'" if src_mac else ""
    return f"{macs} family='{2 if len(src) == 4 else 10}' src_ipn='{shown(src)}' dst_ipn='{shown(dst)}'"


@lru_cache(maxsize=1)
def libraries() -> list[tuple[str, str]]:
    """Those that are there, with their versions."""
    from importlib import metadata  # takes longer than many a capture

    found = []
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append((name, metadata.version(name)))
    return found


def _environment() -> str:
    """What made it, and where."""
    found = ["    <build_environment>\n", f"      <compiler>{text(platform.python_compiler())}</compiler>\n"]
    found += [f"      <library name='{name}' version={attribute(version)}/>\n" for name, version in libraries()]
    found.append("    </build_environment>\n    <execution_environment>\n")
    system = platform.uname()
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = ""  # a number without a name, as containers have it
    facts = {
        "os_sysname": system.system, "os_release": system.release, "os_version": system.version,
        "host": hostname.name(), "arch": system.machine, "command_line": " ".join(sys.argv),
        "uid": str(os.getuid()), "username": user, "start_time": stamp(int(time.time()) * 10**9),
    }  # fmt: skip
    found += [f"      <{name}>{text(value)}</{name}>\n" for name, value in facts.items()]
    found.append("    </execution_environment>\n")
    found.append(f"    <library name='Python' version='{platform.python_version()}'/>\n  </creator>\n")
    return "".join(found)


def _sources(names: Sequence[str]) -> str:
    inner = "".join(f"<image_filename>{text(name)}</image_filename>" for name in names)
    return f"  <source>{inner}</source>\n"


def _usage(seconds: float) -> str:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    numbers = {
        "utime": f"{sum(used.ru_utime for used in both):.6f}", "stime": f"{sum(used.ru_stime for used in both):.6f}",
        "maxrss": max(used.ru_maxrss for used in both), "minflt": sum(used.ru_minflt for used in both),
        "majflt": sum(used.ru_majflt for used in both), "nswap": sum(used.ru_nswap for used in both),
        "inblock": sum(used.ru_inblock for used in both), "oublock": sum(used.ru_oublock for used in both),
        "clocktime": f"{seconds:.6f}",
    }  # fmt: skip
    inner = "".join(f"    <{name}>{value}</{name}>\n" for name, value in numbers.items())
    return f"  <rusage>\n{inner}  </rusage>\n"
