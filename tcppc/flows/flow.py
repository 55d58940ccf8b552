"""One direction of one connection, and the packets of it that come as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tcppc.flows.names import Named
from tcppc.flows.stream import Stream
from tcppc.flows.stream_files import Pieces, StreamFile

# Source, port, destination, port, VLAN (-1: none), IP protocol, which tunnel.
Key = tuple[bytes, int, bytes, int, int, int, bytes]


class Late(NamedTuple):
    """Segments that came out of order, none over another but for such that came again as they were. Offsets are from
    the one that came first."""

    lowest: int  # where the first bytes are
    end: int  # where the segment that came last ends
    furthest: int  # the most bytes between the end of one that came and the begin of the next
    out_of_order: int  # segments that began before the end of the one that came before
    parts: list[tuple[int, Pieces]]  # (offset, bytes without a gap), in the order of their bytes


class Run(NamedTuple):
    """Segments of one stream, each where the one before it ended: a single one, or many. `first` and `last` are the
    instants (ns) of the first and the last packet, `seq` is the first one's, `flags` all of theirs (SYN and ACK are the
    first one's, FIN and RST the last one's), `size` the payload as sent and `data` as captured; `sent` and `captured`
    are bytes of whole frames. `macs` are the first packet's, source and destination, or empty."""

    packets: int
    first: int
    last: int
    seq: int
    flags: int
    size: int
    data: Pieces
    sent: int
    captured: int
    macs: bytes = b""
    # Each of its packets as a run, with its number in the capture, for the rare stream that may end between them.
    split: Callable[[], Iterable[tuple[int, Run]]] | None = None
    # They are not one behind the other, but these; `data` is none.
    late: Late | None = None
    # When each of such pieces came (ns), of a run of several packets.
    times: Callable[[Pieces], Sequence[int]] | None = None


@dataclass(eq=False, slots=True)
class Flow:
    """What is known of a direction. Instants are ns; `sent` and `captured` are bytes of whole frames."""

    key: Key
    named: Named
    stream: Stream
    file: StreamFile
    first: int
    last: int
    packets: int = 0
    sent: int = 0
    captured: int = 0
    conflicts: int = 0  # bytes that came again and were others
    retired: bool = False
    asks: bool = True  # is it the side that began the connection, as far as was seen?
    partner: Flow | None = None  # the connection's other direction
    rival: Flow | None = None  # a stream of the same addresses and ports that was open when a SYN began this one

    def count(self, run: Run) -> None:
        self.last = run.last
        self.packets += run.packets
        self.sent += run.sent
        self.captured += run.captured
