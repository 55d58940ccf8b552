"""The strangers: a program that runs where they live, told what to do by lines on its standard input.

    python -m tests.soak.strangers SETTINGS.json

It begins a visit at random moments, `rate` a second, each in a thread of its own; what comes is drawn from the seed and
the visit's number alone. Each second it prints a line of JSON: what was sent so far. `hoard` and `crowd` are visits on
demand; `stop` begins no more; the end of its input ends it.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.soak import kinds
from tests.soak.datagrams import SENDERS
from tests.soak.dialogues import TALKERS
from tests.soak.kinds import PLAIN
from tests.soak.tls_kinds import SECURED
from tests.soak.visits import Kinds, Over, Visit, World, open_notes

MOST_AT_ONCE = 250
MOST_LARGE = 3
HOARD, CROWD = 9, 150  # visits on demand
DEMANDED = 10_000_000  # their numbers begin here

Kind = Callable[[Visit], None]
EVERY: Kinds = {**PLAIN, **SECURED, **TALKERS, **SENDERS}


def named(kind: Kind) -> str:
    return kind.__name__.replace("_", "-")


NAMES = sorted(map(named, EVERY))


class Strangers:
    def __init__(self, world: World, rate: float, without: list[str]) -> None:
        self._world = world
        self._rate = rate
        self._kinds = {kind: weight for kind, weight in EVERY.items() if named(kind) not in without}
        self._lot = random.Random(f"{world.seed} when")
        self._places = threading.Semaphore(MOST_AT_ONCE)
        self._large = threading.Semaphore(MOST_LARGE)
        self._open = 0
        self._demanded = DEMANDED
        self.failures = 0

    def keep_coming(self) -> None:
        """Begin visits until the world is stopping."""
        number = 0
        while not self._world.stopping.wait(self._lot.expovariate(self._rate)):
            number += 1
            lot = random.Random(f"{self._world.seed} {number}")
            kind = lot.choices(list(self._kinds), list(self._kinds.values()))[0]
            self._begin(number, kind, lot)

    def _begin(self, number: int, kind: Kind, lot: random.Random) -> None:
        self._places.acquire()
        threading.Thread(target=self._visit, args=(number, kind, lot), daemon=True).start()

    def _visit(self, number: int, kind: Kind, lot: random.Random) -> None:
        name = named(kind).replace("-", " ")
        with self._world.lock:
            self._open += 1
        try:
            with self._large if kind is kinds.large else contextlib.nullcontext():
                kind(Visit(self._world, number, name, lot))
        except Over:
            pass
        except Exception:  # a fault of the soak's own: told, and the run is worth nothing
            self.failures += 1
            traceback.print_exc()
        finally:
            self._places.release()
            with self._world.lock:
                self._open -= 1

    def demand(self, word: str) -> None:
        kind, count = (kinds.hoard, HOARD) if word == "hoard" else (kinds.crowd, CROWD)
        for _ in range(count):
            self._demanded += 1
            lot = random.Random(f"{self._world.seed} {self._demanded}")
            threading.Thread(target=self._demanded_visit, args=(self._demanded, kind, lot), daemon=True).start()

    def _demanded_visit(self, number: int, kind: Kind, lot: random.Random) -> None:
        self._places.acquire()
        self._visit(number, kind, lot)

    def tell(self) -> None:
        """Print what was sent, each second."""
        while True:
            with self._world.lock:
                told = {**self._world.counts, "open": self._open, "failures": self.failures}
            print(json.dumps(told), flush=True)
            time.sleep(1)


def main() -> int:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rate, path, without = settings.pop("rate"), settings.pop("notes"), settings.pop("without")
    world = World(**settings, file=open_notes(Path(path)))
    strangers = Strangers(world, rate, without)
    threading.Thread(target=strangers.tell, daemon=True).start()
    threading.Thread(target=strangers.keep_coming, daemon=True).start()
    for line in sys.stdin:
        if line.strip() == "stop":
            world.stopping.set()
        else:
            strangers.demand(line.strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
