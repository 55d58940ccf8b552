"""Actions of a running sensor: what happens when somebody touches it, and that it costs the capture nothing."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.harness import Sensor, tcppc, wait_until
from tests.netns import ATTACKER, SENSOR, Net, knock

# Loopback is never acted upon; for tests on this host alone it is a stranger's.
STRANGE = "import tcppc.actions.allow as a; a.Allowed._why = lambda self, address: ''"


def configured(folder: Path, text: str) -> tuple[str, str]:
    (folder / "c.toml").write_text(text, encoding="utf-8")
    return "-c", str(folder / "c.toml")


@pytest.fixture
def acting(start: Start, tmp_path: Path) -> Any:
    def begin(text: str, *flags: str, patch: str = "", **options: Any) -> Sensor:
        return start(*configured(tmp_path, text), *flags, patch=f"{STRANGE}; {patch}" if patch else STRANGE, **options)

    return begin


def test_portanoia_s_line_with_its_tokens(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = f"echo [SRC_IP]:[SRC_PORT] connected to [DEST_IP]:[DEST_PORT] of [SENSOR] on [LISTEN_PORT] [PROTO] >> {out}"
    sensor = start("--action", line, "--sensor", "it's me", patch=STRANGE)
    with sensor.connect() as sock:
        port = sock.getsockname()[1]
        wait_until(out.exists, "the command while the session is still open")
    assert sensor.stop() == 0
    at = sensor.port
    assert out.read_text() == f"127.0.0.1:{port} connected to 127.0.0.1:{at} of it's me on {at} tcp\n"
    assert "Action action 1: 127.0.0.1:" in sensor.log
    assert "exit code 0" in sensor.log


def test_a_list_runs_without_a_shell_and_gets_the_record(acting: Any, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\n{ echo "$@"; env | sort; cat; } > "$0.out"\n')
    program.chmod(0o755)
    sensor = acting(f'[[action]]\non = "end"\ncommand = ["{program}", "[SRC_IP];id", "$(id)"]\n')
    hostile = b"`id`;$(id)\n'\"[SRC_IP]\x1b[2J"
    sensor.send(hostile)
    wait_until(lambda: "exit code" in sensor.log, "the command")
    assert sensor.stop() == 0
    (record,) = sensor.records(1)
    first, *environment, given = (tmp_path / "program.out").read_text().splitlines()
    assert first == "127.0.0.1;id $(id)"
    assert json.loads(given) == record
    names = {line.partition("=")[0] for line in environment}
    assert {"TCPPC_SRC_IP", "TCPPC_SESSION_ID", "PATH", "LANG"} <= names
    assert not names & {"STATE_DIRECTORY", "VIRTUAL_ENV", "LISTEN_FDS"}
    assert f"TCPPC_SESSION_ID={record['id']}" in environment


def test_what_is_narrowed_and_what_is_not(acting: Any, tmp_path: Path) -> None:
    def table(number: int, text: str) -> str:
        return f'[[action]]\nname = "{number}"\ncommand = "echo {number} >> {tmp_path}/out"\n{text}\n'

    never = [
        'ports = "1"',
        'proto = "udp"',
        'sources = "192.0.2.0/24"',
        'on = "payload"\nmatch = "xyz+"',
        'on = "scan"',
    ]
    always = ['sources = ["127.0.0.0/8", "::1"]', 'on = "payload"\nmatch = "(?i)WGET +http"', 'proto = ["tcp", "udp"]']
    tables = [table(number, text) for number, text in enumerate(never)]
    tables += [table(10 + number, text) for number, text in enumerate(always)]
    sensor = acting("".join(tables))
    sensor.send(b"GET /; wget  http://x")
    wait_until(lambda: sensor.log.count("exit code 0") >= 3, "three of them")
    assert sensor.stop() == 0
    assert sorted((tmp_path / "out").read_text().split()) == ["10", "11", "12"]


def test_a_datagram_and_tls_act_too(acting: Any, tmp_path: Path) -> None:
    from tests.test_tls import lenient

    sensor = acting(
        f'[[action]]\non = "payload"\nmatch = "secret"\nproto = ["udp", "tls"]\n'
        f'command = "echo [PROTO] [SESSION_ID] >> {tmp_path}/out"\n'
    )
    sensor.datagram(b"a secret")
    with sensor.connect() as plain, lenient().wrap_socket(plain) as sock:
        sock.sendall(b"a secret in tls")
        wait_until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text().count("\n") == 2, "both")
    assert sensor.stop() == 0
    ids = {record["flow"]["proto"]: record["id"] for record in sensor.records(2)}
    assert sorted((tmp_path / "out").read_text().splitlines()) == [f"tls {ids['tls']}", f"udp {ids['udp']}"]


def test_once_per_source_and_again_for_another_port(acting: Any, tmp_path: Path) -> None:
    text = f'[[action]]\nonce_per = "1h"\ncommand = "echo x >> {tmp_path}/out"\n'
    sensor = acting(text)
    for _ in range(5):
        sensor.send(b"x")
    assert sensor.stop() == 0
    assert (tmp_path / "out").read_text() == "x\n"
    assert len(sensor.records(5)) == 5


def test_a_digest_is_one_call_with_the_list(acting: Any, tmp_path: Path) -> None:
    sensor = acting(f'[[action]]\non = "end"\ndigest = "1s"\ncommand = "cat > {tmp_path}/out; echo [COUNT]"\n')
    for number in range(5):
        sensor.send(b"%d" % number)
    sensor.said('exit code 0: "5\\n"')
    assert sensor.stop() == 0
    assert json.loads((tmp_path / "out").read_text()) == sensor.records(5)
    assert sensor.log.count("exit code 0") == 1


def test_a_digest_is_told_at_the_stop(acting: Any, tmp_path: Path) -> None:
    sensor = acting(f'[[action]]\non = "end"\ndigest = "1h"\ncommand = "cat > {tmp_path}/out"\n')
    sensor.send(b"x")
    assert sensor.stop() == 0
    assert json.loads((tmp_path / "out").read_text()) == sensor.records(1)


def test_a_command_that_takes_too_long_is_ended_with_all_its_children(acting: Any, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 1000 & echo $! $$ > {pids}; echo begun; sleep 1000"
    sensor = acting(f'[[action]]\ntimeout = 1\ncommand = "{script}"\n')
    sensor.send(b"x")
    sensor.said('ended after 1 s: "begun\\n"')
    for pid in pids.read_text().split():
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), f"the end of {pid}")  # type: ignore[misc]
    assert sensor.stop() == 0


def _is_zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ('["/no/such/program"]', "/no/such/program: No such file or directory"),
        ('"no-such-program-here"', "exit code 127: "),
        ('"exit 3"', "exit code 3"),
        ('"kill -9 $$"', "ended by signal 9"),
        ("\"head -c 10000000 /dev/zero | tr '\\\\0' x\"", 'exit code 0: "xxxx'),
        ("\"printf '\\\\033[2J'\"", 'exit code 0: "\\x1b[2J"'),
        ('"sleep 1000 & exit 0"', "exit code 0"),
    ],
)
def test_how_a_command_ended_is_in_the_log(acting: Any, command: str, said: str) -> None:
    sensor = acting(f"[[action]]\ntimeout = 20\ncommand = {command}\n")
    sensor.send(b"x")
    line = next(line for line in sensor.said(said).splitlines() if said in line)
    assert len(line) < 5000
    assert sensor.stop() == 0
    assert len(sensor.records(1)) == 1


def test_more_than_the_queue_takes_is_dropped_and_counted_and_the_capture_goes_on(acting: Any) -> None:
    sensor = acting('[actions]\nqueue = 5\nconcurrency = 1\n[[action]]\ncommand = "sleep 0.5"\ntimeout = 20\n', "-q")
    for _ in range(40):
        sensor.send(b"x")
    assert len(sensor.records(40)) == 40
    sensor.said("dropped so far: the queue is full")
    begun = time.monotonic()
    assert sensor.stop() == 0
    assert time.monotonic() - begun < 20
    assert sensor.log.count("exit code 0") <= 14


class Hook(http.server.BaseHTTPRequestHandler):
    """Busy at first; then it takes what it gets."""

    seen: list[dict[str, Any]] = []  # noqa: RUF012 - one test's
    busy = 2

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if Hook.busy:
            Hook.busy -= 1
            self.send_response(503)
        else:
            Hook.seen.append({"type": self.headers["Content-Type"], **json.loads(body)})
            self.send_response(204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        return


def test_a_webhook_gets_the_record_also_where_it_was_busy(acting: Any) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/hook"
        sensor = acting(f'[[action]]\nname = "tell"\non = "end"\nwebhook = "{url}"\n')
        sensor.send(b"\x00\xff hello")
        sensor.said("Action tell: 127.0.0.1:")
        assert "webhook: HTTP 204" in sensor.said("webhook: HTTP")
        server.shutdown()
    assert sensor.stop() == 0
    (told,) = Hook.seen
    assert told == {
        "type": "application/json", "action": "tell", "on": "end", "count": 1, "record": sensor.records(1)[0],
    }  # fmt: skip


def test_a_webhook_that_nobody_serves_is_one_line(acting: Any) -> None:
    sensor = acting(
        '[[action]]\nwebhook = "http://127.0.0.1:9/"\n',
        patch="import tcppc.actions.webhook as w; w.BACKOFF_SECONDS = 0",
    )
    sensor.send(b"x")
    assert "webhook: " in sensor.said("Connection refused")
    assert sensor.stop() == 0


def test_syslog_gets_a_message_of_rfc_5424(acting: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        sensor = acting(
            f'[[action]]\nname = "tell"\non = "end"\nsyslog = "127.0.0.1:{server.getsockname()[1]}"\n',
            "--sensor",
            "a b",
        )
        sensor.send(b"hello")
        message = server.recv(65536).decode("ascii")
    assert sensor.stop() == 0
    head, _, text = message.partition(" - tell: ")
    priority_and_version, stamp, host, program, pid, kind = head.split(" ")
    assert (priority_and_version, host, program, kind) == ("<84>1", "a-b", "tcppc", "end")
    assert pid.isdigit()
    assert len(stamp.rstrip("Z").partition(".")[2][:6]) == 6
    assert json.loads(text) == sensor.records(1)[0]


def test_this_host_itself_is_never_acted_upon(start: Start, tmp_path: Path) -> None:
    sensor = start("--action", f"echo x >> {tmp_path}/out")
    sensor.send(b"x")
    sensor.said("Action action 1: 127.0.0.1 is left alone: it is no address of the internet.")
    assert sensor.stop() == 0
    assert not (tmp_path / "out").exists()


def test_a_dry_run_only_says_what_it_would_do(acting: Any, tmp_path: Path) -> None:
    sensor = acting(f'[[action]]\ndry_run = true\nblock = "1h"\ncommand = "echo [SRC_IP] >> {tmp_path}/out"\n')
    sensor.send(b"x")
    sensor.said("dry run: block 127.0.0.1 for 3600 s (host)")
    sensor.said(f"dry run: run /bin/sh -c 'echo 127.0.0.1 >> {tmp_path}/out'")
    assert sensor.stop() == 0
    assert not (tmp_path / "out").exists()


def test_a_reload_brings_new_actions(acting: Any, tmp_path: Path) -> None:
    sensor = acting(f'[[action]]\ncommand = "echo old >> {tmp_path}/out"\n')
    sensor.send(b"x")
    sensor.said("exit code 0")
    configured(tmp_path, f'[[action]]\ncommand = "echo new >> {tmp_path}/out"\n')
    os.kill(sensor.process.pid, signal.SIGHUP)
    sensor.said("Reloaded.")
    sensor.send(b"x")
    wait_until(lambda: sensor.log.count("exit code 0") == 2, "the new one")
    configured(tmp_path, '[[action]]\ncommand = "echo [NOPE]"\n')
    os.kill(sensor.process.pid, signal.SIGHUP)
    sensor.said("Reload refused, the configuration stays as it was: ")
    assert sensor.stop() == 0
    assert (tmp_path / "out").read_text() == "old\nnew\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('command = "echo [SRC_PI]"', "command: there is no token [SRC_PI]; did you mean [SRC_IP]?"),
        ('command = ["x", "[FOO]"]', "command: there is no token [FOO]; expected one of SRC_IP,"),
        ("once_per = 5", "does nothing; expected command, webhook, syslog or block"),
        ('command = "x"\non = "touch"', "on = 'touch': expected one of syn, connect, payload, scan, end"),
        ('command = "x"\nsources = "10.0.0.0/99"', "expected an address or network such as 198.51.100.0/24"),
        ('command = "x"\non = "payload"\nmatch = "(a"', "is no regular expression of RE2: missing ): (a"),
        ('command = "x"\non = "payload"\nmatch = "(a)\\\\1"', "is no regular expression of RE2: "),
        ('command = "x"\nmatch = "a"', 'match goes with on = "payload" or "end"'),
        ("command = []", "expected a shell line, or a list of arguments"),
        ("block = 60\ndigest = 60", "digest gathers what command, webhook or syslog tell"),
        ('command = "x"\nprot = "tcp"', "number 1 has no setting prot; did you mean proto?"),
        ('webhook = "ftp://x"', "expected a URL such as https://example.org/hook"),
        ('syslog = "nowhere"', "expected /dev/log, or a host and UDP port such as"),
        ('command = "x"\nblock = "soon"', "block = 'soon': expected a duration"),
    ],
)
def test_a_wrong_action_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    done = tcppc("check", *configured(tmp_path, f"[[action]]\n{text}\n"))
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_check_warns_of_blocks_that_others_can_bring_about(tmp_path: Path) -> None:
    text = '[watch]\ninterface = "lo"\n[[action]]\non = ["scan", "connect"]\nblock = "1h"\n'
    text += '[[action]]\nproto = "udp"\nblock = "1h"\n[[action]]\nblock = "1h"\n'
    done = tcppc("check", *configured(tmp_path, text))
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 2
    assert 'action 1: blocks on = "scan", which anybody can send in another\'s name' in done.stderr
    assert "action 2: blocks on datagrams" in done.stderr


def test_a_regular_expression_that_blows_up_elsewhere_takes_no_time(acting: Any, tmp_path: Path) -> None:
    sensor = acting(f'[[action]]\non = "end"\nmatch = "^(a+)+$"\ncommand = "echo x >> {tmp_path}/out"\n')
    sensor.send(b"a" * 60_000 + b"!")
    sensor.send(b"aaa")
    wait_until((tmp_path / "out").exists, "the second one")
    assert sensor.stop() == 0
    assert (tmp_path / "out").read_text() == "x\n"


def blocks(net: Net, state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return net.sensor.tcppc("blocks", *words, environment={"STATE_DIRECTORY": str(state)})


def serving(start: Start, net: Net, tmp_path: Path, text: str) -> Sensor:
    watch = '[watch]\ninterface = "veth0"\nrecord = "off"\n'
    return start(*configured(tmp_path, watch + text), hosts=("0.0.0.0", "::"), port=12345, prefix=net.sensor.prefix)


SCANNED = '[[action]]\nname = "scanners"\non = "scan"\nblock = "1h"\n'


def test_a_scanner_is_blocked_from_all_but_the_sensor(start: Start, net: Net, tmp_path: Path) -> None:
    from tests.netns import echo

    echo(net.sensor, 8080, "service ")
    sensor = serving(start, net, tmp_path, SCANNED)
    for address in SENSOR:
        assert knock(net.attacker, "tcp", address, 8080, "x") == "service x"
        for port in (81, 82, 83):
            knock(net.attacker, "tcp", address, port, "x")
    sensor.said("Blocked: 198.51.100.7 for 3600 s (host): scanners, on scan")
    assert knock(net.attacker, "tcp", SENSOR[0], 8080, "x", 0.5) == "TimeoutError"
    assert knock(net.attacker, "tcp", SENSOR[0], 12345, "still recorded", 5) == ""
    assert knock(net.third, "tcp", SENSOR[0], 8080, "x") == "service x"
    listed = blocks(net, tmp_path / "state", "list").stdout
    assert listed.startswith("198.51.100.7 ")
    assert "scanners on scan" in listed
    assert sensor.stop() == 0
    assert any(b'"c3RpbGwgcmVjb3JkZWQ="' in line for line in sensor.lines())


def test_own_network_is_not_blocked_with_an_ipv6_neighbour(start: Start, net: Net, tmp_path: Path) -> None:
    """The attacker shares the sensor's own /64: blocking that would block the sensor's gateway too."""
    sensor = serving(start, net, tmp_path, SCANNED)
    for port in (81, 82, 83):
        knock(net.attacker, "tcp", SENSOR[1], port, "x")
    sensor.said("is left alone: 2001:db8:a::1 is this host's own, its gateway or its resolver.")
    assert sensor.stop() == 0
    assert blocks(net, tmp_path / "state", "list").stdout == "Nobody is blocked.\n"


def test_blocks_outlive_the_sensor_and_the_table(start: Start, net: Net, tmp_path: Path) -> None:
    sensor = serving(start, net, tmp_path, SCANNED)
    for port in (81, 82, 83):
        knock(net.attacker, "tcp", SENSOR[0], port, "x")
    sensor.said("Blocked: 198.51.100.7")
    assert sensor.stop() == 0
    assert "198.51.100.7" in blocks(net, tmp_path / "state", "list").stdout
    net.sensor.run("nft", "delete", "table", "inet", "tcppc_blocks")  # as a boot does
    again = serving(start, net, tmp_path, SCANNED)
    again.said("Blocks: 1 networks are blocked, 1 of them brought back.")
    assert knock(net.attacker, "tcp", SENSOR[0], 80, "x", 0.5) == "TimeoutError"
    done = blocks(net, tmp_path / "state", "remove", "198.51.100.7", "--why", "a friend")
    assert done.stdout == "198.51.100.7 is blocked no more.\n"
    assert knock(net.attacker, "tcp", SENSOR[0], 80, "x", 0.5) == "ConnectionRefusedError"
    assert again.stop() == 0
    lines = [json.loads(line) for line in (tmp_path / "state" / "blocks.jsonl").read_text().splitlines()]
    assert [(line["event"], line["network"], line.get("why", "")) for line in lines] == [
        ("block", "198.51.100.7/32", ""),
        ("unblock", "198.51.100.7/32", "a friend"),
    ]


def test_scope_all_and_blocks_by_hand(start: Start, net: Net, tmp_path: Path) -> None:
    mine = "table ip mine {\n set s {\n type ipv4_addr\n elements = { 192.0.2.1 }\n }\n}\n"
    net.sensor.run("nft", "-f", "-", text=mine)
    sensor = serving(start, net, tmp_path, "")
    state = tmp_path / "state"
    assert blocks(net, state, "add", "198.51.100.7", "--scope", "all", "--for", "2d").returncode == 0
    assert knock(net.attacker, "tcp", SENSOR[0], 12345, "x", 0.5) == "TimeoutError"
    row = json.loads(blocks(net, state, "list", "--json").stdout)
    assert (row["network"], row["scope"], row["on"]) == ("198.51.100.7", "all", "")
    assert blocks(net, state, "add", "--for", "2d", "2001:db8:7::9").stdout.startswith(
        "2001:db8:7::/64 is blocked until 20"
    )
    assert blocks(net, state, "flush").returncode == 0
    assert blocks(net, state, "flush").stdout == "Nobody was blocked.\n"
    assert knock(net.attacker, "tcp", SENSOR[0], 12345, "x", 5) == ""
    assert "192.0.2.1" in net.sensor.run("nft", "list", "table", "ip", "mine")
    refused = blocks(net, state, "add", SENSOR[0])
    assert refused.returncode == 1
    assert refused.stderr == (
        "tcppc: 198.51.100.1 is not blocked: 198.51.100.1 is this host's own, its gateway or its resolver\n"
    )
    assert sensor.stop() == 0


def test_no_more_than_so_many_are_blocked_within_an_hour(start: Start, net: Net, tmp_path: Path) -> None:
    sensor = serving(
        start, net, tmp_path, '[actions]\nblocks_per_hour = 2\n[[action]]\nname = "a"\nblock = "1h"\nproto = "tcp"\n'
    )
    for number in (21, 22, 23):
        net.attacker.ip(f"addr add 198.51.100.{number}/32 dev veth0")
        net.attacker.python(FROM, f"198.51.100.{number}", SENSOR[0], "12345")
    sensor.said("not blocked: actions.blocks_per_hour = 2 were blocked within an hour")
    assert sensor.stop() == 0
    listed = blocks(net, tmp_path / "state", "list").stdout
    assert "198.51.100.21" in listed
    assert "198.51.100.22" in listed
    assert "198.51.100.23" not in listed


FROM = """
import socket, sys
sock = socket.create_connection((sys.argv[2], int(sys.argv[3])), timeout=10, source_address=(sys.argv[1], 0))
sock.sendall(b"x")
"""


def test_a_datagram_blocks_nobody_unless_the_action_says_udp(start: Start, net: Net, tmp_path: Path) -> None:
    sensor = serving(start, net, tmp_path, '[[action]]\nname = "a"\nblock = "1h"\nsources = "198.51.100.0/24"\n')
    knock(net.attacker, "udp", SENSOR[0], 12345, "x")
    assert len(sensor.records(1)) == 1
    assert sensor.stop() == 0
    assert blocks(net, tmp_path / "state", "list").stdout == "Nobody is blocked.\n"


def test_without_the_right_to_block_the_sensor_goes_on(start: Start, tmp_path: Path) -> None:
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    sensor = start(*configured(tmp_path, '[[action]]\nblock = "1h"\n'), prefix=without, patch=STRANGE)
    sensor.said(
        "Blocks: nobody is blocked: it needs CAP_NET_ADMIN; all else goes on. To grant it: AmbientCapabilities="
    )
    sensor.send(b"x")
    assert len(sensor.records(1)) == 1
    assert sensor.stop() == 0


def test_nft_that_fails_holds_nothing_up(start: Start, net: Net, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nft").write_text("#!/bin/sh\necho 'Error: no room' >&2; exit 1\n")
    (tools / "nft").chmod(0o755)
    sensor = start(
        *configured(tmp_path, '[[action]]\nblock = "1h"\n'),
        hosts=("0.0.0.0",),
        port=12345,
        prefix=(*net.sensor.prefix, "env", f"PATH={tools}:{os.environ['PATH']}"),
    )
    sensor.said("Blocks: nft -f -: Error: no room; they wait; all else goes on.")
    assert knock(net.attacker, "tcp", SENSOR[0], 12345, "x", 5) == ""
    assert len(sensor.records(1)) == 1
    assert sensor.stop() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add",), "add takes an address"),
        (("list", "1.2.3.4"), "list takes no address"),
        (("add", "10.0.0.0/8"), "expected an IPv4 address, or an IPv6 address or /64, not '10.0.0.0/8'"),
        (("add", "x;y"), "expected an IPv4 address"),
        (("add", "1.2.3.4", "--for", "ever"), "expected a duration"),
        (("add", "127.0.0.1"), "127.0.0.1 is not blocked: it is no address of the internet"),
    ],
)
def test_wrong_words_for_blocks(words: tuple[str, ...], said: str) -> None:
    done = tcppc("blocks", *words)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_tokens_and_trials() -> None:
    listed = tcppc("actions", "--tokens").stdout
    assert "[SRC_IP]       the stranger's address " in listed
    assert len(listed.splitlines()) == 10
    tried = tcppc("actions", "--action", "echo [SRC_IP] [DEST_PORT]", "--test", "198.51.100.7:4444")
    assert tried.stdout == "action 1, on connect: run /bin/sh -c 'echo 198.51.100.7 4444'\n"
    for words in (("--test", "nobody"), ("--test", "198.51.100.7:0"), ("--test", "198.51.100.7:4444")):
        wrong = tcppc("actions", *words)
        assert wrong.returncode == 2
        assert "expected" in wrong.stderr


def test_others_may_flush_all_rules_and_blocks_come_back(start: Start, net: Net, tmp_path: Path) -> None:
    """As a reload of the host's own firewall does."""
    sensor = start(
        *configured(tmp_path, '[[action]]\nname = "a"\nblock = "1h"\nproto = "tcp"\n'), hosts=("0.0.0.0",), port=12345,
        prefix=net.sensor.prefix, patch="import tcppc.actions.blocks as b; b.RETRY_SECONDS = 0.2; b.LOOK_SECONDS = 0.5",
    )  # fmt: skip
    knock(net.attacker, "tcp", SENSOR[0], 12345, "x", 5)
    sensor.said("Blocked: 198.51.100.7")
    net.sensor.run("nft", "flush", "ruleset")
    wait_until(lambda: "198.51.100.7" in blocks(net, tmp_path / "state", "list").stdout, "the block")
    net.sensor.run("nft", "flush", "ruleset")
    net.attacker.ip("addr add 198.51.100.21/32 dev veth0")
    net.attacker.python(FROM, "198.51.100.21", SENSOR[0], "12345")
    wait_until(lambda: "198.51.100.21" in blocks(net, tmp_path / "state", "list").stdout, "the new one")
    assert sensor.stop() == 0


