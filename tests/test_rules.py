"""`tcppc rules` on real hosts: nft, ip and the kernel's TPROXY and REDIRECT in namespaces of the tests' own."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tcppc.netfilter import found, tools
from tests.conftest import Start
from tests.harness import Sensor, payload, wait_until
from tests.netns import (
    ATTACKER,
    INNER,
    ROOT,
    ROUTED,
    ROUTED_NETWORKS,
    SENSOR,
    THIRD,
    Host,
    Net,
    echo,
    knock,
)

PORT = 12345
EVERYWHERE = ("0.0.0.0", "::")


def rules(host: Host, *arguments: str) -> str:
    """`tcppc rules` for veth0, which has to work; its output."""
    done = host.tcppc("rules", "--interface", "veth0", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(host: Host, *arguments: str, code: int = 1, interface: str = "veth0") -> str:
    """The one line of `tcppc rules --apply` that cannot be done, and nothing was changed."""
    before = host.state()
    done = host.tcppc("rules", "--interface", interface, "--apply", *arguments)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Nothing listens on ")]
    assert (done.returncode, len(lines)) == (code, 1), done.stderr
    assert host.state() == before
    return lines[0]


def flows(records: Sequence[dict[str, object]]) -> set[tuple[object, ...]]:
    return {
        (*(record["flow"][key] for key in ("proto", "src", "dst", "dport")), payload(record))  # type: ignore[index]
        for record in records
    }


def knock_everywhere(net: Net, hosts: Sequence[str], ports: Sequence[int]) -> set[tuple[object, ...]]:
    """TCP, TLS and UDP from the attacker; what should be recorded."""
    wanted: set[tuple[object, ...]] = set()
    for kind in ("tcp", "tls", "udp"):
        for host in hosts:
            for port in ports:
                text = f"{kind} to {host} {port}"
                knock(net.attacker, kind, host, port, text)
                wanted.add((kind, ATTACKER[":" in host], host, port, text.encode()))
    return wanted


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_every_port_comes_to_the_sensor_with_what_was_addressed(start: Start, net: Net, mode: str) -> None:
    sensor = start("--mode", mode, hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--mode", mode, "--ssh", "none")
    wanted = knock_everywhere(net, SENSOR, (1, 22, 443, 8443, 9999, 65535))
    assert flows(sensor.records(len(wanted))) == wanted
    assert sensor.stop() == 0


def test_a_network_that_is_routed_here_needs_no_address_on_this_host(start: Start, net: Net) -> None:
    echo(net.sensor, 22, "own service ")
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", *(word for network in ROUTED_NETWORKS for word in ("--address", network)))
    last = ("192.0.2.0", "192.0.2.255", "2001:db8:b:0:ffff:ffff:ffff:ffff")
    wanted = knock_everywhere(net, (*ROUTED, *last), (22, 9999))
    assert flows(sensor.records(len(wanted))) == wanted
    # The host's own addresses are not the sensor's then.
    assert knock(net.attacker, "tcp", SENSOR[0], 22, "ssh") == "own service ssh"
    assert knock(net.attacker, "tcp", SENSOR[0], 9999, "?") == "ConnectionRefusedError"
    assert sensor.stop() == 0


def test_anyip_the_whole_network_on_lo(start: Start, net: Net) -> None:
    net.sensor.ip(f"route add local {ROUTED_NETWORKS[0]} dev lo")
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply")
    wanted = knock_everywhere(net, ("192.0.2.1", "192.0.2.254"), (9999,))
    assert flows(sensor.records(len(wanted))) == wanted


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_what_is_not_the_sensors_goes_on_as_before(start: Start, net: Net, mode: str) -> None:
    sensor = start("--mode", mode, hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    echo(net.sensor, 8080, "own service ")
    echo(net.third, 7000, "third host ")
    echo(net.attacker, 7001, "outside ")
    rules(net.sensor, "--apply", "--mode", mode, "--except", "9100-9200,25")
    for kind in ("tcp", "udp"):
        for family in (0, 1):
            ask = (kind, SENSOR[family], 8080)
            assert knock(net.attacker, *ask, "listening", 5) == "own service listening"
            assert knock(net.attacker, kind, THIRD[family], 7000, "forwarded", 5) == "third host forwarded"
            assert knock(net.third, kind, INNER[family], 8080, "other interface", 5) == "own service other interface"
            assert knock(net.sensor, kind, ATTACKER[family], 7001, "from here", 5) == "outside from here"
            assert knock(net.sensor, kind, SENSOR[family], 8080, "loopback", 5) == "own service loopback"
            for port in (25, 9100, 9150, 9200):
                assert knock(net.attacker, kind, SENSOR[family], port, "?", 2) == "ConnectionRefusedError"
    assert sensor.stop() == 0
    assert sensor.lines() == []


def test_an_answer_to_an_unconnected_socket_is_not_captured(start: Start, net: Net) -> None:
    """As a resolver's: sendto, and an answer to a port on which nothing listens in the usual sense."""
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    echo(net.attacker, 53, "answer to ")
    rules(net.sensor, "--apply")
    program = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); "
        f"s.sendto(b'query', ({ATTACKER[0]!r}, 53)); print(s.recv(99).decode())"
    )
    assert net.sensor.python(program).strip() == "answer to query"
    assert sensor.stop() == 0
    assert sensor.lines() == []


