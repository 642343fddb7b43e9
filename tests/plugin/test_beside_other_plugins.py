"""An audit beside plugins that people use: it finds what it finds alone, and they do to it what they do to any test.

.ci/compat installs them; where one is missing its test is skipped.
"""

from __future__ import annotations

import re

import pytest

from plugin.helpers import CHECKS, READ_ITEMS

MISSING = "not installed; .ci/compat has it"


@pytest.fixture
def run(pytester, checkpoint, monkeypatch):
    """Audit a model with one finding, and a test of it, with every plugin that is installed."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest -p no:anyio")
    checkpoint(nan="transformer.ln_f")
    pytester.makepyfile(test_mine="def test_one(deaddir_audit): assert len(deaddir_audit.findings) == 1")

    def run(*options):
        result = pytester.runpytest_subprocess("--deaddir-model=m", "--deaddir-level=read", *options)
        result.assert_outcomes(passed=len(READ_ITEMS), failed=1)
        result.stdout.fnmatch_lines(["DD001 error *", f"{CHECKS} of {CHECKS} checks ran*1 failed"])
        return result

    return run


def test_pytest_randomly_shuffles_the_checks(run):
    pytest.importorskip("pytest_randomly", reason=MISSING)
    shown = [run("-v", f"--randomly-seed={seed}").stdout.str() for seed in (1, 2)]
    first, second = (re.findall(r"^m::(\w+)", text, flags=re.MULTILINE) for text in shown)
    assert first != second
    assert sorted(first) == sorted(second) == sorted(READ_ITEMS)


def test_pytest_randomly_gives_every_worker_the_same_order(run):
    pytest.importorskip("pytest_randomly", reason=MISSING)
    pytest.importorskip("xdist", reason=MISSING)
    run("-n2")


def test_pytest_cov_measures_the_project_s_own_code(run):
    pytest.importorskip("pytest_cov", reason=MISSING)
    run("--cov=test_mine").stdout.fnmatch_lines(["test_mine.py * 100%*"])


def test_pytest_timeout_leaves_what_is_fast_enough(run):
    pytest.importorskip("pytest_timeout", reason=MISSING)
    run("--timeout=60").stdout.fnmatch_lines(["timeout: 60.0s*"])


def test_pytest_html_has_a_row_for_each_check_and_the_text_of_the_failure(run, pytester):
    pytest.importorskip("pytest_html", reason=MISSING)
    run("--html=out.html", "--self-contained-html")
    page = (pytester.path / "out.html").read_text(encoding="utf-8")
    assert page.count("m::DD001") >= 1
    assert "non-finite-gamma" in page


def test_pytest_github_actions_annotate_failures_annotates_the_failure(run, monkeypatch):
    pytest.importorskip("pytest_github_actions_annotate_failures", reason=MISSING)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = run()
    annotations = [line for line in [*result.outlines, *result.errlines] if line.startswith("::error")]
    assert any("DD001" in line for line in annotations)
