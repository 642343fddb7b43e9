"""The JSON report: what its schema says, and that it comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_deaddir import Audit, audit
from pytest_deaddir.report.json import render
from pytest_deaddir.report.schema import report_schema
from pytest_deaddir.tables import CHOICES, COLUMNS, TYPES, row
from report.entries import all_entries, broken, faulty, healthy

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-gpt2"

_NUMBER = st.floats(allow_nan=False, allow_infinity=False)
_INTEGER = st.integers()
_TEXT = st.text(st.characters(), max_size=8)  # lone surrogates too
_VALUES = {
    "text": _TEXT,
    "flag": st.booleans(),
    "integer": _INTEGER,
    "number": _NUMBER,
    "texts": st.lists(_TEXT, max_size=3),
    "integers": st.lists(_INTEGER, max_size=3),
    "numbers": st.lists(_NUMBER, max_size=3),
    "objects by name": st.dictionaries(_TEXT, st.dictionaries(_TEXT, _NUMBER, max_size=2), max_size=2),
    "texts by name": st.dictionaries(_TEXT, _TEXT, max_size=3),
    "numbers by name": st.dictionaries(_TEXT, _NUMBER, max_size=3),
    "integers by name": st.dictionaries(_TEXT, st.none() | _INTEGER, max_size=3),
}


def value_of(column):
    if column in CHOICES:
        return st.sampled_from(CHOICES[column])
    value = _VALUES[TYPES.get(column, "number")]
    return value if column in ("spec", "path") else st.none() | value


def rows_of(table):
    """Rows of which a few columns are anything that they can be."""
    named = {"model": "spec"}.get(table, "path")
    some = st.sets(st.sampled_from(sorted(COLUMNS[table])), max_size=6).map(lambda columns: columns | {named})
    return some.flatmap(lambda columns: st.fixed_dictionaries({c: value_of(c) for c in columns})).map(
        lambda values: row(table, **values)
    )


AUDITS = st.builds(
    Audit,
    model=rows_of("model"),
    norms=st.lists(rows_of("norms"), max_size=2),
    blocks=st.lists(rows_of("blocks"), max_size=2),
    findings=st.just(faulty()["findings"]),
    checks=st.just({}) | st.just(healthy()["checks"]),
    broken=st.just([]) | st.just(faulty()["broken"]),
)


@pytest.fixture(scope="module")
def problems():
    jsonschema = pytest.importorskip("jsonschema", reason="in the dependency group test")
    jsonschema.Draft7Validator.check_schema(report_schema())
    validator = jsonschema.Draft7Validator(report_schema())
    return lambda text: [f"{error.json_path}: {error.message}" for error in validator.iter_errors(json.loads(text))]


@given(AUDITS)
@settings(max_examples=60, deadline=None)
def test_a_report_is_equal_to_the_audit_after_a_round_trip_and_has_its_schema(problems, made):
    text = made.to_json()
    assert Audit.from_json(text) == made
    assert Audit.from_json(text).to_json() == text == render([made.as_dict()])
    assert problems(text) == []


def test_every_column_has_a_kind_that_the_schema_knows():
    columns = {column for table in COLUMNS.values() for column in table}
    assert set(TYPES) <= columns
    assert set(TYPES.values()) <= set(_VALUES)


@pytest.mark.parametrize("level", ["read", "forward", "full"])
def test_a_real_report_has_the_schema(problems, level):
    if level != "read":
        pytest.importorskip("transformers", reason="needs pytest-deaddir[torch]")
    assert problems(audit(EXAMPLE, level=level, samples=None if level == "read" else 140).to_json()) == []


def test_a_report_of_a_run_has_it_whatever_came_of_it(problems):
    text = render(all_entries())
    assert problems(text) == []
    assert "label" not in json.loads(text)["models"][0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.update(schema="pytest-deaddir/audit/2"),
        lambda d: d.update(more=1),
        lambda d: d["models"][0]["model"].update(width="64"),
        lambda d: d["models"][0]["model"].update(width=64.5),
        lambda d: d["models"][0]["model"].update(spec=None),
        lambda d: d["models"][0]["model"].update(level="deep"),
        lambda d: d["models"][0]["model"].pop("width"),
        lambda d: d["models"][0]["norms"][0].update(kind="lstm"),
        lambda d: d["models"][0]["norms"][0].update(predicted_bottom=["0"]),
        lambda d: d["models"][0]["norms"][0].update(colour=1),
        lambda d: d["models"][0]["blocks"][0].update(readable=1),
        lambda d: d["models"][0]["checks"].pop("run"),
        lambda d: d["models"][1]["findings"][0].update(severity="loud"),
        lambda d: d["models"][1]["findings"][0].pop("suppressed"),
        lambda d: d["models"][1].update(error=None),
        lambda d: d["models"][1].update(broken=[]),
        lambda d: d["models"][1]["broken"][0].pop("error"),
    ],
    ids=range(17),
)
def test_what_is_no_report_has_it_not(problems, spoil):
    document = json.loads(render(all_entries()))
    spoil(document)
    assert problems(json.dumps(document)) != []


def test_an_error_is_no_audit():
    with pytest.raises(ValueError, match="the error that it ended in: model"):
        Audit.from_json(render([broken()]))
