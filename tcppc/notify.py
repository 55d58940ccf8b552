"""Telling systemd how the sensor is: sd_notify(3)'s protocol, datagrams of NAME=value lines to $NOTIFY_SOCKET.

Nothing here where no service manager asked for it, and a manager that does not listen costs nothing but the line.
"""

from __future__ import annotations

import os
import socket
import time


class Notifier:
    """Whom to tell, from the environment: NOTIFY_SOCKET, and WATCHDOG_USEC where this very process is watched."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        watched = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        # Half the time that systemd gives, as sd_watchdog_enabled(3) recommends; 0: nobody watches.
        self.watchdog_seconds = int(microseconds) / 2e6 if watched and microseconds.isdigit() else 0.0

    @property
    def wanted(self) -> bool:
        return bool(self._address)

    def tell(self, *lines: str) -> bool:
        """Send lines such as READY=1; False where nobody is told."""
        if not self._address:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.connect(address)
                sock.send("\n".join(lines).encode("utf-8"), socket.MSG_DONTWAIT)
        except OSError:  # the manager went away, or its queue is full: the next line may reach it
            return False
        return True

    def ready(self, status: str) -> None:
        self.tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """For Type=notify-reload: systemd takes the time to tell this reload from an earlier one."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, seconds: float) -> None:
        """The stop takes `seconds` at most: systemd waits so long, whatever TimeoutStopSec says."""
        self.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round((seconds + 5) * 1e6)}")
