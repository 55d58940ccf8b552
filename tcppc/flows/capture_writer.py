"""Packet captures written: pcap with nanoseconds (draft-ietf-opsawg-pcap)."""

from __future__ import annotations

import struct
from typing import IO

from tcppc.flows.capture_files import Packet
from tcppc.flows.flow import Flow
from tcppc.flows.listener import Listener
from tcppc.flows.names import Template
from tcppc.flows.stream_files import Pieces, StreamFile, StreamFiles

SNAPLEN = 262_144
_MICROSECONDS, _NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D


def header(link: int, nanoseconds: bool = True) -> bytes:
    magic = _NANOSECONDS if nanoseconds else _MICROSECONDS
    return struct.pack("<IHHiIII", magic, 2, 4, 0, 0, SNAPLEN, link)


def record(packet: Packet, nanoseconds: bool = True) -> bytes:
    seconds, rest = divmod(packet.instant, 10**9)
    fraction = rest if nanoseconds else rest // 1000
    return struct.pack("<IIII", seconds & 0xFFFFFFFF, fraction, len(packet.data), packet.size) + packet.data


class Writer:
    """To one file; a pcap file has one link type, so that packets of others than the first one's are `left_out`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._link = -1
        self.left_out = 0

    def __call__(self, packet: Packet) -> None:
        if self._link < 0:
            self._link = packet.link
            self._file.write(header(packet.link))
        if packet.link == self._link:
            self._file.write(record(packet))
        else:
            self.left_out += 1

    def close(self) -> None:
        if self._link < 0:
            self._file.write(header(1))
        self._file.close()


class Kept(Listener):
    """-K: a capture a stream, named as its file would be."""

    by_packet = True

    def __init__(self, folder: str, template: Template, most_open: int) -> None:
        self._files = StreamFiles(folder, template, most_open)
        self._of: dict[Flow, tuple[StreamFile, int]] = {}  # with its link type
        self.left_out = 0

    def packet(self, flow: Flow, packet: Packet) -> None:
        content = record(packet)
        if flow not in self._of:
            self._of[flow] = StreamFile(flow.named), packet.link
            content = header(packet.link) + content
        file, link = self._of[flow]
        if packet.link != link:
            self.left_out += 1
            return
        self._files.put(file, file.size, Pieces.of(content), len(content))

    def settle(self) -> None:
        self._files.flush()

    def ended(self, flow: Flow) -> None:
        file, _ = self._of.pop(flow, (None, 0))
        if file:
            self._files.flush_one(file)
            self._files.close(file)
