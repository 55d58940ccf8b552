"""libpcap, of which two things are used: its compiler of expressions, and packets from an interface.

The library of the system is called through ctypes, by pcap(3PCAP). Without it captures are read all the same.
"""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_long, c_uint, c_void_p

from tcppc.flows import links
from tcppc.flows.capture_files import Packet

SNAPLEN = 262_144
BUFFER_BYTES = 16 << 20
WAIT_MS = 100  # until packets that came are given over, were they few
WAIT_SECONDS = 0.1
_NAMES = ("libpcap.so.0.8", "libpcap.so.1", "libpcap.so")
_ERROR_BYTES = 256  # PCAP_ERRBUF_SIZE
_NANO = 1  # PCAP_TSTAMP_PRECISION_NANO
_ETHERNET, _RAW = 1, 12
# Where a number in files (LINKTYPE_) is another in the library (DLT_), on Linux.
_DLT = {101: _RAW}


class PcapError(Exception):
    """What libpcap says, or that it is missing, in one line."""


class _Header(ctypes.Structure):
    _fields_ = (("seconds", c_long), ("fraction", c_long), ("captured", c_uint), ("size", c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", c_uint), ("instructions", c_void_p))


class _Stats(ctypes.Structure):
    _fields_ = (("received", c_uint), ("dropped", c_uint), ("dropped_by_interface", c_uint))


class _Interface(ctypes.Structure):
    """The beginning of pcap_if_t."""

    _fields_ = (("next", c_void_p), ("name", c_char_p))


def _library() -> ctypes.CDLL:
    for name in _NAMES:
        try:
            found = ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
        for function in ("pcap_open_dead", "pcap_create"):
            getattr(found, function).restype = c_void_p
        for function in ("pcap_geterr", "pcap_statustostr"):
            getattr(found, function).restype = c_char_p
        return found
    raise PcapError("expressions and -i need libpcap, which is not there: install it (Debian: libpcap0.8)")


class Filter:
    """An expression of pcap-filter(7). Call it with a link type and a packet: is it wanted?"""

    def __init__(self, expression: str) -> None:
        """PcapError where it is wrong for every kind of link."""
        self.expression = expression
        self._library = _library()
        self._programs: dict[int, _Program] = {}
        self._header = _Header()
        problems = []
        for link in (_ETHERNET, *sorted(links.LINKS)):  # what is wrong for one may mean something on another
            try:
                self._program(link)
                return
            except PcapError as problem:
                problems.append(problem)
        raise problems[0]

    def _program(self, link: int) -> _Program:
        """Compiled for that kind of link. PcapError where it has no meaning there."""
        if found := self._programs.get(link):
            return found
        library, program = self._library, _Program()
        handle = c_void_p(library.pcap_open_dead(_DLT.get(link, link), SNAPLEN))
        try:
            any_netmask = c_uint(0xFFFFFFFF)
            if library.pcap_compile(handle, byref(program), os.fsencode(self.expression), 1, any_netmask):
                said = library.pcap_geterr(handle).decode(errors="replace")
                raise PcapError(f"expression {self.expression!r}: {said}; see pcap-filter(7)")
        finally:
            library.pcap_close(handle)
        self._programs[link] = program
        return program

    def __call__(self, packet: Packet) -> bool:
        return self.at(packet.link, c_char_p(packet.data), len(packet.data), packet.size)

    def at(self, link: int, address: c_char_p | c_void_p, captured: int, size: int) -> bool:
        """The same of a packet in memory."""
        header = self._header
        header.captured, header.size = captured, size
        return bool(self._library.pcap_offline_filter(byref(self._program(link)), byref(header), address))


def default_interface() -> str:
    """The first that the library names. PcapError where there is none, or one may not look."""
    library, error = _library(), ctypes.create_string_buffer(_ERROR_BYTES)
    first = POINTER(_Interface)()
    if library.pcap_findalldevs(byref(first), error):
        raise PcapError(error.value.decode(errors="replace"))
    if not first:
        raise PcapError("no interface to listen on: expected -i IF, and the capabilities CAP_NET_RAW and CAP_NET_ADMIN")
    name = first.contents.name.decode()
    library.pcap_freealldevs(first)
    return str(name)


class Live:
    """Packets of an interface, as they come. PcapError where that cannot be had."""

    def __init__(self, interface: str, promiscuous: bool = True, expression: str = "") -> None:
        self._library = library = _library()
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        handle = library.pcap_create(os.fsencode(interface), error)
        if not handle:
            raise PcapError(f"-i {interface}: {error.value.decode(errors='replace')}")
        self._handle = c_void_p(handle)
        library.pcap_set_snaplen(self._handle, SNAPLEN)
        library.pcap_set_promisc(self._handle, int(promiscuous))
        library.pcap_set_timeout(self._handle, WAIT_MS)
        library.pcap_set_buffer_size(self._handle, BUFFER_BYTES)
        nanoseconds = library.pcap_set_tstamp_precision(self._handle, _NANO) == 0
        self._unit = 1 if nanoseconds else 1000
        status = library.pcap_activate(self._handle)
        if status < 0:
            said = (library.pcap_geterr(self._handle) or library.pcap_statustostr(status)).decode(errors="replace")
            said = said or library.pcap_statustostr(status).decode(errors="replace")
            raise PcapError(f"-i {interface}: {said}")
        self.link = int(library.pcap_datalink(self._handle))
        if expression:
            self._filter(expression)
        # The library's own waiting is deaf to signals.
        library.pcap_setnonblock(self._handle, 1, error)
        self._descriptor = int(library.pcap_get_selectable_fd(self._handle))

    def _filter(self, expression: str) -> None:
        program, library = _Program(), self._library
        compiled = library.pcap_compile(self._handle, byref(program), os.fsencode(expression), 1, c_uint(0xFFFFFFFF))
        if compiled or library.pcap_setfilter(self._handle, byref(program)):
            said = library.pcap_geterr(self._handle).decode(errors="replace")
            raise PcapError(f"expression {expression!r}: {said}; see pcap-filter(7)")

    def __iter__(self) -> Iterator[Packet | None]:
        """Packets; None when none came for a while. Ends where the interface does."""
        header, data = POINTER(_Header)(), c_void_p()
        following = self._library.pcap_next_ex
        while (status := following(self._handle, byref(header), byref(data))) >= 0:
            if status == 0 or data.value is None:
                select.select([self._descriptor], (), (), WAIT_SECONDS)
                yield None
                continue
            told = header.contents
            instant = told.seconds * 10**9 + told.fraction * self._unit
            yield Packet(instant, self.link, told.size, ctypes.string_at(data.value, told.captured))

    def why_it_ended(self) -> str:
        return str(self._library.pcap_geterr(self._handle).decode(errors="replace"))

    def lost(self) -> int:
        """Packets that came too fast, so far."""
        stats = _Stats()
        self._library.pcap_stats(self._handle, byref(stats))
        return int(stats.dropped + stats.dropped_by_interface)

    def close(self) -> None:
        self._library.pcap_close(self._handle)
