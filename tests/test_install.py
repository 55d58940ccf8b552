"""`make install`: what stands where, and does it run from there? And the manual page: does it name every flag?"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tcppc import __version__
from tcppc.cli.arguments import ABOUT
from tests.harness import tcppc

ROOT = Path(__file__).parent.parent


def make(target: str, *variables: str) -> None:
    # The tests' own Python in the place of the one that make would set up. Pip builds in the tree: one at a time.
    with open(ROOT / "setup.cfg", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            ["make", "-s", target, f"VENV={sys.prefix}", "EXTRAS=", *variables],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_an_installed_tcppc_runs_from_where_it_stands_and_goes_again(tmp_path: Path) -> None:
    prefix, etc = tmp_path / "prefix", tmp_path / "etc"
    variables = (f"PREFIX={prefix}", f"SYSCONFDIR={etc}")
    make("install", *variables)
    program = prefix / "bin" / "tcppc"

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60
        )

    assert run("-v").stdout == f"{__version__}\n"
    effective = run("check", "-c", etc / "tcppc.toml")
    assert effective.returncode == 0, effective.stderr
    assert 'tcpFileFmt = "tcppc-%Y%m%d.jsonl"\nrotInt = 86400\n' in effective.stdout
    for path in ("lib/systemd/system/tcppc.service", "lib/systemd/system/tcppc.socket", "share/man/man1/tcppc.1"):
        assert (prefix / path).exists()
    unit = (prefix / "lib/systemd/system/tcppc.service").read_text(encoding="utf-8")
    assert f"ExecStart={program} -c {etc}/tcppc.toml\n" in unit
    assert f"PROGRAM={program}\nCONFIG={etc}/tcppc.toml\n" in (etc / "init.d/tcppc").read_text(encoding="utf-8")
    if shutil.which("systemd-analyze"):
        units = [prefix / "lib/systemd/system" / name for name in ("tcppc.service", "tcppc.socket")]
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")

    (etc / "tcppc.toml").write_text("[tcppc]\nport = 2323\n", encoding="ascii")
    make("install", *variables)
    assert (etc / "tcppc.toml").read_text(encoding="ascii") == "[tcppc]\nport = 2323\n"

    make("uninstall", *variables)
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ["etc/tcppc.toml"]


@pytest.mark.timeout(300)
def test_a_staged_install_says_nothing_of_its_stage(tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    make("install", f"DESTDIR={stage}", "PREFIX=/usr", "SYSCONFDIR=/etc")
    assert 'sys.path.insert(0, "/usr/lib/tcppc")' in (stage / "usr/bin/tcppc").read_text(encoding="utf-8")
    for path in [
        stage / "usr/bin/tcppc",
        *stage.glob("etc/**/*"),
        *stage.glob("usr/lib/systemd/**/*"),
        *stage.glob("usr/share/**/*"),
    ]:
        if path.is_file():
            assert str(tmp_path) not in path.read_text(encoding="utf-8"), path


def test_the_manual_page_has_every_command_and_flag() -> None:
    page = (ROOT / "docs" / "tcppc.1").read_text(encoding="utf-8")
    for command in ABOUT:
        assert f"Cm {command}" in page, command
        shown = tcppc(*([] if command == "serve" else [command]), "--help").stdout
        for flag in re.findall(r"(?:^  |, )--?([A-Za-z46][\w-]*)", shown, re.MULTILINE):
            if flag not in ("h", "help", "c", "v"):
                assert re.search(rf"\.(?:It )?(?:Op )?Fl (?:.* Fl )?-?{re.escape(flag)}\b", page), (command, flag)


def test_the_manual_page_is_sound() -> None:
    if not shutil.which("groff"):
        pytest.skip("needs groff (Debian: groff-base)")
    done = subprocess.run(
        ["groff", "-mdoc", "-Tutf8", "-ww", "-z", ROOT / "docs" / "tcppc.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