def test_guests_behind_address_translation_keep_their_answers(start: Start, net: Net) -> None:
    """A host with containers, or a router: answers to their connections come for this host's own address."""
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    echo(net.attacker, 7001, "outside ")
    net.attacker.ip("route del default")  # no way to the third host but by translation
    masquerade = "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname veth0 masquerade\n}\n}"
    net.sensor.run("nft", "-f", "-", text=masquerade)
    rules(net.sensor, "--apply")
    assert knock(net.third, "tcp", ATTACKER[0], 7001, "guest", 5) == "outside guest"
    assert knock(net.third, "udp", ATTACKER[0], 7001, "guest", 5) == "outside guest"
    knock(net.attacker, "tcp", SENSOR[0], 80, "captured")
    assert [payload(record) for record in sensor.records(1)] == [b"captured"]


def test_take_over_takes_listening_ports_and_leaves_ssh(start: Start, net: Net) -> None:
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    echo(net.sensor, 8080, "own service ")
    echo(net.sensor, 2200, "ssh ")
    session = {"SSH_CONNECTION": f"{ATTACKER[0]} 50000 {SENSOR[0]} 2200"}
    done = net.sensor.tcppc("rules", "--interface", "veth0", "--apply", "--take-over", environment=session)
    assert "Left alone: 2200 (ssh)." in done.stdout
    assert knock(net.attacker, "tcp", SENSOR[0], 2200, "still") == "ssh still"
    knock(net.attacker, "tcp", SENSOR[0], 8080, "taken")
    assert [payload(record) for record in sensor.records(1)] == [b"taken"]


def test_take_over_by_one_who_cannot_see_ssh_names_its_port(net: Net) -> None:
    """As the sensor in its unit: CAP_NET_ADMIN alone, and other users' processes hidden."""
    echo(net.sensor, 22, "ssh ")
    user = ("setpriv", "--reuid", "1", "--clear-groups", "--inh-caps", "-all,+net_admin,+dac_override")
    prefix = (*user, "--ambient-caps", "-all,+net_admin,+dac_override")
    before = net.sensor.state()
    words = ("rules", "--interface", "veth0", "--take-over", "--apply")
    done = net.sensor.tcppc(*words, prefix=prefix)
    assert done.returncode == 1
    assert done.stderr == (
        "tcppc: --take-over: whether ssh is one of the ports 22 cannot be seen without root; "
        "name its ports with --ssh\n"
    )
    assert net.sensor.state() == before
    assert net.sensor.tcppc(*words, "--except", "22", prefix=prefix).returncode == 0


def test_a_datagram_in_pieces_comes_whole(start: Start, net: Net) -> None:
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply")
    for address in SENSOR:
        knock(net.attacker, "udp", address, 9999, "x" * 20000)
    assert flows(sensor.records(2)) == {
        ("udp", ATTACKER[family], SENSOR[family], 9999, b"x" * 20000) for family in (0, 1)
    }


