"""Time as the records show it: nanoseconds since the epoch in, RFC 3339 text and file names out.

A `Zone` is what -z names: "Local" (the system's zone, TZ included), or a name of the tz database by pytz.
Instants are `time.time_ns()` integers everywhere; only this module turns them into text.
"""

from __future__ import annotations

import time
from datetime import datetime, tzinfo

import pytz

NANOSECONDS = 1_000_000_000


class Zone:
    """A time zone by its name; raises ValueError for one that the tz database does not have.

    Safe to share between threads: the cache of the last second is replaced whole, never changed.
    """

    def __init__(self, name: str = "Local") -> None:
        self.name = name or "Local"
        self._tz: tzinfo | None = None
        if self.name != "Local":
            try:
                self._tz = pytz.timezone(self.name)
            except pytz.UnknownTimeZoneError:
                raise ValueError(f"there is no time zone {self.name!r}") from None
        self._second = (-1, "", "")
        self._named = (-1, "")

    def _at(self, second: int) -> datetime:
        moment = datetime.fromtimestamp(second, self._tz)
        return moment if self._tz else moment.astimezone()

    def stamp(self, instant: int) -> str:
        """RFC 3339 with all nine digits of the nanoseconds, `Z` where the offset is zero, as Go prints it."""
        second = instant // NANOSECONDS
        cached = self._second
        if cached[0] != second:
            moment = self._at(second)
            offset = moment.strftime("%z")
            suffix = "Z" if not int(offset[:5]) else f"{offset[:3]}:{offset[3:5]}"
            cached = self._second = (second, moment.strftime("%Y-%m-%dT%H:%M:%S."), suffix)
        return f"{cached[1]}{instant - second * NANOSECONDS:09d}{cached[2]}"

    def seconds(self, instant: int) -> str:
        """To the second with the offset, such as 2019-04-16T23:44:00+0900: how tcppc-go's log names a session."""
        second = instant // NANOSECONDS
        named = self._named
        if named[0] != second:
            named = self._named = (second, self._at(second).strftime("%Y-%m-%dT%H:%M:%S%z"))
        return named[1]

    def format(self, pattern: str, second: float) -> str:
        """strftime(3) of a Unix time in this zone."""
        if self._tz is None:
            return time.strftime(pattern, time.localtime(second))
        return self._at(int(second)).strftime(pattern)


def parse(stamp: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 time stamp with up to nine digits of fraction; ValueError if not."""
    body, fraction = stamp, ""
    if "." in stamp:
        head, rest = stamp.split(".", 1)
        digits = len(rest) - len(rest.lstrip("0123456789"))
        fraction, body = rest[:digits], head + rest[digits:]
        if not 1 <= digits <= 9:
            raise ValueError(f"{stamp!r} is not an RFC 3339 time stamp")
    moment = datetime.fromisoformat(body.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError(f"{stamp!r} has no offset from UTC")
    epoch = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    elapsed = moment - epoch
    return (elapsed.days * 86400 + elapsed.seconds) * NANOSECONDS + int(fraction.ljust(9, "0") or 0)
