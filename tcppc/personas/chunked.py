"""A chunked body (RFC 9112 §7.1), taken out of what was heard piece by piece."""

from __future__ import annotations

import re

MOST_LINE = 1024  # of a chunk's size with its extensions, or of a trailer
MOST_TRAILERS = 100
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


class Chunks:
    """One body. `ended` once its last chunk and its trailers were taken."""

    def __init__(self) -> None:
        self.ended = False
        self._left = -1  # bytes of the chunk still to come, -1 before its size
        self._last = False
        self._trailers = 0

    def take(self, heard: bytearray) -> bytes:
        """What is decoded of `heard`, out of which it is taken; the rest is left for when more has come. ValueError for
        what is no chunked body."""
        found = bytearray()
        while not self.ended:
            if self._left > 0:
                piece = heard[: self._left]
                if not piece:
                    break
                found += piece
                del heard[: len(piece)]
                self._left -= len(piece)
                continue
            line = self._line(heard)
            if line is None:
                break
            if self._left == 0 and not self._last:  # the end of a chunk's line
                if line:
                    raise ValueError("a chunk is longer than it says")
                self._left = -1
            elif self._last:
                self._trailers += 1
                self.ended = not line
                if self._trailers > MOST_TRAILERS:
                    raise ValueError("too many trailers")
            elif match := _SIZE.fullmatch(line):
                self._left = int(match[1], 16)
                self._last = self._left == 0
            else:
                raise ValueError("no size of a chunk")
        return bytes(found)

    def _line(self, heard: bytearray) -> bytes | None:
        end = heard.find(b"\n", 0, MOST_LINE)
        if end < 0:
            if len(heard) >= MOST_LINE:
                raise ValueError("a line that is too long")
            return None
        line = bytes(heard[:end]).rstrip(b"\r")
        del heard[: end + 1]
        return line
