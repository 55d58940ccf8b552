"""Hosts without IPv6, or without IPv4, and addresses that belong to one interface."""

from __future__ import annotations

import errno
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import lacking, netns
from tests.conftest import Start
from tests.harness import PATIENCE, Sensor, ended, payload, tcppc, wait_until
from tests.netns import Host, Net
from tests.test_probe import OFTEN

ROOT = Path(__file__).parent.parent
# socket(2) as on a kernel without the family, or in a unit with RestrictAddressFamilies=.
WITHOUT = {
    "IPv6": lambda: lacking.refusing(("socket", errno.EAFNOSUPPORT, socket.AF_INET6)),
    "IPv4": lambda: lacking.refusing(("socket", errno.EAFNOSUPPORT, socket.AF_INET)),
}
THERE = {"IPv6": ("127.0.0.1", "0.0.0.0"), "IPv4": ("::1", "::")}  # (who calls, what is listened on) without it
GONE = {"IPv6": "[::]", "IPv4": "0.0.0.0"}


@pytest.mark.parametrize("family", WITHOUT)
@pytest.mark.parametrize("order", [("0.0.0.0", "::"), ("::", "0.0.0.0")])
def test_a_sensor_for_both_families_serves_the_one_that_there_is_and_says_so(
    family: str, order: tuple[str, str], start: Start
) -> None:
    sensor = start(hosts=order, prefix=WITHOUT[family](), patch=OFTEN)
    sensor.send(b"hello", THERE[family][0])
    sensor.datagram(b"there", THERE[family][0])
    assert {payload(record) for record in sensor.records(2)} == {b"hello", b"there"}
    assert f" this host has no {family} (Address family not supported by protocol); serving without it." in sensor.log
    assert sensor.log.count("serving without") == 1
    assert sensor.stop() == 0
    assert "Probe" not in sensor.log


