"""rpcbind, versions 2 to 4 (RFC 1833), and what stands behind the ports it names: a table of RPC programs.

Over TCP and UDP; a list of all programs is longer than its question and therefore told over TCP alone. Every port it
names leads back to the sensor, where NULL of a program in the table succeeds.
"""

from __future__ import annotations

import struct

from tcppc.personas.base import MOST_SAID, Answerer, Findings, Place, Talk
from tcppc.personas.identity import Identity
from tcppc.protocols import rpc

MOST_RECORD = 64 << 10
PORTMAP, NFS, MOUNTD, NLOCKMGR, STATUS = 100000, 100003, 100005, 100021, 100024
_VERSIONS = {PORTMAP: (2, 3, 4), NFS: (3, 4), MOUNTD: (1, 2, 3), NLOCKMGR: (1, 3, 4), STATUS: (1,)}
_EXPORT = 5  # MOUNTPROC_EXPORT
_PROTOCOLS = {6: "tcp", 17: "udp"}


class Table:
    """Programs and their ports, as one host has them."""

    def __init__(self, identity: Identity, place: Place) -> None:
        lot = identity.lot("rpc")
        ports = {program: lot.randint(32768, 60999) for program in (MOUNTD, NLOCKMGR, STATUS)}
        ports |= {PORTMAP: 111, NFS: 2049}
        if place.dport == place.own_port:  # rules bring no other port here
            ports = dict.fromkeys(ports, place.own_port)
        self.rows = [
            (program, version, number, ports[program])
            for program, versions in _VERSIONS.items()
            for version in versions
            for number in _PROTOCOLS
        ]

    def port(self, program: int, version: int, protocol: int) -> int:
        """0 where there is none. Of a version it does not know, rpcbind tells another one's."""
        rows = [row for row in self.rows if row[0] == program and row[2] == protocol]
        exact = [row for row in rows if row[1] == version]
        return (exact or rows)[0][3] if rows else 0


def universal(place: Place, port: int) -> bytes:
    """An address as rpcbind writes it: 192.0.2.10.0.111 (RFC 5665)."""
    return f"{place.dst}.{port >> 8}.{port & 255}".encode()


def answer(identity: Identity, place: Place, data: bytes) -> tuple[bytes, int]:
    """(the reply to one message, the port it names or 0); ValueError for what is no call."""
    call = rpc.read_call(data)
    versions = _VERSIONS.get(call.program)
    if versions is None:
        return rpc.reply(call, status=rpc.PROG_UNAVAIL), 0
    if call.version not in versions:
        return rpc.reply(call, struct.pack(">2I", versions[0], versions[-1]), rpc.PROG_MISMATCH), 0
    if call.procedure == 0:
        return rpc.reply(call), 0
    if call.program == MOUNTD and call.procedure == _EXPORT:
        return rpc.reply(call, bytes(4)), 0
    if call.program != PORTMAP:
        return rpc.reply(call, status=rpc.PROC_UNAVAIL), 0
    table = Table(identity, place)
    return _version_2(call, table) if call.version == 2 else _version_3(call, table, place, identity)


def _version_2(call: rpc.Call, table: Table) -> tuple[bytes, int]:
    if call.procedure == 3 and len(call.arguments) >= 16:  # GETPORT
        program, version, protocol, _ = struct.unpack_from(">4I", call.arguments)
        port = table.port(program, version, protocol)
        return rpc.reply(call, struct.pack(">I", port)), port
    if call.procedure == 4:  # DUMP
        rows = b"".join(struct.pack(">5I", 1, *row) for row in table.rows)
        return rpc.reply(call, rows + bytes(4)), 0
    if call.procedure in (1, 2):  # SET and UNSET: no
        return rpc.reply(call, bytes(4)), 0
    return rpc.reply(call, status=rpc.PROC_UNAVAIL), 0


def _version_3(call: rpc.Call, table: Table, place: Place, identity: Identity) -> tuple[bytes, int]:
    if call.procedure in (3, 9) and len(call.arguments) >= 8:  # GETADDR, GETVERSADDR
        program, version = struct.unpack_from(">2I", call.arguments)
        try:
            network, _ = rpc.read_string(call.arguments, 8)
        except ValueError:
            return rpc.reply(call, status=rpc.GARBAGE_ARGS), 0
        port = table.port(program, version, 6 if network.startswith(b"tcp") else 17)
        return rpc.reply(call, rpc.string(universal(place, port) if port else b"")), port
    if call.procedure == 4:  # DUMP
        rows = b""
        six = "6" if ":" in place.dst else ""
        for program, version, protocol, port in table.rows:
            network = f"{_PROTOCOLS[protocol]}{six}".encode()
            rows += struct.pack(">3I", 1, program, version) + rpc.string(network)
            rows += rpc.string(universal(place, port)) + rpc.string(b"superuser")
        return rpc.reply(call, rows + bytes(4)), 0
    if call.procedure == 6:  # GETTIME
        return rpc.reply(call, struct.pack(">I", int(place.now))), 0
    if call.procedure in (1, 2):
        return rpc.reply(call, bytes(4)), 0
    return rpc.reply(call, status=rpc.PROC_UNAVAIL), 0


class Portmap(Talk):
    """Over TCP: records, each a length with a bit for the last piece (RFC 5531 §11)."""

    name = "portmap"
    about = "rpcbind versions 2, 3 and 4 over TCP and UDP, with a table of RPC programs that lead back here"

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._heard = bytearray()
        self._record = bytearray()

    def hear(self, data: bytes) -> bytes:
        self._heard += data
        said = b""
        while len(self._heard) >= 4 and not self.done and len(said) <= MOST_SAID:
            head = int.from_bytes(self._heard[:4], "big")
            size = head & 0x7FFFFFFF
            if size + len(self._record) > MOST_RECORD or (size == 0 and not head >> 31):
                self.done = True
                break
            if len(self._heard) < 4 + size:
                break
            self._record += self._heard[4 : 4 + size]
            del self._heard[: 4 + size]
            if head >> 31:
                said += self._answer(bytes(self._record))
                self._record.clear()
        return said

    def held(self) -> int:
        return len(self._heard) + len(self._record)

    def _answer(self, record: bytes) -> bytes:
        try:
            reply, port = answer(self.identity, self.place, record)
        except ValueError:
            self.done = True
            return b""
        if port and port != self.place.own_port:
            self.place.expect(port, Portmap(self.identity, self.place))
        return (len(reply) | 1 << 31).to_bytes(4, "big") + reply


class PortmapDatagrams(Answerer):
    """Over UDP."""

    name = "portmap"
    about = Portmap.about

    def answer(self, data: bytes, place: Place, findings: Findings) -> bytes:
        try:
            return answer(self.identity, place, data)[0]
        except ValueError:
            return b""


TALK = Portmap
ANSWERER = PortmapDatagrams
