"""The house stands as docs/house.md says: tests mirror modules, imports point down, rooms stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tcppc"

# Tested through another file's tests, from outside: keep it short.
NO_FILE_OF_ITS_OWN = {
    "__main__": "test_cli",
    "arguments": "test_cli",
    "serving": "test_cli",
    "ours": "test_keep",
    "pack": "test_keep",
    "netcat": "test_nc",
    "ears": "test_nc",
    "accounting": "test_account",
    "account_files": "test_account_states",
    "explanations": "test_acknowledge",
    "recovering": "test_recover",
    "progress": "test_account",
    "reading": "test_show",
    "sensor": "test_daemon",
    "conversation": "test_tcp",
    "ruling": "test_rules",
    "kernel": "test_rules",
    "found": "test_rules",
    "plan": "test_rules",
    "examining": "test_doctor",
    "knocking": "test_doctor",
    "outside": "test_doctor",
    "spoken": "test_personas",
    "answering": "test_personas",
    "replies": "test_personas",
    "rpc": "test_personas",
    "ber": "test_personas",
    "ssh": "test_personas",
    "watching": "test_watch",
    "acting": "test_engine",
    "blocks": "test_engine",
    "blocking": "test_engine",
    "event": "test_engine",
    "job": "test_engine",
    "rule": "test_engine",
    "registry": "test_engine",
    "command": "test_engine",
    "webhook": "test_engine",
    "syslog": "test_engine",
    "touched": "test_engine",
    "stream_files": "test_engine_of_flows",
    "streaming": "test_engine_of_flows",
    "differing": "test_difference",
    "sharing": "test_turns",
    "windows": "test_batches",
    "runs": "test_batches",
    "scanners": "test_flows",
    "alerts": "test_flows",
    "opening": "test_flows",
    "streams": "test_engine_of_flows",
    "wanted": "test_engine_of_flows",
    "flow": "test_engine_of_flows",
    "listener": "test_engine_of_flows",
    "packets": "test_engine_of_flows",
    "sources": "test_flows",
    "libpcap": "test_flows",
    "report": "test_flows",
    "console": "test_flows",
    "findx": "test_flows",
    "capture_writer": "test_flows",
    "tunnels": "test_flows",
    "watcher": "test_watch",
    "ring": "test_watch",
    "filter": "test_watch",
    "tools": "test_sightings",
    "listeners": "test_daemon",
    "sections": "test_config",
    "prepare": "test_daemon",
    "reload": "test_reload",
    "oversight": "test_stuck",
    "secure": "test_tls",
    "recorder": "test_memory",
    "shares": "test_memory",
    "terms": "test_tcp",
    "deadline": "test_tcp",
    "batch": "test_writer",
    "talk": "test_writer",
    "syncer": "test_stops",
}

# A module imports from its own floor and those below. Within floor 3, capture's own files know each other.
FLOORS = {
    "tcppc": 0,
    "tcppc.protocols": 1,
    "tcppc.clock": 1,
    "tcppc.values": 1,
    "tcppc.tables": 1,
    "tcppc.problems": 0,
    "tcppc.text": 0,
    "tcppc.records": 1,
    "tcppc.config": 1,
    "tcppc.log": 1,
    "tcppc.notify": 1,
    "tcppc.spoken": 1,
    "tcppc.sightings": 1,
    "tcppc.sections": 1,
    "tcppc.personas": 2,
    "tcppc.capture": 3,
    "tcppc.netfilter": 3,
    "tcppc.watch": 3,
    "tcppc.actions": 3,
    "tcppc.flows": 3,
    "tcppc.ledger_lines": 4,
    "tcppc.account_files": 4,
    "tcppc.account": 4,
    "tcppc.explanations": 4,
    "tcppc.difference": 4,
    "tcppc.rules": 4,
    "tcppc.outside": 4,
    "tcppc.doctor": 4,
    "tcppc.knocking": 4,
    "tcppc.recover": 4,
    "tcppc.nc": 4,
    "tcppc.delivery": 4,
    "tcppc.ears": 4,
    "tcppc.schema": 4,
    "tcppc.show": 4,
    "tcppc.sensor": 4,
    "tcppc.prepare": 4,
    "tcppc.reload": 4,
    "tcppc.oversight": 4,
    "tcppc.daemon": 4,
    "tcppc.listeners": 4,
    "tcppc.acting": 4,
    "tcppc.blocks": 4,
    "tcppc.httpd": 4,
    "tcppc.metrics": 4,
    "tcppc.watching": 4,
    "tcppc.cli": 5,
    "tcppc.__main__": 6,
}


def modules() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]


def floor(name: str) -> int:
    while name not in FLOORS:
        name = name.rpartition(".")[0]
    return FLOORS[name]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_each_module_has_its_test_file() -> None:
    for path in modules():
        name = NO_FILE_OF_ITS_OWN.get(path.stem, f"test_{path.stem}")
        name = "test_personas" if path.parent.name == "personas" else name
        assert (ROOT / "tests" / f"{name}.py").exists(), f"{path} has no tests/{name}.py"


def test_imports_point_down() -> None:
    for path in modules():
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name in imported(path):
            if name.startswith("tcppc."):
                assert floor(name) <= floor(own), f"{own} imports {name}"


def test_decoders_know_nothing_of_the_rest() -> None:
    for path in (PACKAGE / "protocols").glob("*.py"):
        for name in imported(path):
            assert not name.startswith("tcppc.") or name.startswith("tcppc.protocols"), f"{path} imports {name}"
            assert name.split(".")[0] not in {"socket", "time", "logging", "os"}, f"{path} imports {name}"


def test_only_the_command_line_parses_arguments() -> None:
    assert {path.parent.name for path in modules() if "argparse" in set(imported(path))} == {"cli"}


def test_rooms_are_small() -> None:
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.lineno} {node.name}"


def test_the_house_plan_names_every_module() -> None:
    plan = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    for path in modules():
        assert path.name in plan or path.parent.name in ("protocols", "personas"), path
