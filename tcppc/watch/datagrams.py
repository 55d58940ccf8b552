"""Who began a UDP flow, as far as it is remembered: an answer to this host's own question is no probe."""

from __future__ import annotations

import struct

FLOWS_SHARE = 8  # of the watch's memory
LEAST_FLOWS = 512
# Of one flow: its key of 53 bytes at most, as malloc rounds it, and its share of a dict's table just after that has
# grown, the one that it was copied from beside it (90 bytes).
FLOW_CHARGE = 64 + 90

_PORTS = struct.Struct(">HH").pack


class Flows:
    """Two generations: when the younger one is full, the older one is forgotten. Who is heard of again is young."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._young: dict[bytes, bool] = {}
        self._old: dict[bytes, bool] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def ours(self, remote: bytes, rport: int, lport: int, outgoing: bool) -> bool:
        """A datagram between them: did this host send the first one?"""
        key = remote + _PORTS(rport, lport)
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key, outgoing)
            if len(self._young) >= max(LEAST_FLOWS, self.memory // (2 * FLOW_CHARGE)):
                self._old, self._young = self._young, {}
            self._young[key] = found
        return found
