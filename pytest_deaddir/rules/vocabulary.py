"""The closed vocabulary of rules, and everything that can be wrong with one, in words.

A rule file may come with a stranger's checkpoint, so there are no expressions and nothing in it is ever run.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Collection, Iterator
from typing import Any

from pytest_deaddir.tables import CHOICES, COLUMNS, LEVELS, NOT_NUMBERS

SEVERITIES = ("error", "warning", "info")
#: How sure a finding is: algebra or bytes; a forward pass with a noise floor; a rule of thumb.
CONFIDENCES = ("exact", "measured", "heuristic")
OPERATORS = ("min", "max", "equal", "not", "in", "empty")
#: What an example row may expect of its rule.
OUTCOMES = ("pass", "finding", "skip")

REQUIRED = ("code", "name", "severity", "table", "require", "message", "summary")
#: The page, beside the summary.
TEXTS = ("why", "how", "limits", "remedy")
OPTIONAL = ("confidence", "where", *TEXTS, "references", "example")

CODE = r"[A-Z]{2,10}[0-9]{3,4}"
NAME = r"[a-z0-9]+(-[a-z0-9]+)*"
#: Widths are bounded: ``{x:9999999999}`` would fill the memory.
_FORMAT = re.compile(r"\d?\d?(\.\d\d?)?[defgs%]?")

#: The keys that lead to a problem, and what is wrong there.
Problem = tuple[tuple[str | int, ...], str]


def problems(
    document: dict[str, Any], required: Collection[str] = REQUIRED, optional: Collection[str] = OPTIONAL
) -> Iterator[Problem]:
    """Everything that is wrong with a rule, as the document of its file; ``required`` and ``optional``: its keys."""
    if missing := sorted(set(required) - document.keys()):
        yield (), f"missing {', '.join(missing)}"
    for key in document.keys() - {*required, *optional}:
        yield (key,), f"unknown key {key}{did_you_mean(key, [*required, *optional])}"
    yield from _plain_problems(document)
    table = document.get("table")
    if not isinstance(table, str) or table not in COLUMNS:
        return
    yield from _where_problems(document.get("where", {}), table)
    if "require" in document:
        yield from _require_problems(document["require"], table)
    yield from _message_problems(document.get("message", ""), table)
    yield from _example_problems(document.get("example", []), table)


def did_you_mean(word: str, known: Collection[str], closeness: float = 0.6) -> str:
    """``", did you mean x?"`` where something known is close to ``word``; else nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1, cutoff=closeness)
    return f", did you mean {close[0]}?" if close else ""


def _plain_problems(document: dict[str, Any]) -> Iterator[Problem]:
    """Of the keys that hold one text each, or a list of texts."""
    for key in ("code", "name", "severity", "confidence", "table", "level", "message", "summary", *TEXTS):
        if not isinstance(document.get(key, ""), str):
            yield (key,), f"{key} must be a string, not {document[key]!r}"
    texts = {key: value for key, value in document.items() if isinstance(value, str)}
    if not re.fullmatch(CODE, texts.get("code", "DD101")):
        yield ("code",), f"code {texts['code']!r} is not capitals and digits, like DD101"
    if not re.fullmatch(NAME, texts.get("name", "x")):
        yield ("name",), f"name {texts['name']!r} is not lower-case-with-dashes"
    choices = {"severity": SEVERITIES, "confidence": CONFIDENCES, "table": tuple(COLUMNS), "level": LEVELS}
    for key, allowed in choices.items():
        if texts.get(key, allowed[0]) not in allowed:
            yield (key,), f"{key} {texts[key]!r} is not one of {', '.join(allowed)}{did_you_mean(texts[key], allowed)}"
    references = document.get("references", [])
    if not isinstance(references, (list, tuple)) or not all(isinstance(reference, str) for reference in references):
        yield ("references",), "references must be a list of strings"


def _column_problem(column: str, table: str) -> str | None:
    if column in COLUMNS[table]:
        return None
    return f"table {table} has no column {column!r}{did_you_mean(column, COLUMNS[table])}"


def _value_problem(column: str, value: Any) -> str | None:
    """Why a column can never be equal to ``value``, or None."""
    if not isinstance(value, (str, int, float)):
        return f"{column} must be text, a number, true or false, not {value!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{column} must be finite, not {value!r}"
    if column in CHOICES and value not in CHOICES[column]:
        return f"{column} is never {value!r}, only {', '.join(CHOICES[column])}"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and column in NOT_NUMBERS:
        return f"{column} is never {value!r}: this column holds no numbers"
    if not is_number and column not in NOT_NUMBERS:
        return f"{column} is never {value!r}: this column holds numbers"
    return None


