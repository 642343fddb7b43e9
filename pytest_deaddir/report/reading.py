"""A report read again: every problem in words, since a person may have edited it, or a merge."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest_deaddir
from pytest_deaddir.errors import ModelError
from pytest_deaddir.rules.vocabulary import CODE
from pytest_deaddir.tables import CHOICES, COLUMNS, LEVELS, SCHEMA, TYPES, Audit, Level, Row, completed


def read_report(text: str) -> list[Audit]:
    """The audits in a JSON report, of this release or another; columns that it lacks are None.

    An audit that ended in an error is left out. Raises ValueError for what is no report of this schema.
    """
    return [_audit_of(entry, number) for number, entry in enumerate(_entries(text), 1) if "error" not in entry]


@dataclass(frozen=True)
class Stored:
    """One model of a report: its audit, or the ``error`` that it ended in. ``number``: its place in the file, from 1."""

    path: Path
    number: int
    spec: str
    error: str | None = None
    audit: Audit | None = field(default=None, compare=False, repr=False)

    @property
    def level(self) -> Level:
        """How far it was looked; read for what ended in an error."""
        return "read" if self.audit is None else self.audit.model["level"]

    def at(self, level: Level, dtype: str | None = None) -> Audit:
        """The audit, where it was made at ``level`` or a higher one and in ``dtype``, None for any.

        Raises ModelError where not, and the error it ended in.
        """
        if self.audit is None:
            raise ModelError(self.error)
        if LEVELS.index(self.level) < LEVELS.index(level):
            raise ModelError(
                f"{self.path}: {self.spec} was audited at level {self.level}, and level {level} is asked for"
            )
        if dtype not in (None, self.audit.model["dtype"]):
            measured = self.audit.model["dtype"]
            raise ModelError(f"{self.path}: {self.spec} was audited in {measured}, and dtype {dtype} is asked for")
        return self.audit


def read_stored(path: Path) -> list[Stored]:
    """The models of a JSON report, to be judged again. Columns that it lacks are None.

    Raises OSError, and ValueError with what is wrong: another schema, no models, a row that cannot be one. A column that
    this release does not know is wrong too: what it says could not be judged, and would be lost in the next report.
    """
    try:
        entries = _entries(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not JSON: it is no UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not entries:
        raise ValueError("holds no model")
    return [_stored(path, entry, number) for number, entry in enumerate(entries, 1)]


def _stored(path: Path, entry: Row, number: int) -> Stored:
    model = entry.get("model")
    spec, error = model.get("spec") if isinstance(model, dict) else None, entry.get("error")
    if (
        isinstance(model, dict) and set(model) == {"spec"} and error is None
    ):  # its worker was killed, or the run interrupted
        error = "it was not audited in the run that wrote the report"
    if error is not None:
        if not isinstance(spec, str) or not isinstance(error, str):
            raise ValueError(f"model {number} has no spec, or an error that is no text")
        return Stored(path, number, spec, error)
    audit = _audit_of(entry, number)
    for table in COLUMNS:
        for given in [entry["model"]] if table == "model" else entry[table]:
            if unknown := sorted(given.keys() - COLUMNS[table].keys()):
                by = (audit.model["versions"] or {}).get("pytest-deaddir", "another release")
                raise ValueError(
                    f"model {number}: a row of {table} has {', '.join(unknown[:5])}, which pytest-deaddir "
                    f"{pytest_deaddir.__version__} does not know: the report was written by {by}"
                )
    return Stored(path, number, audit.model["spec"], audit=audit)


def _entries(text: str) -> list[Row]:
    document = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"not a report of schema {SCHEMA}")
    models = document.get("models")
    if not isinstance(models, list) or not all(isinstance(entry, dict) for entry in models):
        raise ValueError("its models are no list of objects")
    return models


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
    broken = entry.get("broken", [])
    if not isinstance(broken, list) or not all(map(_is_broken, broken)):
        raise ValueError(f"model {number}: a rule that raised lacks its code or its error")
    tables = {key: entry[key] for key in ("model", "norms", "blocks", "findings", "checks")}
    return completed(Audit(**tables, broken=broken))


def _is_broken(given: Any) -> bool:
    if not isinstance(given, dict) or given.keys() != {"code", "error"}:
        return False
    return all(map(_is_text, given.values())) and re.fullmatch(CODE, given["code"]) is not None


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
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or _is_integer(value)  # 1e999 is read as infinity


def _is_list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _is_named(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(kind, value.values()))


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
    "integers by name": _is_named(lambda value: value is None or _is_integer(value)),
    "objects by name": _is_named(lambda value: isinstance(value, dict)),
}