def test_what_is_done_by_hand_the_sensor_learns(start: Start, net: Net, tmp_path: Path) -> None:
    state = tmp_path / "state"
    sensor = serving(start, net, tmp_path, '[[action]]\nname = "a"\nblock = "1h"\nproto = "tcp"\n')
    blocks(net, state, "add", "198.51.100.7", "--for", "30d")
    until = json.loads(blocks(net, state, "list", "--json").stdout)["until"]
    time.sleep(1.5)
    knock(net.attacker, "tcp", SENSOR[0], 12345, "x", 5)
    sensor.records(1)
    time.sleep(0.5)
    assert json.loads(blocks(net, state, "list", "--json").stdout)["until"] == until
    blocks(net, state, "remove", "198.51.100.7")
    time.sleep(1.5)
    knock(net.attacker, "tcp", SENSOR[0], 12345, "x", 5)
    sensor.said("Blocked: 198.51.100.7 for 3600 s")
    assert sensor.stop() == 0


def test_a_load_balancer_is_never_acted_upon(start: Start, net: Net, tmp_path: Path) -> None:
    text = f'[capture]\nproxy_protocol = "{ATTACKER[0]}"\n[[action]]\nname = "a"\nblock = "1h"\n'
    sensor = serving(start, net, tmp_path, text)
    knock(net.attacker, "tcp", SENSOR[0], 12345, "PROXY UNKNOWN\r\n", 5)
    knock(net.attacker, "tcp", SENSOR[0], 12345, "PROXY TCP4 203.0.113.77 192.0.2.1 1 2\r\nx", 5)
    sensor.said("Blocked: 203.0.113.77")
    assert f"{ATTACKER[0]} is left alone: {ATTACKER[0]}/32 is in allow." in sensor.log
    assert sensor.stop() == 0


