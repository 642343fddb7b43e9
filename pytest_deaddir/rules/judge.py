"""Rule × table → findings. Unmeasured is None: it is no finding, and a rule that judged no row says so."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from pytest_deaddir.errors import RuleError
from pytest_deaddir.rules.definition import Rule
from pytest_deaddir.rules.python import located, message_of
from pytest_deaddir.rules.row import RowView, Unmeasured
from pytest_deaddir.rules.suppress import Suppression, outdated, suppress
from pytest_deaddir.rules.vocabulary import SEVERITIES
from pytest_deaddir.tables import Audit, Row


@dataclass(frozen=True)
class Verdict:
    """What one rule says of one audit. ``skipped``: why it judged no row, None where it did. ``fail_on``: the least
    severity that fails. ``outdated``: what is wrong with the suppressions that were to cover its findings."""

    rule: Rule
    findings: list[Row]
    skipped: str | None = None
    fail_on: str = "error"
    outdated: tuple[str, ...] = ()

    @property
    def open(self) -> list[Row]:
        """The findings that nobody accepted, and that no baseline holds."""
        return [finding for finding in self.findings if finding["suppressed"] is None and not finding["known"]]

    @property
    def outcome(self) -> str:
        """failed (a finding of a severity that fails) | warned | known (findings that a baseline holds, and no others) |
        passed | skipped."""
        if self.outdated:
            return "failed"
        if self.skipped is not None:
            return "skipped"
        if self.rule.severity == "info":
            return "passed"
        if not self.open:
            return "known" if any(finding["known"] for finding in self.findings) else "passed"
        return "failed" if SEVERITIES.index(self.rule.severity) <= SEVERITIES.index(self.fail_on) else "warned"

    def suppressing(self, suppressions: Sequence[Suppression], today: date) -> Verdict:
        """The same where findings are accepted; those of other rules' codes are passed over."""
        own = [s for s in suppressions if s.code == self.rule.code]
        findings = suppress(self.findings, own, today)
        return replace(self, findings=findings, outdated=tuple(outdated(findings, own, today)))

    def taking_all(self) -> Verdict:
        """The same where every finding is taken into the baseline."""
        return replace(self, findings=[finding | {"known": True} for finding in self.findings])


def evaluate(rule: Rule, audit: Audit, fail_on: str = "error") -> Verdict:
    """Judge the rows of one audit by one rule. A row that lacks what the rule judges by is not judged.

    What a rule in Python raises is raised, with a note of the rule and the row.
    """
    rows = [row for row in audit.table(rule.table) if rule.selects(row)]
    if not rows:
        wanted = ", ".join(f"{c} = {' | '.join(str(v) or 'empty' for v in values)}" for c, values in rule.where.items())
        reason = f"no row of {rule.table} with {wanted}" if wanted else f"{rule.table} has no rows"
        return Verdict(rule, [], reason, fail_on)
    findings: list[Row] = []
    lacking: dict[str, None] = {}
    judged = False
    for row in rows:
        try:
            finding = _judged_in_python(rule, row) if rule.check else _judged_by_limits(rule, row)
        except Unmeasured as unmeasured:
            lacking |= dict.fromkeys(unmeasured.columns)
            continue
        judged = True
        if finding is not None:
            findings.append(finding)
    return Verdict(rule, findings, None if judged else f"{', '.join(lacking)} not measured", fail_on)


def _judged_by_limits(rule: Rule, row: Row) -> Row | None:
    if all(row[column] is None for column in rule.require):
        raise Unmeasured(*rule.require)
    failed = {
        column: limits
        for column, limits in rule.require.items()
        if row[column] is not None and not all(_holds(row[column], op, limit) for op, limit in limits.items())
    }
    if not failed:
        return None
    return _finding(rule, row, formatted(rule.message, row), {column: row[column] for column in failed}, failed)


def _judged_in_python(rule: Rule, row: Row) -> Row | None:
    view = RowView(rule.table, row)
    try:
        message = message_of(rule, view)
    except Unmeasured:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        note = f"raised by the rule {rule.code} ({rule.place}) on the row {_name(row)!r} of {rule.table}"
        if not isinstance(
            error, Exception
        ):  # of sys.exit() or pytest.skip(), which would speak for more than this rule
            raise RuleError(located(error, rule.source), note) from error
        error.add_note(note)
        raise
    return None if message is None else _finding(rule, row, message, view.measured, {})


def _finding(rule: Rule, row: Row, message: str, measured: Row, limit: dict[str, Any]) -> Row:
    return {
        "code": rule.code,
        "name": rule.name,
        "severity": rule.severity,
        "confidence": rule.confidence,
        "table": rule.table,
        "path": _name(row),
        "message": message,
        "measured": measured,
        "limit": limit,
        "suppressed": None,
        "known": _is_known(rule, row, measured, limit),
    }


def _is_known(rule: Rule, row: Row, measured: Row, limit: dict[str, Any]) -> bool:
    """Whether the baseline holds this finding: the same rule at the same place, by the same columns and no worse.

    Of counts none may be worse, and lists may hold nothing more. Other numbers are measured, and never twice the same.
    """
    held = (row.get("baseline_findings") or {}).get(rule.code)
    if held is None:
        return False
    return all(column in held and not _is_worse(measured[column], held[column], limit[column]) for column in limit)


def _is_worse(value: Any, held: Any, limits: dict[str, Any]) -> bool:
    if isinstance(value, list) and isinstance(held, list):
        return any(item not in held for item in value)
    if type(value) is int and type(held) is int:
        return ("max" in limits and value > held) or ("min" in limits and value < held)
    return False


def _name(row: Row) -> Any:
    return row.get("path") or row.get("spec")


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
            parts.append((", ".join(shown) or "none") + (", …" if len(value) > 8 else ""))
        else:
            parts.append(str(value))
    return "".join(parts)


def _fitted(value: int | float, spec: str) -> str:
    try:
        return format(value, spec)
    except ValueError:  # {x:d} for 1.5
        return str(value)


def judge(audit: Audit, rules: Sequence[Rule], fail_on: str = "error") -> Audit:
    """The audit with the findings of every rule that its level can answer, and the counts of the checks."""
    compared = audit.model.get("baseline") is not None
    applicable = [rule for rule in rules if rule.applies_at(audit.model["level"], compared)]
    verdicts = [evaluate(rule, audit, fail_on) for rule in applicable]
    outcomes = [verdict.outcome for verdict in verdicts]
    checks = {
        "planned": len(applicable),
        "run": len(applicable) - outcomes.count("skipped"),
        **{outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "warned", "known", "skipped")},
    }
    checks["passed"] += checks["warned"] + checks["known"]
    codes = {rule.code for rule in applicable}
    broken = [earlier for earlier in audit.broken if earlier["code"] not in codes]
    return replace(audit, findings=[f for verdict in verdicts for f in verdict.findings], checks=checks, broken=broken)
