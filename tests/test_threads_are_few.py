"""No thread can be started, or no more than some: one line, and what was begun is ended in order."""

from __future__ import annotations

import errno
import json
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcppc.flows.sources import WORTH_SHARING
from tcppc.problems import NO_THREAD
from tests import captures, lacking, netns
from tests.harness import PATIENCE, tcppc, wait_until
from tests.lacking import Nameless
from tests.netns import Net

ROOT = Path(__file__).parent.parent
# Old container runtimes' filters refuse clone3(2) in a way that makes no C library fall back to clone(2).
NONE = (("clone3", errno.EPERM), ("clone", errno.EPERM))


@pytest.fixture(scope="module")
def nameless() -> Iterator[Nameless]:
    yield from lacking.nameless()


@pytest.mark.parametrize(
    "words",
    [
        "-H 127.0.0.1 -p 0 -w DIR/d.jsonl",
        "-H 127.0.0.1 -p 0",
        "watch -i lo -w DIR/d.jsonl",
        "nc -l 0",
        "nc -lk 0 -o DIR/n",
    ],
)
@pytest.mark.parametrize("rules", [NONE, NONE[:1]])
def test_none_at_all_is_one_line(words: str, rules: tuple[tuple[str, int], ...], tmp_path: Path) -> None:
    command = [*lacking.refusing(*rules), sys.executable, "-m", "tcppc", *words.replace("DIR", str(tmp_path)).split()]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT
    )
    if "CAP_NET_RAW" in done.stderr:
        pytest.skip("watching needs CAP_NET_RAW")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"tcppc: {NO_THREAD}"
    assert "Traceback" not in done.stderr
    check_the_books(tmp_path)


def check_the_books(folder: Path) -> None:
    """Whoever begins a ledger ends it."""
    if (ledger := folder / "ledger.jsonl").exists():
        events = [json.loads(line)["event"] for line in ledger.read_text(encoding="ascii").splitlines()]
        assert (events[0], events[-1]) == ("start", "stop")
        assert events.count("open") == events.count("close") == 1
        done = tcppc("account", str(folder))
        assert "The sums agree." in done.stdout


SETTINGS = """\
[tcppc]
host = "127.0.0.1"
port = 0
tcpFileFmt = "DIR/d.jsonl"

[metrics]
listen = "127.0.0.1:0"

[watch]
interface = "lo"

[[action]]
command = "true"
"""


def started(user: Nameless, most: int, folder: Path) -> bool:
    """Does a sensor with each of its parts start where its user may have `most` tasks at once? It is ended then."""
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    settings, log = folder / "tcppc.toml", folder / "log"
    settings.write_text(SETTINGS.replace("DIR", str(folder)), encoding="ascii")
    words = user.command("-c", str(settings), "-L", str(log), capabilities="+net_raw")
    process = subprocess.Popen(
        ["prlimit", f"--nproc={most}:{most}", *words],
        cwd=user.work,
        env=user.environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # "Watch: lo" is the last word of a start.
        wait_until(
            lambda: process.poll() is not None or (log.exists() and "Watch: lo" in log.read_text(encoding="utf-8")),
            f"a start or an end with {most} tasks",
        )
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert "Traceback" not in said, said
    told = log.read_text(encoding="utf-8")
    assert told.splitlines()[-1].endswith(" Exit.") or "Server Mode" not in told  # nothing was served yet
    if process.returncode:
        assert (process.returncode, said) == (1, f"tcppc: {NO_THREAD}\n")
    check_the_books(folder)
    return process.returncode == 0


def test_each_thread_that_is_missing_ends_the_start_in_order(nameless: Nameless) -> None:
    """From two tasks on, one more each time, until all that a start needs are there."""
    if not (nameless.packages / "prometheus_client").exists():
        pytest.skip("needs the package prometheus-client")
    for most in range(2, 40):
        if started(nameless, most, nameless.folder / f"with-{most}"):
            break
    assert most > 5


def test_captures_are_read_by_one_process_where_there_can_be_no_second(tmp_path: Path) -> None:
    capture = tmp_path / "large.pcap"
    client, server = socket.inet_aton("198.51.100.7"), socket.inet_aton("192.0.2.10")
    pieces = WORTH_SHARING // 1400 // 200 + 1
    frames = [
        captures.tcp_packet(client, 1024 + port, server, 80, 1 + number * 1400, b"x" * 1400)
        for number in range(pieces)
        for port in range(200)
    ]
    capture.write_bytes(captures.pcap([(10**18 + number, frame) for number, frame in enumerate(frames)]))
    found: list[dict[str, int]] = []
    for prefix in ((), lacking.refusing(("clone", errno.EAGAIN))):
        folder = tmp_path / f"out-{len(found)}"
        words = [*prefix, sys.executable, "-m", "tcppc", "flows", "-q", "-r", str(capture), "-o", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT)
        assert (done.returncode, done.stderr) == (0, "")
        found.append({path.name: path.stat().st_size for path in folder.iterdir() if path.name != "report.xml"})
    assert found[0] == found[1]
    assert list(found[0].values()) == [pieces * 1400] * 200


def test_rules_that_are_to_be_confirmed_stand_where_no_process_can_tidy_up(net: Net) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("elsewhere nft and ip would not start either")
    no_fork = lacking.refusing(("clone", errno.EAGAIN))
    done = net.sensor.tcppc("rules", "--interface", "veth0", "--apply", "--confirm", "60", prefix=no_fork)
    assert done.returncode == 0, done.stderr
    assert (
        "No process can be started to tidy up: Resource temporarily unavailable; then --remove does it." in done.stderr
    )
    assert "tcppc rules --keep" in done.stdout
    assert "timeout 1m" in net.sensor.run("nft", "list", "table", "inet", "tcppc")
    assert net.sensor.tcppc("rules", "--remove").stdout == "Taken away.\n"


def test_rules_go_away_also_where_nobody_takes_what_is_said_of_them(net: Net) -> None:
    closed = ("sh", "-c", 'exec "$@" >/dev/full', "sh")
    done = net.sensor.tcppc("rules", "--interface", "veth0", "--apply", "--confirm", "1", prefix=closed)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "tcppc: standard output: No space left on device")
    wait_until(lambda: "tcppc" not in net.sensor.run("nft", "list", "ruleset"), "the rules to be taken away")
    wait_until(lambda: not netns.run("ip", "netns", "pids", net.sensor.name), "the end of who took them away")