def test_commands_that_run_at_the_stop_are_ended(acting: Any, tmp_path: Path) -> None:
    sensor = acting(
        f'[[action]]\ncommand = "echo $$ > {tmp_path}/pid; sleep 1000"\ntimeout = 900\n',
        patch="import tcppc.acting as a; a.STOP_SECONDS = 0.5",
    )
    sensor.send(b"x")
    pid = wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "the command")
    assert sensor.stop() == 0
    assert "Actions: 1 commands were still running at the stop, and were ended." in sensor.log
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), "its end")


TRAP = """
import signal, sys, time
def told(number, frame):
    print("asked to end", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
print("begun", flush=True)
time.sleep(1000)
"""


def test_a_command_is_asked_to_end_before_it_is_killed(acting: Any, tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text(TRAP)
    sensor = acting(f'[[action]]\ntimeout = 2\ncommand = ["{sys.executable}", "{tmp_path}/trap.py"]\n')
    sensor.send(b"x")
    sensor.said('ended after 2 s: "begun\\nasked to end\\n"')
    assert sensor.stop() == 0


def test_records_that_wait_cost_the_capture_nothing(acting: Any) -> None:
    """A slow command, and sessions of a megabyte each: they wait in a share of the memory, or are not told."""
    sensor = acting(
        '[limits]\nmemory = "24MiB"\n[actions]\nconcurrency = 1\n[[action]]\non = "end"\ncommand = "sleep 30"\n',
        "-q",
        patch="import tcppc.acting as a; a.STOP_SECONDS = 0.2",
    )
    for _ in range(20):
        sensor.send(b"x" * 1_000_000)
    records = sensor.records(20)
    assert all(record["bytes"] == 1_000_000 and "truncated" not in record for record in records)
    sensor.said("dropped so far: records that wait hold 1/4 of limits.memory.")
    assert sensor.stop() == 0


def test_the_record_at_a_payload_has_that_piece(acting: Any, tmp_path: Path) -> None:
    sensor = acting(f'[[action]]\non = "payload"\ncommand = "cat >> {tmp_path}/out; echo >> {tmp_path}/out"\n')
    with sensor.connect() as sock:
        for piece in (b"one", b"two"):
            sock.sendall(piece)
            wait_until(lambda piece=piece: sensor.log.count("exit code 0") == (1 if piece == b"one" else 2), "it")  # type: ignore[misc]
    assert sensor.stop() == 0
    told = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [payload["data"] for record in told for payload in record["payloads"]] == ["b25l", "dHdv"]
    assert len({record["id"] for record in told}) == 1


class Busy(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(429)
        self.send_header("Retry-After", "3600")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        return


def test_a_webhook_cannot_put_a_worker_to_sleep(acting: Any) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sensor = acting(
            f'[[action]]\nwebhook = "http://127.0.0.1:{server.server_port}/"\n',
            patch="import tcppc.actions.webhook as w; w.BACKOFF_SECONDS = 0.01",
        )
        sensor.send(b"x")
        sensor.said("webhook: HTTP 429")
        server.shutdown()
    assert sensor.stop() == 0


def test_a_reload_that_allows_a_source_lets_it_go(start: Start, net: Net, tmp_path: Path) -> None:
    state = tmp_path / "state"
    text = '[[action]]\nname = "a"\nblock = "1h"\nproto = "tcp"\n'
    sensor = serving(start, net, tmp_path, text)
    knock(net.attacker, "tcp", SENSOR[0], 12345, "x", 5)
    sensor.said("Blocked: 198.51.100.7")
    configured(tmp_path, f'[actions]\nallow = "198.51.100.0/28"\n{text}')
    os.kill(sensor.process.pid, signal.SIGHUP)
    sensor.said("Blocks: 198.51.100.7 is blocked no more: it is one of those that are left alone.")
    assert blocks(net, state, "list").stdout == "Nobody is blocked.\n"
    configured(tmp_path, text)
    os.kill(sensor.process.pid, signal.SIGHUP)
    wait_until(lambda: sensor.log.count("Reloaded.") == 2, "the reload")
    knock(net.attacker, "tcp", SENSOR[0], 12345, "x", 5)
    wait_until(lambda: sensor.log.count("Blocked: 198.51.100.7") == 2, "the block")
    assert sensor.stop() == 0


def test_an_undo_log_that_cannot_be_written_keeps_no_block_back(start: Start, net: Net, tmp_path: Path) -> None:
    (tmp_path / "state" / "blocks.jsonl").mkdir(parents=True)
    sensor = serving(start, net, tmp_path, '[[action]]\nname = "a"\nblock = "1h"\nproto = "tcp"\n')
    sensor.said("blocks.jsonl cannot be read: Is a directory; a restart forgot its blocks; all else goes on.")
    knock(net.attacker, "tcp", SENSOR[0], 12345, "x", 5)
    sensor.said("Blocked: 198.51.100.7")
    assert "198.51.100.7" in net.sensor.run("nft", "list", "table", "inet", "tcppc_blocks")
    assert sensor.stop() == 0


def test_made_up_sources_leave_room_for_real_ones(start: Start, net: Net, tmp_path: Path) -> None:
    text = '[actions]\nblocks_per_hour = 2\n[[action]]\nname = "a"\nblock = "1h"\nproto = ["udp", "tcp"]\n'
    sensor = serving(start, net, tmp_path, text)
    for number in (21, 22, 23):
        net.attacker.ip(f"addr add 198.51.100.{number}/32 dev veth0")
        net.attacker.python(SAYS, f"198.51.100.{number}", SENSOR[0], "12345")
    sensor.said("not blocked: actions.blocks_per_hour = 2 were blocked within an hour (1 times so far)")
    knock(net.attacker, "tcp", SENSOR[0], 12345, "x", 5)
    sensor.said("Blocked: 198.51.100.7")
    sensor.records(4)
    assert sensor.log.count("not blocked") == 1
    assert sensor.stop() == 0


SAYS = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 0))
sock.sendto(b"x", (sys.argv[2], int(sys.argv[3])))
"""


def test_reloads_lose_no_digest(acting: Any, tmp_path: Path) -> None:
    text = f'[[action]]\non = "end"\ndigest = "1h"\ncommand = "cat >> {tmp_path}/out; echo >> {tmp_path}/out"\n'
    sensor = acting(text, "-q")
    for number in range(30):
        sensor.send(b"%d" % number)
        if number % 5 == 0:
            before = sensor.log.count("Reloaded.")
            os.kill(sensor.process.pid, signal.SIGHUP)
            sensor.send(b"while it reloads")
            wait_until(lambda before=before: sensor.log.count("Reloaded.") > before, "the reload")  # type: ignore[misc]
    assert sensor.stop() == 0
    told = [
        record
        for line in (tmp_path / "out").read_text().replace("][", "]\n[").split("\n")
        if line
        for record in json.loads(line)
    ]
    assert sorted(record["id"] for record in told) == sorted(record["id"] for record in sensor.records(36))
    assert "held" not in sensor.log.splitlines()[-2]


def test_an_undo_log_s_lines_wait_for_the_disk(start: Start, net: Net, tmp_path: Path) -> None:
    log = tmp_path / "state" / "blocks.jsonl"
    log.mkdir(parents=True)
    sensor = serving(start, net, tmp_path, '[[action]]\nname = "a"\nblock = "1h"\nproto = "tcp"\n')
    knock(net.attacker, "tcp", SENSOR[0], 12345, "x", 5)
    sensor.said("Blocked: 198.51.100.7")
    log.rmdir()
    wait_until(lambda: log.exists() and b"198.51.100.7" in log.read_bytes(), "the line")
    assert sensor.stop() == 0


def test_a_word_in_two_packets_and_one_behind_a_broken_hello(acting: Any, tmp_path: Path) -> None:
    sensor = acting(
        f'[[action]]\non = "payload"\nmatch = "wget http"\ncommand = "echo [SESSION_ID] >> {tmp_path}/out"\n'
    )
    with sensor.connect() as sock:
        for number, piece in enumerate((b"wget h", b"ttp://a/", b"more", b"wget http again"), 1):
            sock.sendall(piece)
            wait_until(lambda number=number: sensor.log.count("TCP: Received") == number, "it")  # type: ignore[misc]
    sensor.send(b"\x16\x03\x01\x00\x10wget http://behind it, and more than sixteen bytes")
    wait_until(lambda: sensor.log.count("exit code 0") == 3, "three of them")
    assert sensor.stop() == 0
    ids = sorted(record["id"] for record in sensor.records(2))  # by time
    assert sorted((tmp_path / "out").read_text().split()) == sorted([ids[0], ids[0], ids[1]])


def test_what_a_command_leaves_in_the_background_ends_with_it(acting: Any, tmp_path: Path) -> None:
    sensor = acting(f'[[action]]\ncommand = "sleep 1000 & echo $! > {tmp_path}/pid"\n')
    sensor.send(b"x")
    sensor.said("exit code 0")
    pid = (tmp_path / "pid").read_text().strip()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), "its end")
    assert sensor.stop() == 0


def test_the_ports_of_a_scan_are_all_that_were_touched(start: Start, net: Net, tmp_path: Path) -> None:
    text = f'[[action]]\non = "scan"\nports = "22"\ncommand = "echo [SRC_IP] >> {tmp_path}/out"\n'
    sensor = serving(start, net, tmp_path, text)
    for port in (22, 80, 443):
        knock(net.attacker, "tcp", SENSOR[0], port, "x")
    wait_until((tmp_path / "out").exists, "the action")
    assert sensor.stop() == 0


def test_check_warns_of_a_command_that_is_not_there(tmp_path: Path) -> None:
    done = tcppc("check", *configured(tmp_path, '[[action]]\ncommand = ["/no/such", "x"]\n'))
    assert done.returncode == 0
    assert "action 1: /no/such: there is no such command" in done.stderr


def test_a_session_that_is_not_all_in_memory_is_matched_from_its_first_byte_on(acting: Any, tmp_path: Path) -> None:
    """And what acts on one piece gets that piece, and not all that came before it."""
    sensor = acting(
        f'[[action]]\non = "end"\nmatch = "^first"\ncommand = "cat > {tmp_path}/end"\n'
        f'[[action]]\non = "payload"\nmatch = "last$"\ncommand = "cat > {tmp_path}/piece"\n'
    )
    with sensor.connect() as sock:
        sock.sendall(b"first" + b"x" * (4 << 20))
        time.sleep(0.5)
        sock.sendall(b"last")
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    wait_until(lambda: sensor.log.count("exit code 0") >= 2, "both commands")
    (record,) = sensor.records(1)
    assert json.loads((tmp_path / "end").read_text()) == record
    assert [piece["data"] for piece in json.loads((tmp_path / "piece").read_text())["payloads"]] == ["bGFzdA=="]
    assert sensor.stop() == 0
