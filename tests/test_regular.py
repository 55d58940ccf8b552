"""Files opened where others may have put something else."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tcppc.capture.regular import is_regular, open_regular


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def link(path: Path) -> None:
    path.with_name("target").write_bytes(b"target")
    path.symlink_to("target")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


WORDS: dict[Callable[[Path], None], str] = {
    fifo: "a FIFO", folder: "a folder", link: "a symbolic link", dangling: "a symbolic link",
    unix_socket: "a socket", device: "a device",
}  # fmt: skip
FLAGS = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_RDWR | os.O_CREAT | os.O_TRUNC)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("other", WORDS, ids=lambda other: other.__name__)
def test_what_is_no_regular_file_is_named_at_once(tmp_path: Path, other: Callable[[Path], None], flags: int) -> None:
    path = tmp_path / "it"
    other(path)
    before = os.lstat(path)
    with pytest.raises(OSError, match=f"{WORDS[other]} stands there; expected a regular file") as caught:
        open_regular(str(path), flags)
    assert caught.value.filename == str(path)
    assert not is_regular(str(path))
    assert os.lstat(path).st_ino == before.st_ino
    assert not (tmp_path / "nowhere").exists()
    if other is link:
        assert (tmp_path / "target").read_bytes() == b"target"


def test_a_regular_file_is_opened_or_made_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "it"
    fd = open_regular(str(path), os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, b"text")
    os.close(fd)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert is_regular(str(path))
    fd = open_regular(str(path), os.O_RDONLY)
    assert os.read(fd, 100) == b"text"
    os.close(fd)


def test_what_is_wrong_besides_is_as_open_says(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(str(tmp_path / "none"), os.O_RDONLY)
    assert not is_regular(str(tmp_path / "none"))
    with pytest.raises(FileExistsError):
        open_regular(__file__, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
