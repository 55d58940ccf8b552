"""ctnetlink: the question for one tracked connection, and the answer (include/uapi/linux/netfilter/nfnetlink*.h).

A message is a struct nlmsghdr, a struct nfgenmsg, and attributes: length, type, value, padded to four bytes; numbers of
the first two are this machine's, addresses and ports are the network's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

TCP, UDP = 6, 17

_CT_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_CT_NEW = 1 << 8 | 0  # what answers it
_ERROR = 2  # NLMSG_ERROR: a negative errno
_REQUEST = 1  # NLM_F_REQUEST
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
# Attributes: CTA_TUPLE_*, CTA_TUPLE_IP and _PROTO, CTA_IP_*, CTA_PROTO_*.
_ORIGINAL, _REPLY = 1, 2
_IP, _PROTO = 1, 2
_V4_SRC, _V4_DST, _V6_SRC, _V6_DST = 1, 2, 3, 4
_NUMBER, _SRC_PORT, _DST_PORT = 1, 2, 3
_FAMILIES = {4: 2, 6: 10}  # AF_INET, AF_INET6

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")


class Flow(NamedTuple):
    """From whom to whom, addresses as text."""

    src: str
    sport: int
    dst: str
    dport: int


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def question(protocol: int, answers: Flow, sequence: int) -> bytes:
    """Ask for the connection whose answers flow like that: from the local socket to the peer."""
    src, dst = ip_address(answers.src), ip_address(answers.dst)
    kinds = (_V4_SRC, _V4_DST) if src.version == 4 else (_V6_SRC, _V6_DST)
    addresses = _attribute(kinds[0], src.packed) + _attribute(kinds[1], dst.packed)
    ports = _attribute(_NUMBER, bytes([protocol]))
    ports += _attribute(_SRC_PORT, answers.sport.to_bytes(2, "big"))
    ports += _attribute(_DST_PORT, answers.dport.to_bytes(2, "big"))
    inner = _attribute(_IP | _NESTED, addresses) + _attribute(_PROTO | _NESTED, ports)
    body = bytes([_FAMILIES[src.version], 0, 0, 0]) + _attribute(_REPLY | _NESTED, inner)
    return _HEADER.pack(_HEADER.size + len(body), _CT_GET, _REQUEST, sequence, 0) + body


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each, as far as they are whole."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[length + (-length % 4) :]


def answer(data: bytes, sequence: int) -> Flow | int | None:
    """How the connection's first packet was addressed; an errno where the kernel refuses; None for what is no answer
    to the question of that `sequence`."""
    if len(data) < _HEADER.size:
        return None
    length, kind, _, number, _ = _HEADER.unpack_from(data)
    body = data[_HEADER.size : length]
    if number != sequence:
        return None
    if kind == _ERROR and len(body) >= 4:
        return -int(struct.unpack_from("=i", body)[0])
    if kind != _CT_NEW:
        return None
    for attribute, value in _attributes(body[4:]):
        if attribute == _ORIGINAL:
            return _flow(value)
    return None


def _flow(data: bytes) -> Flow | None:
    outer = dict(_attributes(data))
    addresses, ports = dict(_attributes(outer.get(_IP, b""))), dict(_attributes(outer.get(_PROTO, b"")))
    src, dst = (addresses.get(four, addresses.get(six, b"")) for four, six in ((_V4_SRC, _V6_SRC), (_V4_DST, _V6_DST)))
    sport, dport = ports.get(_SRC_PORT, b""), ports.get(_DST_PORT, b"")
    if len(src) not in (4, 16) or len(dst) != len(src) or len(sport) != 2 or len(dport) != 2:
        return None
    return Flow(str(ip_address(src)), int.from_bytes(sport, "big"), str(ip_address(dst)), int.from_bytes(dport, "big"))
