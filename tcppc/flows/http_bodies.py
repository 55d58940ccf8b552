"""-e http: bodies of requests and responses, each in a file of its own beside its stream's."""

from __future__ import annotations

import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from operator import lt, sub
from typing import IO, cast

from tcppc import folders
from tcppc.flows import http_messages
from tcppc.flows.flow import Flow, Run
from tcppc.flows.http_messages import Body, End, Event, Head
from tcppc.flows.inflate import Budget, CodingError, codings, inflated
from tcppc.flows.listener import Listener
from tcppc.flows.report import Report
from tcppc.flows.stream import Verdict
from tcppc.flows.stream_files import StreamFiles

# Of a stream: so much, and so many times what came of it.
MOST_GAP_BYTES, MOST_GAP_TIMES = 1 << 20, 4
MOST_INFLATED_BYTES = 256 << 20  # of one body
# All bodies of a run together may inflate to so much, and so many times what they are.
INFLATED_ALLOWANCE_BYTES, INFLATED_TIMES = 1 << 30, 16
_SPOOLED_BYTES = 1 << 20
_PART_BYTES = 1 << 20
# Those of tcpflow 1.6.1, as it names files.
ENDINGS = {
    "application/atom+xml": ".atom", "application/java-archive": ".jar", "application/javascript": ".js",
    "application/json": ".json", "application/msword": ".doc", "application/pdf": ".pdf",
    "application/rss+xml": ".rss", "application/vnd.ms-excel": ".xls", "application/x-bzip2": ".bz2",
    "application/x-rar-compressed": ".rar", "application/x-sh": ".sh", "application/x-shockwave-flash": ".swf",
    "application/x-tar": ".tar", "application/x-x509-ca-cert": ".crt", "application/xml": ".xml",
    "application/zip": ".zip", "audio/mpeg": ".mpga", "audio/ogg": ".ogg", "image/bmp": ".bmp", "image/gif": ".gif",
    "image/jpeg": ".jpg", "image/png": ".png", "image/svg+xml": ".svg", "image/tiff": ".tiff", "image/webp": ".webp",
    "image/x-icon": ".ico", "message/rfc822": ".eml", "text/calendar": ".ics", "text/css": ".css", "text/csv": ".csv",
    "text/html": ".html", "text/plain": ".txt", "video/mp4": ".m4v", "video/webm": ".webm", "video/x-flv": ".flv",
}  # fmt: skip
Show = Callable[[Flow, bytes, Iterable[bytes]], None]


def _sorted(begins: array[int], times: array[int]) -> tuple[array[int], array[int]]:
    """By where they began; of those that began at the same place, the one that came first."""
    if all(map(lt, begins, begins[1:])):  # as nearly all did
        return begins, times
    found: dict[int, int] = {}
    for begin, instant in zip(begins, times, strict=True):
        found.setdefault(begin, instant)
    order = sorted(found)
    return array("q", order), array("q", [found[begin] for begin in order])


