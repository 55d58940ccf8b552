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


def test_the_schema_is_sound_and_the_one_in_conf() -> None:
    jsonschema.Draft202012Validator.check_schema(schema.schema())
    in_conf = ROOT / "conf" / schema.NAME
    assert json.loads(in_conf.read_text(encoding="utf-8")) == schema.schema()


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
    lines, problems = schema.check_file(str(file))
    assert lines == 2
    assert len(problems) == 1
    assert problems[0].startswith(f"2: {place}: ")
