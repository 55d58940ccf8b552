"""What wants to know of streams: reports, consoles, records, plug-ins. Each is a Listener of the engine."""

from __future__ import annotations

from tcppc.flows.capture_files import Packet
from tcppc.flows.flow import Flow, Run
from tcppc.flows.stream import Verdict


class Listener:
    """Told in the capture's order. OSError where the disk does not take something."""

    # Each packet by itself, in order of arrival? Else ends alone are told, and packets may come as runs.
    by_packet = False
    # Each segment, but as runs where they come so?
    by_run = False

    def segment(self, flow: Flow, run: Run, verdict: Verdict) -> None:
        """One packet, with or without payload, also with one that stands in the stream already; with `by_run`, several
        (`run.times` of their pieces). With `by_packet` or `by_run` alone."""

    def packet(self, flow: Flow, packet: Packet) -> None:
        """The same as it was captured. With `by_packet` alone."""

    def settle(self) -> None:
        """What waits in memory may be written now."""

    def ended(self, flow: Flow) -> None:
        """Nothing more comes; its file is whole."""

    def finish(self) -> None:
        """All streams have ended."""
