"""All 65,535 ports, and ssh through all that is done to a host, with nmap, ssh and a real ssh server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import payload, wait_until
from tests.netns import ATTACKER, ROOT, SENSOR, Host, Net, knock
from tests.test_rules import EVERYWHERE, FAILING, PORT, rules

ALL = range(1, 65536)
EXCEPTED = {25, *range(9100, 9201)}

ONE_DATAGRAM_EACH = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
for port in range(1, 65536):
    try:
        sock.sendto(b"%d" % port, (sys.argv[1], port))
    except ConnectionRefusedError:  # ICMP of an excepted one before
        sock.sendto(b"%d" % port, (sys.argv[1], port))
"""


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_nmap_finds_every_tcp_port_open_and_each_is_in_the_data(start: Start, net: Net, family: int) -> None:
    if not shutil.which("nmap"):
        pytest.skip("needs nmap")
    sensor = start("-q", hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--except", "25,9100-9200")
    six = ["-6"] if family else []
    found = net.attacker.run("nmap", "-n", "-Pn", "-sT", "-p-", "-T5", *six, "-oG", "-", SENSOR[family])
    assert {int(port) for port in re.findall(r"(\d+)/open/tcp", found)} == set(ALL) - EXCEPTED
    records = sensor.records(len(ALL) - len(EXCEPTED))
    assert {(record["flow"]["src"], record["flow"]["dst"]) for record in records} == {
        (ATTACKER[family], SENSOR[family])
    }
    assert {record["flow"]["dport"] for record in records} == set(ALL) - EXCEPTED
    assert sensor.stop() == 0


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_every_udp_port_with_one_datagram_each(start: Start, net: Net, family: int) -> None:
    sensor = start("-q", hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--except", "25,9100-9200")
    net.attacker.python(ONE_DATAGRAM_EACH, SENSOR[family])
    records = sensor.records(len(ALL) - len(EXCEPTED))
    seen = Counter((record["flow"]["dst"], record["flow"]["dport"], int(payload(record))) for record in records)
    assert seen == Counter((SENSOR[family], port, port) for port in ALL if port not in EXCEPTED)
    assert sensor.stop() == 0


class Ssh:
    """One login that lasts, from the attacker's host: `says` sends a line and reads it back."""

    def __init__(self, host: Host, address: str, key: Path) -> None:
        self.process = host.start(*self.command(address, key), "cat", stdin=subprocess.PIPE)

    @staticmethod
    def command(address: str, key: Path) -> list[str]:
        options = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        return ["ssh", "-F", "/dev/null", *options.split(), "-i", str(key), f"root@{address}"]

    def says(self, line: str) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")


@pytest.fixture
def key(net: Net, tmp_path: Path) -> Path:
    """A key that the sensor host's ssh server takes; the server runs on port 22."""
    if not shutil.which("dropbear") or not shutil.which("ssh"):
        pytest.skip("needs dropbear and ssh")
    if (Path.home() / ".ssh" / "authorized_keys").exists():
        pytest.skip("root's own authorized_keys are not for a test to change")
    for name, kind in (("host", "dropbear"), ("client", "openssh")):
        path = tmp_path / name
        if kind == "dropbear":
            subprocess.run(["dropbearkey", "-t", "ed25519", "-f", path], check=True, capture_output=True)
        else:
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    shutil.copy(tmp_path / "client.pub", keys / "authorized_keys")
    # A home of its own for the server, over root's, where only its own namespace sees it.
    home = Path.home()
    mount = f"mount --bind {keys} {home}/.ssh && exec dropbear -F -E -s -p 22 -r {tmp_path}/host"
    (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
    net.sensor.start("unshare", "--mount", "sh", "-c", mount)
    wait_until(lambda: ":22 " in net.sensor.run("ss", "-Htln"), "the ssh server")
    return tmp_path / "client"


def test_ssh_goes_on_through_apply_remove_and_a_failed_apply(start: Start, net: Net, key: Path, tmp_path: Path) -> None:
    old = Ssh(net.attacker, SENSOR[0], key)
    assert old.says("before") == "before"
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)

    def reachable(what: str) -> None:
        assert old.says(what) == what
        for address in SENSOR:
            assert Ssh(net.attacker, address, key).says(what) == what

    # With --take-over too: what spares ssh is then its port alone.
    for flags in ([], ["--take-over"], ["--mode", "redirect"]):
        assert "22 (ssh)" in rules(net.sensor, "--apply", *flags)
        reachable(f"applied {flags}")
        knock(net.attacker, "tcp", SENSOR[0], 2222, "captured")
    wrapper = tmp_path / "nft"
    wrapper.write_text(FAILING.format(nft=shutil.which("nft")), encoding="utf-8")
    wrapper.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert net.sensor.tcppc("rules", "--interface", "veth0", "--apply", environment=path).returncode == 1
    reachable("failed")
    sensor.kill()
    reachable("sensor killed")
    rules(net.sensor, "--remove")
    reachable("removed")
    assert not any(record["flow"]["dport"] == 22 for record in sensor.records(2))


def test_the_ssh_session_one_types_in_is_found(net: Net, key: Path) -> None:
    """`tcppc rules`, typed in a real session."""
    typed = f"cd {ROOT} && exec {sys.executable} -m tcppc rules --interface veth0 --take-over"
    done = net.attacker.start(*Ssh.command(SENSOR[0], key), typed)
    assert "# Left alone: 22 (ssh)." in done.communicate(timeout=30)[0]
