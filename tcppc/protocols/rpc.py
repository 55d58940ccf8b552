"""ONC RPC version 2 (RFC 5531): a call's header, and replies. XDR (RFC 4506): big-endian units of four bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

SUCCESS, PROG_UNAVAIL, PROG_MISMATCH, PROC_UNAVAIL, GARBAGE_ARGS = range(5)
MOST_AUTH = 400
"""Bytes of a credential, at most (RFC 5531 §8.2)."""


@dataclass(frozen=True)
class Call:
    """One call; `arguments` are the rest of the message."""

    xid: int
    program: int
    version: int
    procedure: int
    arguments: bytes


def read_call(data: bytes) -> Call:
    """ValueError for what is no call of RPC version 2."""
    if len(data) < 40:
        raise ValueError("shorter than a call's header")
    xid, kind, rpc, program, version, procedure = struct.unpack_from(">6I", data)
    if kind != 0 or rpc != 2:
        raise ValueError("no call of RPC version 2")
    at = 24
    for _ in ("credential", "verifier"):
        if len(data) < at + 8:
            raise ValueError("cut within its credentials")
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        if size > MOST_AUTH or len(data) < at + 8 + size:
            raise ValueError("a credential that is too long")
        at += 8 + size + (-size % 4)
    return Call(xid, program, version, procedure, data[at:])


def reply(call: Call, result: bytes = b"", status: int = SUCCESS) -> bytes:
    """An accepted reply; of PROG_MISMATCH, `result` is the lowest and highest version."""
    return struct.pack(">6I", call.xid, 1, 0, 0, 0, status) + result


def string(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text + bytes(-len(text) % 4)


def read_string(data: bytes, at: int) -> tuple[bytes, int]:
    """The string there and where the next value begins; ValueError where it is cut."""
    size = int.from_bytes(data[at : at + 4], "big")
    if len(data) < at + 4 + size:
        raise ValueError("a string that is cut")
    return data[at + 4 : at + 4 + size], at + 4 + size + (-size % 4)
