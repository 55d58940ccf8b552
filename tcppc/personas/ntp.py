"""NTP (RFC 5905): the time, to a client's question of 48 bytes. Control and private modes are heard, not answered."""

from __future__ import annotations

from tcppc.personas.base import Answerer, Findings, Place

_CLIENT, _SERVER = 3, 4
_EPOCH = 2_208_988_800  # from 1900 to 1970


def stamp(seconds: float) -> bytes:
    """64 bits: seconds since 1900 and their fraction."""
    return (round((seconds + _EPOCH) * (1 << 32)) & (1 << 64) - 1).to_bytes(8, "big")


class Ntp(Answerer):
    """A server of stratum 3."""

    name = "ntp"
    about = "NTP over UDP: the time, to who asks as a client does"

    def answer(self, data: bytes, place: Place, findings: Findings) -> bytes:
        if len(data) < 48 or data[0] & 7 != _CLIENT:
            return b""
        version = data[0] >> 3 & 7
        lot = self.identity.lot("ntp")
        head = bytes((version << 3 | _SERVER, 3, data[2], 0xE9))
        delays = lot.randrange(300, 3000).to_bytes(4, "big") + lot.randrange(300, 3000).to_bytes(4, "big")
        source = bytes((185, lot.randrange(1, 255), lot.randrange(1, 255), lot.randrange(1, 255)))
        reference = place.now - lot.randrange(20, 900)
        return head + delays + source + stamp(reference) + data[40:48] + stamp(place.now) + stamp(place.now + 0.00003)


ANSWERER = Ntp
