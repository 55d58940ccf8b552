"""The SYN watch's thread: what the ring sees becomes lines in the log and the data file, and events for the actions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address

from tcppc.capture.books import Books
from tcppc.capture.intake import Intake
from tcppc.capture.supervisor import Supervised
from tcppc.log import Log
from tcppc.protocols.packet import ACK, RST, SYN, Packet, decode
from tcppc.sightings import Probe, Scan, said, scan_said
from tcppc.watch import own, tools
from tcppc.watch.datagrams import FLOWS_SHARE, Flows
from tcppc.watch.ring import Ring, Seen, interface_gone
from tcppc.watch.scans import Detector, Rules

RECORDS = ("all", "scans", "off")
WAIT_SECONDS = 1.0
LOOK_SECONDS = 60.0  # how often own addresses are looked for anew
RETRY_SECONDS = 5.0  # how often an interface that is gone
MOST_SAID = 50  # lines about scans a second
SAY_AGAIN_SECONDS = 60.0
SCANS_AT_ONCE = 64  # told together: in a flood each packet may begin one, and each may hold some kB
_UNICAST = 0  # PACKET_HOST of linux/if_packet.h: neither broadcast, multicast nor another host's

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Terms:
    """What a watch goes by; a reload makes new ones."""

    rules: Rules = field(default_factory=Rules)
    own: tuple[Network, ...] = ()  # beside the addresses that are found
    record: str = "all"
    talkative: bool = True
    udp: bool = True


class Watch:
    """One interface. `act(sighting)` is called for each SYN and each scan that begins; it must return at once."""

    def __init__(
        self,
        interface: str,
        terms: Terms,
        books: Books,
        intake: Intake,
        log: Log,
        act: Callable[[Probe | Scan], None] | None = None,
    ) -> None:
        self.interface = interface
        self.terms = terms
        self.act = act
        self._books = books
        self._intake = intake
        self._log = log
        self._ring = Ring("" if interface == "any" else interface)
        self.detector = Detector(_of_detector(terms.rules))
        self._flows = Flows(terms.rules.memory // FLOWS_SHARE)
        self._own: set[bytes] = set()
        self._looked = 0.0
        self._gone = False
        self._second = self._said = self._unsaid = 0  # lines about scans in this second, and those left out
        self._forgotten = 0  # sources, that were counted
        self._short = ""  # what there was no memory for, until it is said
        self._told_short = -SAY_AGAIN_SECONDS
        self._stopping = False
        self.thread = Supervised(f"watch {interface}", self._run, log, books.error)

    def start(self) -> None:
        self.thread.start()

    def stop(self, timeout: float) -> None:
        """See what has come, then end."""
        self._stopping = True
        self.thread.stop()
        self._ring.wake()
        if self.thread.join(timeout):
            self._ring.close()

    def set_terms(self, terms: Terms) -> None:
        self.terms = terms
        self.detector.rules = _of_detector(terms.rules)
        self._flows.memory = terms.rules.memory // FLOWS_SHARE
        self._looked = 0.0

    def well(self) -> bool:
        return self.thread.well

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._round()
            except OSError as problem:
                self._books.error("watch_errors")
                if not interface_gone(problem):
                    self._log(f"Watch {self.interface}: {problem.strerror}; going on.")
                self._wait_for_interface(problem)
            except MemoryError:
                self._no_memory("a round")
                time.sleep(0.1)
            except Exception as problem:  # a bug of ours must not end the watch
                self._books.error("watch_errors")
                self._log(f"Watch {self.interface}: {type(problem).__name__}: {problem}; going on.")
                time.sleep(0.1)
        self._take_all()
        while scans := self.detector.all_ended(time.time_ns()):
            self._tell(scans)
        self._count()

    def _round(self) -> None:
        self._ring.wait(WAIT_SECONDS)
        now = time.monotonic()
        if not self._looked or now - self._looked > LOOK_SECONDS:
            self._own, self._looked = own.addresses(), now
        self._take_all()
        while scans := self.detector.ended(time.time_ns()):
            self._tell(scans)
        self._count()
        self._say_short()

    def _take_all(self) -> None:
        for block in self._ring.take():
            self._take(block)

    def _count(self) -> None:
        """What the kernel lost and what the detector forgot, and a line the first time."""
        if (drops := self._ring.count_drops()) and self._books.error("watch_kernel_drops", drops) == drops:
            self._log(f"Watch {self.interface}: packets come faster than they can be looked at; lost ones are counted.")
        if forgotten := self.detector.forgotten - self._forgotten:
            self._books.error("watch_sources_forgotten", forgotten)
            if not self._forgotten:
                self._log(
                    f"Watch {self.interface}: more sources than watch.memory and watch.sources hold: who was silent "
                    "longest is forgotten, and counted."
                )
            self._forgotten += forgotten

    def _no_memory(self, what: str) -> None:
        """The machine has none for this; what comes next may find some."""
        self._short = what
        try:
            self._books.error("watch_errors")
            self._say_short()
        except MemoryError:  # not even to say so: a later round will
            return

    def _say_short(self) -> None:
        if self._short and time.monotonic() - self._told_short >= SAY_AGAIN_SECONDS:
            count = self._books.errors["watch_errors"]
            self._log(f"Watch {self.interface}: out of memory at {self._short} ({count} faults so far); going on.")
            self._short, self._told_short = "", time.monotonic()

    def _wait_for_interface(self, problem: OSError) -> None:
        if not self._gone:
            self._gone = True
            self._log(
                f"Watch {self.interface}: {problem.strerror}: nothing is seen there until it is back; all else goes on."
            )
        while not self._stopping:
            try:
                self._ring.bind()
            except OSError as still:
                if not interface_gone(still):
                    raise
                self._ring.pause(RETRY_SECONDS)
                continue
            self._gone = False
            self._log(f"Watch {self.interface}: it is back.")
            return

    def _take(self, block: list[Seen]) -> None:
        """The packets of one block: sorted into what is no stranger's, datagrams, and probes."""
        probes: list[Probe] = []
        scans: list[Scan] = []
        udp = 0
        detector = self.detector
        for seen in block:
            try:
                packet = decode(seen.data, seen.kind)
                if packet is None:
                    continue
                if packet.proto == "udp":
                    if self.terms.udp and self._is_probe(seen, packet):
                        udp += 1
                        scans += detector.probe(seen.instant, packet, "")
                    continue
                if seen.outgoing or self._is_own(seen, packet.src):
                    continue
                # Behind extension headers or in a fragment, where the kernel did not look.
                if packet.flags & (ACK | RST):
                    continue
                tool = tools.name(packet, seen.data)
                probes.append(Probe(seen.instant, packet, seen.data, seen.vlan, self.interface, tool))
                scans += detector.probe(seen.instant, packet, tool)
            except MemoryError:
                self._no_memory("a packet")
            if len(scans) >= SCANS_AT_ONCE:
                self._tell(scans)
                scans = []
        syns = sum([1 for probe in probes if probe.packet.flags & SYN])
        self._books.saw(syns, len(probes) - syns, udp)
        self._tell_probes(probes)
        self._tell(scans)

    def _is_own(self, seen: Seen, src: bytes) -> bool:
        """Did this host send it? On its loopback interface alone that is what there is to see."""
        if src in self._own and (self.interface == "any" or not seen.loopback):
            return True
        return bool(self.terms.own) and any(
            network.version == (4 if len(src) == 4 else 6) and ip_address(src) in network for network in self.terms.own
        )

    def _is_probe(self, seen: Seen, packet: Packet) -> bool:
        if seen.outgoing:
            self._flows.ours(packet.dst, packet.dport, packet.sport, outgoing=True)
            return False
        if seen.direction != _UNICAST or self._is_own(seen, packet.src):
            return False
        return not self._flows.ours(packet.src, packet.sport, packet.dport, outgoing=False)

    def _tell_probes(self, probes: list[Probe]) -> None:
        if self.terms.talkative and probes:
            try:
                stamp = self._log.zone.format("%Y-%m-%d %H:%M:%S: ", probes[0].instant // 1_000_000_000)
                self._log.write_text([f"{stamp}{said(probe)}\n" for probe in probes])
            except MemoryError:
                self._log.lost += len(probes)
                self._no_memory("log lines")
        if self.terms.record == "all" and probes:
            self._record(probes)
        for probe in probes if self.act else ():
            self._act(probe)

    def _act(self, seen: Probe | Scan) -> None:
        try:
            if self.act:
                self.act(seen)
        except MemoryError:
            self._no_memory("an action")

    def _tell(self, scans: list[Scan]) -> None:
        for scan in scans:
            try:
                self._say(scan)
            except MemoryError:
                self._log.lost += 1
                self._no_memory("a log line")
            if not scan.ended:
                self._books.scan(scan.kind, scan.proto, scan.slow)
                self._act(scan)
        if self.terms.record != "off" and scans:
            self._record(scans)

    def _say(self, scan: Scan) -> None:
        """A line, unless there are too many of them: sources that are made up can make up scans."""
        second = scan.instant // 1_000_000_000
        if second != self._second:
            if self._unsaid:
                self._log(
                    f"Watch {self.interface}: {self._unsaid} more scans in a second; they are counted, and recorded."
                )
            self._second, self._said, self._unsaid = second, 0, 0
        self._said += 1
        if self._said > MOST_SAID:
            self._unsaid += 1
            return
        stamp = self._log.zone.format("%Y-%m-%d %H:%M:%S: ", second)
        self._log.write_text([f"{stamp}{scan_said(scan)}\n"])

    def _record(self, sightings: Sequence[Probe | Scan]) -> None:
        """To the writer, as far as there is memory. Each is charged, and handed over or given back."""
        left = sum([seen.charge for seen in sightings])
        if self._books.take_sightings(left):
            done = 0
            try:
                for done, seen in enumerate(sightings):  # noqa: B007 - how far it came
                    self._intake.put(seen)
            except MemoryError:
                self._books.give_sightings(sum([seen.charge for seen in sightings[done:]]))
                self._books.error("sightings_not_recorded", len(sightings) - done)
                self._no_memory("records")
            return
        for seen in sightings:  # memory is nearly out
            if not self._books.take_sightings(seen.charge):
                self._books.error("sightings_not_recorded")
                continue
            try:
                self._intake.put(seen)
            except MemoryError:
                self._books.give_sightings(seen.charge)
                self._books.error("sightings_not_recorded")


def _of_detector(rules: Rules) -> Rules:
    """Its share of the memory."""
    return rules._replace(memory=rules.memory - rules.memory // FLOWS_SHARE)
