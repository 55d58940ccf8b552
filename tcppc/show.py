"""Sessions as a person reads them: `tcppc show`. Files and folders in, text out.

Everything in a record may be a stranger's: nothing of it is printed but through `safe` or as hexadecimal digits, so
that no control byte, escape sequence or look-alike line reaches the terminal. Lines that are no records (a crash
leaves half ones) are counted and passed over. Bounds: one line is held at a time, at most MOST_LINE bytes of it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import IO, Any

from tcppc import clock, log, records
from tcppc.capture.files import LEDGER
from tcppc.text import harmless, raw

# A record of the default bounds is 22 MB of base64 and the frame of 65,536 payloads, some 6 MB more.
MOST_LINE = 256 << 20
FOLLOW_SECONDS = 0.25
WIDTH = 16
# Text is shown as text where at least this share of its bytes is printable.
TEXT_SHARE = 0.85
ENDINGS = (".jsonl", ".json", ".gz", ".zst")

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Filter:
    """Which sessions: any of `sources`, any of `ports` (low, high), from `since` on, before `until` (ns; 0: open)."""

    sources: tuple[Network, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    protos: tuple[str, ...] = ()
    since: int = 0
    until: int = 0

    def fits(self, record: dict[str, Any]) -> bool:
        """ValueError, KeyError or TypeError for a record that is not as the contract says."""
        flow = _flow_of_scan(record["scan"]) if record.get("event") == "scan" else record["flow"]
        if self.protos and flow["proto"] not in self.protos:
            return False
        if self.ports and not any(low <= flow["dport"] <= high for low, high in self.ports):
            return False
        if self.sources and not any(ip_address(flow["src"]) in network for network in self.sources):
            return False
        if self.since or self.until:
            began = clock.parse(record["timestamp"])
            return began >= self.since and (not self.until or began < self.until)
        return True


def _flow_of_scan(scan: dict[str, Any]) -> dict[str, Any]:
    """What a scan is looked for by: its first port is as good as any."""
    return {"proto": scan["proto"], "src": scan["src"], "dport": int(scan["ports"].partition(",")[0].partition("-")[0])}


def data_files(path: Path) -> list[Path]:
    """The file itself, or a folder's data files, the oldest first. OSError where that cannot be looked at."""
    status = _status(path)
    if status is None or not stat.S_ISDIR(status.st_mode):
        return [path]
    found = []
    for name in os.listdir(path):
        item = path / name
        if item.suffix in ENDINGS and name != LEDGER and (status := _status(item)) and stat.S_ISREG(status.st_mode):
            found.append((status.st_mtime, name, item))
    return [item for _, _, item in sorted(found)]


def _status(path: Path) -> os.stat_result | None:
    """None for what is not there. (Path.is_dir and its like hide in some Pythons what may not be looked at, too.)"""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


class DataError(Exception):
    """A data file that cannot be read, in one line."""


def open_data(path: Path) -> IO[bytes]:
    """A data file, also one that was compressed. OSError or DataError where it cannot be opened."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{path}: the package zstandard is missing: pip install 'tcppc[zstd]'") from None
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True))
    return path.open("rb")


def damage() -> tuple[type[Exception], ...]:
    """What reading a damaged compressed file raises."""
    kinds: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error)
    with contextlib.suppress(ImportError):
        import zstandard

        kinds += (zstandard.ZstdError,)
    return kinds


def data_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines, as long as one may be; of a longer one the pieces, which are no records."""
    while line := file.readline(MOST_LINE):
        yield line


def read_files(
    paths: list[Path],
    progress: Callable[[int], None] = lambda size: None,
    trouble: Callable[[str], None] = lambda line: None,
) -> Iterator[dict[str, Any] | None]:
    """All records; None for each line that is none. `trouble` is told, in one line, where a file is damaged or cannot
    be read; the next one goes on. `progress` is told of each line's bytes."""

    def counted(file: IO[bytes]) -> Iterator[bytes]:
        for line in data_lines(file):
            progress(len(line))
            yield line

    for path in paths:
        try:
            with open_data(path) as file:
                for _, record in records.read_lines(counted(file)):
                    yield record
        except damage() as problem:
            trouble(f"{path}: is damaged from here on: {problem}")
        except DataError as problem:
            trouble(str(problem))
        except OSError as problem:
            trouble(f"{path}: cannot be read: {problem.strerror}")


class Tail:
    """What is appended to files from now on, across rotations: a folder's new files from their start, and a file
    that was replaced by another one of its name. `poll` reads whole lines only. `trouble` is told once, in one line, of
    each file that cannot be read; DataError where none of those that are there can."""

    def __init__(self, paths: list[Path], trouble: Callable[[str], None] = lambda line: None) -> None:
        self._paths = paths
        self._trouble = trouble
        self._told: set[Path] = set()
        self._at: dict[tuple[int, int], int] = {}
        self._part: dict[tuple[int, int], bytes] = {}
        self._open: dict[tuple[int, int], IO[bytes]] = {}
        self._look(from_end=True)
        if self._told and not self._open:
            raise DataError("none of these files can be read: nothing would ever be shown")

    def _look(self, from_end: bool) -> None:
        for given in self._paths:
            for path in data_files(given):
                if path.suffix in (".gz", ".zst"):
                    continue
                try:
                    file = path.open("rb")
                except FileNotFoundError:  # rotated away this moment, or not made yet: the next look finds it
                    continue
                except OSError as problem:
                    if path not in self._told:
                        self._told.add(path)
                        self._trouble(f"{path}: cannot be read: {problem.strerror}")
                    continue
                status = os.fstat(file.fileno())
                key = (status.st_dev, status.st_ino)
                if key in self._open:
                    file.close()
                    continue
                self._open[key] = file
                file.seek(0, os.SEEK_END if from_end else os.SEEK_SET)

    def poll(self) -> Iterator[dict[str, Any] | None]:
        """Records that have come since the last call."""
        self._look(from_end=False)
        for key, file in list(self._open.items()):
            data = self._part.pop(key, b"") + file.read()
            whole, _, part = data.rpartition(b"\n")
            if part:
                self._part[key] = part
            for _, record in records.read_lines(iter(whole.split(b"\n"))):
                yield record
            if not data and os.fstat(file.fileno()).st_nlink == 0:
                file.close()
                del self._open[key]