class Bodies(Listener):
    """Of the streams in `files`. `report` is told each, `tells` its path; with `show` they are given to that instead of
    files."""

    by_run = True

    def __init__(
        self,
        files: StreamFiles,
        inflate: bool = True,
        report: Report | None = None,
        tells: Sequence[Callable[[str], None]] = (),
        show: Show | None = None,
    ) -> None:
        self.problems = 0  # messages that are broken, and bodies that could not be inflated: kept as far as they go
        self._files = files
        self._inflate = inflate
        self._report = report
        self._tells = tells
        self._show = show
        self._budget = Budget(INFLATED_ALLOWANCE_BYTES)  # of all bodies
        self._times: dict[Flow, tuple[array[int], array[int]]] = {}  # where packets began, and when they came

    def segment(self, flow: Flow, run: Run, verdict: Verdict) -> None:
        if verdict.what != "write":
            return
        times = self._times.get(flow)
        if times is None:
            if verdict.offset:
                return
            if not http_messages.BEGIN.match(next(iter(run.data.parts()), b"")):
                return
            times = self._times[flow] = array("q"), array("q")
        if run.times is None:
            times[0].append(verdict.offset)
            times[1].append(run.first)
            return
        data = run.data
        sizes = map(sub, data.ends[data.low : data.high], data.begins[data.low : data.high])
        times[0].extend(list(accumulate(sizes, initial=verdict.offset))[:-1])
        times[1].extend(run.times(data))

    def ended(self, flow: Flow) -> None:
        """Its messages are read once the other direction has ended too."""
        other = flow.partner
        if other and not other.retired:
            return
        pair = [each for each in (flow, other) if each and each in self._times]
        methods: list[str] = []
        for each in pair:
            self._times[each] = _sorted(*self._times[each])
        for each in sorted(pair, key=lambda flow: not flow.asks):
            try:
                content = self._content(each)
                if each.asks:
                    methods += [head.word for head in self._bodies(each, http_messages.requests(content))]
                else:
                    list(self._bodies(each, http_messages.responses(content, methods)))
            except FileNotFoundError:  # somebody who was told of it took it away
                self.problems += 1
        for each in pair:
            del self._times[each]

    def _content(self, flow: Flow) -> Iterator[bytes]:
        """The stream, as long as there is not much more lost of it than came: else a few packets could make gigabytes
        of zeros."""
        left, most = flow.stream.size, MOST_GAP_BYTES + MOST_GAP_TIMES * flow.stream.seen
        for at, size in flow.stream.gaps:
            most -= size
            if most < 0:
                left = at
                break
        for part in self._files.content(flow.file):
            yield part[:left]
            left -= len(part)
            if left <= 0:
                return

    def _bodies(self, flow: Flow, events: Iterator[Event]) -> Iterator[Head]:
        """Keeps those that are not empty; yields the messages' heads."""
        head: Head | None = None
        with _spool() as body:
            for event in events:
                if isinstance(event, Head):
                    head = event
                    body.seek(0)
                    body.truncate()
                    yield head
                elif isinstance(event, Body):
                    body.write(event.data)
                elif isinstance(event, End):
                    self.problems += not event.whole
                    if head and (body.tell() or self._show):
                        self._keep(flow, head, body, event.at)

    def _keep(self, flow: Flow, head: Head, body: IO[bytes], end: int) -> None:
        size = body.tell()
        names = codings(head.header(b"content-encoding")) if self._inflate else []
        if names:
            self._budget.left += INFLATED_TIMES * size
            body = self._plain(body, names)
            size = body.seek(0, os.SEEK_END)
        if self._show:
            self._show(flow, head.raw, _parts(body))
            return
        made = self._files.beside(flow.file, f"-HTTPBODY-{head.number:03d}", ending(head.header(b"content-type")))
        if made is None:
            return
        fd, name = made
        path, when = f"{self._files.folder}/{name}", self._when(flow, head.at)
        with os.fdopen(fd, "wb", buffering=0) as file:
            for part in _parts(body):
                file.write(part)
            os.utime(file.fileno(), ns=(when, when))
        if self._report:
            self._report.part(flow, name, _parts(body), size, head.at, end - head.at)
        for tell in self._tells:
            tell(path)

    def _plain(self, body: IO[bytes], names: list[str]) -> IO[bytes]:
        """Without its codings; as it was sent, where nothing of it can be inflated."""
        plain = _spool()
        try:
            for part in inflated(_parts(body), names, MOST_INFLATED_BYTES, self._budget):
                plain.write(part)
        except CodingError:
            self.problems += 1
            if not plain.tell():
                plain.close()
                return body
        return plain

    def _when(self, flow: Flow, at: int) -> int:
        """The time of the packet that brought that byte."""
        begins, times = self._times[flow]
        return times[max(0, bisect_right(begins, at) - 1)] if begins else flow.first


class _Spool(tempfile.SpooledTemporaryFile[bytes]):
    """In memory, and beyond a bound on the disk."""

    def rollover(self) -> None:
        folders.temporary()  # where there is none, its words are better than those of tempfile
        super().rollover()


def _spool() -> IO[bytes]:
    return cast(IO[bytes], _Spool(_SPOOLED_BYTES, prefix="tcppc-"))


def _parts(body: IO[bytes]) -> Iterator[bytes]:
    body.seek(0)
    while part := body.read(_PART_BYTES):
        yield part


def ending(content_type: str) -> str:
    """Of a file's name, for a MIME type; empty where none is known."""
    return ENDINGS.get(content_type.partition(";")[0].strip().lower(), "")