@pytest.mark.parametrize("family", WITHOUT)
@pytest.mark.parametrize("flags", [(), ("-disable-udp-server",), ("-disable-tcp-server",)])
def test_a_sensor_for_the_missing_family_alone_is_an_error_that_names_the_other_one(
    family: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    host = {"IPv6": "::", "IPv4": "0.0.0.0"}[family]
    sensor = Sensor(tmp_path, *flags, hosts=(host,), prefix=WITHOUT[family]())
    assert sensor.process.wait(PATIENCE) == 1
    kind = "UDP" if "-disable-tcp-server" in flags else "TCP"
    other = {"IPv6": "an IPv4 address, such as 0.0.0.0", "IPv4": "an IPv6 address, such as ::"}[family]
    assert sensor.log.splitlines()[-1] == (
        f"tcppc: Failed to listen {kind} socket: {GONE[family]}:0: "
        f"this host has no {family} (Address family not supported by protocol); expected {other}"
    )
    assert not (tmp_path / "data.jsonl").exists()


def listened(prefix: tuple[str, ...], words: str, call: str) -> bytes:
    """What `tcppc nc` put out of one connection."""
    command = [*prefix, sys.executable, "-m", "tcppc", "nc", "-v", *words.split()]
    with ended(
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    ) as process:
        assert process.stderr
        assert process.stdout
        said = process.stderr.readline().decode()
        assert said.startswith("Listening on "), said
        with socket.create_connection((call, int(said.split()[-1])), PATIENCE) as sock:
            sock.sendall(b"hello")
        shown = process.stdout.read()
        assert process.wait(PATIENCE) == 0
    return shown


@pytest.mark.parametrize("family", WITHOUT)
def test_nc_listens_on_the_family_that_there_is(family: str) -> None:
    assert listened(WITHOUT[family](), "-l 0", THERE[family][0]) == b"hello"
    words = {"IPv6": "-6", "IPv4": "-4"}[family]
    command = [*WITHOUT[family](), sys.executable, "-m", "tcppc", "nc", words, "-l", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith(f"tcppc: cannot listen: {GONE[family]}:0: this host has no {family} (")
    assert done.stderr.count("\n") == 1


def test_an_address_in_use_is_no_missing_family() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as taken:
        done = tcppc("nc", "-l", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert done.stderr.endswith("Address already in use\n")


@pytest.mark.parametrize("family", WITHOUT)
def test_a_name_of_both_families_is_served_on_the_one_that_there_is(family: str, start: Start, tmp_path: Path) -> None:
    """As many hosts have localhost."""
    if why := netns.why_not():
        pytest.skip(why)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 of-both\n::1 of-both\n", encoding="ascii")
    mounted = ("unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh")
    sensor = start(hosts=("of-both",), prefix=(*mounted, *WITHOUT[family]()))
    sensor.send(b"hello", THERE[family][0])
    sensor.records(1)


def test_a_load_balancer_may_name_addresses_of_the_missing_family(start: Start, tmp_path: Path) -> None:
    settings = tmp_path / "tcppc.toml"
    settings.write_text('[capture]\nproxy_protocol = "127.0.0.0/8"\n', encoding="ascii")
    sensor = start("-c", str(settings), prefix=WITHOUT["IPv6"]())
    sensor.send(b"PROXY TCP6 2001:db8::7 2001:db8::10 51324 23\r\nhello")
    record = sensor.records(1)[0]
    assert (record["flow"]["src"], record["flow"]["dst"], payload(record)) == ("2001:db8::7", "2001:db8::10", b"hello")


def test_metrics_of_a_missing_family_are_one_line_and_all_else_goes_on(start: Start) -> None:
    sensor = start("--metrics", "[::1]:0", prefix=WITHOUT["IPv6"]())
    assert "Metrics [::1]:0: Address family not supported by protocol; there are none, all else goes on." in sensor.log
    sensor.send(b"x")
    sensor.records(1)


@pytest.fixture
def off(net: Net) -> Host:
    """IPv6 is compiled in, and off on all interfaces."""
    for name in ("all", "default", "lo", "veth0", "veth1"):
        net.sensor.run("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1")
    return net.sensor


# Without CAP_NET_ADMIN and CAP_NET_RAW no address is taken that is none of this host's.
PLAIN = ("setpriv", "--bounding-set", "-net_admin,-net_raw", "--inh-caps", "-net_admin,-net_raw")


@pytest.mark.parametrize("hosts", [("127.0.0.1", "::1"), ("0.0.0.0", "::"), ("::1", "127.0.0.1")])
def test_where_ipv6_is_off_on_all_interfaces_ipv4_is_served(hosts: tuple[str, str], start: Start, off: Host) -> None:
    sensor = start(hosts=hosts, prefix=(*off.prefix, *PLAIN), port=12345)
    program = "import socket; s = socket.create_connection(('127.0.0.1', 12345)); s.sendall(b'hello')"
    off.python(program)
    sensor.records(1)
    # To bind :: is allowed even then.
    assert ("this host has no IPv6 (Cannot assign requested address)" in sensor.log) == ("::" not in hosts)
    assert sensor.stop() == 0


def test_where_ipv6_is_off_on_all_interfaces_one_line_says_so(off: Host, tmp_path: Path) -> None:
    sensor = Sensor(tmp_path, hosts=("::1",), prefix=(*off.prefix, *PLAIN))
    assert sensor.process.wait(PATIENCE) == 1
    assert sensor.log.splitlines()[-1].endswith(
        "this host has no IPv6 (Cannot assign requested address); expected an IPv4 address, such as 0.0.0.0"
    )
    done = off.tcppc("nc", "-l", "::1", "12345")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "this host has no IPv6 (Cannot assign requested address); expected an IPv4 address" in done.stderr


def test_an_address_that_is_none_of_this_hosts_stays_an_error(tmp_path: Path, net: Net) -> None:
    sensor = Sensor(tmp_path, hosts=("127.0.0.1", "2001:db8::5"), prefix=(*net.sensor.prefix, *PLAIN))
    assert sensor.process.wait(PATIENCE) == 1
    assert re.search(r"\[2001:db8::5\]:\d+: Cannot assign requested address$", sensor.log.strip())


def test_the_doctor_proves_ipv4_where_ipv6_is_off(start: Start, off: Host) -> None:
    sensor = start(hosts=("0.0.0.0",), prefix=off.prefix, port=12345)
    done = off.tcppc("doctor", "-p", "12345", "-w", str(sensor.file))
    assert "ok   way       TCP to 198.51.100.1 port 12345 reached" in done.stdout, done.stdout
    assert "-    way       IPv6: there is no such address of this host" in done.stdout
    assert "not proved from outside" not in done.stdout


@pytest.mark.parametrize("words", ["rules --interface veth0", "rules --status", "blocks list", "watch -i none0"])
def test_commands_do_without_ipv6(words: str, off: Host) -> None:
    for prefix in ((), WITHOUT["IPv6"]()):
        done = off.tcppc(*words.split(), prefix=prefix)
        assert "Traceback" not in done.stderr
        assert done.returncode in (0, 1)


# Zones


def link_local(host: Host, device: str = "veth0") -> str:
    found = json.loads(host.run("ip", "-j", "-6", "addr", "show", "dev", device))
    return next(str(info["local"]) for info in found[0]["addr_info"] if info["scope"] == "link")


CALL = """
import socket, sys
host, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
where = socket.getaddrinfo(host, port, type=getattr(socket, kind))[0][4]
with socket.socket(socket.AF_INET6, getattr(socket, kind)) as sock:
    sock.settimeout(20)
    sock.connect(where)
    sock.send(bytes.fromhex(sys.argv[4]))
    if len(sys.argv) > 5:
        print(sock.recv(4096))
    elif kind == "SOCK_STREAM":
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
"""


@pytest.mark.parametrize("by", ["name", "number"])
def test_a_link_local_address_with_its_interface_is_listened_on(by: str, start: Start, net: Net) -> None:
    address = link_local(net.sensor)
    zone = "veth0"
    if by == "number":
        zone = net.sensor.run("cat", "/sys/class/net/veth0/ifindex").strip()
    sensor = start("--persona", "auto", hosts=(f"{address}%{zone}",), prefix=net.sensor.prefix, port=12345, patch=OFTEN)
    assert f"Listen: [{address}%veth0]:12345\n" in sensor.log
    net.attacker.python(CALL, f"{address}%veth0", "12345", "SOCK_STREAM", b"hello".hex())
    net.attacker.python(CALL, f"{address}%veth0", "12345", "SOCK_DGRAM", b"hello".hex())
    records = sensor.records(2)
    assert {record["flow"]["dst"] for record in records} == {address}  # no zone in a record
    assert {record["flow"]["src"] for record in records} == {link_local(net.attacker)}
    assert sensor.stop() == 0
    assert "Probe" not in sensor.log  # its own knocks have the zone too


def test_a_datagram_to_a_link_local_address_is_answered(start: Start, net: Net, tmp_path: Path) -> None:
    address = link_local(net.sensor)
    settings = tmp_path / "tcppc.toml"
    settings.write_text('[personas]\n"udp/12345" = "ntp"\n', encoding="ascii")
    sensor = start("-c", str(settings), hosts=(f"{address}%veth0",), prefix=net.sensor.prefix, port=12345)
    said = net.attacker.python(CALL, f"{address}%veth0", "12345", "SOCK_DGRAM", "23" + "00" * 47, "answer")
    assert said.startswith("b'")
    assert sensor.records(1)[0]["replies"]
    assert sensor.stop() == 0


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("fe80::1%none0", "there is no interface 'none0'; expected one of lo"),
        ("fe80::1%9999", "there is no interface '9999'; expected one of lo"),
        ("fe80::1%99999999999999999999", "there is no interface"),
        ("fe80::1%", "a link-local address needs its interface: expected fe80::1%NAME, of lo"),
        ("fe80::1", "a link-local address needs its interface: expected fe80::1%NAME, of lo"),
        ("[fe80::1%none0]", "there is no interface 'none0'"),
        ("::1%lo", "only link-local addresses (fe80::/10) have a zone"),
        ("127.0.0.1%lo", "only link-local addresses (fe80::/10) have a zone"),
        ("fe80::1%lo%lo", "there is no interface 'lo%lo'"),
    ],
)
def test_a_zone_that_is_wrong_is_one_line(host: str, said: str) -> None:
    for words, code in ((("check", "-H", host), 2), (("nc", "-l", host, "12345"), 2)):
        done = tcppc(*words)
        assert done.returncode == code
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_nc_listens_on_a_link_local_address(net: Net) -> None:
    address = link_local(net.sensor)
    process = net.sensor.start(
        sys.executable, "-m", "tcppc", "nc", "-v", "-l", f"{address}%veth0", "12345", stdin=subprocess.DEVNULL
    )
    assert process.stdout
    assert process.stdout.readline() == f"Listening on {address}%veth0 12345\n"
    net.attacker.python(CALL, f"{address}%veth0", "12345", "SOCK_STREAM", b"hello".hex())
    assert process.stdout.read().endswith("hello")


def test_metrics_listen_on_a_link_local_address(start: Start, net: Net) -> None:
    pytest.importorskip("prometheus_client")
    address = link_local(net.sensor)
    sensor = start("--metrics", f"[{address}%veth0]:2112", prefix=net.sensor.prefix)
    assert f"Metrics: http://[{address}%veth0]:2112/metrics" in sensor.said("Metrics: ")
    asked = b"GET /healthz HTTP/1.0\r\n\r\n".hex()
    said = net.attacker.python(CALL, f"{address}%veth0", "2112", "SOCK_STREAM", asked, "answer")
    assert "200 OK" in said
    assert sensor.stop() == 0
    wrong = start("--metrics", "[fe80::1%none0]:2112")
    assert "Metrics [fe80::1%none0]:2112: " in wrong.log
    assert "; there are none, all else goes on." in wrong.log


def test_syslog_is_sent_to_a_link_local_address(start: Start, net: Net, tmp_path: Path) -> None:
    address = link_local(net.attacker)
    hears = net.attacker.start(
        sys.executable,
        "-c",
        "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 514)); "
        "print('ready', flush=True); print(s.recv(9000), flush=True)",
    )
    assert hears.stdout
    assert hears.stdout.readline() == "ready\n"
    settings = tmp_path / "tcppc.toml"
    settings.write_text(f'[[action]]\nsyslog = "[{address}%veth0]:514"\n', encoding="ascii")
    sensor = start("-c", str(settings), hosts=("0.0.0.0",), port=12345, prefix=net.sensor.prefix)
    net.attacker.python("import socket; socket.create_connection(('198.51.100.1', 12345)).close()")
    assert "tcppc" in wait_until(hears.stdout.readline, "the message")
    assert "sent" in sensor.said("syslog [")


@pytest.mark.parametrize("words", ["blocks add fe80::%lo/64", "blocks add 2001:db8::1%lo", "blocks remove ::1%lo"])
def test_a_zone_is_no_part_of_what_is_blocked(words: str) -> None:
    done = tcppc(*words.split())
    assert done.returncode == 2
    assert done.stderr.startswith("tcppc: expected an IPv4 address, or an IPv6 address or /64, not ")
