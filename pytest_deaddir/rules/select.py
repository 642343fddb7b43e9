"""Which rules a run judges by, and how severe each is: by code, or by the beginning of one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from pytest_deaddir.rules.definition import Rule
from pytest_deaddir.rules.vocabulary import did_you_mean


def select(
    rules: Sequence[Rule], wanted: Collection[str], more: Collection[str], ignored: Collection[str]
) -> list[Rule]:
    """The rules that are on. ``wanted``: the codes or prefixes to judge by, all rules where it is empty; ``more``: besides
    these; ``ignored``: not these. The longest entry that fits a rule decides; of two alike, ``ignored``."""
    on = [*(wanted or [""]), *more]
    return [rule for rule in rules if _longest(rule.code, on) > _longest(rule.code, ignored)]


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
