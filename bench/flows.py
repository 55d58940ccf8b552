"""`tcppc flows` beside tcpflow: the same captures, the same files, how long and how large. See README.md.

    python bench/flows.py [--quick] [--runs N] [--only NAME,...]

Exit code 0: all files are the same (a missed target is marked in the table, no more); 1: some differ, or one failed; 2:
wrong usage. Without tcpflow ours is measured alone.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATIO, MOST_MB = 0.8, 300
PART = 1 << 17  # packets made at once
SYN, FIN, PSH, ACK = 2, 1, 8, 16
_TCP = [
    ("sport", ">u2"), ("dport", ">u2"), ("seq", ">u4"), ("ack", ">u4"), ("offset", "u1"), ("flags", "u1"),
    ("window", ">u2"), ("sum", ">u2"), ("urgent", ">u2"),
]  # fmt: skip
_IPV4 = [
    ("macs", "V12"), ("type", ">u2"), ("version", "u1"), ("service", "u1"), ("total", ">u2"), ("id", ">u2"),
    ("fragment", ">u2"), ("ttl", "u1"), ("protocol", "u1"), ("checksum", ">u2"), ("src", ">u4"), ("dst", ">u4"), *_TCP,
]  # fmt: skip
_IPV6 = [
    ("macs", "V12"), ("type", ">u2"), ("version", "u1"), ("class", "V3"), ("total", ">u2"), ("protocol", "u1"),
    ("ttl", "u1"), ("src_net", "V12"), ("src", ">u4"), ("dst_net", "V12"), ("dst", ">u4"), *_TCP,
]  # fmt: skip
_RECORD = [("seconds", "<u4"), ("micros", "<u4"), ("captured", "<u4"), ("size", "<u4")]
_BLOCK = [
    ("kind", "<u4"), ("length", "<u4"), ("interface", "<u4"), ("high", "<u4"), ("low", "<u4"), ("captured", "<u4"),
    ("size", "<u4"),
]  # fmt: skip
_FILE_HEADER = bytes.fromhex("d4c3b2a1 0200 0400 00000000 00000000 00000400 01000000")
_SECTION = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28) + struct.pack(
    "<IIHHII", 1, 20, 1, 0, 0, 20
)
_CLIENTS, _SERVER = 0x0A000000, 0xC0000201
Numbers = NDArray[Any]


@dataclass(frozen=True)
class Packets:
    """Columns of a capture: whose connection, from which side, where in the stream, how much, which flags."""

    connection: Numbers
    answers: Numbers  # is it the server's?
    seq: Numbers
    size: Numbers
    flags: Numbers

    def __len__(self) -> int:
        return len(self.connection)


def many_small(scale: float) -> Packets:
    """Connections of seven packets: handshake, a request, an answer, two ends. Two hundred at a time."""
    count = max(200, int(50_000 * scale))
    sizes = np.array([0, 0, 0, 120, 600, 0, 0])
    answers = np.array([False, True, False, False, True, False, True])
    flags = np.array([SYN, SYN | ACK, ACK, PSH | ACK, PSH | ACK, FIN | ACK, FIN | ACK])
    seq = np.array([100, 100, 101, 101, 101, 221, 701])
    connection = np.repeat(np.arange(count), 7)
    moment = connection * 7 + np.tile(np.arange(7), count) * 1400
    order = np.argsort(moment, kind="stable")
    columns = [np.tile(column, count)[order] for column in (answers, seq, sizes, flags)]
    return Packets(connection[order], columns[0], columns[1], columns[2], columns[3])


def _streams(connection: Numbers, size: int) -> Packets:
    """Data alone, each connection's in order."""
    order = np.argsort(connection, kind="stable")
    number = np.empty(len(order), np.int64)
    sorted_ = connection[order]
    first = np.concatenate(([0], np.flatnonzero(np.diff(sorted_)) + 1))
    counts = np.diff(np.append(first, len(order)))
    number[order] = np.arange(len(order)) - np.repeat(first, counts)
    same = np.full(len(connection), size)
    return Packets(
        connection, np.zeros(len(connection), bool), 101 + number * size, same, np.full(len(connection), PSH | ACK)
    )


