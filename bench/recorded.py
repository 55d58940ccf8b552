"""What a server wrote: which numbers are in its file, and whether each is there once and whole.

Reads JSON Lines of which only `flow` and `payloads` need to be there, so that any sensor with these keys can
be compared. A file is read once, from its start to its end, as it grows.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUIET_SECONDS = 2.5  # a file that has not grown for so long is not going to
MAX_SECONDS = 30.0


@dataclass
class Recorded:
    """The numbers found in `file` so far; `size` is the payload's length in bytes, None when it varies."""

    file: Path
    size: int | None
    seen: dict[int, int] = field(default_factory=dict)  # number: how often
    damaged: int = 0  # lines that are no JSON, payloads without a number, payloads of another length
    total: int = 0  # bytes received, as the records' key `bytes` tells
    limited: bool = False  # a record says that a limit cut it
    lines: int = 0
    _offset: int = 0

    def read(self) -> None:
        """Take in the complete lines that were added since the last time."""
        try:
            with self.file.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self._take(line)
        except FileNotFoundError:
            return

    def _take(self, line: bytes) -> None:
        self.lines += 1
        try:
            record: dict[str, Any] = json.loads(line)
            pieces = [base64.b64decode(piece["data"]) for piece in record["payloads"] or []]
            proto = record["flow"]["proto"]
        except (ValueError, KeyError, TypeError, binascii.Error):
            self.damaged += 1
            return
        self.total += int(record.get("bytes", 0))
        self.limited |= bool(record.get("truncated")) or record.get("closed") == "limit"
        # A stream may come in any pieces; each datagram counts for itself, also where a record holds several.
        for data in pieces if proto == "udp" else [b"".join(pieces)] if pieces else []:
            if not data[:8].isdigit() or (self.size is not None and len(data) != self.size):
                self.damaged += 1
                continue
            number = int(data[:8])
            self.seen[number] = self.seen.get(number, 0) + 1

    def settle(self, wanted: int) -> None:
        """Read until `wanted` numbers are there, or the file has stopped growing, or time is up.

        The file is parsed only while it rests: parsing takes CPU that the server may still need.
        """
        deadline = time.monotonic() + MAX_SECONDS
        size, since = -1, time.monotonic()
        while time.monotonic() < deadline:
            now = time.monotonic()
            grown = self.file.stat().st_size if self.file.exists() else 0
            if grown != size:
                size, since = grown, now
            elif now - since > 0.2:
                if self._offset < size:
                    self.read()
                if len(self.seen) >= wanted or now - since > QUIET_SECONDS:
                    return
            time.sleep(0.05)
        self.read()

    def lost(self, sent: int) -> int:
        """How many of the numbers 0 to sent-1 are not there."""
        return sum(number not in self.seen for number in range(sent))

    def faults(self, sent: int) -> list[str]:
        """What is wrong with the file apart from losses, one phrase each."""
        twice = sum(count - 1 for count in self.seen.values())
        strange = sum(number >= sent for number in self.seen)
        counts = ((twice, "recorded twice"), (strange, "recorded but never sent"), (self.damaged, "damaged"))
        return [f"{count} {what}" for count, what in counts if count]

    def last_written(self) -> float:
        """When the file was last written to, in seconds since the epoch; 0 when it isn't there."""
        return self.file.stat().st_mtime if self.file.exists() else 0.0
