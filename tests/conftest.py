"""Fixtures: sensors that are ended with the test that started them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import netns
from tests.harness import Sensor

# A machine with other work beside it is slow, and that is no fault of what is tested.
settings.register_profile("tcppc", deadline=None)
settings.load_profile("tcppc")

Start = Callable[..., Sensor]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(*flags, **options) runs a sensor and waits until it serves; all are killed at the test's end."""
    running: list[Sensor] = []

    def begin(*flags: str, wait: bool = True, **options: Any) -> Sensor:
        sensor = Sensor(tmp_path, *flags, **options)
        running.append(sensor)
        return sensor.started() if wait else sensor

    yield begin
    for sensor in running:
        sensor.kill()


@pytest.fixture
def net() -> Iterator[netns.Net]:
    """Three hosts of this test's own."""
    yield from netns.make()