def test_tcp_or_udp_alone(start: Start, net: Net) -> None:
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--udp")
    assert knock(net.attacker, "tcp", SENSOR[0], 80, "?") == "ConnectionRefusedError"
    knock(net.attacker, "udp", SENSOR[0], 80, "udp")
    rules(net.sensor, "--apply", "--tcp")
    knock(net.attacker, "udp", SENSOR[0], 80, "not this one")
    knock(net.attacker, "tcp", SENSOR[0], 80, "tcp")
    assert [payload(record) for record in sensor.records(2)] == [b"udp", b"tcp"]
    assert sensor.stop() == 0
    assert len(sensor.lines()) == 2


# A host that is in use already, in ways that look like ours.
OTHERS = "table inet other { chain prerouting { type filter hook prerouting priority mangle; tcp dport 1 accept\n}\n}"


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_apply_may_be_said_again_and_remove_takes_away_all_of_it_and_nothing_else(net: Net, mode: str) -> None:
    net.sensor.run("nft", "-f", "-", text=OTHERS)
    net.sensor.ip("rule add fwmark 7 lookup 77 protocol 99")
    net.sensor.ip("route add local default dev lo table 77")
    before = net.sensor.state()
    rules(net.sensor, "--apply", "--mode", mode)
    once = net.sensor.state()
    assert once != before
    rules(net.sensor, "--apply", "--mode", mode)
    assert net.sensor.state() == once
    # Another plan replaces it without a trace.
    rules(net.sensor, "--apply", "--mark", "99", "--table", "500")
    rules(net.sensor, "--apply", "--mode", "redirect")
    rules(net.sensor, "--apply", "--mode", mode)
    assert net.sensor.state() == once
    assert rules(net.sensor, "--remove") == "Taken away.\n"
    assert net.sensor.state() == before
    assert rules(net.sensor, "--remove") == "Nothing of tcppc's was in place.\n"


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_what_is_printed_does_what_apply_does(net: Net, mode: str, tmp_path: Path) -> None:
    words = ("--mode", mode, "--except", "25,9100-9200", "--address", "192.0.2.0/24", "--address", "2001:db8:b::/64")
    script = tmp_path / "rules.sh"
    script.write_text(rules(net.sensor, *words), encoding="utf-8")
    assert not any("tcppc" in text for text in net.sensor.state())  # printing is all it did
    rules(net.sensor, "--apply", *words)
    applied = net.sensor.state()
    rules(net.sensor, "--remove")
    for _ in range(2):
        net.sensor.run("sh", str(script))
        assert net.sensor.state() == applied


def test_status_says_what_is_there_and_whether_the_sensor_answers(start: Start, net: Net) -> None:
    def status() -> tuple[int, str]:
        done = net.sensor.tcppc("rules", "--status")
        assert done.stderr == ""
        return done.returncode, done.stdout

    assert status() == (1, "rules     none in place\n")
    rules(net.sensor, "--apply", "--confirm", "60")
    assert re.search(r"^confirm   [56]\d seconds left: tcppc rules --keep$", status()[1], re.MULTILINE)
    rules(net.sensor, "--apply")
    code, text = status()
    assert code == 1
    assert "tproxy, interface veth0, to port 12345, put in place by tcppc rules" in text
    assert "nothing listens on TCP 12345: start the sensor" in text
    start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    code, text = status()
    assert code == 0, text
    assert re.findall(r"^(IPv[46]) +packets find their way to the sensor$", text, re.MULTILINE) == ["IPv4", "IPv6"]
    assert "TCP 12345 answers" in text
    net.sensor.ip("rule del pref 29808")
    code, text = status()
    assert code == 1
    assert "IPv4      not in place: the policy rule or its route is missing" in text


