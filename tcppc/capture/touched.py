"""What the servers tell of sessions while they happen, where somebody wants to act upon it."""

from __future__ import annotations

from typing import Protocol

from tcppc.records import Session


class Touched(Protocol):
    """It returns at once, and raises nothing. `sessions` says whether TCP sessions and datagrams are of interest."""

    sessions: bool

    def identify(self, session: Session) -> None: ...

    def session(self, on: str, session: Session, data: bytes = b"") -> None: ...

    def datagram(self, session: Session) -> None: ...
