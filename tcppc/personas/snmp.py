"""SNMP versions 1 and 2c (RFC 1157, 3416) over UDP: the community is heard, and nothing is there.

Of version 1 the reply is the question with noSuchName; of 2c each value is noSuchObject, which is as long as the NULL
it takes the place of. So no reply is longer than its question.
"""

from __future__ import annotations

from tcppc.personas.base import Answerer, Findings, Place
from tcppc.protocols import ber

_GET, _GET_NEXT, _RESPONSE, _BULK = 0xA0, 0xA1, 0xA2, 0xA5
_NO_SUCH_OBJECT, _END_OF_VIEW = 0x80, 0x82
_NO_SUCH_NAME = 2


class Snmp(Answerer):
    """An agent that has been told to show nothing."""

    name = "snmp"
    about = "SNMP 1 and 2c over UDP: hears the community, has no such object"

    def answer(self, data: bytes, place: Place, findings: Findings) -> bytes:
        try:
            return self._answer(data, findings)
        except ValueError:  # no SNMP, or a version that wants more than this
            return b""

    def _answer(self, data: bytes, findings: Findings) -> bytes:
        tag, message, _ = ber.read(data)
        parts = list(ber.items(message))
        if tag != ber.SEQUENCE or len(parts) != 3 or [parts[0][0], parts[1][0]] != [ber.INTEGER, ber.OCTETS]:
            raise ValueError("no message of version 1 or 2c")
        version, community, (kind, pdu) = int.from_bytes(parts[0][1], "big"), parts[1][1], parts[2]
        findings.tried("", community)
        fields = list(ber.items(pdu))
        if kind not in (_GET, _GET_NEXT, _BULK) or len(fields) != 4 or version > 1:
            return b""
        (_, request), _, _, (_, bindings) = fields
        values = bindings
        if version == 1:
            missing = _NO_SUCH_OBJECT if kind == _GET else _END_OF_VIEW
            values = b"".join(
                ber.encode(ber.SEQUENCE, ber.encode(ber.OID, next(ber.items(binding))[1]) + bytes((missing, 0)))
                for _, binding in ber.items(bindings)
                if binding
            )
        errors = ber.integer(0) * 2 if version else ber.integer(_NO_SUCH_NAME) + ber.integer(1)
        reply = ber.encode(ber.INTEGER, request) + errors + ber.encode(ber.SEQUENCE, values)
        head = ber.integer(version) + ber.encode(ber.OCTETS, community)
        return ber.encode(ber.SEQUENCE, head + ber.encode(_RESPONSE, reply))


ANSWERER = Snmp
