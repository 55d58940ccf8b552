from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import toml
from hypothesis import given
from hypothesis import strategies as st

from tcppc import config, sections
from tests.harness import tcppc

TEMPLATE = Path(__file__).parent.parent / "conf" / "tcppc.toml"

# What tcppc-go 0.4.0's template says, value by value.
TCPPC_GO = """\
[tcppc]
host = "0.0.0.0"
port = 12345
timeout = 60
tcpFileFmt = "data/tcppc-%Y%m%d.jsonl"
rotInt = 60
rotOffset = 0
logFile = ""
timezone = "Local"
maxFdNum = 8192
x509Cert = ""
x509Key = ""
"""


def written(folder: Path, text: str) -> str:
    path = folder / "tcppc.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_template_has_every_setting_with_its_default() -> None:
    template = toml.load(TEMPLATE)
    for name in config.SECTIONS:
        assert list(template[name]) == config.known(name)
    assert list(template) == list(config.SECTIONS)
    assert config.load(str(TEMPLATE)) == config.Config(source=str(TEMPLATE))


def test_the_template_says_something_about_every_setting() -> None:
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
    for index, line in enumerate(lines):
        if " = " in line and not line.startswith("#"):
            assert lines[index - 1].startswith("# "), line


def test_a_file_of_tcppc_go_works_unchanged(tmp_path: Path) -> None:
    read = config.load(written(tmp_path, TCPPC_GO))
    assert read.tcppc == sections.Tcppc(tcpFileFmt="data/tcppc-%Y%m%d.jsonl", rotInt=60, maxFdNum=8192)
    assert read.tls_mode == "auto"


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    read = config.load(written(tmp_path, TCPPC_GO), {("tcppc", "port"): ("-p", "99")})
    assert read.tcppc.port == 99
    assert read.tcppc.timeout == 60


def test_the_printed_configuration_reads_back_to_the_same(tmp_path: Path) -> None:
    text = '[tcppc]\nhost = ["::1", "127.0.0.1"]\n[limits]\nmemory = "1GiB"\nduration = "90s"\n'
    text += '[capture]\nsensor = "a \\"b\\""\n'
    first = config.load(written(tmp_path, text))
    again = config.load(written(tmp_path, config.as_toml(first)))
    assert again == first
    assert first.limits.memory == 1 << 30
    assert first.tcppc.host == ("::1", "127.0.0.1")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[tcppc]\nport = 70000", "[tcppc] port = 70000: expected a whole number from 0 to 65535"),
        ('[tcppc]\nport = "http"', "[tcppc] port = 'http': expected a whole number from 0 to 65535"),
        ("[tcppc]\nport = true", "[tcppc] port = True: expected a whole number"),
        ("[tcppc]\nhost = []", "[tcppc] host = []: expected a name or address"),
        ("[tcppc]\nhost = 5", "[tcppc] host = 5: expected a name or address"),
        ("[tcppc]\ntimeout = -1", "[tcppc] timeout = -1: expected a duration from 0.01 to 86400 seconds"),
        ('[tcppc]\ntimezone = "Mars"', "timezone: there is no time zone 'Mars'; expected Local or a name"),
        ('[tcppc]\ntcpFileFmt = "data/"', "expected the name of a file, not of a folder"),
        ("[tcppc]\nprot = 1", "[tcppc] has no setting prot; did you mean port?"),
        ("[tcpcp]\nport = 1", "[tcpcp] is no section; did you mean tcppc?"),
        ("port = 1", "[port] is no section"),
        ('[tcppc]\nx509Cert = "a"', "-C is given without -K"),
        ('[tcppc]\nx509Key = "a"', "-K is given without -C"),
        ('[capture]\ntls = "on"', "TLS is on without a certificate"),
        ('[capture]\ntls = "maybe"', "[capture] tls = 'maybe': expected off, on or auto"),
        ("[capture]\nquiet = 1", "[capture] quiet = 1: expected true or false"),
        ("[capture]\ntcp = false\nudp = false", "there is nothing to serve"),
        ('[files]\ncompress = "rar"', "[files] compress = 'rar': expected off, gzip or zstd"),
        ("[limits]\nmemory = 1", "[limits] memory = 1: expected a size from 65536"),
        ("[tcppc\n", "is not TOML"),
        ("[tcppc]\nport = \n", "is not TOML"),
        ("[tcppc]\nport = 1\nport = 2", "is not TOML"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_key_and_value(tmp_path: Path, text: str, complaint: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(config.ConfigError) as caught:
        config.load(path)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, complaint in [
        (str(tmp_path / "none.toml"), "cannot be read: No such file"),
        (str(tmp_path), "is a folder; expected a plain file"),
    ]:
        with pytest.raises(config.ConfigError, match=complaint):
            config.load(path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(config.ConfigError, match="is not UTF-8"):
        config.load(str(binary))


@given(st.text(alphabet="[]=\"'\n#.,{} tcp1e-+_:\\", max_size=60))
def test_no_text_is_more_than_a_config_error(text: str) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        try:
            config.load(file.name)
        except config.ConfigError as problem:
            assert "\n" not in str(problem)


def test_check_prints_what_is_in_force(tmp_path: Path) -> None:
    done = tcppc("check", "-c", written(tmp_path, TCPPC_GO), "-p", "99", "-q")
    assert done.returncode == 0, done.stderr
    printed = toml.loads(done.stdout)
    assert printed["tcppc"]["port"] == 99
    assert printed["tcppc"]["maxFdNum"] == 8192
    assert printed["capture"]["quiet"] is True


@pytest.mark.parametrize("value", ["x", ("x", "y"), True, 1.5, 2.0, 7, 'quo"te\\', ""])
def test_values_are_written_as_toml(value: Any) -> None:
    read = toml.loads(f"value = {config.toml_value(value)}")["value"]
    assert read == (list(value) if isinstance(value, tuple) else value)


def test_check_finds_certificates_that_do_not_fit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        command = f"openssl req -x509 -nodes -newkey rsa:2048 -subj /CN=x -keyout {name}.key -out {name}.crt"
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    for certificate, key, complaint in [
        ("a.crt", "b.key", "key values mismatch"),
        ("a.crt", "none.key", "No such file"),
        ("a.key", "a.crt", "expected a PEM certificate and its key"),
    ]:
        done = tcppc("check", "-C", str(tmp_path / certificate), "-K", str(tmp_path / key))
        assert done.returncode == 2
        assert complaint in done.stderr
        assert done.stderr.count("\n") == 1
