"""Rule files → rules; rule × table → findings. Flat TOML with a closed vocabulary: a rule file may come with a
stranger's checkpoint, so there are no expressions and nothing in it is ever run."""

from __future__ import annotations

import math
import re
import string
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_deaddir.errors import RuleError
from pytest_deaddir.tables import COLUMNS, LEVELS, NOT_NUMBERS, Audit, Level, Row

SEVERITIES = ("error", "warning", "info")
_REQUIRED = {"code", "name", "severity", "table", "require", "message", "summary"}
_TEXTS = {"why", "remedy", "references"}
_OPERATORS = ("min", "max", "equal", "not", "in", "empty")
_CODE = re.compile(r"[A-Z]{2,10}\d{3,4}")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
#: Widths are bounded: ``{x:9999999999}`` would fill the memory.
_FORMAT = re.compile(r"\d?\d?(\.\d\d?)?[defgs%]?")


@dataclass(frozen=True)
class Rule:
    """One judgement on the rows of one table.

    ``where``: column → the values that a row must have to be judged. ``require``: column → operator → limit; a row that
    fails any is a finding. ``source``: the file it was loaded from.
    """

    code: str
    name: str
    severity: str
    table: str
    where: dict[str, tuple[Any, ...]]
    require: dict[str, dict[str, Any]]
    message: str
    summary: str
    source: str
    why: str = ""
    remedy: str = ""
    references: tuple[str, ...] = ()

    @property
    def level(self) -> Level:
        """The lowest level that fills every column which the rule judges by."""
        columns = COLUMNS[self.table]
        return max((columns[c] for c in (*self.where, *self.require)), key=LEVELS.index, default="read")

    def applies_at(self, level: Level) -> bool:
        """Whether an audit at ``level`` fills what the rule needs."""
        return LEVELS.index(self.level) <= LEVELS.index(level)


@dataclass(frozen=True)
class Verdict:
    """What one rule says of one audit. ``skipped``: why it judged no row, None where it did."""

    rule: Rule
    findings: list[Row]
    judged: int
    skipped: str | None = None

    @property
    def outcome(self) -> str:
        """failed (an error was found) | warned | passed | skipped."""
        if self.skipped is not None:
            return "skipped"
        if not self.findings or self.rule.severity == "info":
            return "passed"
        return "failed" if self.rule.severity == "error" else "warned"


def shipped_rules() -> Path:
    """The catalogue: inside the package in a wheel, beside it in a checkout."""
    packaged = Path(__file__).with_name("catalogue")
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "rules"


def load_rules(paths: Iterable[Path]) -> list[Rule]:
    """The rules of the given files and of every ``*.toml`` in the given folders, by code.

    Raises :class:`RuleError` with every problem of every file at once.
    """
    problems: list[str] = []
    rules: dict[str, Rule] = {}
    for path in paths:
        files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
        if not files:
            problems.append(f"{path}: no *.toml rule file in this folder")
        for file in files:
            rule = _load(file, problems)
            if rule is None:
                continue
            if rule.code in rules:
                problems.append(f"{file}: code {rule.code} is taken by {rules[rule.code].source}")
            rules[rule.code] = rule
    if problems:
        raise RuleError("\n".join(problems))
    return [rules[code] for code in sorted(rules)]


def _load(file: Path, problems: list[str]) -> Rule | None:
    """The rule in a file, or None with its problems added to the list."""
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{file}: cannot be read: {error}")
        return None
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{file}: not TOML: {error}")
        return None
    found = list(_problems(document))
    problems.extend(f"{file}: {problem}" for problem in found)
    if found:
        return None
    where = {column: tuple(v) if isinstance(v, list) else (v,) for column, v in document.pop("where", {}).items()}
    references = tuple(document.pop("references", ()))
    return Rule(**document, where=where, references=references, source=str(file))


def _problems(document: dict[str, Any]) -> Iterable[str]:
    """Everything that is wrong with a rule file, in words."""
    if missing := sorted(_REQUIRED - document.keys()):
        yield f"missing {', '.join(missing)}"
    if unknown := sorted(document.keys() - _REQUIRED - _TEXTS - {"where"}):
        yield f"unknown key {', '.join(unknown)}"
    for key in ("code", "name", "severity", "table", "message", "summary", "why", "remedy"):
        if not isinstance(document.get(key, ""), str):
            yield f"{key} must be a string"
            return
    if "code" in document and not _CODE.fullmatch(document["code"]):
        yield f"code {document['code']!r} is not capitals and digits, like DD101"
    if "name" in document and not _NAME.fullmatch(document["name"]):
        yield f"name {document['name']!r} is not lower-case-with-dashes"
    if document.get("severity", "error") not in SEVERITIES:
        yield f"severity {document['severity']!r} is not one of {', '.join(SEVERITIES)}"
    references = document.get("references", [])
    if not isinstance(references, list) or not all(isinstance(reference, str) for reference in references):
        yield "references must be a list of strings"
    if "table" not in document:
        return
    columns = COLUMNS.get(document["table"])
    if columns is None:
        yield f"table {document['table']!r} is not one of {', '.join(COLUMNS)}"
        return
    yield from _condition_problems(document, columns)
    yield from _message_problems(document.get("message", ""), columns)


