"""What was measured as properties of the test cases in pytest's own JUnit file (--deaddir-junit-properties)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pytest_deaddir.report.words import escaped

if TYPE_CHECKING:
    from pytest_deaddir.rules import Rule
    from pytest_deaddir.tables import Audit, Row


def model_properties(audit: Audit) -> Iterator[tuple[str, str]]:
    """Of the item ``discovery``: the facts about the model, ``model.width``; those that are one text or number."""
    for column, value in audit.model.items():
        if value is not None and not isinstance(value, (list, dict)):
            yield f"model.{column}", _text(value)


def rule_properties(rule: Rule, audit: Audit, findings: list[Row]) -> Iterator[tuple[str, str]]:
    """Of a rule's item: of every row that it judges the columns that it judges by, ``transformer.ln_f.noise_ratio``.

    A rule in Python does not say what it judges by: there it is what its findings were measured from.
    """
    if rule.check is not None:
        for finding in findings:
            yield from _columns(finding["table"], finding["path"], finding["measured"])
        return
    for row in audit.table(rule.table):
        if rule.selects(row):
            yield from _columns(rule.table, row.get("path"), {column: row[column] for column in rule.require})


def _columns(table: str, path: str | None, values: Row) -> Iterator[tuple[str, str]]:
    name = "model" if table == "model" else escaped(str(path))
    for column, value in values.items():
        if value is not None:
            yield f"{name}.{column}", _text(value)


def _text(value: Any) -> str:
    """A string, since what is not of a builtin type would end a run of xdist; numbers in full."""
    return escaped(value) if isinstance(value, str) else json.dumps(value)
