"""The units, by systemd's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).parent.parent / "systemd"
UNIT = UNITS / "tcppc.service"

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="needs systemd-analyze (Debian: systemd)"
)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here (verify looks for it), the socket's unit beside it."""
    path = tmp_path / "tcppc.service"
    path.write_text(UNIT.read_text(encoding="utf-8").replace("/usr/local/bin/tcppc", sys.executable), encoding="utf-8")
    shutil.copy(UNITS / "tcppc.socket", tmp_path)
    return path


def without_capabilities(unit: Path) -> Path:
    """The drop-in for a sensor whose sockets systemd opens."""
    folder = unit.with_name("tcppc.service.d")
    folder.mkdir()
    shutil.copy(UNITS / "no-capabilities.conf", folder)
    return unit


def words(*command: str | Path) -> str:
    """What systemd-analyze says, on both streams; it must succeed."""
    done = subprocess.run(["systemd-analyze", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def exposure(unit: Path) -> float:
    said = words("security", "--offline=true", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", said)
    assert found, said
    return float(found[1])


@needs_systemd
def test_the_units_verify_without_a_word(unit: Path) -> None:
    assert words("verify", "--man=no", unit) == ""
    assert words("verify", "--man=no", without_capabilities(unit), unit.with_suffix(".socket")) == ""


@needs_systemd
def test_the_unit_is_exposed_to_less_than_2_of_10_and_to_less_without_capabilities(unit: Path) -> None:
    with_two = exposure(unit)
    # An offline look takes one file: the drop-in's lines follow the unit's, as they do in systemd.
    lines = (UNITS / "no-capabilities.conf").read_text(encoding="utf-8")
    unit.write_text(unit.read_text(encoding="utf-8") + lines, encoding="utf-8")
    assert exposure(unit) < with_two < 2.0


def test_the_unit_gives_no_capability_but_the_two_that_are_needed() -> None:
    text = UNIT.read_text(encoding="utf-8")
    for name in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert re.findall(rf"^{name}=(.*)$", text, re.MULTILINE) == ["CAP_NET_ADMIN CAP_NET_BIND_SERVICE"]
