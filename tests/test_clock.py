from __future__ import annotations

import os
import time
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc import clock

ZONES = st.sampled_from(["Local", "UTC", "Asia/Tokyo", "America/St_Johns", "Europe/Berlin", "Asia/Kathmandu"])
# 1970 to 2200: what a sensor's clock may say.
INSTANTS = st.integers(0, 7_258_118_400 * clock.NANOSECONDS)


@given(INSTANTS, ZONES)
def test_a_stamp_reads_back_to_the_nanosecond_in_every_zone(instant: int, zone: str) -> None:
    assert clock.parse(clock.Zone(zone).stamp(instant)) == instant


def test_stamps_have_nine_digits_and_the_zones_offset() -> None:
    instant = 1_776_473_494_000_000_070
    assert clock.Zone("Asia/Tokyo").stamp(instant) == "2026-04-18T09:51:34.000000070+09:00"
    assert clock.Zone("UTC").stamp(instant) == "2026-04-18T00:51:34.000000070Z"


def test_summer_time_changes_within_one_zone_object() -> None:
    zone = clock.Zone("Europe/Berlin")
    before = int(datetime(2026, 10, 25, 0, 59, 59, tzinfo=timezone.utc).timestamp())
    assert zone.stamp(before * clock.NANOSECONDS) == "2026-10-25T02:59:59.000000000+02:00"
    assert zone.stamp((before + 1) * clock.NANOSECONDS) == "2026-10-25T02:00:00.000000000+01:00"
    assert zone.stamp(before * clock.NANOSECONDS) == "2026-10-25T02:59:59.000000000+02:00"


def test_local_is_the_zone_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TZ", "Asia/Tokyo")
    time.tzset()
    try:
        zone = clock.Zone("Local")
        assert zone.stamp(0) == "1970-01-01T09:00:00.000000000+09:00"
        assert zone.format("%H:%M %Z", 0) == "09:00 JST"
        assert zone.seconds(0) == "1970-01-01T09:00:00+0900"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_file_names_are_in_the_zone() -> None:
    assert clock.Zone("Asia/Tokyo").format("%Y%m%d-%H", 1_776_473_494.9) == "20260418-09"


@pytest.mark.parametrize("name", ["Mars/Base", "../../etc/passwd", "\0", "Asia/Tokyo "])
def test_an_unknown_zone_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match="there is no time zone"):
        clock.Zone(name)


@pytest.mark.parametrize(
    "stamp", ["", "yesterday", "2026-04-18T09:51:34", "2026-04-18T09:51:34.1234567890Z", "2026-04-18T09:51:34.Z"]
)
def test_what_is_no_stamp_is_a_value_error(stamp: str) -> None:
    with pytest.raises(ValueError):
        clock.parse(stamp)


@given(st.text(max_size=40))
def test_parse_raises_nothing_but_value_error(text: str) -> None:
    try:
        clock.parse(text)
    except ValueError:
        return
