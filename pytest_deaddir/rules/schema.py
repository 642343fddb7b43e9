"""The JSON Schema of a rule file, for editors, from the vocabulary that the loader checks by.

    python -m pytest_deaddir.rules.schema > rule.schema.json

Draft 7, which Taplo and VS Code know. What it cannot say, the loader does: formats in a message, min above max.
"""

from __future__ import annotations

import json
from typing import Any

from pytest_deaddir.rules.vocabulary import (
    CODE,
    CONFIDENCES,
    NAME,
    OPTIONAL,
    OUTCOMES,
    REQUIRED,
    SEVERITIES,
    TEXTS,
)
from pytest_deaddir.tables import CHOICES, COLUMNS, NOT_NUMBERS

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}

_DESCRIPTIONS = {
    "code": "2 to 10 capitals and 3 or 4 digits, unique among all rules of a run",
    "name": "lower case, digits and dashes",
    "severity": "error fails a check, warning is shown and counted, info is shown",
    "confidence": "exact: algebra or bytes; measured: a forward pass with a noise floor; heuristic: a rule of thumb",
    "table": "whose rows are judged",
    "where": "which rows are judged: column → a value, or a list of which the row must have one",
    "require": "what must hold of a row: column → operators; a row that fails any of it is a finding",
    "message": "what a finding says; columns in braces, with a format such as {noise_ratio:.3g}",
    "summary": "one line: what is wrong where the rule fires",
    "why": "why it matters",
    "how": "how it is measured",
    "limits": "when the rule is wrong",
    "remedy": "what to do",
    "references": "addresses to read on",
    "example": "rows with what the rule makes of them; --deaddir-check-rules runs them",
}


def schema() -> dict[str, Any]:
    """The schema as plain data."""
    simple: dict[str, Any] = {
        "code": {"type": "string", "pattern": f"^{CODE}$"},
        "name": {"type": "string", "pattern": f"^{NAME}$"},
        "severity": {"enum": list(SEVERITIES)},
        "confidence": {"enum": list(CONFIDENCES)},
        "table": {"enum": list(COLUMNS)},
        "references": {"type": "array", "items": _TEXT},
        "where": {"type": "object"},
        "require": {"type": "object", "minProperties": 1},
        "example": {"type": "array", "items": {"type": "object"}},
        **dict.fromkeys(("message", "summary", *TEXTS), _TEXT),
    }
    keys = (*REQUIRED, *OPTIONAL)
    columns: dict[str, dict[str, Any]] = {"number": _NUMBER, "text": {"type": ["string", "boolean"]}}
    columns |= {column: {"enum": list(choices)} for column, choices in CHOICES.items()}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A rule of pytest-deaddir",
        "type": "object",
        "properties": {key: {"description": _DESCRIPTIONS[key]} | simple[key] for key in keys},
        "required": list(REQUIRED),
        "additionalProperties": False,
        "allOf": [
            {
                "if": {"properties": {"table": {"const": table}}, "required": ["table"]},
                "then": {"properties": _of_table(table)},
            }
            for table in COLUMNS
        ],
        "definitions": {
            f"{part}-{kind}": content
            for kind, value in columns.items()
            for part, content in _of_kind(kind, value).items()
        },
    }


def _of_kind(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    """What can stand in each part of a rule for a column whose values are of one kind."""
    values = {"type": "array", "items": value, "minItems": 1}
    operators: dict[str, Any] = {"equal": value, "not": value, "in": values}
    operators |= {"min": _NUMBER, "max": _NUMBER} if kind == "number" else {"empty": {"type": "boolean"}}
    return {
        "where": {"anyOf": [value, values]},
        "require": {"type": "object", "minProperties": 1} | _closed(operators),
        "row": {"anyOf": [value, {"type": ["array", "object"]}]},
    }


def _of_table(table: str) -> dict[str, Any]:
    """The keys whose content depends on the table."""

    def part(name: str) -> dict[str, Any]:
        return _closed({column: {"$ref": f"#/definitions/{name}-{_kind(column)}"} for column in COLUMNS[table]})

    example = {
        "type": "object",
        "properties": {"row": {"type": "object"} | part("row"), "expect": {"enum": list(OUTCOMES)}},
        "required": ["row", "expect"],
        "additionalProperties": False,
    }
    return {"where": part("where"), "require": part("require"), "example": {"items": example}}


def _kind(column: str) -> str:
    return column if column in CHOICES else "text" if column in NOT_NUMBERS else "number"


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"properties": properties, "additionalProperties": False}


def schema_text() -> str:
    """The schema as the text of its file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