def _condition_problems(document: dict[str, Any], columns: dict[str, Level]) -> Iterable[str]:
    for part in ("where", "require"):
        conditions = document.get(part, {})
        if not isinstance(conditions, dict):
            yield f"{part} must be a table of columns"
            continue
        for column, condition in conditions.items():
            if column not in columns:
                yield f"{part}: table {document['table']} has no column {column!r}"
            elif part == "where":
                values = condition if isinstance(condition, list) else [condition]
                if not values or not all(isinstance(value, (str, int, float)) for value in values):
                    yield f"where: {column} must be a value or a list of values"
            elif not isinstance(condition, dict) or not condition:
                yield f"require: {column} must be a table with {', '.join(_OPERATORS)}"
            else:
                for operator, limit in condition.items():
                    if operator not in _OPERATORS:
                        yield f"require: {column}: no operator {operator!r}, only {', '.join(_OPERATORS)}"
                    elif operator in ("min", "max") and (
                        isinstance(limit, bool) or not isinstance(limit, (int, float))
                    ):
                        yield f"require: {column}: {operator} must be a number, not {limit!r}"
                    elif operator in ("min", "max") and not math.isfinite(limit):
                        yield f"require: {column}: {operator} must be finite, not {limit!r}"
                    elif operator in ("min", "max") and column in NOT_NUMBERS:
                        yield f"require: {column}: {operator} is for numbers, and this column holds none"
                    elif operator == "empty" and not isinstance(limit, bool):
                        yield f"require: {column}: empty must be true or false, not {limit!r}"
                    elif operator == "in" and not isinstance(limit, list):
                        yield f"require: {column}: in must be a list"
    if isinstance(document.get("require"), dict) and not document["require"]:
        yield "require is empty: the rule could not fail"


def _message_problems(message: str, columns: dict[str, Level]) -> Iterable[str]:
    try:
        fields = [(name, spec) for _, name, spec, _ in string.Formatter().parse(message) if name is not None]
    except ValueError as error:
        yield f"message: {error}"
        return
    for name, spec in fields:
        if name not in columns:
            yield f"message: no column {name!r} to show"
        if not _FORMAT.fullmatch(spec or ""):
            yield f"message: {{{name}:{spec}}} is not a format such as .3g"


def evaluate(rule: Rule, audit: Audit) -> Verdict:
    """Judge the rows of one audit by one rule. An unmeasured column is no finding: the row is not judged."""
    rows = [r for r in audit.table(rule.table) if all(r[column] in values for column, values in rule.where.items())]
    if not rows:
        wanted = ", ".join(f"{column} = {' | '.join(map(str, values))}" for column, values in rule.where.items())
        return Verdict(rule, [], 0, f"no row of {rule.table} with {wanted}" if wanted else f"{rule.table} has no rows")
    judged = [r for r in rows if any(r[column] is not None for column in rule.require)]
    if not judged:
        return Verdict(rule, [], 0, f"{', '.join(rule.require)} not measured")
    return Verdict(rule, [finding for r in judged if (finding := _finding(rule, r))], len(judged))


def _finding(rule: Rule, judged: Row) -> Row | None:
    failed = {
        column: limits
        for column, limits in rule.require.items()
        if judged[column] is not None and not all(_holds(judged[column], op, limit) for op, limit in limits.items())
    }
    if not failed:
        return None
    return {
        "code": rule.code,
        "name": rule.name,
        "severity": rule.severity,
        "table": rule.table,
        "path": judged.get("path") or judged.get("spec"),
        "message": formatted(rule.message, judged),
        "measured": {column: judged[column] for column in failed},
        "limit": failed,
    }


def _holds(value: Any, operator: str, limit: Any) -> bool:
    match operator:
        case "min":
            return bool(value >= limit)
        case "max":
            return bool(value <= limit)
        case "equal":
            return bool(value == limit)
        case "not":
            return bool(value != limit)
        case "empty":
            return (not value) == limit
        case _:
            return value in limit


def formatted(message: str, values: Row) -> str:
    """``message`` with its columns filled in; a value that its format does not fit is shown as it is."""
    parts = []
    for text, name, spec, _ in string.Formatter().parse(message):
        parts.append(text)
        if name is None:
            continue
        value = values[name]
        if value is None:
            parts.append("unmeasured")
        elif isinstance(value, (int, float)):
            parts.append(_fitted(value, spec or ""))
        elif isinstance(value, list):
            shown = [format(v, ".3g") if isinstance(v, float) else str(v) for v in value[:8]]
            parts.append(", ".join(shown) + (", …" if len(value) > 8 else ""))
        else:
            parts.append(str(value))
    return "".join(parts)


def _fitted(value: int | float, spec: str) -> str:
    try:
        return format(value, spec)
    except ValueError:  # {x:d} for 1.5
        return str(value)


def judge(audit: Audit, rules: Sequence[Rule]) -> Audit:
    """The audit with the findings of every rule that its level can answer, and the counts of the checks."""
    applicable = [rule for rule in rules if rule.applies_at(audit.model["level"])]
    verdicts = [evaluate(rule, audit) for rule in applicable]
    outcomes = [verdict.outcome for verdict in verdicts]
    checks = {
        "planned": len(applicable),
        "run": len(applicable) - outcomes.count("skipped"),
        **{outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "warned", "skipped")},
    }
    checks["passed"] += checks["warned"]
    return replace(audit, findings=[f for verdict in verdicts for f in verdict.findings], checks=checks)
