"""What the kernel hands to the watch: a program in classic BPF, which it runs on each packet's headers.

Instructions are those of linux/filter.h and Documentation/networking/filter.rst. The socket is a cooked one, so that
offset 0 is the network header on every kind of interface; the kernel has taken the outer VLAN tag off, another may
stand there still.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Sequence

from tcppc.protocols.packet import ACK, IPV4, IPV6, RST, VLAN

SNAP_BYTES = 256  # of a packet: all headers that are looked at
_LD_W, _LD_H, _LD_B = 0x20, 0x28, 0x30  # absolute
_LD_H_X, _LD_B_X = 0x48, 0x50  # relative to X
_LDX, _TAX, _RETURN = 0x01, 0x07, 0x06
_JEQ, _JSET, _AND, _LSH, _ADD_X = 0x15, 0x45, 0x54, 0x64, 0x0C
_ANCILLARY = 0xFFFFF000  # SKF_AD_OFF
_PROTOCOL, _PKTTYPE = _ANCILLARY, _ANCILLARY + 4
OUTGOING = 4  # PACKET_OUTGOING of linux/if_packet.h
_TCP, _UDP = 6, 17
_EXTENSIONS = (0, 43, 44, 60)  # of IPv6: what they hide is looked for in Python
_ATTACH = 26  # SO_ATTACH_FILTER of asm-generic/socket.h
_FRAGMENT_OFFSET, _MORE_FRAGMENTS = 0x1FFF, 0x2000

# A line is a label, or an instruction: code, operand and, for jumps, the labels for true and false; "" goes on.
_Line = str | tuple[int, int] | tuple[int, int, str, str]


def _any_of(values: Sequence[int], found: str) -> list[_Line]:
    return [(_JEQ, value, found, "") for value in values]


def _lines() -> list[_Line]:
    refused = RST | ACK  # no probe has them; all else that opens nothing, as FIN alone or no flag at all, is one
    return [
        (_LDX, 0),
        (_LD_W, _PROTOCOL),
        (_JEQ, IPV4, "ipv4", ""),
        (_JEQ, IPV6, "ipv6", ""),
        *_any_of(VLAN, "tag"),
        (_RETURN, 0),
        "tag",
        (_LD_H, 2),
        (_LDX, 4),
        (_JEQ, IPV4, "ipv4", ""),
        (_JEQ, IPV6, "ipv6", "drop"),
        "ipv4",
        (_LD_H_X, 6),
        (_JSET, _FRAGMENT_OFFSET, "drop", ""),
        (_JSET, _MORE_FRAGMENTS, "fragment", ""),
        (_LD_B_X, 9),
        (_JEQ, _UDP, "take", ""),
        (_JEQ, _TCP, "", "drop"),
        (_LD_B_X, 0),
        (_AND, 0x0F),
        (_LSH, 2),
        (_ADD_X, 0),
        (_TAX, 0),
        (_LD_B_X, 13),
        (_JSET, refused, "drop", "tcp"),
        "fragment",  # its TCP header may be cut before its flags
        (_LD_B_X, 9),
        (_JEQ, _TCP, "tcp", ""),
        (_JEQ, _UDP, "take", "drop"),
        "ipv6",
        (_LD_B_X, 6),
        (_JEQ, _UDP, "take", ""),
        *_any_of(_EXTENSIONS, "take"),
        (_JEQ, _TCP, "", "drop"),
        (_LD_B_X, 40 + 13),
        (_JSET, refused, "drop", "tcp"),
        "tcp",
        (_LD_W, _PKTTYPE),
        (_JEQ, OUTGOING, "drop", "take"),
        "take",
        (_RETURN, SNAP_BYTES),
        "drop",
        (_RETURN, 0),
    ]


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def program() -> list[tuple[int, int, int, int]]:
    """The instructions as (code, jump if true, jump if false, operand)."""
    places: dict[str, int] = {}
    instructions: list[tuple[int, ...] | tuple[int, int, str, str]] = []
    for line in _lines():
        if isinstance(line, str):
            places[line] = len(instructions)
        else:
            instructions.append(line)
    found = []
    for at, (code, operand, *targets) in enumerate(instructions):
        jumps = [places[str(name)] - at - 1 if name else 0 for name in targets] or [0, 0]
        found.append((int(code), jumps[0], jumps[1], int(operand)))
    return found


def attach(sock: socket.socket) -> None:
    """Have the kernel run it for this socket. OSError where it refuses."""
    code = [_Instruction(*each) for each in program()]
    array = (_Instruction * len(code))(*code)
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH, bytes(_Program(len(code), array)))
