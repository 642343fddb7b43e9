"""A bug of ours, or of a model's code, looks like one: a traceback and a failure, never a pass or a skip alone."""

from __future__ import annotations

import pytest

from plugin.helpers import CHECKS, READ_ITEMS, failed, outcomes, report_of


@pytest.fixture
def broken_rule(monkeypatch):
    """Judging DD002 divides by zero."""
    import pytest_deaddir.rules

    plain = pytest_deaddir.rules.evaluate

    def evaluate(rule, *rest):
        return 1 / 0 if rule.code == "DD002" else plain(rule, *rest)

    monkeypatch.setattr(pytest_deaddir.rules, "evaluate", evaluate)


@pytest.fixture
def broken_measurement(monkeypatch):
    def measure(*args, **kwargs):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("pytest_deaddir.api.measure", measure)


def test_a_bug_in_a_rule_shows_its_traceback_and_fails(audit, checkpoint, broken_rule):
    checkpoint()
    result = audit()
    assert result.ret == 1
    assert failed(result) == ["m::DD002"]
    assert len(outcomes(result)) == len(READ_ITEMS)
    result.stdout.fnmatch_lines(["*evaluate*", "*1 / 0*", "E *ZeroDivisionError*"])


def test_a_bug_in_a_rule_leaves_the_count_of_the_others_true(audit, checkpoint, broken_rule):
    checkpoint(nan="transformer.ln_f")
    result = audit("--deaddir-report=out.json")
    result.stdout.no_fnmatch_line(f"0 of {CHECKS} checks ran*")
    result.stdout.fnmatch_lines([f"{CHECKS} of {CHECKS} checks ran: {CHECKS - 2} passed, 2 failed*"])
    (model,) = report_of("out.json")
    assert [finding["code"] for finding in model["findings"]] == ["DD001"]
    assert model["norms"]
    counts = {
        "planned": CHECKS,
        "run": CHECKS,
        "passed": CHECKS - 2,
        "failed": 2,
        "warned": 0,
        "known": 0,
        "skipped": 0,
    }
    assert model["checks"] == counts


def test_a_bug_in_the_measurement_shows_its_traceback_once_and_fails(audit, checkpoint, broken_measurement):
    checkpoint()
    result = audit("--deaddir-report=out.json")
    assert result.ret == 1
    assert list(outcomes(result).values()) == ["failed"] + ["skipped"] * CHECKS
    assert result.stdout.str().count("E   ") == 1
    result.stdout.fnmatch_lines(["E *ZeroDivisionError: planted"])
    (model,) = report_of("out.json")
    assert "ZeroDivisionError" in model["error"]
    assert model["findings"] == []


def test_a_bug_in_a_factory_shows_whose_code_it_is(audit, pytester, with_torch):
    pytester.makepyfile(broken_for_test="def make():\n    return {}['nothing']")
    result = audit(models=["broken_for_test:make"], level="forward")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["E *KeyError: 'nothing'", "*broken_for_test.py:2: KeyError"])
