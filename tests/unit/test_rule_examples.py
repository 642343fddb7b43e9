"""Every limit of the catalogue is held by example rows on both sides of it: moved, it makes its own examples fail."""

from dataclasses import replace

import pytest

from pytest_deaddir.errors import RuleError
from pytest_deaddir.rules import check_rule, load_rules, rule, shipped_rules
from pytest_deaddir.rules.definition import Example
from pytest_deaddir.rules.examples import failing_examples, mutants, unnoticed

RULES = load_rules([shipped_rules()])
BY_CODE = {made.code: made for made in RULES}


@pytest.mark.parametrize("code", BY_CODE)
def test_the_examples_of_a_shipped_rule_come_out_as_they_say(code):
    assert list(failing_examples(BY_CODE[code])) == []
    assert {example.expect for example in BY_CODE[code].examples} >= {"pass", "finding"}


@pytest.mark.parametrize("code", BY_CODE)
def test_no_condition_of_a_shipped_rule_changes_without_an_example_noticing(code):
    made = BY_CODE[code]
    assert unnoticed(made) == []  # each limit past all its rows, each condition turned round or left out
    assert unnoticed(made, nudge=0.01) == []  # each limit by one hundredth of itself


def test_every_limit_of_the_catalogue_is_moved_both_ways():
    """The mutations themselves: none of the conditions in the files is passed over."""
    for made in RULES:
        changes = [change for change, _ in mutants(made)]
        for column in made.where:
            assert f"where.{column} left out" in changes
        for column, limits in made.require.items():
            for operator in limits:
                moved = [change for change in changes if change.startswith(f"require.{column}.{operator} =")]
                assert len(moved) == (2 if operator in ("min", "max") else 1), (made.code, column, operator)


@pytest.fixture
def limited():
    """|γ| at most 50 on two kinds of norm, with rows that hold it loosely."""
    return replace(
        BY_CODE["DD001"],
        where={"kind": ("layernorm", "rmsnorm")},
        require={"gamma_max": {"max": 50.0}},
        examples=(
            Example({"kind": "layernorm", "gamma_max": 3.0}, "pass"),
            Example({"kind": "layernorm", "gamma_max": 80.0}, "finding"),
        ),
    )


def test_what_no_example_holds_is_told(limited):
    assert unnoticed(limited) == ["where.kind left out", "where.kind without 'rmsnorm'"]
    assert "require.gamma_max.max = 50.0 made max = 49.5" in unnoticed(limited, nudge=0.01)


def test_a_mutant_is_moved_past_every_row(limited):
    limits = [mutant.require["gamma_max"]["max"] for change, mutant in mutants(limited) if "require" in change]
    assert limits == [0.0, 160.0]


def test_an_example_that_fails_is_told_with_its_line_and_what_came_out(limited):
    wrong = replace(limited, examples=(*limited.examples, Example({"kind": "other"}, "finding", line=7)))
    (told,) = failing_examples(wrong)
    assert told.startswith(
        f"{wrong.source}:7: DD001: example 3 expects finding, and the rule says skip (no row of norms"
    )


@rule(
    "ACME001",
    table="norms",
    severity="warning",
    examples=[({"gamma_max": 80.0, "gamma_median": 1.0}, "finding"), ({"gamma_max": 2.0, "gamma_median": 1.0}, "pass")],
)
def gamma_outlier(row):
    """One coordinate carries this norm."""
    if row.gamma_max > 50 * row.gamma_median:
        return f"max/median of |γ| is {row.gamma_max / row.gamma_median:.0f}"
    return None


def test_a_rule_in_python_is_checked_by_its_author():
    rows = [{"gamma_max": 80.0, "gamma_median": 1.0}, {"gamma_max": 50.0, "gamma_median": 1.0}, {"gamma_max": 80.0}]
    assert check_rule(gamma_outlier, rows) == [
        ("finding", "max/median of |γ| is 80"),
        ("pass", ""),
        ("skip", "gamma_median not measured"),
    ]
    assert list(failing_examples(gamma_outlier)) == []


def test_a_rule_in_toml_is_checked_alike():
    assert [checked.outcome for checked in check_rule(BY_CODE["DD901"], [{"samples_per_width": 3.0}, {}])] == [
        "finding",
        "skip",
    ]


def test_checking_a_rule_that_could_not_be_loaded_says_why():
    with pytest.raises(RuleError, match="severity 'loud' is not one of"):
        check_rule(replace(gamma_outlier, severity="loud"), [])


def test_a_row_with_a_column_that_is_none_is_an_error_of_the_test():
    with pytest.raises(TypeError, match="no column gama_max"):
        check_rule(gamma_outlier, [{"gama_max": 1.0}])
