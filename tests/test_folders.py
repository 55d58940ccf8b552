"""Which folder things are kept in, by what the environment says."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from tcppc import folders

NAMES = ("STATE_DIRECTORY", "XDG_STATE_HOME", "HOME")


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> int:
    """A user who is not root, and has no entry in passwd(5)."""
    known = {entry.pw_uid for entry in pwd.getpwall()}
    uid = next(number for number in range(54321, 60000) if number not in known)
    monkeypatch.setattr("os.geteuid", lambda: uid)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return uid


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"STATE_DIRECTORY": "/a:/b"}, "/a"),
        ({"STATE_DIRECTORY": ":/b", "HOME": "/h"}, "/b"),
        ({"STATE_DIRECTORY": "relative:/b"}, "/b"),
        ({"STATE_DIRECTORY": ":", "XDG_STATE_HOME": "/x"}, "/x/tcppc"),
        ({"STATE_DIRECTORY": "", "XDG_STATE_HOME": "/x"}, "/x/tcppc"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/tcppc"),
        ({"XDG_STATE_HOME": "", "HOME": "/h"}, "/h/.local/state/tcppc"),
    ],
)
@pytest.mark.usefixtures("user")
def test_the_first_one_that_is_absolute_counts(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert folders.state() == Path(expected)
    assert folders.state("given") == Path("given")


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_without_a_home_passwd_tells_it_or_one_line_says_what_is_missing(
    user: int, home: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if home is not None:
        monkeypatch.setenv("HOME", home)
    with pytest.raises(folders.NoFolder, match=rf"^there is no folder .*uid {user} .*capture\.state_dir takes one$"):
        folders.state()
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr("os.geteuid", lambda: nobody.pw_uid)
    assert folders.state() == Path(nobody.pw_dir) / ".local/state/tcppc"


def test_roots_is_one_for_the_whole_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert folders.state() == Path("/var/lib/tcppc")


def test_a_temporary_folder_that_there_is_not_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert folders.temporary() == str(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [os.devnull])
    with pytest.raises(folders.NoFolder, match="expected TMPDIR, /tmp or /var/tmp"):
        folders.temporary()
