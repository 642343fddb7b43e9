"""A report read again: every problem in words, since a person may have edited it, or a merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pytest_deaddir.tables import CHOICES, COLUMNS, SCHEMA, TYPES, Audit, Row, completed


def read_report(text: str) -> list[Audit]:
    """The audits in a JSON report, of this release or another; columns that it lacks are None.

    An audit that ended in an error is left out. Raises ValueError for what is no report of this schema.
    """
    document = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"not a report of schema {SCHEMA}")
    models = document.get("models")
    if not isinstance(models, list) or not all(isinstance(entry, dict) for entry in models):
        raise ValueError("its models are no list of objects")
    return [_audit_of(entry, number) for number, entry in enumerate(models, 1) if "error" not in entry]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _audit_of(entry: Row, number: int) -> Audit:
    for key, kind in (("model", dict), ("norms", list), ("blocks", list), ("findings", list), ("checks", dict)):
        if not isinstance(entry.get(key), kind):
            raise ValueError(f"model {number} has no {key}")
    for table in COLUMNS:
        for given in [entry["model"]] if table == "model" else entry[table]:
            problem = _row_problem(table, given) if isinstance(given, dict) else "not an object"
            if problem:
                raise ValueError(f"model {number}: a row of {table}: {problem}")
    if not all(isinstance(finding, dict) and _is_finding(finding) for finding in entry["findings"]):
        raise ValueError(f"model {number}: a finding lacks its code, its table, its path or what was measured")
    return completed(Audit(**{key: entry[key] for key in ("model", "norms", "blocks", "findings", "checks")}))


def _is_finding(given: Row) -> bool:
    """Whether it has what it takes to know a finding again."""
    texts = all(isinstance(given.get(key), str) for key in ("code", "table", "path"))
    return texts and given["table"] in COLUMNS and isinstance(given.get("measured"), dict)


#: Columns that no row is without.
_NEEDED = {"model": ("spec", "level"), "norms": ("path", "kind", "role"), "blocks": ("path", "stack", "index")}


def _row_problem(table: str, given: Row) -> str | None:
    """Why a row cannot be one of ``table``, or None."""
    for column in COLUMNS[table]:
        value = given.get(column)
        if value is None:
            if column in _NEEDED[table]:
                return f"no {column}"
        elif not _IS[TYPES.get(column, "number")](value) or value not in CHOICES.get(column, (value,)):
            return f"{column} cannot be {value!r}"
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_integer(value)


def _is_list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _is_named(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(each is None or kind(each) for each in value.values())


#: The types of columns, as tables.py calls them.
_IS: dict[str, Callable[[Any], bool]] = {
    "text": _is_text,
    "flag": lambda value: isinstance(value, bool),
    "integer": _is_integer,
    "number": _is_number,
    "texts": _is_list_of(_is_text),
    "integers": _is_list_of(_is_integer),
    "numbers": _is_list_of(_is_number),
    "texts by name": _is_named(_is_text),
    "numbers by name": _is_named(_is_number),
    "integers by name": _is_named(_is_integer),
    "objects by name": _is_named(lambda value: isinstance(value, dict)),
}
