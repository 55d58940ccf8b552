"""The log lines of sessions, in tcppc-go's wording. Made by the writer's thread, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tcppc.capture.intake import ESTABLISHED, SECURED, Event
from tcppc.log import Log, quote
from tcppc.records import Session


class Talk:
    """Says what happens to sessions."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def name(self, session: Session, count: int = -1, proto: str = "") -> str:
        """A session as tcppc-go names it in its log, with `count` payloads (-1: as many as it has)."""
        src, dst = session.src, session.dst
        if ":" in src:
            src, dst = f"[{src}]", f"[{dst}]"
        return (
            f"Session: {self._log.zone.seconds(session.start)}: Flow: {proto or session.proto} {src}:{session.sport}"
            f" <-> {dst}:{session.dport} ({session.count if count < 0 else count} payloads)"
        )

    def happened(self, items: Iterable[Event | Session]) -> None:
        """Events of sessions that go on, and datagrams as they came."""
        prefix = self._log.prefix()
        talk: list[str] = []
        for item in items:
            if isinstance(item, Event):
                talk.append(f"{prefix}{self._event(item)}\n")
            elif not item.closed and item.payloads:
                data = item.payloads[0][1]
                talk.append(f"{prefix}UDP: Received: {self.name(item)}: {quote(data)} ({len(data)} bytes)\n")
        self._log.write_text(talk)

    def _event(self, event: Event) -> str:
        session, proto, number, data, size, open_sessions = event
        if number == ESTABLISHED:
            return f"{proto.upper()}: Established: {self.name(session, 0, proto)} (#Sessions: {open_sessions})"
        if number == SECURED:
            tls = session.tls
            return f"TLS: Handshake: {self.name(session, 0)}: {tls and tls.version} {tls and tls.cipher}"
        return f"{proto.upper()}: Received: {self.name(session, number, proto)}: {quote(data, size)} ({size} bytes)"

    def ended(self, sessions: Sequence[Session], written: bool, open_sessions: int) -> None:
        """These are over, and `written` to the data file where there is one."""
        prefix = self._log.prefix()
        talk: list[str] = []
        for session in sessions:
            name = self.name(session)
            if written:
                talk.append(f"{prefix}Wrote data: {name}\n")
            if session.closed == "peer":
                talk.append(f"{prefix}Closed: {name} (#Sessions: {open_sessions})\n")
            elif session.closed:
                talk.append(f"{prefix}Aborted: {name} {session.closed} (#Sessions: {open_sessions})\n")
        self._log.write_text(talk)
