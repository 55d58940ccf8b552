"""Whatever is given as a TOML file: it is read, or one line says why not, and nothing is waited for."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc import tables
from tests.conftest import Start
from tests.harness import tcppc

SETTINGS = '[tcppc]\nport = 4711\n[personas]\ndefault = "silent"\n'
PERSONA = 'banner = "hello\\r\\n"\n'

READ: dict[str, Callable[[str], bytes]] = {
    "as it is": str.encode,
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "line ends of DOS": lambda text: text.replace("\n", "\r\n").encode(),
    "both, as Notepad writes": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "comments that are no ASCII": lambda text: f"# größe ☃\n{text}".encode(),
}


@pytest.mark.parametrize("way", READ)
def test_a_file_is_read_however_it_was_saved(way: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "tcppc.toml", tmp_path / "personas"
    folder.mkdir()
    file.write_bytes(READ[way](SETTINGS + f'folder = "{folder}"\n'))
    (folder / "pbx.toml").write_bytes(READ[way](PERSONA))
    done = tcppc("check", "-c", str(file), "--persona", "pbx")
    assert done.returncode == 0, done.stderr
    assert "port = 4711" in done.stdout


def test_an_empty_file_has_no_settings(tmp_path: Path) -> None:
    for content in (b"", b"\n", b"\xef\xbb\xbf", b"# nothing"):
        (tmp_path / "tcppc.toml").write_bytes(content)
        assert tables.read(tmp_path / "tcppc.toml") == {}


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def linked(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "UTF-16": (written(SETTINGS.encode("utf-16")), "is not UTF-8 text but UTF-16; expected UTF-8"),
    "UTF-16, the other one": (written(b"\xfe\xff" + SETTINGS.encode("utf-16-be")), "is not UTF-8 text but UTF-16"),
    "UTF-16 without its mark": (
        written(SETTINGS.encode("utf-16-le")),
        "is not TOML: line 1 has a NUL byte, as UTF-16 text has; expected UTF-8 text",
    ),
    "a NUL byte": (written(b'[tcppc]\nhost = "a\0b"\n'), "is not TOML: line 2 has a NUL byte"),
    "Latin-1": (written(b'[tcppc]\nhost = "\xf6"\n'), "is not UTF-8 text: byte 17; expected UTF-8"),
    "a program": (written(b"\x7fELF\x02\x01\x01" + bytes(100)), "is not TOML: line 1 has a NUL byte"),
    "a folder": (Path.mkdir, "is a folder; expected a plain file, which can be read again"),
    "a pipe": (fifo, "is a pipe; expected a plain file, which can be read again"),
    "a socket": (bound, "cannot be read: No such device or address"),
    "zeros without an end": (linked("/dev/zero"), "is a device; expected a plain file, which can be read again"),
    "a terminal": (linked("/dev/ptmx"), "is a device; expected a plain file"),
    "a file without bounds": (sparse, "is larger than 1048576 bytes"),
    "a link to itself": (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
    "nothing": (linked("/nowhere"), "cannot be read: No such file or directory"),
    "tables within tables": (written(b"a = " + b"[" * 5000 + b"]" * 5000), "is not TOML: RecursionError"),
    "a key without an end": (written(b"[tcppc]\n" + b"k" * 100_000 + b" = 1\n"), ""),
    "half a character": (written(b'[tcppc]\ntcpFileFmt = "\\ud800"\n'), ""),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_such_file_is_one_line_for_settings_and_personas(what: str, tmp_path: Path) -> None:
    make, said = WRONG[what]
    folder = tmp_path / "personas"
    folder.mkdir()
    file, persona = tmp_path / "tcppc.toml", folder / "pbx.toml"
    make(file)
    make(persona)
    (tmp_path / "good.toml").write_text(f'[personas]\nfolder = "{folder}"\n', encoding="utf-8")
    for words, where in (
        (("check", "-c", str(file)), file),
        (("-c", str(file), "-p", "0"), file),
        (("check", "-c", str(tmp_path / "good.toml")), persona),
        (("personas", "-c", str(tmp_path / "good.toml")), persona),
    ):
        done = tcppc(*words)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("tcppc: ")
        assert str(where) in done.stderr
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert len(done.stderr) < 1000


def test_a_reload_does_not_wait_for_what_has_become_a_pipe(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "tcppc.toml"
    file.write_text("[limits]\nsessions = 100\n", encoding="ascii")
    sensor = start("-c", str(file))
    file.unlink()
    os.mkfifo(file)
    sensor.signal(signal.SIGHUP)
    sensor.said(f"Reload refused, the configuration stays as it was: {file}: is a pipe; expected a plain file")
    sensor.send(b"x")
    sensor.records(1)
    assert sensor.stop() == 0


@given(st.binary(max_size=60) | st.text(alphabet="[]=\"'\n#.,{} tcp1e-+_:\\\r\0", max_size=60).map(str.encode))
@settings(deadline=None)
def test_no_bytes_are_more_than_a_table_error(content: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(content)
        file.flush()
        try:
            tables.read(file.name)
        except tables.TableError as problem:
            assert "\n" not in str(problem)
            assert len(str(problem)) < 400
