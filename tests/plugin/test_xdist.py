"""Workers audit, the controller reports."""

from __future__ import annotations

import re

import pytest

from plugin.helpers import CHECKS, READ_ITEMS, assert_no_insides, report_of

pytest.importorskip("xdist", reason="pytest-xdist is not installed (dependency group test)")

#: Says which worker ran each item.
WITNESS = """
    def pytest_runtest_logreport(report):
        worker = getattr(report, "node", None)
        if worker is not None and report.when == "call":
            with open("ran.txt", "a") as file:
                file.write(f"{worker.gateway.id} {report.nodeid}\\n")
"""


@pytest.fixture
def two_models(checkpoint):
    checkpoint("healthy", tiny="transformer.h.0.ln_1")
    checkpoint("broken", nan="transformer.ln_f")
    return ["--deaddir-model=healthy", "--deaddir-model=broken", "--deaddir-level=read"]


def comparable(path):
    """A report without what differs between any two runs."""
    models = report_of(path)
    for model in models:
        del model["model"]["seconds"], model["model"]["peak_memory"]
    return models


def section(result):
    """The summary section without its times."""
    shown = result.stdout.str().partition("= deaddir =")[2].partition("= short test summary")[0]
    return re.sub(r"[\d.]+ s$", "… s", shown, flags=re.MULTILINE).strip("=")


@pytest.mark.parametrize("distribution", ["load", "loadscope"])
def test_workers_find_and_report_what_one_process_does(pytester, two_models, distribution):
    alone = pytester.runpytest_inprocess(*two_models, "--deaddir-report=out.json")
    expected = comparable("out.json")
    shared = pytester.runpytest_subprocess(
        *two_models, "--deaddir-report=out.json", "-n", "2", f"--dist={distribution}"
    )
    assert alone.ret == shared.ret == 1
    assert alone.parseoutcomes() == shared.parseoutcomes() == {"passed": 2 * len(READ_ITEMS) - 1, "failed": 1}
    assert comparable("out.json") == expected
    assert section(shared) == section(alone)


def test_loadscope_keeps_a_model_on_one_worker(pytester, two_models):
    pytester.makeconftest(WITNESS)
    pytester.runpytest_subprocess(*two_models, "-n", "2", "--dist=loadscope")
    ran = [line.split() for line in (pytester.path / "ran.txt").read_text().splitlines()]
    assert len(ran) == 2 * len(READ_ITEMS)
    workers = {nodeid.partition("::")[0]: worker for worker, nodeid in ran}
    assert {(worker, nodeid.partition("::")[0]) for worker, nodeid in ran} == {(w, m) for m, w in workers.items()}


def test_the_report_is_written_once_by_the_controller(pytester, two_models):
    pytester.makeconftest(
        """
        import pathlib
        from pytest_deaddir import report

        written = report.write

        def write(path, *content):
            with open("writes.txt", "a") as file:
                file.write(f"{path.name}\\n")
            written(path, *content)

        report.write = write
        """
    )
    pytester.runpytest_subprocess(*two_models, "--deaddir-report=out.json", "-n", "2")
    assert (pytester.path / "writes.txt").read_text().split() == ["out.json"]
    assert [model["checks"]["run"] for model in report_of("out.json")] == [CHECKS, CHECKS]
    assert not list(pytester.path.glob(".out.json*"))


def test_workers_tell_one_error_of_an_audit_once(pytester, checkpoint):
    checkpoint(truncated=True)
    result = pytester.runpytest_subprocess("--deaddir-model=m", "--deaddir-level=read", "-n", "2")
    assert result.ret == 1
    result.assert_outcomes(failed=1, skipped=CHECKS)
    assert_no_insides(result)


def test_a_usage_error_is_told_once_before_any_worker_starts(pytester):
    result = pytester.runpytest_subprocess("--deaddir-model=nothing", "-n", "2")
    assert result.ret == 4
    assert (result.stdout.str() + result.stderr.str()).count("no such model") == 1


def test_a_crashed_worker_leaves_a_run_that_is_not_called_a_pass(pytester, checkpoint):
    checkpoint()
    pytester.makepyfile(
        crashing_for_test="""
        import os

        def pytest_runtest_call(item):
            if item.name == "DD002":
                os._exit(1)
        """
    )
    options = ["--deaddir-model=m", "--deaddir-level=read", "-n", "1", "--deaddir-report=out.json"]
    options += ["-p", "crashing_for_test"]
    result = pytester.runpytest_subprocess(*options)
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"{CHECKS - 1} of {CHECKS} checks ran*NOT A PASS*"])
    (model,) = report_of("out.json")
    assert (model["checks"]["planned"], model["checks"]["run"]) == (CHECKS, CHECKS - 1)
