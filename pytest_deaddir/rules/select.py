"""Which rules a run judges by, and how severe each is: by code, or by the beginning of one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from pytest_deaddir.errors import RuleError
from pytest_deaddir.rules.definition import Rule
from pytest_deaddir.rules.vocabulary import SEVERITIES, did_you_mean


def select(
    rules: Sequence[Rule], wanted: Collection[str], more: Collection[str], ignored: Collection[str]
) -> list[Rule]:
    """The rules that are on. ``wanted``: the codes or prefixes to judge by, all rules where it is empty; ``more``: besides
    these; ``ignored``: not these. The longest entry that fits a rule decides; of two alike, ``ignored``."""
    on = [*(wanted or [""]), *more]
    return [rule for rule in rules if _longest(rule.code, on) > _longest(rule.code, ignored)]


def choose(
    rules: Sequence[Rule],
    wanted: Sequence[str],
    more: Sequence[str],
    ignored: Sequence[str],
    severities: Mapping[str, str],
    fail_on: str,
) -> list[Rule]:
    """The rules that are on, with their severities, for callers in Python. Raises RuleError with all that is wrong."""
    found = [
        f"{name}: {problem}"
        for name, entries in (
            ("select", wanted),
            ("extend_select", more),
            ("ignore", ignored),
            ("severity", severities),
        )
        for problem in (no_such_rule(entry, rules) for entry in entries)
        if problem
    ]
    allowed = {f"severity of {code}": (severity, SEVERITIES) for code, severity in severities.items()}
    for name, (severity, among) in (allowed | {"fail_on": (fail_on, SEVERITIES[:2])}).items():
        if severity not in among:
            found.append(f"{name} {severity!r} is not one of {', '.join(among)}{did_you_mean(str(severity), among)}")
    chosen = select(with_severities(rules, severities), wanted, more, ignored)
    if rules and not chosen and not found:
        found.append("select and ignore leave no rule to judge by")
    if found:
        raise RuleError(*found)
    return chosen


def with_severities(rules: Iterable[Rule], severities: Mapping[str, str]) -> list[Rule]:
    """The rules, each with the severity of the longest code or prefix that fits it, else its own."""
    changed = []
    for rule in rules:
        fitting = [entry for entry in severities if rule.code.startswith(entry)]
        changed.append(replace(rule, severity=severities[max(fitting, key=len)]) if fitting else rule)
    return changed


def _longest(code: str, entries: Iterable[str]) -> int:
    return max((len(entry) for entry in entries if code.startswith(entry)), default=-1)


def no_such_rule(entry: str, rules: Sequence[Rule], whole: bool = False) -> str | None:
    """What to say where ``entry`` is no rule's code (nor, unless ``whole``, the beginning of one); None where it is."""
    codes = [rule.code for rule in rules]
    if entry in codes or (entry and not whole and any(code.startswith(entry) for code in codes)):
        return None
    named = {rule.name: rule.code for rule in rules}
    if entry in named:
        return f"{entry}: rules go by their code here, {named[entry]}"
    upper = entry.upper()
    if upper != entry and no_such_rule(upper, rules, whole) is None:
        hint = f", did you mean {upper}?"
    else:  # one letter of five is another, or two have changed places; what is less alike is meant by nobody
        hint = did_you_mean(upper, codes, 0.7) or did_you_mean(entry.lower(), named)
    what = "no rule has this code" + ("" if whole else ", nor one that begins so")
    return f"{entry}: {what}{hint or '; --deaddir-list-rules shows them all'}"
