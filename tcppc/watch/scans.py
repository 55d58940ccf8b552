"""Scans among probes: many ports of one host, or one port of many hosts, from one source, within a window.

There are two windows: the short one is tcpcap's, the long one finds who waits between two probes. A source is an IPv4
address or an IPv6 /64. All that is remembered is charged with what it costs, and stays within `Rules.memory`: who was
silent longest is forgotten first, at constant cost each, and of each source MOST_TARGETS targets are remembered. A
source is one bytes object, a record of 15 or 27 bytes a target, the latest last, and is replaced as a whole: an
exception never leaves half of it. Charges are counted anew after one. It has room for 1, 2, 4… targets, with zeros in
front: were it of each length, malloc could not use again what growing sources leave. A source that is told no more,
since so many of its scans go on, is a bytearray: what it touches is added at its end, and sorted out later.
"""

from __future__ import annotations

import struct
import sys
from collections import OrderedDict
from typing import NamedTuple

from tcppc.protocols.packet import Packet
from tcppc.sightings import Scan
from tcppc.watch.running import Running

MOST_TARGETS = 64  # of a source in which no scan was found yet
MOST_RUNNING = 1024  # scans that go on at once; what was found earliest ends first
MOST_RUNNING_OF_SOURCE = 16  # further ones of a source with so many are not told one by one
RUNNING_SHARE = 4  # of the memory, for scans that go on
MOST_LOOSE = 320  # records of a source that are not sorted out yet
MOST_TOLD = 32  # scans that one call of `ended` hands over: each may hold some kB

# What a source costs beside its records: its key, a bytes object of 41 bytes at most, as malloc rounds it, and its
# place in the order of the OrderedDict.
SOURCE_CHARGE = 48 + 32
# Of the OrderedDict's table, a slot: index 4, two thirds of an entry of 24, place of the node 8. While CPython makes it
# anew, old and new are there: a power of two at least three times as large as there are sources.
_SLOT_BYTES = 28

_NUMBER = {"tcp": 6, "udp": 17}
# A target and when it was touched last: port, protocol, address, instant. In this order, so that "this port of any
# host" and "any port of this host" are each a run of bytes.
_PACK4, _PACK6 = struct.Struct(">HB4sQ").pack, struct.Struct(">HB16sQ").pack
_EACH4, _EACH6 = struct.Struct(">H5sQ").iter_unpack, struct.Struct(">H17sQ").iter_unpack

_Same = bytes | int  # what all probes of a scan share: its host or port; of UDP neither looks like one of TCP


class Rules(NamedTuple):
    """How many different ports or hosts within how many seconds make a scan; 0 ports or hosts: never. What may be
    remembered: sources, and bytes in all."""

    ports: int = 3
    hosts: int = 10
    window: float = 60.0
    slow_ports: int = 10
    slow_hosts: int = 20
    slow_window: float = 6 * 3600.0
    sources: int = 1 << 18
    memory: int = 64 << 20


def _cost(records: bytes | bytearray) -> int:
    """Of a bytes object, as malloc rounds it; of a bytearray the most that it may become, which is an eighth over its
    longest."""
    if isinstance(records, bytearray):
        return MOST_LOOSE * 31 + 128
    return (len(records) + 48) & ~15


def _sorted_out(records: bytes | bytearray, size: int) -> bytes:
    """The latest record of each target, of the latest targets."""
    latest: dict[bytes, bytes] = {}
    for at in range(len(records) - size, -1, -size):
        record = bytes(records[at : at + size])
        if len(latest) == MOST_TARGETS or not record[2]:
            break
        latest.setdefault(record[:-8], record)
    room = (1 << (len(latest) - 1).bit_length()) - len(latest)
    return bytes(room * size) + b"".join(reversed(latest.values()))


def _same(proto: str, shared: bytes | int) -> _Same:
    if proto == "tcp":
        return shared
    return shared + 65536 if isinstance(shared, int) else shared + b"u"


