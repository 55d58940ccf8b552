"""What a session is served under, and what it needs of its server."""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from tcppc.capture.books import Books
from tcppc.capture.intake import Intake
from tcppc.capture.spill import Spill
from tcppc.capture.touched import Touched
from tcppc.personas.registry import Personas


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session is served under; a reload makes new ones for later sessions. Times are nanoseconds."""

    timeout: int
    duration: int
    session_bytes: int
    session_payloads: int
    tls_mode: str
    context: ssl.SSLContext | None
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()  # whose PROXY protocol header is believed
    personas: Personas | None = None  # what is said back; None where all are silent


class Server(ABC):
    """What a conversation needs of its server."""

    books: Books
    intake: Intake
    spill: Spill | None
    stopping: bool
    actions: Touched | None
    log: Callable[[str], None]

    @property
    @abstractmethod
    def port(self) -> int:
        """The one that is listened on."""

    @abstractmethod
    def pause(self, seconds: float) -> None:
        """Wait so long; a stop ends it."""