def few_large(scale: float) -> Packets:
    """Four connections that send 1 GB together, in full packets, several in a row."""
    return _streams(np.arange(int(700_000 * scale)) // 8 % 4, 1460)


def interleaved(scale: float) -> Packets:
    """Two thousand connections at once, in no order."""
    return _streams(np.random.default_rng(7).integers(0, 2000, int(1_000_000 * scale)), 500)


def out_of_order(scale: float) -> Packets:
    """One packet in twenty after its successor, one in a hundred twice, of two hundred connections."""
    lot = np.random.default_rng(8)
    made = _streams(lot.integers(0, 200, int(500_000 * scale)), 1000)
    place = np.arange(len(made), dtype=np.float64)
    late = lot.random(len(made)) < 0.05
    place[late] += 2000  # some packets of the same connection later
    twice = np.flatnonzero(lot.random(len(made)) < 0.01)
    index = np.concatenate((np.arange(len(made)), twice))
    order = index[np.argsort(np.concatenate((place, place[twice] + 5000)), kind="stable")]
    return Packets(*(getattr(made, name)[order] for name in Packets.__dataclass_fields__))


def ten_million(scale: float) -> Packets:
    """Small packets of a thousand connections."""
    return _streams(np.random.default_rng(9).integers(0, 1000, int(10_000_000 * scale)), 100)


CAPTURES: dict[str, Callable[[float], Packets]] = {
    "many": many_small,
    "few": few_large,
    "interleaved": interleaved,
    "out-of-order": out_of_order,
    "1M": lambda scale: ten_million(scale / 10),
    "10M": ten_million,
    "pcapng": interleaved,
    "ipv6": interleaved,
}


def write(packets: Packets, path: Path, name: str = "") -> None:
    """As a capture of that form, a hundred thousand packets a second of it."""
    bytes_ = np.random.default_rng(1).integers(0, 256, 1 << 16, np.uint8)
    with path.open("wb") as file:
        file.write(_SECTION if name == "pcapng" else _FILE_HEADER)
        for at in range(0, len(packets), PART):
            file.write(_part(packets, at, min(PART, len(packets) - at), bytes_, name))


def _part(packets: Packets, at: int, count: int, data: Numbers, name: str) -> bytes:
    some = slice(at, at + count)
    size, connection = packets.size[some], packets.connection[some]
    rows = _rows(packets, at, count, name)
    tails = [b""] * count
    if name == "pcapng":
        tails = [bytes(-length % 4) + struct.pack("<I", whole) for length, whole in zip(
            rows["captured"].tolist(), rows["length"].tolist(), strict=True,
        )]  # fmt: skip
    heads, width = rows.tobytes(), rows.dtype.itemsize
    begin = (packets.seq[some] * 7 + connection * 131) % (len(data) - 2000)
    text = data.tobytes()
    return b"".join(
        [
            heads[place * width : (place + 1) * width] + text[low : low + length] + tail
            for place, (low, length, tail) in enumerate(zip(begin.tolist(), size.tolist(), tails, strict=True))
        ]
    )


def _rows(packets: Packets, at: int, count: int, name: str) -> Numbers:
    """All that stands before each packet's payload."""
    some = slice(at, at + count)
    size, answers, connection = packets.size[some], packets.answers[some], packets.connection[some]
    headers = _IPV6 if name == "ipv6" else _IPV4
    rows = np.zeros(count, [*(_BLOCK if name == "pcapng" else _RECORD), *headers])
    number = np.arange(at, at + count)
    rows["captured"] = rows["size"] = size + np.dtype(headers).itemsize
    if name == "pcapng":
        ticks = 1_700_000_000_000_000 + number * 10
        rows["kind"], rows["high"], rows["low"] = 6, ticks >> 32, ticks & 0xFFFFFFFF
        rows["length"] = (rows["captured"] + 3) // 4 * 4 + 32
    else:
        rows["seconds"], rows["micros"] = 1_700_000_000 + number // 100_000, number % 100_000 * 10
    rows["macs"] = np.void(bytes.fromhex("020000000001020000000002"))
    rows["ttl"], rows["protocol"], rows["offset"] = 64, 6, 0x50
    if name == "ipv6":
        rows["type"], rows["version"], rows["total"] = 0x86DD, 0x60, size + 20
    else:
        rows["type"], rows["version"], rows["total"] = 0x0800, 0x45, size + 40
    client, port = _CLIENTS + connection // 20_000, 20_000 + connection % 20_000
    rows["src"], rows["dst"] = np.where(answers, _SERVER, client), np.where(answers, client, _SERVER)
    rows["sport"], rows["dport"] = np.where(answers, 80, port), np.where(answers, port, 80)
    rows["seq"], rows["flags"] = packets.seq[some] & 0xFFFFFFFF, packets.flags[some]
    return rows


def environment(folder: Path) -> dict[str, str]:
    """Where modules stay compiled, as an installed program's are."""
    found = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return found | {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}


def run(command: list[str], folder: Path) -> tuple[float, int, str]:
    """(seconds, KiB resident at most, what was wrong)."""
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment(folder.parent))
        _, status, used = os.wait4(process.pid, 0)
        took = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        problem = said.read()[-300:].decode(errors="replace") if status else ""
    return took, used.ru_maxrss, problem


