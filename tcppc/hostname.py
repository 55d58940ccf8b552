"""This host's name as a record has it: any bytes may be in it, and nothing forces it to be there."""

from __future__ import annotations

import socket

from tcppc import text

UNNAMED = "unnamed"


def name() -> str:
    """Bytes that are no UTF-8 as `\\xNN`."""
    return text.named(socket.gethostname()) or UNNAMED
