"""How far a long piece of work is: one line on standard error, where that is a terminal."""

from __future__ import annotations

import sys
import time

PAUSE_SECONDS = 0.2


class Progress:
    """`what` of `total` bytes (0: nothing is shown); call it with the bytes of each step, and `done` at the end."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = max(1, total)
        self._so_far = 0
        self._begun = self._said = (
            time.monotonic()
        )  # nothing is shown of work that is done before the first pause is over
        self._shown = False
        self._wanted = total > 0 and sys.stderr.isatty()

    def __call__(self, step: int) -> None:
        self._so_far += step
        now = time.monotonic()
        if self._wanted and now - self._said >= PAUSE_SECONDS:
            self._said, self._shown = now, True
            share = min(1.0, self._so_far / self._total)
            bar = "#" * round(share * 30)
            rate = self._so_far / (now - self._begun)
            left = max(0, self._total - self._so_far) / rate if rate else 0.0
            figures = f"{rate / 1e6:.1f} MB/s, {_time(left)} left"
            print(f"\r\x1b[K{self._what} [{bar:<30}] {share:4.0%} {figures}", end="", file=sys.stderr, flush=True)

    def done(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
