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


# --- one measurement for all workers ----------------------------------------------------------------------------------

#: Notes which worker measures what, and lets a test say what becomes of the measuring.
COUNTING = """
    import os, time
    import pytest_deaddir.api

    plain = pytest_deaddir.api.measure

    def measure(subject, **options):
        with open("measured.txt", "a") as file:
            file.write(f"{os.environ.get('PYTEST_XDIST_WORKER')} {subject.text}\\n")
        time.sleep(0.2)  # so that the other worker asks meanwhile
        %s
        return plain(subject, **options)

    pytest_deaddir.api.measure = measure
"""


@pytest.fixture
def measured(pytester):
    """Plant what is to happen while a model is measured; gives (worker, model) of every time that one is."""

    def plant(happens="pass"):
        pytester.makeconftest(COUNTING % happens)

    def seen():
        return [tuple(line.split()) for line in (pytester.path / "measured.txt").read_text().splitlines()]

    plant.seen = seen
    return plant


@pytest.mark.parametrize("distribution", ["load", "each"])
def test_each_model_is_measured_by_one_worker(pytester, checkpoint, measured, distribution):
    names = ["a", "b", "c", "d"]
    for name in names:
        checkpoint(name)
    measured()
    pytester.makepyfile("def test_one(deaddir_audit): pass\ndef test_two(norm_site): pass")
    options = [*(f"--deaddir-model={name}" for name in names), "--deaddir-level=read", "-n", "2"]
    result = pytester.runpytest_subprocess(*options, f"--dist={distribution}")
    workers = 2 if distribution == "each" else 1
    result.assert_outcomes(passed=workers * 4 * (len(READ_ITEMS) + 1 + 3))
    assert sorted(model for _, model in measured.seen()) == names


#: While a model is measured: wait until two are.
BOTH = "while open('measured.txt').read().count('gw') < 2: time.sleep(0.02)"


@pytest.mark.parametrize("test", ["", "def test_one(norm_site): pass"], ids=["in the run", "in collection"])
def test_a_worker_that_would_wait_measures_another_model(pytester, checkpoint, measured, test):
    checkpoint("a")
    checkpoint("b")
    measured(BOTH)
    pytester.makepyfile(test)
    options = ["--deaddir-model=a", "--deaddir-model=b", "--deaddir-level=read", "-n", "2"]
    assert pytester.runpytest_subprocess(*options, timeout=60).ret == 0
    workers, models = zip(*measured.seen(), strict=True)
    assert (sorted(workers), sorted(models)) == (["gw0", "gw1"], ["a", "b"])


def test_a_bug_in_one_worker_is_told_whole_by_the_one_that_reports_it(pytester, checkpoint, measured):
    checkpoint()
    measured("raise ZeroDivisionError('planted')")
    result = pytester.runpytest_subprocess("--deaddir-model=m", "--deaddir-level=read", "-n", "2")
    result.assert_outcomes(failed=1, skipped=CHECKS)
    assert len(measured.seen()) == 1
    result.stdout.fnmatch_lines(["*ZeroDivisionError: planted", "*m: not audited: ZeroDivisionError('planted')"])


def test_a_worker_killed_while_it_measures_neither_hangs_the_other_nor_is_followed_by_it(
    pytester, checkpoint, measured
):
    checkpoint()
    measured("os.kill(os.getpid(), 9)")
    result = pytester.runpytest_subprocess("--deaddir-model=m", "--deaddir-level=read", "-n", "2", timeout=60)
    assert result.ret == 1
    assert len(measured.seen()) == 1
    shown = result.stdout.str()
    assert re.search(r"worker 'gw\d' crashed while running", shown)
    assert re.search(r"^m: not audited: the worker gw\d ended while it measured this", shown, flags=re.MULTILINE)
    result.stdout.fnmatch_lines([f"0 of {CHECKS} checks ran: the audit ended in an error"])


def test_workers_without_a_folder_in_common_measure_for_themselves(pytester, checkpoint, measured):
    checkpoint()
    measured()
    result = pytester.runpytest_subprocess(
        "--deaddir-model=m", "--deaddir-level=read", "-n", "2", "-p", "no:tmpdir", "-p", "no:legacypath"
    )
    result.assert_outcomes(passed=len(READ_ITEMS))
    assert len(measured.seen()) == 2