@pytest.mark.parametrize(
    "slow", ["", "import os, time; begin = os.setsid; os.setsid = lambda: [time.sleep(1), begin()]; "]
)
def test_rules_that_nobody_confirms_are_gone_also_when_the_terminal_dies(start: Start, net: Net, slow: str) -> None:
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    before = net.sensor.state()
    # A terminal of its own, whose end hangs up on all that runs in it.
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        words = ["rules", "--interface", "veth0", "--apply", "--confirm", "2"]
        command = [*net.sensor.prefix, sys.executable, "-c", f"{slow}from tcppc.cli import main; main({words})"]
        os.execvp("sh", ["sh", "-c", '"$@"; sleep 60', "sh", *command])
    said = b""
    while b"unless you type" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGHUP
    knock(net.attacker, "tcp", SENSOR[0], 80, "captured")
    assert [payload(record) for record in sensor.records(1)] == [b"captured"]
    wait_until(lambda: net.sensor.state() == before, "the rules to go away")
    assert knock(net.attacker, "tcp", SENSOR[0], 80, "?") == "ConnectionRefusedError"


def test_the_kernel_lets_them_expire_also_when_nobody_is_left_to_tidy_up(start: Start, net: Net) -> None:
    start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    words = ["rules", "--interface", "veth0", "--apply", "--confirm", "2"]
    program = (
        f"from tcppc.netfilter import kernel; kernel.tidy_up_later = print; from tcppc.cli import main; main({words})"
    )
    subprocess.run([*net.sensor.prefix, sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
    wait_until(
        lambda: knock(net.attacker, "tcp", SENSOR[0], 80, "?") == "ConnectionRefusedError", "the rules to expire"
    )
    done = net.sensor.tcppc("rules", "--status")
    assert done.returncode == 1
    assert "expired, nobody confirmed them: they do nothing any more" in done.stdout
    rules(net.sensor, "--apply")
    assert knock(net.attacker, "tcp", SENSOR[0], 80, "again") == ""


def test_rules_that_are_kept_stay(start: Start, net: Net) -> None:
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--confirm", "2")
    assert net.sensor.tcppc("rules", "--keep").stdout == "The rules stay.\n"
    kept = net.sensor.state()
    # The other process looks once more after its time, and then there is none left.
    wait_until(lambda: "tidy" not in _commands(net.sensor), "the confirmation's time to pass")
    assert net.sensor.state() == kept
    assert "for good already" in net.sensor.tcppc("rules", "--keep").stdout
    knock(net.attacker, "tcp", SENSOR[0], 80, "captured")
    assert [payload(record) for record in sensor.records(1)] == [b"captured"]


def _commands(host: Host) -> str:
    """ "tidy" while a process of `tcppc rules` is there."""
    for pid in host.run("ip", "netns", "pids", host.name).split():
        try:
            if b"--confirm" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return "tidy"
        except OSError:
            continue
    return ""


def test_nothing_to_keep(net: Net) -> None:
    done = net.sensor.tcppc("rules", "--keep")
    assert done.returncode == 1
    assert done.stderr.startswith("tcppc: there are no rules to keep")


FAILING = """#!/bin/sh
case "$*" in *-f*) echo 'Error: Could not process rule: No space left on device' >&2; exit 1;; esac
exec {nft} "$@"
"""


def test_half_applied_is_undone(net: Net, tmp_path: Path) -> None:
    """nft refuses after ip has done its part: a wrapper stands in for a kernel that is out of memory."""
    wrapper = tmp_path / "nft"
    wrapper.write_text(FAILING.format(nft=tools.path("nft")), encoding="utf-8")
    wrapper.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for _ in range(2):  # on a host without rules, and on one that has some
        before = net.sensor.state()
        words = ("rules", "--interface", "veth0", "--apply", "--mark", "99", "--table", "500")
        done = net.sensor.tcppc(*words, environment=environment)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr.splitlines()[-1]
        assert net.sensor.state() == before
        rules(net.sensor, "--apply")


def test_a_host_without_ipv6_gets_rules_for_ipv4(start: Start, net: Net) -> None:
    net.sensor.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    sensor = start(port=PORT, hosts=("0.0.0.0",), prefix=net.sensor.prefix)
    done = net.sensor.tcppc("rules", "--interface", "veth0", "--apply")
    assert done.returncode == 0
    assert "IPv6 is off on veth0 or on lo: these rules are for IPv4 alone." in done.stderr
    wanted = knock_everywhere(net, SENSOR[:1], (80,))
    assert flows(sensor.records(len(wanted))) == wanted
    assert net.sensor.tcppc("rules", "--status").returncode == 0


# Bad input


def test_unknown_interface(net: Net) -> None:
    said = refused(net.sensor, code=2, interface="eth7")
    assert said == "tcppc: --interface eth7: this host has no such interface; expected one of lo, veth0, veth1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--except", "22,9100-9200,9150"), "9100-9200 and 9150 do"),
        (("--except", "22,22"), "22 and 22 do"),
        (("--except", "1-x"), "expected ports from 0 to 65535 such as 22,8000-8999"),
        (("--except", "70000"), "expected ports from 0 to 65535"),
        (("--address", "192.0.2.256"), "expected an address or network such as"),
        (("--mark", "0"), "expected a whole number from 1 to"),
        (("--table", "254"), "--table 254 is one of the kernel's own"),
        (("--port", "0"), "--port 0: the rules need to know the sensor's port"),
        (("--mode", "nat"), "expected tproxy or redirect"),
        (("--confirm", "soon"), "--confirm soon: expected a duration"),
        (("--keep",), "not allowed with argument"),
        (("--interface", 'x"; drop'), "expected a network interface"),
        (("--interface", "lo"), "and not lo"),
    ],
)
def test_wrong_arguments(net: Net, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(net.sensor, *arguments, code=2)


def test_no_interface_at_all(net: Net) -> None:
    done = net.sensor.tcppc("rules")
    assert done.returncode == 2
    assert (
        done.stderr == "tcppc: --interface is missing: expected the one that strangers come by, of lo, veth0, veth1\n"
    )


@pytest.mark.parametrize(
    ("way", "arguments", "said"),
    [
        (("ip", "rule add fwmark 99 lookup 77"), ("--mark", "99"), "--mark 99 is used already: ip -4 rule"),
        (("ip", "-6 rule add fwmark 0x60/0xf0 lookup 77"), ("--mark", "99"), "--mark 99 is used already: ip -6 rule"),
        (
            ("ip", "route add local default dev lo table 88"),
            ("--table", "88"),
            "--table 88 is used already: ip -4 route",
        ),
        (
            ("nft", "ip daddr 192.0.2.1 meta mark set 99"),
            ("--mark", "99"),
            "--mark 99 is used already: nft table ip them",
        ),
        (("nft", "meta l4proto tcp tproxy to :3128"), (), "nft table ip them, chain pre has a tproxy rule of another"),
    ],
)
def test_what_others_use_is_not_taken(net: Net, way: tuple[str, str], arguments: tuple[str, ...], said: str) -> None:
    tool, words = way
    if tool == "ip":
        net.sensor.ip(words)
    else:
        hook = "type filter hook prerouting priority mangle;"
        net.sensor.run("nft", "-f", "-", text=f"table ip them {{ chain pre {{ {hook} {words}\n}}\n}}")
    assert said in refused(net.sensor, *arguments)


def test_iptables_rules_of_others_are_seen(net: Net) -> None:
    if not tools.available("iptables-nft"):
        pytest.skip("needs iptables")
    words = "-t mangle -A PREROUTING -p tcp -j TPROXY --on-port 3128 --tproxy-mark 1"
    net.sensor.run("iptables-nft", *words.split())
    assert "iptables has a TPROXY rule of another program in the way" in refused(net.sensor)


def test_a_table_of_that_name_that_is_not_ours_stays(net: Net) -> None:
    net.sensor.run("nft", "add", "table", "inet", "tcppc")
    assert "there is a table inet tcppc that tcppc did not make" in refused(net.sensor)
    done = net.sensor.tcppc("rules", "--remove")
    assert (done.returncode, "it stays" in done.stderr) == (1, True)


def test_not_permitted(net: Net) -> None:
    without = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
    for action in ("--apply", "--remove", "--status", "--keep"):
        done = net.sensor.tcppc("rules", "--interface", "veth0", action, prefix=without)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "tcppc: not permitted: nft needs root or CAP_NET_ADMIN"


def test_missing_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_PATH", "/nowhere")
    with pytest.raises(tools.RulesError, match="nft is missing: install the package nftables"):
        found.ruleset()
    with pytest.raises(tools.RulesError, match="ip is missing: install the package iproute2"):
        found.policy_rules()


# The sensor's own


def own_rules(tmp_path: Path, net: Net, text: str = "") -> tuple[str, ...]:
    path = tmp_path / "tcppc.toml"
    path.write_text(f'[capture]\nrules = true\n[rules]\ninterface = "veth0"\n{text}', encoding="utf-8")
    return "-c", str(path)


def test_the_sensor_puts_its_rules_in_place_and_takes_them_away(start: Start, net: Net, tmp_path: Path) -> None:
    before = net.sensor.state()
    flags = own_rules(tmp_path, net)
    sensor = start(*flags, hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    assert "put in place by tcppc sensor" in net.sensor.tcppc("rules", "--status").stdout
    wanted = knock_everywhere(net, SENSOR, (80,))
    # What `--status` asked is a session too.
    assert wanted < flows(sensor.records(len(wanted) + 1))
    assert sensor.stop() == 0
    assert net.sensor.state() == before


def test_what_a_killed_sensor_left_is_taken_away_by_the_next_one(start: Start, net: Net, tmp_path: Path) -> None:
    before = net.sensor.state()
    flags = own_rules(tmp_path, net)
    start(*flags, hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix).kill()
    assert net.sensor.state() != before
    assert knock(net.attacker, "tcp", SENSOR[0], 80, "?") == "ConnectionRefusedError"  # the host is reachable
    # One that uses rules replaces them, one that does not takes them away.
    start(*flags, hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix).kill()
    last = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    assert "Rules: what an earlier sensor left in place is taken away." in last.log
    assert net.sensor.state() == before


def test_a_sensor_leaves_the_rules_of_others_alone(start: Start, net: Net, tmp_path: Path) -> None:
    rules(net.sensor, "--apply")
    before = net.sensor.state()
    assert start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix).stop() == 0
    assert net.sensor.state() == before
    rules(net.sensor, "--remove")
    flags = own_rules(tmp_path, net)
    start(*flags, hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    place = tmp_path / "second"
    place.mkdir()
    second = Sensor(place, *flags, hosts=EVERYWHERE, port=PORT + 1, prefix=net.sensor.prefix)
    assert second.process.wait(30) == 1
    assert "another sensor on this host has its rules in place" in second.log
    third = Sensor(place, hosts=EVERYWHERE, port=PORT + 1, prefix=net.sensor.prefix).started()
    assert third.stop() == 0
    assert "put in place by tcppc sensor" in net.sensor.tcppc("rules", "--status").stdout


def test_a_sensor_that_cannot_have_its_rules_does_not_start(net: Net, tmp_path: Path) -> None:
    before = net.sensor.state()
    flags = own_rules(tmp_path, net, "mark = 99\n")
    net.sensor.ip("rule add fwmark 99 lookup 77")
    sensor = Sensor(tmp_path, *flags, hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    assert sensor.process.wait(30) == 1
    assert "tcppc: capture.rules: --mark 99 is used already: ip -4 rule" in sensor.log
    net.sensor.ip("rule del fwmark 99")
    assert net.sensor.state() == before


def test_each_line_of_the_document_is_one_that_works(net: Net) -> None:
    """docs/all-ports.md, typed on a host whose interface has another name."""
    before = net.sensor.state()
    text = (ROOT / "docs" / "all-ports.md").read_text(encoding="utf-8").replace("eth0", "veth0")
    typed = re.findall(r"^    (tcppc rules|ip|nft)( [^#\n]*)", text, re.MULTILINE)
    assert len(typed) > 10
    for tool, words in typed:
        if tool == "tcppc rules":
            done = net.sensor.tcppc("rules", *words.split())
            assert done.returncode == 0 or words.split() in (["--keep"], ["--status"]), (words, done.stderr)
        elif "blackhole" in words:
            net.sensor.ip(words.strip())
            net.sensor.ip(words.strip().replace("add", "del"))
    # The last lines undo by hand what is in place then.
    rules(net.sensor, "--apply")
    by_hand = [tool + words for tool, words in typed if tool in ("ip", "nft") and "blackhole" not in words]
    net.sensor.run("sh", "-ec", "\n".join(line for line in by_hand if "ip route add local" not in line))
    assert net.sensor.state() == before
