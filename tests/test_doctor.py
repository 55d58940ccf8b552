"""`tcppc doctor` on a real host with real faults."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tcppc import outside
from tests.conftest import Start
from tests.harness import payload, wait_until
from tests.netns import SENSOR, Net, echo
from tests.test_rules import EVERYWHERE, PORT, rules

NOT_OURS = ("clock",)  # what this machine's own clock is like is no matter of the test


def doctor(net: Net, folder: Path, *flags: str, prefix: tuple[str, ...] = ()) -> tuple[int, list[tuple[str, str, str]]]:
    """Exit code and (state, about, text) of each line."""
    words = ("doctor", "-p", str(PORT), "-w", str(folder / "data.jsonl"), *flags)
    done = net.sensor.tcppc(*words, prefix=prefix)
    assert done.stderr == ""
    lines = re.findall(r"^(ok|BAD|-) +(\w+) +(.+)$", done.stdout, re.MULTILINE)
    assert len(lines) >= len(done.stdout.splitlines()) - 2  # all but "N to mend."
    return done.returncode, lines


def bad(lines: list[tuple[str, str, str]]) -> list[str]:
    return [f"{about} {text}" for state, about, text in lines if state == "BAD" and about not in NOT_OURS]


SSHD = """
import ctypes, socket
ctypes.CDLL(None).prctl(15, b"sshd", 0, 0, 0)  # PR_SET_NAME
tcp = socket.create_server(("::", 22), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    sock, _ = tcp.accept()
    sock.sendall(b"SSH-2.0-OpenSSH_9.2p1\\r\\n")
    sock.close()
"""


def sshd(net: Net) -> None:
    """What calls itself sshd and greets as it."""
    process = net.sensor.start("python3", "-c", SSHD)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_all_is_well_and_nothing_stays_but_what_was_sent(start: Start, net: Net, tmp_path: Path, mode: str) -> None:
    sshd(net)
    sensor = start("--mode", mode, hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--mode", mode)
    before = net.sensor.state()
    _, lines = doctor(net, tmp_path)
    assert bad(lines) == []
    texts = [f"{state} {about} {text}" for state, about, text in lines]
    for address in SENSOR:
        assert f"ok ssh {address} port 22 answers" in texts
        for kind in ("TCP", "UDP"):
            assert any(
                re.fullmatch(rf"ok way {kind} to {re.escape(address)} port \d+ reached .*/data\.jsonl", text)
                for text in texts
            ), texts
    assert any(text.startswith("ok disk ") for text in texts)
    assert any(text.startswith("ok rules ") for text in texts)
    assert any("descriptors, room for" in text for text in texts)
    assert net.sensor.state() == before
    assert outside.INSIDE not in net.sensor.ip("link")
    records = sensor.records(4)
    assert len(records) == 4
    assert all(payload(record).startswith(b"tcppc doctor ") for record in records)


def test_without_rules_the_sensors_own_port_is_tried(start: Start, net: Net, tmp_path: Path) -> None:
    start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    _, lines = doctor(net, tmp_path)
    assert bad(lines) == []
    assert ("-", "rules") in [line[:2] for line in lines]
    assert sum(f"port {PORT} reached" in text for _, _, text in lines) == 4


def test_a_sensor_for_ipv4_alone(start: Start, net: Net, tmp_path: Path) -> None:
    start(hosts=("0.0.0.0",), port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply")
    code, lines = doctor(net, tmp_path)
    assert code == 1
    found = bad(lines)
    assert [text.split(" port ")[0] for text in found] == [f"way TCP to {SENSOR[1]}", f"way UDP to {SENSOR[1]}"]


def test_a_firewall_in_the_way(start: Start, net: Net, tmp_path: Path) -> None:
    sensor = start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply")
    drop = "table inet wall { chain input { type filter hook input priority 0; meta l4proto udp drop\n}\n}"
    net.sensor.run("nft", "-f", "-", text=drop)
    code, lines = doctor(net, tmp_path)
    assert code == 1
    found = bad(lines)
    assert len(found) == 2
    assert all("UDP" in text and "does a firewall stop it" in text for text in found)
    assert sensor.stop() == 0


def test_a_sensor_without_redirect_behind_rules_of_that_mode(start: Start, net: Net, tmp_path: Path) -> None:
    start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--mode", "redirect")
    code, lines = doctor(net, tmp_path)
    assert code == 1
    assert all("the sensor needs --mode redirect too" in text for text in bad(lines))


def test_no_sensor_at_all(net: Net, tmp_path: Path) -> None:
    code, lines = doctor(net, tmp_path)
    assert code == 1
    found = bad(lines)
    assert any(f"nothing listens on TCP port {PORT}: start it" in text for text in found)
    assert any("no sensor writes into" in text for text in found)
    assert any(text.startswith("way TCP to") and "refused" in text for text in found)


def test_ssh_that_does_not_answer(start: Start, net: Net, tmp_path: Path) -> None:
    echo(net.sensor, 2222, "no ssh ")
    start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    done = net.sensor.tcppc(
        "doctor", "-p", str(PORT), "-w", str(tmp_path / "data.jsonl"), environment={"SSH_CONNECTION": "a 1 b 2222"}
    )
    assert done.returncode == 1
    assert f"ssh       {SENSOR[0]} port 2222: timed out" in done.stdout


def test_an_ordinary_user_is_told_what_was_not_looked_at(start: Start, net: Net, tmp_path: Path) -> None:
    start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    without = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    _, lines = doctor(net, tmp_path, prefix=without)
    said = [(state, about) for state, about, _ in lines]
    assert ("-", "rules") in said
    assert ("-", "way") in said
    assert any("it needs root" in text for state, about, text in lines if about == "way")


def test_a_host_outside_is_gone_with_its_with(net: Net) -> None:
    assert os.geteuid() == 0
    program = "from tcppc import outside\nwith outside.host() as there: print(there.run(outside.socket.if_nameindex))"
    assert outside.OUTSIDE in net.sensor.run(
        "env", f"PYTHONPATH={Path(__file__).parent.parent}", "python3", "-c", program
    )

    def gone() -> bool:
        return outside.INSIDE not in net.sensor.ip("link")

    wait_until(gone, "the kernel to take the interface away")
    killed = program.replace("print(", "__import__('os').kill(__import__('os').getpid(), 9); print(")
    process = net.sensor.start("env", f"PYTHONPATH={Path(__file__).parent.parent}", "python3", "-c", killed)
    assert process.wait(30) != 0
    wait_until(gone, "the kernel to take the interface away")


def test_event_lines_are_found_too(start: Start, net: Net, tmp_path: Path) -> None:
    start("--record", "events", hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply")
    _, lines = doctor(net, tmp_path)
    assert bad(lines) == []


def test_only_low_ports_are_captured(start: Start, net: Net, tmp_path: Path) -> None:
    start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--except", "1024-65535")
    (tmp_path / "c.toml").write_text('[rules]\nexcepted = "1024-65535"\n')
    _, lines = doctor(net, tmp_path, "-c", str(tmp_path / "c.toml"))
    assert [text for text in bad(lines) if text.startswith("way")] == []
    assert sum("reached" in text for _, _, text in lines) == 4


def test_rules_of_another_interface_than_the_configuration_s(start: Start, net: Net, tmp_path: Path) -> None:
    start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply")
    (tmp_path / "c.toml").write_text('[rules]\ninterface = "veth1"\n')
    _, lines = doctor(net, tmp_path, "-c", str(tmp_path / "c.toml"))
    assert any("the configuration says interface veth1" in text for text in bad(lines))


def test_a_network_of_the_sensor_s_and_ssh_on_the_host_s_own(start: Start, net: Net, tmp_path: Path) -> None:
    sshd(net)
    start(hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix)
    rules(net.sensor, "--apply", "--address", "192.0.2.0/24", "--address", "2001:db8:b::/64")
    (tmp_path / "c.toml").write_text('[rules]\naddress = ["192.0.2.0/24", "2001:db8:b::/64"]\n')
    _, lines = doctor(net, tmp_path, "-c", str(tmp_path / "c.toml"))
    assert bad(lines) == []
    assert any(f"{SENSOR[0]} port 22 answers" in text for _, _, text in lines)


def test_a_relative_data_file_is_the_sensor_s(start: Start, net: Net, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[tcppc]\ntcpFileFmt = "data.jsonl"\n')
    elsewhere = f"import os; os.chdir({str(tmp_path)!r})"
    start(
        "-c", str(tmp_path / "c.toml"), hosts=EVERYWHERE, port=PORT, prefix=net.sensor.prefix, file="", patch=elsewhere
    )
    done = net.sensor.tcppc("doctor", "-p", str(PORT), "-c", str(tmp_path / "c.toml"))
    assert f"{tmp_path}/data.jsonl is written to" in done.stdout
    assert done.stdout.count("reached") == 4
