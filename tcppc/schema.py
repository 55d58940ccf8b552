"""Is a data file as the contracts say? They are record-1.schema.json and event-1.schema.json (also in conf/)."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from tcppc import records
from tcppc.show import damage, data_lines, open_data

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


def check_file(path: str, tell: Callable[[str], object]) -> tuple[int, int]:
    """(lines, those that are not as they should be); `tell` gets `PATH:NUMBER: what is wrong` for each of these.
    OSError where the file cannot be read, DataError where it cannot be decompressed, SchemaError where the package
    jsonschema is missing."""
    of_records, of_events = validators()
    lines = bad = 0
    with open_data(Path(path)) as file:
        try:
            for number, record in records.read_lines(data_lines(file)):
                lines += 1
                if (problem := _problem(record, of_records, of_events)) is not None:
                    bad += 1
                    tell(f"{path}:{number}: {problem}")
        except damage() as problem:
            bad += 1
            tell(f"{path}:{lines + 1}: is damaged from here on: {problem}")
    return lines, bad


def _problem(record: dict[str, Any] | None, of_records: Any, of_events: Any) -> str | None:
    if record is None:
        return "is no JSON object, as a crash leaves a half line"
    validator = of_events if "event" in record else of_records
    error = next(iter(validator.iter_errors(record)), None)
    if error is None:
        return None
    place = "/".join(map(str, error.absolute_path)) or "the record"
    return f"{place}: {ascii(error.message)[1:-1][:200]}"
