"""Is a data file as the contracts say? They are record-1.schema.json and event-1.schema.json (also in conf/)."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from tcppc import records
from tcppc.show import damage, open_data

# More are counted, not shown.
MOST_PROBLEMS = 20
NAMES = ("record-1.schema.json", "event-1.schema.json")


class SchemaError(Exception):
    """Why nothing can be checked, in one line."""


def schema(name: str = NAMES[0]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one line."""
    loaded: dict[str, Any] = json.loads(resources.files("tcppc").joinpath(name).read_text(encoding="utf-8"))
    return loaded


def validators() -> tuple[Any, Any]:
    """For records and for event lines. SchemaError where the package jsonschema is missing."""
    try:
        import jsonschema
        import referencing
    except ImportError:
        raise SchemaError("the package jsonschema is missing: pip install 'tcppc[schema]'") from None
    schemas = [schema(name) for name in NAMES]
    registry: Any = referencing.Registry().with_resources(
        (each["$id"], referencing.Resource.from_contents(each)) for each in schemas
    )
    of_records, of_events = (jsonschema.Draft202012Validator(each, registry=registry) for each in schemas)
    return of_records, of_events


def check_file(path: str) -> tuple[int, list[str]]:
    """(lines, one text `NUMBER: what is wrong` for each line that is not as it should be). OSError where the file
    cannot be read, DataError where it cannot be decompressed, SchemaError where the package jsonschema is missing."""
    of_records, of_events = validators()
    lines = 0
    problems = []
    with open_data(Path(path)) as file:
        try:
            for number, record in records.read_lines(iter(file)):
                lines += 1
                if (problem := _problem(record, of_records, of_events)) is not None:
                    problems.append(f"{number}: {problem}")
        except damage() as problem:
            problems.append(f"{lines + 1}: is damaged from here on: {problem}")
    return lines, problems


def _problem(record: dict[str, Any] | None, of_records: Any, of_events: Any) -> str | None:
    if record is None:
        return "is no JSON object, as a crash leaves a half line"
    validator = of_events if "event" in record else of_records
    error = next(iter(validator.iter_errors(record)), None)
    if error is None:
        return None
    place = "/".join(map(str, error.absolute_path)) or "the record"
    return f"{place}: {ascii(error.message)[1:-1][:200]}"
