from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tcppc import clock, records, schema

ROOT = Path(__file__).parent.parent


def record(**changes: Any) -> dict[str, Any]:
    session = records.Session("tcp", "192.0.2.1", 1, "192.0.2.2", 2, 1, [(1, b"x")], 1, 2, "peer")
    made: dict[str, Any] = json.loads(records.Encoder(clock.Zone("UTC"), "s").line(session))
    return made | changes


def test_the_schemas_are_sound_and_those_in_conf() -> None:
    for name in schema.NAMES:
        jsonschema.Draft202012Validator.check_schema(schema.schema(name))
        assert json.loads((ROOT / "conf" / name).read_text(encoding="utf-8")) == schema.schema(name)


def test_the_schema_and_the_document_name_the_same_keys() -> None:
    text = (ROOT / "docs" / "record.md").read_text(encoding="utf-8")
    named = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert named == list(schema.schema()["properties"])


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"timestamp": "2026-04-18 09:51:34"}, "timestamp"),
        ({"closed": "bored"}, "closed"),
        ({"bytes": -1}, "bytes"),
        ({"truncated": False}, "truncated"),
        ({"id": "1"}, "id"),
        ({"flow": {"proto": "tcp"}}, "flow"),
        ({"payloads": [{"index": 0, "timestamp": "1970-01-01T00:00:00.0Z", "data": "%"}]}, "payloads/0/data"),
        ({"unheard_of": 1}, "the record"),
    ],
)
def test_what_breaks_the_contract_is_named(tmp_path: Path, changes: dict[str, Any], place: str) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(f"{json.dumps(record())}\n{json.dumps(record(**changes))}\n", encoding="ascii")
    problems: list[str] = []
    assert schema.check_file(str(file), problems.append) == (2, 1)
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}:2: {place}: ")


def events(**changes: Any) -> list[dict[str, Any]]:
    session = records.Session("tcp", "192.0.2.1", 1, "192.0.2.2", 2, 1, [(1, b"x")], 1, 2, "peer")
    encoder = records.Encoder(clock.Zone("UTC"), "s")
    start = encoder.step(records.Step(session, "start", 0, 1))
    payload = encoder.step(records.Step(session, "payload", 0, 1, b"x"))
    return [json.loads(line) | changes for line in (start, payload, encoder.line(session))]


@pytest.mark.parametrize(
    "changes", [{"event": "pause"}, {"id": "1"}, {"unheard_of": 1}, {"timestamp": ""}, {"closed": "bored"}]
)
def test_event_lines_have_a_schema_of_their_own(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = tmp_path / "d.jsonl"
    good, bad = events(), events(**changes)
    file.write_text("".join(json.dumps(line) + "\n" for line in good + bad), encoding="ascii")
    problems: list[str] = []
    assert schema.check_file(str(file), problems.append) == (6, 3)
    assert [problem.split(":")[1] for problem in problems] == ["4", "5", "6"]
