"""Capabilities: named where they lack, given back where they are not needed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.capture import capabilities
from tests.conftest import Start

# Lets an ordinary user into the test's folder.
FILE = capabilities.bits(["CAP_DAC_OVERRIDE"])


def sets(pid: int) -> dict[str, int]:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return {name: capabilities.parse_status(text, name) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}


def setpriv(*names: str) -> tuple[str, ...]:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("another user's capabilities need root and setpriv")
    given = ",".join(["-all", *(f"+{name}" for name in names)])
    return "setpriv", "--reuid", "1", "--clear-groups", "--inh-caps", given, "--ambient-caps", given


def test_an_ordinary_user_is_told_each_missing_one_and_how_to_grant_it(start: Start) -> None:
    sensor = start(prefix=setpriv("dac_override"))
    assert (
        "(IP_TRANSPARENT): it needs CAP_NET_ADMIN or CAP_NET_RAW; serving without, on this port only. "
        "To grant it: AmbientCapabilities=CAP_NET_ADMIN in its unit, or setpriv --ambient-caps +net_admin."
        in sensor.log
    )
    assert "The UDP buffer is " in sensor.log
    assert "net.core.rmem_max raised" in sensor.log
    sensor.send(b"still served")
    assert sensor.stop() == 0


def test_a_low_port_without_the_capability(start: Start, tmp_path: Path) -> None:
    sensor = start(prefix=setpriv("dac_override"), port=7, wait=False)
    assert sensor.process.wait(30) == 1
    assert "Permission denied; ports below 1024 need CAP_NET_BIND_SERVICE" in sensor.log


def test_what_is_not_needed_any_more_is_given_back(start: Start) -> None:
    sensor = start(prefix=setpriv("net_admin", "net_bind_service", "dac_override"))
    assert "IP_TRANSPARENT" not in sensor.log
    found = sets(sensor.process.pid)
    assert (found["CapPrm"], found["CapEff"], found["CapInh"], found["CapAmb"]) == (FILE,) * 4
    assert "Capabilities: CAP_DAC_OVERRIDE kept, all others given back." in sensor.log


def test_root_keeps_what_its_files_need_and_nothing_it_starts_has_more(start: Start) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    sensor = start()
    kept = capabilities.bits(capabilities.FILES)
    found = sets(sensor.process.pid)
    assert found["CapEff"] == found["CapPrm"] == found["CapBnd"] == kept
    sensor.send(b"x")
    sensor.records(1)
    assert sensor.stop() == 0


def test_what_mode_redirect_needs_stays(start: Start) -> None:
    sensor = start("--mode", "redirect", prefix=setpriv("net_admin", "net_bind_service", "dac_override"))
    assert sets(sensor.process.pid)["CapEff"] == FILE | capabilities.bits(["CAP_NET_ADMIN"])
    assert "Capabilities: CAP_DAC_OVERRIDE, CAP_NET_ADMIN kept, all others given back." in sensor.log


@given(st.text())
def test_any_status_is_a_set(text: str) -> None:
    assert capabilities.parse_status(text) >= 0
    assert capabilities.parse_status(f"Name:\tx\nCapEff:\t{text}\n") >= 0
    assert capabilities.parse_status("Name:\tx\nCapEff:\t0000000000001400\n") == 1 << 10 | 1 << 12
