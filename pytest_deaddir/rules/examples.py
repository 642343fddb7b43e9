"""Rules against rows of which the outcome is known: how their authors test them, and how the catalogue is tested."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from pytest_deaddir.errors import RuleError
from pytest_deaddir.rules.definition import Expectation, Rule
from pytest_deaddir.rules.judge import evaluate
from pytest_deaddir.rules.python import located, problems_of
from pytest_deaddir.tables import Audit, Row, row


class Checked(NamedTuple):
    """What a rule made of one row. ``text``: the finding's message, or why the row was not judged."""

    outcome: Expectation
    text: str = ""


def check_rule(rule: Rule, rows: Iterable[Row]) -> list[Checked]:
    """What a rule makes of each row by itself; a row needs only the columns that matter: its name is made up, the others
    are unmeasured.

    ::

        def test_gamma_outlier():
            rows = [{"gamma_max": 51.0, "gamma_median": 1.0}, {"gamma_max": 50.0, "gamma_median": 1.0}, {}]
            assert [checked.outcome for checked in check_rule(gamma_outlier, rows)] == ["finding", "pass", "skip"]

    Raises :class:`RuleError` where the rule could not be loaded, TypeError for a column that its table does not have, and
    what a rule in Python raises.
    """
    if rule.check and (found := problems_of(rule)):
        raise RuleError(*found)
    return [_checked(rule, values) for values in rows]


def _checked(rule: Rule, values: Row) -> Checked:
    name = "spec" if rule.table == "model" else "path"
    rows = [row(rule.table, **({name: "example"} | values))]
    tables: dict[str, Any] = {"model": row("model")}
    tables |= {"model": rows[0]} if rule.table == "model" else {rule.table: rows}
    verdict = evaluate(rule, Audit(**tables))
    if verdict.skipped is not None:
        return Checked("skip", verdict.skipped)
    return Checked("finding", verdict.findings[0]["message"]) if verdict.findings else Checked("pass")


def failing_examples(rule: Rule) -> Iterator[str]:
    """The examples of a rule that do not come out as they say, each as ``file:line: what``."""
    for number, example in enumerate(rule.examples, 1):
        expected = f"{rule.source}:{example.line or rule.line}: {rule.code}: example {number} expects {example.expect}"
        try:
            checked = _checked(rule, example.row)
        except Exception as error:  # a rule in Python runs here, so anything can be raised
            yield f"{expected}, and the rule raises {located(error)}"
            continue
        if checked.outcome != example.expect:
            got = checked.outcome + (f" ({checked.text})" if checked.text else "")
            yield f"{expected}, and the rule says {got}"


def unnoticed(rule: Rule, nudge: float | None = None) -> list[str]:
    """The changes to a rule's conditions that none of its examples notices; see :func:`mutants`."""
    return [change for change, mutant in mutants(rule, nudge) if not any(failing_examples(mutant))]


def mutants(rule: Rule, nudge: float | None = None) -> Iterator[tuple[str, Rule]]:
    """A rule with one condition changed at a time, and that change in words.

    A limit is moved past all that the examples hold, in either direction; with ``nudge``, by that share of itself and at
    least to the next number. ``equal`` and ``not``, and empty and not empty, change places; every condition on a row,
    and every value in a list, is left out once.
    """
    for column, values in rule.where.items():
        rest = {other: wanted for other, wanted in rule.where.items() if other != column}
        yield f"where.{column} left out", replace(rule, where=rest)
        for value in values if len(values) > 1 else ():
            fewer = tuple(other for other in values if other != value)
            yield f"where.{column} without {value!r}", replace(rule, where=rule.where | {column: fewer})
    for column, limits in rule.require.items():
        for operator, limit in limits.items():
            name = f"require.{column}.{operator}"
            for other, changed in _changed(operator, limit, _values(rule, column), nudge):
                kept = {op: value for op, value in limits.items() if op != operator}
                require = rule.require | {column: kept | {other: changed}}
                yield f"{name} = {limit!r} made {other} = {changed!r}", replace(rule, require=require)


def _values(rule: Rule, column: str) -> list[float]:
    seen = [example.row[column] for example in rule.examples if column in example.row]
    return [value for value in seen if isinstance(value, (int, float)) and not isinstance(value, bool)]


def _changed(operator: str, limit: Any, seen: list[float], nudge: float | None) -> Iterator[tuple[str, Any]]:
    """The operators and limits to try in place of one."""
    match operator:
        case "min" | "max":
            if nudge is None:
                low, high = min([limit, *seen]), max([limit, *seen])
                yield operator, low - max(1, abs(low))
                yield operator, high + max(1, abs(high))
            else:
                step = 1 if isinstance(limit, int) else abs(limit) * nudge or nudge
                yield operator, limit - step
                yield operator, limit + step
        case "equal":
            yield "not", limit
        case "not":
            yield "equal", limit
        case "empty":
            yield "empty", not limit
        case _:
            for value in limit if len(limit) > 1 else ():
                yield "in", [other for other in limit if other != value]