def _where_problems(where: Any, table: str) -> Iterator[Problem]:
    if not isinstance(where, dict):
        yield ("where",), "where must be a table of columns"
        return
    for column, condition in where.items():
        values = condition if isinstance(condition, (list, tuple)) else [condition]
        if problem := _column_problem(column, table):
            yield ("where", column), f"where: {problem}"
        elif not values or isinstance(condition, dict):
            yield ("where", column), f"where: {column} must be a value or a list of values"
        else:
            for problem in filter(None, (_value_problem(column, value) for value in values)):
                yield ("where", column), f"where: {problem}"


def _require_problems(require: Any, table: str) -> Iterator[Problem]:
    if not isinstance(require, dict):
        yield ("require",), "require must be a table of columns"
        return
    if not require:
        yield ("require",), "require is empty: the rule could not fail"
    for column, limits in require.items():
        if problem := _column_problem(column, table):
            yield ("require", column), f"require: {problem}"
        elif not isinstance(limits, dict) or not limits:
            yield ("require", column), f"require: {column} must be a table with {', '.join(OPERATORS)}"
        else:
            for operator, limit in limits.items():
                if problem := _limit_problem(column, operator, limit):
                    yield ("require", column, operator), f"require: {problem}"
            low, high = limits.get("min"), limits.get("max")
            if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
                yield ("require", column), f"require: {column}: min {low} is above max {high}: nothing could pass"


def _limit_problem(column: str, operator: str, limit: Any) -> str | None:
    """Why ``column`` cannot be held against this limit, or None."""
    if operator not in OPERATORS:
        hint = did_you_mean(operator, OPERATORS)
        return f"{column}: no operator {operator!r}, only {', '.join(OPERATORS)}{hint}"
    if operator in ("min", "max"):
        if isinstance(limit, bool) or not isinstance(limit, (int, float)):
            return f"{column}: {operator} must be a number, not {limit!r}"
        if not math.isfinite(limit if isinstance(limit, float) else 0):
            return f"{column}: {operator} must be finite, not {limit!r}"
        if column in NOT_NUMBERS:
            return f"{column}: {operator} is for numbers, and this column holds none"
    if operator == "empty":
        if not isinstance(limit, bool):
            return f"{column}: empty must be true or false, not {limit!r}"
        if column not in NOT_NUMBERS:
            return f"{column}: empty is for text and lists, and this column holds numbers"
    if operator == "in":
        if not isinstance(limit, list) or not limit:
            return f"{column}: in must be a list of values"
        return next(filter(None, (_value_problem(column, value) for value in limit)), None)
    if operator in ("equal", "not"):
        return _value_problem(column, limit)
    return None


def _message_problems(message: Any, table: str) -> Iterator[Problem]:
    if not isinstance(message, str):
        return
    try:
        fields = [(name, spec) for _, name, spec, _ in string.Formatter().parse(message) if name is not None]
    except ValueError as error:
        yield ("message",), f"message: {error}"
        return
    for name, spec in fields:
        if name not in COLUMNS[table]:
            yield ("message",), f"message: no column {name!r} to show{did_you_mean(name, COLUMNS[table])}"
        if not _FORMAT.fullmatch(spec or ""):
            yield ("message",), f"message: {{{name}:{spec}}} is not a format such as .3g"


def _example_problems(examples: Any, table: str) -> Iterator[Problem]:
    if not isinstance(examples, list) or not all(isinstance(example, dict) for example in examples):
        yield ("example",), "example must be tables, each under [[example]]"
        return
    for number, example in enumerate(examples):
        where = ("example", number)
        name = f"example {number + 1}"
        if missing := sorted({"row", "expect"} - example.keys()):
            yield where, f"{name}: missing {', '.join(missing)}"
        for key in example.keys() - {"row", "expect"}:
            yield (*where, key), f"{name}: unknown key {key}, only row, expect"
        if example.get("expect", "pass") not in OUTCOMES:
            yield (*where, "expect"), f"{name}: expect {example['expect']!r} is not one of {', '.join(OUTCOMES)}"
        row = example.get("row", {})
        if not isinstance(row, dict):
            yield (*where, "row"), f"{name}: row must be a table of columns"
            continue
        for column, value in row.items():
            problem = _column_problem(column, table)
            if problem is None and not isinstance(value, (list, dict)):
                problem = _value_problem(column, value)
            if problem:
                yield (*where, "row", column), f"{name}: {problem}"