def _most_sources(memory: int) -> int:
    """So many of one target each fit, with the table as it is while it is made anew."""
    least = SOURCE_CHARGE + _cost(b"")
    return max(min((1 << bits) // 3, (memory - (2 * _SLOT_BYTES << bits)) // least) for bits in range(4, 32))


class Detector:
    """Told of each probe; belongs to one thread. `forgotten` sources had to make room for others."""

    def __init__(self, rules: Rules) -> None:
        self.forgotten = 0
        self._sources: OrderedDict[bytes, bytes | bytearray] = OrderedDict()  # who was silent longest first
        # Scans that go on: of each source; those of the short and of the long window, who was silent longest first.
        self._going: dict[bytes, dict[_Same, Running]] = {}
        self._order: tuple[OrderedDict[Running, bytes], OrderedDict[Running, bytes]] = OrderedDict(), OrderedDict()
        self._held = 0  # bytes of both, without the table of sources
        self._held_running = 0
        self._whole = True  # False after an exception, since charges may be wrong, and where there are new rules
        self._short = False  # after one for want of memory
        self._wanted = rules
        self._go_by(rules)

    @property
    def rules(self) -> Rules:
        """May be set by another thread; the next call goes by them."""
        return self._wanted

    @rules.setter
    def rules(self, rules: Rules) -> None:
        self._wanted = rules
        self._whole = False

    def _go_by(self, rules: Rules) -> None:
        self._rules = rules
        self._windows = (
            (False, rules.window, round(rules.window * 1e9), rules.ports, rules.hosts),
            (True, rules.slow_window, round(rules.slow_window * 1e9), rules.slow_ports, rules.slow_hosts),
        )
        self._slow_window = self._windows[1][2]
        # So few are never a scan.
        self._least_ports = min(rules.ports or 65536, rules.slow_ports or 65536)
        self._least_hosts = min(rules.hosts or 65536, rules.slow_hosts or 65536)
        self._next_expiry = 0  # before then none of those who are remembered is too old
        self._most_ever = min(rules.sources, _most_sources(rules.memory))
        self._most = self._room = -1  # with the table as it is; measured with the next source

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def held(self) -> int:
        """Bytes of `rules.memory` in use. Read by another thread it is about right."""
        return max(0, self._held + sys.getsizeof(self._sources) - 32 * len(self._sources))

    def probe(self, instant: int, packet: Packet, tool: str) -> list[Scan]:
        """The scans that this probe completes, and before them those that it ends for want of memory."""
        try:
            if not self._whole:
                self._recount()
            src = packet.src
            if len(src) == 4:
                key, pack = src, _PACK4
            else:
                key, pack = src[:8], _PACK6
            going = self._going.get(key) if self._going else None
            if going is not None and self._goes_on(key, going, instant, packet):
                return self._end_some(instant)
            record = pack(packet.dport, 6 if packet.proto == "tcp" else 17, packet.dst, instant)
            sources = self._sources
            before = sources.get(key)
            if before is None:
                self._remember(key, record, instant)
                return []
            sources.move_to_end(key)
            if len(before) == len(record) and (
                before[:-8] == record[:-8] or instant - int.from_bytes(before[-8:], "big") > self._slow_window
            ):
                sources[key] = record  # it knows this one target alone
                return []
            if going is not None and len(going) >= MOST_RUNNING_OF_SOURCE:
                self._add(key, before, record)
                return []
            records = self._with(key, before, record)
            # Runs of bytes may be found in the middle of records too: never too few of them.
            if records.count(record[2:-8]) < self._least_ports and records.count(record[:3]) < self._least_hosts:
                return []
            begun = self._look(key, records, instant, packet, tool)
            return self._end_some(instant) + begun if begun else begun
        except BaseException as problem:
            self._whole, self._short = False, isinstance(problem, MemoryError)
            raise

    def _remember(self, key: bytes, record: bytes, instant: int) -> None:
        """A source that is new here."""
        sources = self._sources
        sources[key] = record
        self._held += SOURCE_CHARGE + _cost(record)
        if instant > self._next_expiry:
            self._expire(instant)
        if self._held > self._room or len(sources) > self._most:
            self._make_room()

    def _add(self, key: bytes, before: bytes | bytearray, record: bytes) -> None:
        """One record more of a source whose next scan is not told."""
        if len(before) >= MOST_LOOSE * len(record):
            self._put(key, before, _sorted_out(before + record, len(record)))
        elif isinstance(before, bytearray):
            before += record
        else:
            self._put(key, before, bytearray(before + record))

    def _put(self, key: bytes, before: bytes | bytearray, records: bytes | bytearray) -> None:
        self._sources[key] = records
        self._held += _cost(records) - _cost(before)
        if self._held > self._room:
            self._make_room()

    def _with(self, key: bytes, before: bytes | bytearray, record: bytes) -> bytes:
        """The records of a known source with this one, the latest last."""
        size, target = len(record), record[:-8]
        if isinstance(before, bytearray):
            records = _sorted_out(before + record, size)
            self._put(key, before, records)
            return records
        at = before.find(target)
        while at > 0 and at % size:
            at = before.find(target, at + 1)
        if at >= 0:
            records = self._sources[key] = before[:at] + before[at + size :] + record
        elif not before[2] or len(before) >= MOST_TARGETS * size:
            records = self._sources[key] = before[size:] + record
        else:
            records = bytes(len(before) - size) + before + record
            self._put(key, before, records)
        return records

    def _expire(self, instant: int) -> None:
        """Two at most go for each that comes, so that no probe is held up by many."""
        sources = self._sources
        for _ in range(2):
            until = int.from_bytes(sources[next(iter(sources))][-8:], "big") + self._slow_window
            if instant <= until:
                self._next_expiry = until
                return
            self._held -= SOURCE_CHARGE + _cost(sources.popitem(last=False)[1])

    def _make_room(self) -> None:
        """Forget who was silent longest, but for the one that was seen just now."""
        sources = self._sources
        if len(sources) <= self._most // 4 or self._most < min(len(sources), self._most_ever):
            self._measure()
        while (self._held > self._room or len(sources) > self._most) and len(sources) > 1:
            self._held -= SOURCE_CHARGE + _cost(sources.popitem(last=False)[1])
            self.forgotten += 1

    def _measure(self) -> None:
        """How much of the memory the table leaves, and up to how many sources."""
        number = len(self._sources)
        bits = (3 * number).bit_length()
        if number == (1 << bits >> 1) // 3 + 1 and (number > self._most_ever or self._room_beside(bits) < self._held):
            bits -= 1  # rather one goes than that the table grows, and many go
        self._room = self._room_beside(bits)
        self._most = min(self._most_ever, (1 << bits) // 3)

    def _room_beside(self, bits: int) -> int:
        """What a table of so many bits leaves, the one that is there now and the one that it is copied to."""
        now, anew = sys.getsizeof(self._sources) - 32 * len(self._sources), _SLOT_BYTES << bits
        return self._rules.memory - max(now, anew) - anew

    def _recount(self) -> None:
        """Make the charges right, and go by new rules. Where memory ran out, half of the sources go first. An exception
        in here is as one of any other line."""
        self._whole = True
        if self._rules is not self._wanted:
            self._go_by(self._wanted)
        for _ in range(len(self._sources) // 2 if self._short else 0):
            self._sources.popitem(last=False)
            self.forgotten += 1
        self._short = False
        going: dict[bytes, dict[_Same, Running]] = {}
        held = 0
        for order in self._order:
            for scan, key in order.items():
                scan.cost = scan.measured()
                held += scan.cost
                going.setdefault(key, {})[_same(scan.proto, scan.same)] = scan
        self._going, self._held_running = going, held
        for records in self._sources.values():
            held += SOURCE_CHARGE + _cost(records)
        self._held = held
        self._measure()
        self._make_room()

    def _goes_on(self, key: bytes, going: dict[_Same, Running], instant: int, packet: Packet) -> bool:
        """Is it one more probe of scans that are known?"""
        if packet.proto == "tcp":
            ports, hosts = going.get(packet.dst), going.get(packet.dport)
        else:
            ports, hosts = going.get(_same("udp", packet.dst)), going.get(_same("udp", packet.dport))
        if ports is not None:
            self._extend(ports, instant, packet.dport)
        if hosts is not None:
            self._extend(hosts, instant, packet.dst)
        elif ports is None:
            return False
        if key in self._sources:
            self._sources.move_to_end(key)
        return True

    def _extend(self, scan: Running, instant: int, one: int | bytes) -> None:
        more = scan.add(instant, one)
        self._order[scan.slow].move_to_end(scan)
        if more:
            scan.cost += more
            self._held += more
            self._held_running += more
            if self._held > self._room:
                self._make_room()

    def _look(self, key: bytes, records: bytes, instant: int, packet: Packet, tool: str) -> list[Scan]:
        src, proto, dst, dport, sport = packet.src, packet.proto, packet.dst, packet.dport, packet.sport
        host = bytes([_NUMBER[proto]]) + dst
        ports: list[tuple[int, int]] = []
        hosts: list[tuple[int, bytes]] = []
        for port, whom, when in (_EACH4 if len(src) == 4 else _EACH6)(records):
            if whom == host:
                ports.append((when, port))
            if port == dport and whom[0] == host[0]:
                hosts.append((when, whom[1:]))
        for slow, seconds, window, most_ports, most_hosts in self._windows:
            since = instant - window
            scans = []
            near_ports = [each for each in ports if each[0] >= since]
            if most_ports and len(near_ports) >= most_ports:
                scans.append(Running("ports", proto, src, sport, tool, slow, dst, near_ports, instant))
            near_hosts = [each for each in hosts if each[0] >= since]
            if most_hosts and len(near_hosts) >= most_hosts:
                scans.append(Running("hosts", proto, src, sport, tool, slow, dport, near_hosts, instant))
            if scans:
                told = [scan.told(instant, seconds, ended=False) for scan in scans]
                for scan in scans:
                    self._begin(key, scan)
                return told
        return []

    def _begin(self, key: bytes, scan: Running) -> None:
        self._order[scan.slow][scan] = key
        self._going.setdefault(key, {})[_same(scan.proto, scan.same)] = scan
        self._held += scan.cost
        self._held_running += scan.cost
        if self._held > self._room:
            self._make_room()

    def _end_some(self, instant: int) -> list[Scan]:
        """Those that were silent longest, where scans that go on hold more than their share."""
        found: list[Scan] = []
        while self._held_running > self._rules.memory // RUNNING_SHARE:
            oldest = [next(iter(order)) for order in self._order if order]
            found.append(self._end(min(oldest, key=lambda scan: scan.last), instant))
        return found

    def _end(self, scan: Running, instant: int) -> Scan:
        told = scan.told(instant, self._windows[scan.slow][1], ended=True)
        key = self._order[scan.slow].pop(scan)
        going = self._going[key]
        del going[_same(scan.proto, scan.same)]
        if not going:
            del self._going[key]
        self._held -= scan.cost
        self._held_running -= scan.cost
        return told

    def ended(self, instant: int) -> list[Scan]:
        """Scans that came to their end before `instant`: silent for a window, or too many others go on. MOST_TOLD of
        them; asked again until there are none, it tells all."""
        return self._ended(instant, all_of_them=False)

    def all_ended(self, instant: int) -> list[Scan]:
        """The watch ends: so do all. As `ended`, MOST_TOLD of them."""
        return self._ended(instant, all_of_them=True)

    def _ended(self, instant: int, all_of_them: bool) -> list[Scan]:
        found: list[Scan] = []
        try:
            if not self._whole:
                self._recount()
            for order, (_, _, window, _, _) in zip(self._order, self._windows, strict=True):
                while order and len(found) < MOST_TOLD:
                    scan = next(iter(order))
                    if not all_of_them and instant - scan.last <= window and len(order) <= MOST_RUNNING:
                        break
                    found.append(self._end(scan, instant))
        except BaseException as problem:
            self._whole, self._short = False, isinstance(problem, MemoryError)
            if not found or not self._short:
                raise  # what is found is told, the rest with the next call
        return found
