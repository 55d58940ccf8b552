"""The blocks that actions make: gathered, bounded, put into nftables by a thread of their own, written down."""

from __future__ import annotations

import contextlib
import heapq
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from ipaddress import IPv6Network, ip_network

from tcppc.actions.allow import Allowed
from tcppc.actions.event import Event, Network, source
from tcppc.actions.journal import Entry, Journal
from tcppc.actions.rule import Rule
from tcppc.capture.books import Books
from tcppc.capture.supervisor import Supervised
from tcppc.netfilter import blocking
from tcppc.netfilter.blocking import Block

GATHER_SECONDS = 0.005
HOUR = 3_600_000_000_000
SPOOFABLE_SHARE = 2  # of blocks_per_hour, for sources that can be made up
RETRY_SECONDS = 5.0
FOLLOW_SECONDS = 1.0  # how often it looks what `tcppc blocks` did
LOOK_SECONDS = 60.0  # how often whether the table is still there
SAY_AGAIN_SECONDS = 60.0
MOST_UNWRITTEN = 10_000  # lines of the undo log that wait for the disk
MOST_WAITING = 10_000  # blocks that wait for nft
SPARE = 1000  # of the heap: so many more than twice the blocks, and it is made anew

Key = tuple[Network, str]


class Blocker:
    """`start` puts the table in place and brings back what an earlier run blocked. `most` networks of each family and
    scope, `per_hour` new ones within an hour."""

    def __init__(
        self, journal: Journal, allowed: Allowed, books: Books, say: Callable[[str], None], most: int, per_hour: int
    ) -> None:
        self.most = most
        self.per_hour = per_hour
        self._journal = journal
        self._allowed = allowed
        self._books = books
        self._say = say
        self._until: dict[Key, int] = {}  # what is blocked, or about to be
        self._soonest: list[tuple[int, str, Key]] = []  # the same as a heap; the text decides between equals
        self._number: Counter[tuple[str, int]] = Counter()  # by scope and version
        self._recent: deque[int] = deque()  # when, of the last hour
        self._waiting: deque[Entry] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._ready = False
        self._looked = time.monotonic()
        self._told = -SAY_AGAIN_SECONDS
        self._review = False
        self._unwritten: list[Entry] = []
        self._said: dict[str, float] = {}
        self.thread = Supervised("blocks", self._run, say, books.error)

    def start(self, port: int, mark: int) -> None:
        self._place = port, mark
        self.thread.start()

    def stop(self, timeout: float) -> None:
        """Put in place what waits; what is blocked stays so."""
        self._stopping = True
        self.thread.stop()
        self._wake.set()
        self.thread.join(timeout)

    def active(self) -> int:
        """How many networks are blocked now."""
        with self._lock:
            self._expire(time.time_ns())
            return len(self._until)

    def block(self, rule: Rule, event: Event) -> str:
        """What became of it, in words: empty where its source is blocked from now on or was already."""
        network, now = source(event.src), time.time_ns()
        if why := self._allowed.why(event.src):
            return f"not blocked: {why}"
        key = (network, rule.action.block_scope)
        with self._lock:
            self._expire(now)
            if key in self._until:
                return ""
            if self._number[key[1], network.version] >= self.most:
                return self._refused("most", f"not blocked: actions.blocks = {self.most} are blocked already")
            # Sources that are made up must not use up what those need that are not.
            share = self.per_hour if not event.spoofable else -(-self.per_hour // SPOOFABLE_SHARE)
            if len(self._recent) >= share:
                return self._refused(
                    "per_hour", f"not blocked: actions.blocks_per_hour = {self.per_hour} were blocked within an hour"
                )
            if len(self._waiting) >= MOST_WAITING:
                return self._refused("waiting", f"not blocked: {MOST_WAITING} wait already to be put in place")
            until = now + round(rule.action.block * 1e9)
            entry = Entry("block", now, network, key[1], until, rule.name, event.on, event.session_id)
            # What waits is put in place whether or not the rest of this comes about: not the other way round.
            self._waiting.append(entry)
            self._recent.append(now)
            self._hold(key, until)
        self._wake.set()
        return ""

    def _refused(self, name: str, words: str) -> str:
        """Said once a while, counted each time."""
        count = self._books.acted(f"blocks_refused_{name}")
        if time.monotonic() - self._told < SAY_AGAIN_SECONDS:
            return ""
        self._told = time.monotonic()
        return f"{words} ({count} times so far)"

    def set_allowed(self, allowed: Allowed) -> None:
        """Who is allowed from now on; those who are blocked and may not be any more are let go."""
        self._allowed = allowed
        self._review = True
        self._wake.set()

    def _let_go_allowed(self) -> None:
        self._review = False
        with self._lock:
            wrong = [key for key in self._until if self._allowed.why(str(key[0].network_address))]
            for key in wrong:
                self._let_go(key)
        there = blocking.blocked()
        blocking.remove(key for key in wrong if key in there)
        now = time.time_ns()
        self._write([Entry("unblock", now, network, scope, 0, "allow") for network, scope in wrong])
        for network, _ in wrong:
            self._say(f"Blocks: {shown(network)} is blocked no more: it is one of those that are left alone.")

    def _write(self, entries: list[Entry]) -> None:
        """Whatever the disk says, what is done is done; lines that it does not take are tried again."""
        self._unwritten = [*self._unwritten, *entries][-MOST_UNWRITTEN:]
        try:
            self._journal.write(self._unwritten)
            self._unwritten = []
        except OSError as problem:
            self._complain(f"{self._journal.path} cannot be written: {problem.strerror}; its lines wait")

    def _expire(self, now: int) -> None:
        while self._recent and now - self._recent[0] > HOUR:
            self._recent.popleft()
        while self._soonest and self._soonest[0][0] <= now:
            until, _, key = heapq.heappop(self._soonest)
            if self._until.get(key) == until:
                self._let_go(key)

    def _let_go(self, key: Key) -> None:
        if self._until.pop(key, 0):
            self._number[key[1], key[0].version] -= 1

    def _hold(self, key: Key, until: int) -> None:
        # In an order in which want of memory leaves nothing behind but an end in the heap that nobody misses.
        heapq.heappush(self._soonest, (until, str(key), key))
        new = key not in self._until
        self._until[key] = until
        if new:
            self._number[key[1], key[0].version] += 1
        if len(self._soonest) > 2 * len(self._until) + SPARE:  # those that were let go, or made anew, before their end
            self._soonest = [(end, str(each), each) for each, end in self._until.items()]
            heapq.heapify(self._soonest)

    def _run(self) -> None:
        while not self._stopping or self._waiting:
            try:
                if not self._ready:
                    self._begin()
                self._wake.wait(0 if self._waiting or self._stopping else FOLLOW_SECONDS)
                self._wake.clear()
                self._follow()
                if self._waiting:
                    time.sleep(GATHER_SECONDS)
                    self._put()
            except Exception as problem:  # of nft, of the disk, or of ours: it goes on
                self._ready = False  # others may have taken the table away
                self._failed(problem)
                if self._stopping:
                    return
                self._wake.wait(RETRY_SECONDS)
                self._wake.clear()
                time.sleep(0.1)

    def _failed(self, problem: Exception) -> None:
        try:
            self._books.acted("block_errors")
            self._complain(f"{str(problem) or type(problem).__name__}; they wait")
            self._let_go_late()
        except MemoryError:  # not even to say so: it is tried again, and the next time may find some
            return

    def _follow(self) -> None:
        """What others wrote into the undo log, and whether others took the table away."""
        if self._review:
            self._let_go_allowed()
        if self._unwritten:
            self._write([])
        for entry in self._news():
            key = entry.network, entry.scope
            with self._lock:
                if entry.event == "unblock":
                    self._let_go(key)
                elif entry.until > self._until.get(key, time.time_ns()):
                    self._hold(key, entry.until)
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            with contextlib.suppress(OSError):  # `_write` tells
                self._journal.trim(time.time_ns())
            if not blocking.in_place():
                self._begin()

    def _news(self) -> list[Entry]:
        try:
            return self._journal.news()
        except OSError as problem:
            self._complain(
                f"{self._journal.path} cannot be read: {problem.strerror}; what is done by hand is not known"
            )
            return []

    def _complain(self, text: str, count: str = "") -> None:
        """Once a while; the same words with another count are the same."""
        now = time.monotonic()
        if now - self._said.get(text, -SAY_AGAIN_SECONDS) >= SAY_AGAIN_SECONDS:
            self._said = {each: when for each, when in self._said.items() if now - when < SAY_AGAIN_SECONDS}
            self._said[text] = now
            self._say(f"Blocks: {text}{count}; all else goes on.")

    def _begin(self) -> None:
        """The table, and what is in force by the undo log and not in it: this host was started anew."""
        port, mark = self._place
        blocking.put_in_place(port, mark, self.most)
        now = time.time_ns()
        there, known = blocking.blocked(), self._remembered(now)
        lost = [
            # Not longer than it was made for, however wrong the clock is.
            Block(network, scope, (entry.until - max(now, entry.instant)) // 1_000_000_000)
            for (network, scope), entry in known.items()
            if (network, scope) not in there
        ]
        blocking.add(lost)
        with self._lock:
            for key, seconds in there.items():
                self._hold(key, now + (seconds + 1) * 1_000_000_000)  # nft rounds down
            for block in lost:
                self._hold((block.network, block.scope), now + block.seconds * 1_000_000_000)
            # Its own of this hour are in both.
            made = {entry.instant for entry in known.values() if now - entry.instant < HOUR}
            self._recent = deque(sorted(made.union(self._recent)))
        if there or lost:
            self._say(f"Blocks: {len(there) + len(lost)} networks are blocked, {len(lost)} of them brought back.")
        self._ready, self._review = True, True

    def _remembered(self, now: int) -> dict[Key, Entry]:
        """By the undo log."""
        try:
            self._journal.trim(now)
            known = self._journal.in_force(now)
            self._journal.news()  # all of it is known now
        except OSError as problem:
            self._complain(f"{self._journal.path} cannot be read: {problem.strerror}; a restart forgot its blocks")
            return {}
        return known

    def _let_go_late(self) -> None:
        """What nft did not take in its time."""
        with self._lock:
            now, number = time.time_ns(), len(self._waiting)
            self._waiting = deque(entry for entry in self._waiting if entry.until > now)
            late = number - len(self._waiting)
        if late:
            count = self._books.acted("blocks_late", late)
            self._complain("some were over before they could be put in place", f" ({count} so far)")

    def _put(self) -> None:
        """All that wait, at once: into the kernel first, since that is what they wait for."""
        self._let_go_late()
        with self._lock:
            entries = list(self._waiting)
            now = time.time_ns()
        if not entries:
            return
        blocking.add(Block(entry.network, entry.scope, -((now - entry.until) // 1_000_000_000)) for entry in entries)
        with self._lock:
            for _ in entries:
                self._waiting.popleft()
        self._books.acted("blocks", len(entries))
        for entry in entries:
            seconds = (entry.until - entry.instant) / 1e9
            self._say(f"Blocked: {shown(entry.network)} for {seconds:g} s ({entry.scope}): {entry.by}, on {entry.on}")
        self._write(entries)


def shown(network: Network) -> str:
    """An address, or a network with its length."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def parse(text: str) -> Network:
    """An IPv4 address, an IPv6 address or /64; ValueError for anything else."""
    words = f"an IPv4 address, or an IPv6 address or /64, not {text!r}"
    try:
        if "%" in text:  # a zone may be any text, and nft knows none
            raise ValueError
        found = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(words) from None
    if isinstance(found, IPv6Network) and (mapped := found.network_address.ipv4_mapped):
        return source(str(mapped))
    if found.prefixlen not in ((32,) if found.version == 4 else (64, 128)):
        raise ValueError(words)
    return source(str(found.network_address))
