"""An AF_PACKET socket whose packets the kernel puts into memory that is shared with it (TPACKET_V3): no system call a
packet. Layouts are those of linux/if_packet.h and Documentation/networking/packet_mmap.rst."""

from __future__ import annotations

import errno
import mmap
import os
import select
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from tcppc.watch import filter as kernel_filter

BLOCK_BYTES = 1 << 20
BLOCKS = 16
FRAME_BYTES = 2048  # the kernel wants one, and to know how many; packets of version 3 take what they need
# A block that is not full is handed over after so long: how late the third SYN of a scan is known, at most.
RETIRE_MILLISECONDS = 10
_SOL_PACKET, _RX_RING, _STATISTICS, _VERSION = 263, 5, 6, 10
_TPACKET_V3 = 2
_ALL = 0x0003  # ETH_P_ALL
_USER = 1  # TP_STATUS_USER: the block is ours
_BLOCK = struct.Struct("=8xIII").unpack_from  # tpacket_block_desc: status, packets, offset of the first
# tpacket3_hdr: next, seconds, nanoseconds, bytes here, bytes on the wire, status, offsets of the headers, hash, VLAN
# tag and its ether type; behind it, aligned to 16, sockaddr_ll: ether type, interface, kind of hardware, of packet.
_PACKET = struct.Struct("=IIIIIIHHIIHxx8x2xHiHB")
_SIZE = _PACKET.size
_unpack = _PACKET.unpack_from
_VLAN_VALID = 1 << 4


class Seen(NamedTuple):
    """A packet as the ring has it: `kind` is the ether type of what `data` begins with."""

    instant: int  # nanoseconds since the epoch, by the kernel's clock
    kind: int
    direction: int  # PACKET_HOST, _BROADCAST, _MULTICAST, _OTHERHOST or _OUTGOING of linux/if_packet.h
    loopback: bool
    vlan: int  # the outer tag's number, or -1
    data: bytes

    @property
    def outgoing(self) -> bool:
        return self.direction == kernel_filter.OUTGOING


class Ring:
    """All probes that one interface, or "" for all, sees. OSError from the constructor: PermissionError without
    CAP_NET_RAW, ENODEV where there is no such interface."""

    def __init__(self, interface: str, blocks: int = BLOCKS) -> None:
        self.interface = interface
        self.drops = 0  # packets for which there was no room, so far
        self._blocks = blocks
        self._next = 0
        # What a socket for all interfaces takes before its filter is there goes no further: the ring begins empty.
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0 if interface else socket.htons(_ALL))
        try:
            # Before it is bound, so that nothing comes that the filter would not have let through.
            kernel_filter.attach(self._sock)
            self._sock.setsockopt(_SOL_PACKET, _VERSION, struct.pack("i", _TPACKET_V3))
            frames = blocks * (BLOCK_BYTES // FRAME_BYTES)
            wanted = struct.pack("IIIIIII", BLOCK_BYTES, blocks, FRAME_BYTES, frames, RETIRE_MILLISECONDS, 0, 0)
            self._sock.setsockopt(_SOL_PACKET, _RX_RING, wanted)
            self._memory = mmap.mmap(self._sock.fileno(), BLOCK_BYTES * blocks, mmap.MAP_SHARED)
            self.bind()
        except OSError:
            self._sock.close()
            raise
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN | select.POLLERR)
        self._poll.register(self._wake, select.POLLIN)

    def bind(self) -> None:
        """To the interface of that name as it is now, also after it was gone. OSError where there is none."""
        if self.interface:
            self._sock.bind((self.interface, _ALL))

    def close(self) -> None:
        self._memory.close()
        self._sock.close()
        os.close(self._wake)

    def wake(self) -> None:
        """End `wait` now."""
        os.eventfd_write(self._wake, 1)

    def wait(self, seconds: float) -> None:
        """Until a block is there, `wake` was called or `seconds` have passed. OSError (ENETDOWN) where the interface
        went down or away."""
        for fd, event in self._poll.poll(seconds * 1000):
            if fd == self._wake:
                os.eventfd_read(self._wake)
            elif event & select.POLLERR:
                code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code))

    def pause(self, seconds: float) -> None:
        """Sleep, until `wake` is called or `seconds` have passed."""
        if select.select([self._wake], [], [], seconds)[0]:
            os.eventfd_read(self._wake)

    def take(self) -> Iterator[list[Seen]]:
        """The packets of each block that is ready, in their order; at most all blocks once."""
        for _ in range(self._blocks):
            at = self._next * BLOCK_BYTES
            status, packets, first = _BLOCK(self._memory, at)
            if not status & _USER:
                return
            found = list(self._packets(at + first, packets))
            struct.pack_into("=I", self._memory, at + 8, 0)  # TP_STATUS_KERNEL: it may be filled anew
            self._next = (self._next + 1) % self._blocks
            yield found

    def _packets(self, at: int, count: int) -> Iterator[Seen]:
        memory = self._memory
        for _ in range(count):
            (
                following, seconds, nanoseconds, size, _, status, mac, _, _, tag, _, kind, _, hardware, direction,
            ) = _unpack(memory, at)  # fmt: skip
            begin = at + mac
            yield Seen(
                seconds * 1_000_000_000 + nanoseconds,
                kind >> 8 | (kind & 0xFF) << 8,
                direction,
                hardware == 772,  # ARPHRD_LOOPBACK
                tag & 0x0FFF if status & _VLAN_VALID else -1,
                memory[begin : begin + size],
            )
            at += following

    def count_drops(self) -> int:
        """Packets lost since the last call: the ring was full. The kernel forgets them with this call."""
        _, drops, _ = struct.unpack("III", self._sock.getsockopt(_SOL_PACKET, _STATISTICS, 12))
        self.drops += drops
        return int(drops)


def interface_gone(problem: OSError) -> bool:
    """Does this mean that the interface is down or away, and may come back?"""
    return problem.errno in (errno.ENETDOWN, errno.ENODEV, errno.ENXIO)
