"""Rules beside what else a host does: its own translation, VPNs, services that come later, odd networks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import payload, wait_until
from tests.netns import ATTACKER, SENSOR, THIRD, Host, Net, echo, knock
from tests.test_rules import EVERYWHERE, PORT, refused, rules

MASQUERADE = """
table ip nat {
  chain post {
    type nat hook postrouting priority srcnat
    oifname veth0 masquerade
  }
}
"""
KUBERNETES = """
table ip kube {
  chain c {
    type filter hook input priority 0
    meta mark & 0x4000 == 0x4000 drop
  }
}
"""
LOOPBACK_SERVICE = """
import socket, time
server = socket.create_server(("127.0.0.1", 3306))
print("ready", flush=True)
time.sleep(60)
"""
NO_IP_RULE = """#!/bin/sh
case " $* " in *" rule {verb} "*) echo "RTNETLINK answers: no" >&2; exit 2;; esac
exec {real} "$@"
"""
SENT_ON = f"""
table ip own {{
  chain pre {{
    type nat hook prerouting priority dstnat
    iifname veth0 tcp dport 2222 redirect to :7022
    iifname veth0 tcp dport 8080 dnat to {THIRD[0]}:80
  }}
}}
"""
# Stands through port PORT of HOST until a line comes on standard input; then says one more thing.
STANDING = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
sock.sendall(b"1")
print(sock.recv(99).decode(), flush=True)
sys.stdin.readline()
sock.sendall(b"2")
print(sock.recv(99).decode(), flush=True)
"""


def test_ports_that_this_host_sends_on_are_left_with_all_that_stands_through_them(start: Start, net: Net) -> None:
    echo(net.sensor, 7022, "ssh ")
    echo(net.third, 80, "guest ")
    net.sensor.run("nft", "-f", "-", text=SENT_ON)
    standing = [
        net.attacker.start(sys.executable, "-c", STANDING, SENSOR[0], port, stdin=subprocess.PIPE)
        for port in ("2222", "8080")
    ]
    for process, text in zip(standing, ("ssh 1", "guest 1"), strict=True):
        assert process.stdout
        assert process.stdout.readline().strip() == text
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply")
    for process, text in zip(standing, ("ssh 2", "guest 2"), strict=True):
        assert process.stdin
        assert process.stdout
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == text
    assert knock(net.attacker, "tcp", SENSOR[0], 2222, "new") == "ssh new"
    assert knock(net.attacker, "tcp", SENSOR[0], 8080, "new") == "guest new"
    knock(net.attacker, "tcp", SENSOR[0], 80, "captured")
    assert [payload(record) for record in sensor.records(1)] == [b"captured"]


def test_translation_that_begins_after_the_rules(start: Start, net: Net) -> None:
    """As Docker begins after the sensor at a boot."""
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    echo(net.attacker, 7001, "outside ")
    net.attacker.ip("route del default")
    rules(net.sensor, "--apply")
    net.sensor.run("nft", "-f", "-", text=MASQUERADE)
    assert knock(net.third, "tcp", ATTACKER[0], 7001, "guest", 5) == "outside guest"
    assert knock(net.third, "udp", ATTACKER[0], 7001, "guest", 5) == "outside guest"
    knock(net.attacker, "tcp", SENSOR[0], 80, "captured")
    assert [payload(record) for record in sensor.records(1)] == [b"captured"]


