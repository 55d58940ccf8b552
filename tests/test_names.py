"""Names of stream files: tcpflow's, held against the program itself where it is installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.flows.names import DEFAULT, Named, Template, TemplateError
from tests.captures import pcap, tcp_packet

CLIENT, SERVER = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")
NAMED = Named(
    CLIENT, 1000, SERVER, 80, 1_223_315_694_638_913_000, 42, 1_234_567, 7,
    bytes.fromhex("020000000002"), bytes.fromhex("020000000001"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("template", "letters", "count", "wanted"),
    [
        (DEFAULT, "", 0, "010.000.000.001.01000-010.000.000.002.00080--42"),
        (DEFAULT, "", 2, "010.000.000.001.01000-010.000.000.002.00080--42c2"),
        (DEFAULT, "c", 0, "010.000.000.001.01000-010.000.000.002.00080--42c1"),
        ("%E_%e", "", 0, "02:00:00:00:00:02_02:00:00:00:00:01"),
        ("%T %t", "", 1, "2008-10-06T17:54:54Z 1223315694c1"),
        ("%S-%N-%K-%M-%G-%#", "", 3, "00000000000000000007-567-234-001-000-3c3"),
        ("%%%c", "", 0, "%"),
        ("%B/%b", "", 0, "010.000.000.002/00080"),
        ("x", "k", 0, "234/x"),
        ("x", "m", 0, "001000-001999/001234/x"),
        ("x", "g", 0, "000000000-000999999/000001000-000001999/000001234/x"),
        ("x", "t", 0, "1223315694Tx"),
        ("x", "kt", 0, "1223315694T234/x"),
        ("x", "XM", 0, "x"),
    ],
)
def test_codes_and_letters(template: str, letters: str, count: int, wanted: str) -> None:
    assert Template(template, letters).path(NAMED, count) == wanted


def test_ipv6_is_not_padded_and_no_vlan_is_nothing() -> None:
    six = [socket.inet_pton(socket.AF_INET6, text) for text in ("2001:db8::1", "::ffff:1.2.3.4")]
    named = Named(six[0], 1000, six[1], 80)
    assert Template().path(named) == "2001:db8::1.01000-::ffff:1.2.3.4.00080"


@pytest.mark.parametrize(
    ("template", "letters", "words"),
    [
        ("%q", "", "%q is no code; expected % and one of A a B b"),
        ("x%", "", "% is no code"),
        ("../x", "", "expected names below the output folder"),
        ("a/../../x", "", "expected names below the output folder"),
        ("/etc/x", "", "expected names below the output folder"),
        ("x", "z", "-F z: expected letters of kmgtTcXM"),
    ],
)
def test_wrong_templates_are_one_line(template: str, letters: str, words: str) -> None:
    with pytest.raises(TemplateError) as problem:
        Template(template, letters)
    assert words in str(problem.value)
    assert "\n" not in str(problem.value)


@given(st.text(max_size=20), st.integers(0, 5))
def test_any_template_is_a_name_below_the_folder_or_wrong(template: str, count: int) -> None:
    try:
        path = Template(template).path(NAMED, count)
    except TemplateError:
        return
    assert not path.startswith("/")
    assert ".." not in path.split("/")


@pytest.mark.parametrize(
    "flags",
    [
        (), ("-T", "%A.%a"), ("-T", "%C%c_x"), ("-T", "%S-%N-%K-%#"), ("-T", "%B.%b/%t%%"), ("-T", "%T%V%v"),
        ("-T", "%E_%e"), ("-Fk",), ("-Fm",), ("-Fg",), ("-Ft",), ("-FT",), ("-Fkm",), ("-FtT",),
    ],
)  # fmt: skip
def test_the_same_as_tcpflow(tmp_path: Path, flags: tuple[str, ...]) -> None:
    if not shutil.which("tcpflow"):
        pytest.skip("needs tcpflow")
    template = flags[1] if flags[:1] == ("-T",) else DEFAULT
    letters = flags[0][2:] if flags and flags[0].startswith("-F") else ""
    made = Template(template, letters)
    packets: list[tuple[int, bytes]] = []
    wanted: set[str] = set()
    used: dict[str, int] = {}
    for number in range(3):
        client = socket.inet_aton(f"10.0.0.{number + 1}")
        for way, (src, sport, dst, dport) in enumerate(((client, 1000, SERVER, 80), (SERVER, 80, client, 1000))):
            start = 1_223_315_694_000_000_000 + number
            packets.append((start, tcp_packet(src, sport, dst, dport, 1, b"x")))
            mac = (bytes.fromhex("020000000002"), bytes.fromhex("020000000001"))
            named = Named(src, sport, dst, dport, start, -1, number * 2 + way, number, *mac)
            first = made.path(named)
            used[first] = used.get(first, -1) + 1
            wanted.add(made.path(named, used[first]))
    (tmp_path / "a.pcap").write_bytes(pcap(packets))
    subprocess.run(
        ["tcpflow", "-r", str(tmp_path / "a.pcap"), "-o", str(tmp_path / "out"), *flags],
        check=True,
        capture_output=True,
        timeout=60,
    )
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found - {"report.xml"} == wanted
