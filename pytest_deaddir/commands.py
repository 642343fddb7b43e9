"""What prints something and exits, as pytest's --markers does: the page of a rule, all rules, the check of rule files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_deaddir.given import Given
from pytest_deaddir.settings import choose_rules, refuse

if TYPE_CHECKING:
    from pytest_deaddir.plan import RuleChoice
    from pytest_deaddir.rules import Rule


def run_command(config: pytest.Config) -> int:
    """Do what --deaddir-explain, --deaddir-list-rules or --deaddir-check-rules asks for; the exit code of the run.

    Raises pytest.UsageError (exit 4) for a rule that does not exist or files that cannot be used. No model is looked at.
    """
    option = config.option
    if option.deaddir_check_rules is not None:
        start = config.invocation_params.dir
        return _check([start / path for path in option.deaddir_check_rules])
    problems: list[str] = []
    rules = choose_rules(config, Given.of(config, problems))
    refuse(problems)
    if option.deaddir_explain is not None:
        return _explain(option.deaddir_explain, rules.loaded)
    return _list(rules)


def _explain(code: str, rules: Sequence[Rule]) -> int:
    from pytest_deaddir.report.page import terminal_page
    from pytest_deaddir.rules.select import no_such_rule

    unknown = no_such_rule(code, rules, whole=True)
    refuse([f"--deaddir-explain {unknown}"] if unknown else [])
    return _print(terminal_page(next(rule for rule in rules if rule.code == code)))


def _list(rules: RuleChoice) -> int:
    from pytest_deaddir.report.page import catalogue_lines

    return _print(catalogue_lines(rules.loaded, rules.chosen))


def _check(paths: Sequence[Path]) -> int:
    """0 where every example comes out as it says, 1 where one does not."""
    from pytest_deaddir.errors import RuleError
    from pytest_deaddir.rules import load_rules, shipped_rules
    from pytest_deaddir.rules.load import CATALOGUE

    try:  # with the catalogue, whose codes are taken
        loaded = load_rules([shipped_rules(), *paths])
    except RuleError as error:
        refuse(error.args)
    rules = [rule for rule in loaded if rule.origin != CATALOGUE or _is_named(Path(rule.source), paths)]
    from pytest_deaddir.report.words import counted
    from pytest_deaddir.rules.examples import failing_examples, unnoticed

    failed = 0
    for rule in rules:
        failing = list(failing_examples(rule))
        failed += len(failing)
        held = counted(len(rule.examples), "example") if rule.examples else "no examples, so that nothing was checked"
        _print([f"{rule.code} {rule.name}: {held}", *(f"  {line}" for line in failing)])
        if rule.examples and not failing:
            _print(f"  no example notices: {change}" for change in unnoticed(rule))
    total = counted(sum(len(rule.examples) for rule in rules), "example")
    return _print([f"{counted(len(rules), 'rule')}, {total}: {failed} not as expected"]) or int(failed > 0)


def _is_named(file: Path, paths: Sequence[Path]) -> bool:
    return any(file.resolve().is_relative_to(path.resolve()) for path in paths)


def _print(lines: Iterable[str]) -> int:
    from pytest_deaddir.report.words import escaped

    for line in map(escaped, lines):
        try:
            print(line)
        except UnicodeEncodeError:  # as pytest's own writer does
            print(line.encode("ascii", "backslashreplace").decode("ascii"))
    return 0
