"""The JSON Schema of a report, from the columns that tables.py declares.

    python -m pytest_deaddir.report.schema > report.schema.json

Draft 7, as the schema of a rule file.
"""

from __future__ import annotations

import json
from typing import Any

from pytest_deaddir.rules.vocabulary import CONFIDENCES, SEVERITIES
from pytest_deaddir.tables import CHECKS, CHOICES, COLUMNS, SCHEMA, TYPES

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}

#: A column's type, as tables.py calls it → its schema.
_KINDS: dict[str, dict[str, Any]] = {
    "text": _TEXT,
    "flag": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "texts": {"type": "array", "items": _TEXT},
    "integers": {"type": "array", "items": {"type": "integer"}},
    "numbers": {"type": "array", "items": {"type": "number"}},
    "texts by name": {"type": "object", "additionalProperties": _TEXT},
    "numbers by name": {"type": "object", "additionalProperties": {"type": "number"}},
    "objects by name": {"type": "object", "additionalProperties": {"type": "object"}},
    "integers by name": {"type": "object", "additionalProperties": {"type": ["integer", "null"]}},
}

#: What a row is called by.
_NAMES = ("spec", "path")

_FINDING: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("code", "name"), _TEXT),
    "severity": {"enum": list(SEVERITIES)},
    "confidence": {"enum": list(CONFIDENCES)},
    "table": {"enum": list(COLUMNS)},
    **dict.fromkeys(("path", "message"), _TEXT),
    "measured": {"type": "object"},
    "limit": {"type": "object", "additionalProperties": {"type": "object"}},
    "suppressed": {"type": ["string", "null"]},
    "known": {"type": "boolean"},
}

_CHECKS = dict.fromkeys(CHECKS, _COUNT)


def report_schema() -> dict[str, Any]:
    """The schema as plain data."""
    rows = {table: _closed({column: _column(table, column) for column in COLUMNS[table]}) for table in COLUMNS}
    only_named = _closed({"spec": _TEXT})  # of a subject whose audit ended in an error, or never began
    entry = _closed(
        {
            "model": {"anyOf": [{"$ref": "#/definitions/model"}, only_named]},
            "norms": {"type": "array", "items": {"$ref": "#/definitions/norms"}},
            "blocks": {"type": "array", "items": {"$ref": "#/definitions/blocks"}},
            "findings": {"type": "array", "items": {"$ref": "#/definitions/finding"}},
            "checks": {"anyOf": [_closed(_CHECKS), _closed({})]},  # empty where nothing was judged
        }
    )
    entry["properties"]["error"] = _TEXT
    broken = {"type": "array", "minItems": 1, "items": _closed({"code": _TEXT, "error": _TEXT})}
    entry["properties"]["broken"] = broken
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A report of pytest-deaddir",
        **_closed({"schema": {"const": SCHEMA}, "models": {"type": "array", "items": entry}}),
        "definitions": rows | {"finding": _closed(_FINDING)},
    }


def _column(table: str, column: str) -> dict[str, Any]:
    level = {"description": f"level {COLUMNS[table][column]}"}
    if column in CHOICES:
        return level | {"enum": [*CHOICES[column], None]}
    kind = _KINDS[TYPES.get(column, "number")]
    return level | kind | ({} if column in _NAMES else {"type": [kind["type"], "null"]})


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    """An object with all of these and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def report_schema_text() -> str:
    """The schema as the text of its file."""
    return json.dumps(report_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(report_schema_text(), end="")