ASKS = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(5)
sock.bind(("0.0.0.0", int(sys.argv[2])))
sock.sendto(b"query", (sys.argv[1], 53))
print(sock.recv(99).decode())
"""


@pytest.mark.parametrize("port", ["0", "68"])
def test_take_over_leaves_what_this_host_asks_others(start: Start, net: Net, port: str) -> None:
    echo(net.attacker, 53, "answer to ")
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--take-over")
    assert net.sensor.python(ASKS, ATTACKER[0], port).strip() == "answer to query"
    knock(net.attacker, "udp", SENSOR[0], 9999, "captured")
    assert [payload(record) for record in sensor.records(1)] == [b"captured"]


@pytest.mark.parametrize("flags", [("--take-over",), ("--mode", "redirect")], ids=["take-over", "redirect"])
def test_ssh_that_comes_after_the_rules_is_reached(start: Start, net: Net, flags: tuple[str, ...]) -> None:
    mode = flags[1] if len(flags) > 1 else "tproxy"
    sensor = start("--mode", mode, hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    done = net.sensor.tcppc("rules", "--interface", "veth0", "--apply", *flags)
    assert "No ssh was found on this host: port 22 is left alone in case it comes" in done.stderr
    assert "22 (ssh)" in done.stdout
    echo(net.sensor, 22, "ssh ")
    assert knock(net.attacker, "tcp", SENSOR[0], 22, "here") == "ssh here"
    rules(net.sensor, "--apply", *flags, "--ssh", "2022")
    knock(net.attacker, "tcp", SENSOR[0], 22, "captured") if mode == "tproxy" else None
    assert sensor.stop() == 0


def test_one_who_cannot_see_ssh_has_to_name_it_whatever_else_is_excepted(net: Net) -> None:
    echo(net.sensor, 22, "ssh ")
    user = ("setpriv", "--reuid", "1", "--clear-groups", "--inh-caps", "-all,+net_admin,+dac_override")
    prefix = (*user, "--ambient-caps", "-all,+net_admin,+dac_override")
    words = ("rules", "--interface", "veth0", "--take-over", "--apply", "--except", "9100-9200")
    done = net.sensor.tcppc(*words, prefix=prefix)
    assert done.returncode == 1
    assert "whether ssh is one of the ports 22 cannot be seen without root" in done.stderr
    assert "22 (ssh)" in net.sensor.tcppc(*words, "--ssh", "22", prefix=prefix).stdout


def test_mode_redirect_leaves_no_port_to_ssh(net: Net) -> None:
    echo(net.sensor, 22, "ssh ")
    session = {"SSH_CONNECTION": f"{ATTACKER[0]} 50000 {SENSOR[0]} 22"}
    words = ("rules", "--interface", "veth0", "--mode", "redirect", "--port", "22", "--apply")
    done = net.sensor.tcppc(*words, environment=session)
    assert done.returncode == 2
    assert "--port 22 is ssh's: every port would lead to it" in done.stderr


def test_mode_redirect_captures_ports_of_loopback_services(start: Start, net: Net) -> None:
    process = net.sensor.start(sys.executable, "-c", LOOPBACK_SERVICE)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    sensor = start("--mode", "redirect", hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--mode", "redirect")
    knock(net.attacker, "tcp", SENSOR[0], 3306, "captured")
    assert [payload(record) for record in sensor.records(1)] == [b"captured"]


def test_a_vpn_s_setting_that_would_lose_every_packet_is_told(net: Net) -> None:
    net.sensor.run("sysctl", "-qw", "net.ipv4.conf.all.src_valid_mark=1")
    assert "src_valid_mark" in refused(net.sensor)


def test_a_mark_that_others_ask_for_in_part_is_told(net: Net) -> None:
    net.sensor.run("nft", "-f", "-", text=KUBERNETES)
    assert "--mark 29808 is used already: nft table ip kube, chain c" in refused(net.sensor)
    rules(net.sensor, "--apply", "--mark", "5232")


def test_ipv6_that_was_switched_off_meanwhile_leaves_nothing(net: Net) -> None:
    before = net.sensor.state()
    rules(net.sensor, "--apply")
    net.sensor.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    assert "Taken away." in rules(net.sensor, "--remove")
    net.sensor.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0")
    assert net.sensor.state()[0] == before[0]
    assert "29808" not in net.sensor.ip("-6 rule show")


def test_status_tells_of_a_family_that_lacks_its_way(start: Start, net: Net) -> None:
    start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply")
    net.sensor.ip("-6 rule del pref 29808")
    done = net.sensor.tcppc("rules", "--status")
    assert done.returncode == 1
    assert "IPv6      not in place" in done.stdout


def test_one_interface_without_ipv6_takes_it_from_no_other(start: Start, net: Net) -> None:
    net.sensor.run("sysctl", "-qw", "net.ipv6.conf.veth1.disable_ipv6=1")
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--interface", "veth1", "--apply")
    knock(net.attacker, "tcp", SENSOR[1], 80, "captured")
    assert [payload(record) for record in sensor.records(1)] == [b"captured"]


def test_broadcasts_of_a_network_of_ours_go_to_whom_they_are_for(start: Start, net: Net) -> None:
    program = (
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 67))\ns.settimeout(20)\n"
        "print('ready', flush=True)\nprint(s.recv(99).decode(), flush=True)\n"
    )
    process = net.sensor.start(sys.executable, "-c", program)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--address", "198.51.100.0/24", "--take-over")
    net.attacker.python(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); s.sendto(b'discover', ('198.51.100.255', 67))"
    )
    assert process.stdout.readline() == "discover\n"


def failing(folder: Path, verb: str) -> dict[str, str]:
    """An ip(8) that cannot do one thing."""
    real = subprocess.run(["sh", "-c", "command -v ip"], capture_output=True, text=True, check=True).stdout.strip()
    (folder / "ip").write_text(NO_IP_RULE.format(verb=verb, real=real))
    (folder / "ip").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_new_rules_are_in_force_where_old_ones_cannot_be_taken_away(net: Net, tmp_path: Path) -> None:
    rules(net.sensor, "--apply", "--mark", "99", "--table", "500")
    done = net.sensor.tcppc("rules", "--interface", "veth0", "--apply", environment=failing(tmp_path, "del"))
    assert done.returncode == 0
    assert "something of the rules before could not be taken away" in done.stderr
    assert "lookup 29808" in net.sensor.ip("rule show")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--address", "fe80::1%lo"), "expected an address or network such as 198.51.100.0/24"),
        (("--address", "fe80::1%lo\nEND\necho INJECTED"), "expected an address or network"),
        (("--ssh", "x"), "expected ports from 0 to 65535"),
    ],
)
def test_words_that_would_be_somebody_else_s(net: Net, words: tuple[str, ...], said: str) -> None:
    done = net.sensor.tcppc("rules", "--interface", "veth0", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_confirm_over_rules_that_stay_says_that_these_go(start: Start, net: Net) -> None:
    rules(net.sensor, "--apply")
    said = rules(net.sensor, "--apply", "--confirm", "60")
    assert "They replace those that were in place, which will not come back by themselves." in said


def answers(host: Host, port: int) -> bool:
    return knock(host, "tcp", SENSOR[0], port, "x", 1) != "ConnectionRefusedError"


def test_a_sensor_whose_rules_others_took_away_says_so(start: Start, net: Net, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[capture]\nrules = true\n[rules]\ninterface = "veth0"\n')
    sensor = start("-c", str(tmp_path / "c.toml"), hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    wait_until(lambda: answers(net.attacker, 80), "the rules")
    rules(net.sensor, "--remove")
    assert sensor.stop() == 0
    assert "Rules: others have replaced or removed them; nothing was done." in sensor.log


def test_a_firewall_that_flushes_everything_is_noticed(start: Start, net: Net, tmp_path: Path) -> None:
    """As `systemctl restart nftables` does; but what tcppc rules --remove took away stays away."""
    before = net.sensor.state()
    (tmp_path / "c.toml").write_text('[capture]\nrules = true\n[rules]\ninterface = "veth0"\n')
    often = "import tcppc.capture.probe as probe; probe.PAUSE_SECONDS = 0.2"
    sensor = start("-c", str(tmp_path / "c.toml"), hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix, patch=often)
    net.sensor.run("nft", "flush", "ruleset")
    sensor.said("Rules: somebody flushed them; they are in place again.")
    knock(net.attacker, "tcp", SENSOR[0], 80, "captured")
    assert [payload(record) for record in sensor.records(1)] == [b"captured"]
    rules(net.sensor, "--remove")
    sensor.said("Rules: somebody has taken them away: nothing but this sensor's own port is captured.")
    rules(net.sensor, "--apply")
    net.sensor.run("nft", "flush", "ruleset")
    assert sensor.stop() == 0
    assert net.sensor.state() == before