def follow(
    paths: list[Path],
    keep_on: Callable[[], bool] = lambda: True,
    trouble: Callable[[str], None] = lambda line: None,
) -> Iterator[dict[str, Any] | None]:
    """Records as they come, until `keep_on()` is false; `trouble` as of a Tail."""
    tail = Tail(paths, trouble)
    while keep_on():
        yield from tail.poll()
        time.sleep(FOLLOW_SECONDS)


def safe(text: object) -> str:
    """Any value as one line that does nothing to a terminal."""
    return log.quote(raw(str(text)))[1:-1]


def looks_like_text(data: bytes) -> bool:
    """Mostly printable, line ends and tabs included?"""
    text = data[:4096].decode("utf-8", "replace")
    good = sum((character.isprintable() and character != "\ufffd") or character in "\r\n\t" for character in text)
    return bool(text) and good >= TEXT_SHARE * len(text)


def text_lines(data: bytes) -> Iterator[str]:
    """Payload as text, a line each, control bytes escaped as Go's %q does."""
    for line in data.splitlines(keepends=True):
        for at in range(0, len(line), log.SHOWN_BYTES):
            yield log.quote(line[at : at + log.SHOWN_BYTES])[1:-1].replace('\\"', '"')


def hex_lines(data: bytes) -> Iterator[str]:
    """Payload as offset, hexadecimal and ASCII, sixteen bytes a line."""
    for offset in range(0, len(data), WIDTH):
        piece = data[offset : offset + WIDTH]
        plain = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        yield f"{offset:08x}  {piece[:8].hex(' '):<23}  {piece[8:].hex(' '):<23}  |{plain}|"


def heading(record: dict[str, Any]) -> str:
    """One line: time, flow, what it was, how much, how it closed."""
    flow = record["flow"]
    src, dst = (f"[{flow[side]}]" if ":" in str(flow[side]) else str(flow[side]) for side in ("src", "dst"))
    parts = [f"{record['timestamp']} {flow['proto']} {src}:{flow['sport']} -> {dst}:{flow['dport']}"]
    parts.append(f"{record.get('bytes', len(records.payload_bytes(record)))} bytes")
    tls = record.get("tls") or {}
    parts += [str(record[key]) for key in ("app", "closed") if key in record]
    parts += [f"persona {record['persona']}"] if "persona" in record else []
    parts += [f"{key} {tls[key]}" for key in ("version", "sni", "ja4", "error") if key in tls]
    parts += ["truncated"] if record.get("truncated") else []
    return safe(", ".join(parts))


def _sighting(record: dict[str, Any]) -> str:
    """One line of what the SYN watch saw."""
    if record["event"] == "scan":
        scan = record["scan"]
        hosts = ", ".join(map(str, scan["hosts"]))
        over = f", over at {scan['ended']}" if "ended" in scan else ""
        slow = "slow " if scan.get("slow") else ""
        return safe(
            f"{record['timestamp']} {slow}scan of {scan['kind']} {scan['proto']} {scan['src']} -> {hosts} "
            f"ports {scan['ports']}, {scan['number']} {scan['kind']}, {scan['probes']} probes{over}"
        )
    syn = record["syn"]
    parts = [f"ttl {syn['ttl']}", f"window {syn['window']}", *map(str, syn["options"])]
    parts += [str(syn["tool"])] if "tool" in syn else []
    flow = record["flow"]
    src, dst = (f"[{flow[side]}]" if ":" in str(flow[side]) else str(flow[side]) for side in ("src", "dst"))
    head = f"{record['timestamp']} {record['event']} {src}:{flow['sport']} -> {dst}:{flow['dport']} {syn['flags']}"
    return safe(f"{head}, {', '.join(parts)}")


def show(record: dict[str, Any], most: int = 4096) -> Iterator[str]:
    """A session's lines, what was said back behind a `<`; of each piece at most `most` bytes. ValueError, KeyError or
    TypeError for a record that is not as the contract says."""
    if "event" in record:
        yield _sighting(record)
        return
    yield heading(record)
    replies = sorted(record.get("replies") or [], key=lambda reply: reply["after"])
    heard = [(piece["index"], 0, piece) for piece in record["payloads"] or []]
    told = [(reply["after"], 1, reply) for reply in replies]
    for _, is_reply, piece in sorted(heard + told, key=lambda item: item[:2]):
        data = records.payload_bytes({"payloads": [piece]})
        lines = text_lines if looks_like_text(data) else hex_lines
        margin = "  < " if is_reply else "    "
        for line in lines(data[:most]):
            yield f"{margin}{line}"
        if len(data) > most:
            given = "" if is_reply else f"; --raw {safe(record.get('id', ''))} gives them all"
            yield f"{margin}... {len(data) - most} bytes more{given}"
    for tried in record.get("credentials") or []:
        user, password = (harmless(tried[key]) for key in ("user", "password"))
        yield f"    tried: user {user}, password {password}"
