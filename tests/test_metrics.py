"""Metrics as Prometheus reads them: a real one scrapes, promtool finds no fault, and no number is made up."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.harness import Sensor, tcppc, wait_until
from tests.netns import ATTACKER, SENSOR, Net, knock

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"


def needs(program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"needs {program}")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read().decode("utf-8")
    except urllib.error.HTTPError as problem:
        return problem.code, problem.read().decode("utf-8")


def address(sensor: Sensor) -> str:
    found = re.search(r"Metrics: (http://\S+)/metrics", sensor.said("Metrics: http"))
    assert found
    return found[1]


def values(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_the_numbers_are_those_of_the_ledger(start: Start, tmp_path: Path) -> None:
    sensor = start("-q", "--metrics", "127.0.0.1:0", "-t", "1")
    for number in range(5):
        sensor.send(b"x" * number)
    for _ in range(3):
        sensor.datagram(b"four")
    silent = sensor.connect()
    sensor.records(9)
    text = get(f"{address(sensor)}/metrics")[1]
    found = values(text)
    port = sensor.port
    assert found['tcppc_sessions_started_total{proto="tcp"}'] == 6
    assert found['tcppc_sessions_started_total{proto="udp"}'] == 3
    assert found['tcppc_sessions_ended_total{cause="peer",proto="tcp"}'] == 5
    assert found['tcppc_sessions_ended_total{cause="timeout",proto="tcp"}'] == 1
    assert found['tcppc_sessions_ended_total{cause="datagram",proto="udp"}'] == 3
    assert found[f'tcppc_port_sessions_total{{port="{port}",proto="tcp"}}'] == 6
    assert found["tcppc_received_bytes_total"] == 10 + 12
    assert found["tcppc_payloads_total"] == 4 + 3
    assert found["tcppc_lines_written_total"] == 9
    assert found["tcppc_written_bytes_total"] == sensor.file.stat().st_size
    assert found["tcppc_healthy"] == 1
    assert found["tcppc_sessions_open"] == 0
    silent.close()
    assert get(f"{address(sensor)}/healthz") == (200, "ok\n")
    assert get(f"{address(sensor)}/")[0] == 404
    assert sensor.stop() == 0


def test_health_tells_when_the_writer_is_held_up(start: Start) -> None:
    sensor = start("--metrics", "127.0.0.1:0", patch="import tcppc.sensor as s; s.WRITER_STUCK_SECONDS = -1")
    code, text = get(f"{address(sensor)}/healthz")
    assert code == 503
    assert re.fullmatch(r"writer: held up for \d+ s\n", text)
    assert values(get(f"{address(sensor)}/metrics")[1])["tcppc_healthy"] == 0
    assert sensor.stop() == 0


def test_promtool_finds_no_fault(start: Start) -> None:
    needs("promtool")
    sensor = start("--metrics", "127.0.0.1:0")
    sensor.send(b"x")
    text = get(f"{address(sensor)}/metrics")[1]
    done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for what, file in (("rules", "tcppc.rules.yml"), ("config", "prometheus.yml")):
        checked = subprocess.run(
            ["promtool", "check", what, str(CONF / "prometheus" / file)], text=True, capture_output=True, check=False
        )
        assert checked.returncode == 0, checked.stderr
    assert sensor.stop() == 0


def names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:tcppc|tcpcap)_[a-z_]+\b", text))


def test_dashboard_rules_and_document_know_the_metrics_there_are(start: Start) -> None:
    sensor = start("--metrics", "127.0.0.1:0")
    text = get(f"{address(sensor)}/metrics")[1]
    assert sensor.stop() == 0
    there = names("\n".join(line for line in text.splitlines() if line.startswith("# TYPE")))
    documented = names((ROOT / "docs" / "metrics.md").read_text())
    assert documented == there
    board = json.loads((CONF / "grafana" / "tcppc.json").read_text())
    asked = "\n".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    rules = (CONF / "prometheus" / "tcppc.rules.yml").read_text()
    expressions = "\n".join(line for line in rules.splitlines() if "expr:" in line)
    assert names(asked) <= there
    assert names(expressions) <= there
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_a_real_prometheus_scrapes_it(start: Start, tmp_path: Path) -> None:
    needs("prometheus")
    sensor = start("--metrics", "127.0.0.1:0")
    sensor.send(b"x")
    sensor.records(1)
    target, port = address(sensor).removeprefix("http://"), free_port()
    rules = tmp_path / "tcppc.rules.yml"
    rules.write_text((CONF / "prometheus" / "tcppc.rules.yml").read_text())
    config = (CONF / "prometheus" / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(config.replace("127.0.0.1:2112", target).replace("15s", "200ms"))
    server = subprocess.Popen(
        [
            "prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:

        def asked(expression: str) -> list[str]:
            url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.request.quote(expression)}"  # type: ignore[attr-defined]
            try:
                return [item["value"][1] for item in json.loads(get(url)[1])["data"]["result"]]
            except (OSError, ValueError, KeyError):
                return []

        wait_until(lambda: asked('tcppc_sessions_ended_total{cause="peer"}') == ["1"], "the scrape")
        assert asked('up{job="tcppc"}') == ["1"]
        alerts = json.loads(get(f"http://127.0.0.1:{port}/api/v1/rules")[1])["data"]["groups"]
        assert [group["name"] for group in alerts] == ["tcppc"]
        assert {rule["health"] for rule in alerts[0]["rules"]} <= {"ok", "unknown"}
    finally:
        server.terminate()
        server.wait(20)
    assert sensor.stop() == 0


def test_no_label_is_a_stranger_s(start: Start, net: Net, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        '[watch]\ninterface = "veth0"\nrecord = "off"\n[[action]]\non = ["scan", "connect"]\ncommand = "true"\n'
    )
    sensor = start(
        "-c", str(tmp_path / "c.toml"), "--metrics", "198.51.100.1:2112", "--persona", "auto", hosts=("0.0.0.0",),
        port=12345, prefix=net.sensor.prefix,
    )  # fmt: skip
    for port in (12345, 81, 82, 83):
        knock(net.attacker, "tcp", SENSOR[0], port, "stranger-bytes")
    sensor.records(1)
    text = wait_until(
        lambda: next(
            (
                page
                for page in [net.attacker.run("curl", "-s", f"http://{SENSOR[0]}:2112/metrics")]
                if 'tcppc_scans_total{kind="ports",proto="tcp",window="short"} 1.0' in page
            ),
            "",
        ),
        "the scan in the metrics",
    )
    assert ATTACKER[0] not in text
    assert "stranger-bytes" not in text
    assert values(text)["tcpcap_processed_conns_total"] >= 4
    assert values(text)['tcppc_actions_total{result="run"}'] >= 1
    assert sensor.stop() == 0


def test_an_address_in_use_costs_the_metrics_alone(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        sensor = start("--metrics", listen)
        sensor.said(f"Metrics {listen}: Address already in use; there are none, all else goes on.")
        sensor.send(b"x")
        assert len(sensor.records(1)) == 1
        assert sensor.stop() == 0


@pytest.mark.parametrize("listen", ["2112", "127.0.0.1", "127.0.0.1:99999", "::1:2112", "a b:1"])
def test_a_wrong_address_is_one_line(listen: str) -> None:
    done = tcppc("check", "--metrics", listen)
    assert done.returncode == 2
    assert "expected an address and port such as 127.0.0.1:2112 or [::1]:2112" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# What a sensor tells, minute by minute, and which alerts that makes.
ALERTS = """
rule_files: [tcppc.rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'tcppc_sessions_dropped_total{job="tcppc",instance="a",cause="memory"}', values: '0x4 500x20'}
      - {series: 'tcppc_errors_total{job="tcppc",instance="a",name="disk_failures"}', values: '0x4 1x20'}
      - {series: 'tcppc_actions_total{job="tcppc",instance="a",result="dropped_queue"}', values: '0x4 7x20'}
      - {series: 'tcppc_thread_restarts_total{job="tcppc",instance="a",thread="keeper"}', values: '0x4 1x20'}
      - {series: 'tcppc_disk_free_bytes{job="tcppc",instance="a",folder="/data"}', values: '9x4 4x20'}
      - {series: 'tcppc_disk_reserve_bytes{job="tcppc",instance="a",folder="/data"}', values: '5x24'}
      - {series: 'tcppc_healthy{job="tcppc",instance="a"}', values: '1x4 0x20'}
      - {series: 'tcppc_sessions_started_total{job="tcppc",instance="a",proto="tcp"}', values: '0+10x30'}
    alert_rule_test:
      - {eval_time: 4m, alertname: TcppcSessionsDropped, exp_alerts: []}
      - eval_time: 10m
        alertname: TcppcSessionsDropped
        exp_alerts:
          - exp_labels: {severity: critical, instance: a, cause: memory}
            exp_annotations: {summary: "a: 500 sessions reached no file (memory)"}
      - eval_time: 10m
        alertname: TcppcDiskTakesNothing
        exp_alerts:
          - exp_labels: {severity: critical, instance: a, job: tcppc, name: disk_failures}
            exp_annotations: {summary: "a: the disk took no session data; they wait within limits.memory"}
      - eval_time: 10m
        alertname: TcppcNotWell
        exp_alerts:
          - exp_labels: {severity: critical, instance: a, job: tcppc}
            exp_annotations: {summary: "a: a listener, the writer or a helper thread: /healthz says which"}
      - eval_time: 10m
        alertname: TcppcThreadRestarts
        exp_alerts:
          - exp_labels: {severity: warning, instance: a, thread: keeper}
            exp_annotations: {summary: "a: thread keeper failed and was started again; the log says why"}
      - {eval_time: 10m, alertname: TcppcDiskNearlyFull, exp_alerts: []}
      - eval_time: 20m
        alertname: TcppcDiskNearlyFull
        exp_alerts:
          - exp_labels: {severity: warning, instance: a, job: tcppc, folder: /data}
            exp_annotations: {summary: "a: less than files.reserve is free on the disk of /data"}
      - {eval_time: 10m, alertname: TcppcSilent, exp_alerts: []}
"""


def test_alerts_fire_as_they_should(tmp_path: Path) -> None:
    needs("promtool")
    (tmp_path / "tcppc.rules.yml").write_text((CONF / "prometheus" / "tcppc.rules.yml").read_text())
    (tmp_path / "test.yml").write_text(ALERTS)
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_never_happened_is_there_as_zero(start: Start) -> None:
    sensor = start("--metrics", "127.0.0.1:0")
    found = values(get(f"{address(sensor)}/metrics")[1])
    assert found['tcppc_sessions_dropped_total{cause="memory"}'] == 0
    assert found['tcppc_errors_total{name="disk_failures"}'] == 0
    assert found['tcppc_accept_errors_total{error="EMFILE"}'] == 0
    assert found['tcppc_actions_total{result="dropped_memory"}'] == 0
    assert sensor.stop() == 0