def content(folder: Path) -> dict[str, str]:
    """Every file's digest, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "report.xml":
            with path.open("rb") as file:
                digest = hashlib.blake2b()
                while part := file.read(1 << 20):
                    digest.update(part)
            found[str(path.relative_to(folder))] = digest.hexdigest()
    return found


def _make(name: str, scale: float, capture: Path, made: Any) -> None:
    packets = CAPTURES[name](scale)
    made.value = len(packets)
    write(packets, capture, name)


def measure(name: str, scale: float, runs: int, folder: Path, peer: str | None) -> tuple[str, bool]:
    """(a row of the table, were all files the same?)."""
    capture = folder / f"{name}.pcap"
    # By another process: what this one has in memory counts as the memory of those that it starts.
    made = multiprocessing.Value("q")
    maker = multiprocessing.Process(target=_make, args=(name, scale, capture, made))
    maker.start()
    maker.join()
    packets = made.value
    ours = [sys.executable, "-m", "tcppc", "flows", "-q", "-r", str(capture), "-o", str(folder / "ours")]
    theirs = [peer or "", "-q", "-r", str(capture), "-o", str(folder / "theirs")]
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    most, good, note = 0, True, ""
    run(ours, folder / "ours")  # which compiles the modules
    for number in range(runs):
        for who, command in (("ours", ours), ("theirs", theirs)):
            if who == "theirs" and not peer:
                continue
            took, resident, problem = run(command, folder / who)
            times[who].append(took)
            most = max(most, resident) if who == "ours" else most
            if problem:
                good, note = False, f" {who}: {problem}"
        if peer and not number and content(folder / "ours") != content(folder / "theirs"):
            good, note = False, " FILES DIFFER"
        print(f"{name}: {number + 1} of {runs}", file=sys.stderr)
    for who in ("ours", "theirs"):
        shutil.rmtree(folder / who, ignore_errors=True)
    size = capture.stat().st_size
    capture.unlink()
    own = statistics.median(times["ours"])
    row = f"| {name} | {packets:,} | {size / 1e6:,.0f} | {own:.2f} "
    if peer:
        ratios = [one / other for one, other in zip(times["ours"], times["theirs"], strict=True)]
        ratio = statistics.median(ratios)
        row += f"| {statistics.median(times['theirs']):.2f} | {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        row += "" if ratio <= RATIO else " MISSED"
    else:
        row += "| - | -"
    resident_mb = most * 1024 / 1e6
    return f"{row} | {resident_mb:.0f}{'' if resident_mb < MOST_MB else ' MISSED'} |{note}", good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, one run: does it work?")
    parser.add_argument("--runs", type=int, default=0, help="of each (default 5)")
    parser.add_argument("--only", default=",".join(CAPTURES), help=f"some of {','.join(CAPTURES)}")
    parser.add_argument("--folder", help="where captures and files go (default: memory, where it has room)")
    given = parser.parse_args()
    names = given.only.split(",")
    if wrong := [name for name in names if name not in CAPTURES]:
        parser.error(f"{wrong[0]!r}: expected some of {','.join(CAPTURES)}")
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 6 << 30
    peer = shutil.which("tcpflow")
    runs = given.runs or (1 if given.quick else 5)
    print("| capture | packets | MB | ours, s | tcpflow, s | ours / tcpflow [<= 0.8] | RSS, MB [< 300] |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    all_good = True
    with tempfile.TemporaryDirectory(dir=given.folder or (shared if roomy else None), prefix="bench-") as folder:
        for name in names:
            row, good = measure(name, 0.1 if given.quick else 1.0, runs, Path(folder), peer)
            print(row, flush=True)
            all_good &= good
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
