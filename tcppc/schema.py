"""Is a data file as the record's contract says? The contract is record-1.schema.json (also in conf/)."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from tcppc import records

# More are counted, not shown.
MOST_PROBLEMS = 20
NAME = "record-1.schema.json"


class SchemaError(Exception):
    """Why nothing can be checked, in one line."""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one line."""
    loaded: dict[str, Any] = json.loads(resources.files("tcppc").joinpath(NAME).read_text(encoding="utf-8"))
    return loaded


def check_file(path: str) -> tuple[int, list[str]]:
    """(lines, one text `NUMBER: what is wrong` for each line that is not as it should be). OSError where the file
    cannot be read, SchemaError where the package jsonschema is missing."""
    try:
        import jsonschema
    except ImportError:
        raise SchemaError("the package jsonschema is missing: pip install 'tcppc[schema]'") from None
    validator = jsonschema.Draft202012Validator(schema())
    lines = 0
    problems = []
    with open(path, "rb") as file:
        for number, record in records.read_lines(iter(file)):
            lines += 1
            if record is None:
                problems.append(f"{number}: is no JSON object, as a crash leaves a half line")
                continue
            error = next(iter(validator.iter_errors(record)), None)
            if error is not None:
                place = "/".join(map(str, error.absolute_path)) or "the record"
                problems.append(f"{number}: {place}: {ascii(error.message)[1:-1][:200]}")
    return lines, problems
