"""Evidence is kept between runs: a second run measures nothing, says so, and judges by the rules of today."""

from __future__ import annotations

import shutil
import sys

import pytest

from plugin.helpers import EXAMPLE, FORWARD_ITEMS, failed, outcomes, report_of

#: A limit that no norm keeps.
STRICT = """
code = "ACME001"
name = "strict"
severity = "error"
table = "norms"
where = { role = "final" }
require = { noise_ratio = { max = 1e-9 } }
message = "{path}"
summary = "Strict."
"""

#: Takes the place of measuring: an audit from a file, and a line of another for each time.
WITNESS = """
import pathlib

import pytest_deaddir.api
from pytest_deaddir import Audit


def measure(subject, **how):
    with open("measured.txt", "a") as file:
        file.write(subject.text + "\\n")
    return Audit.from_json(pathlib.Path("audit.json").read_text())


pytest_deaddir.api.measure = measure
"""

HOW = ["--deaddir-only", "--deaddir-sites=final", "--deaddir-samples=600"]
OPTIONS = [*HOW, "--deaddir-model=m"]


@pytest.fixture(scope="session")
def audit_of_example(with_torch):
    from pytest_deaddir.api import measure

    return measure(EXAMPLE, sites="final", samples=600)


@pytest.fixture
def model(pytester):
    """A trained model of our own to change."""
    shutil.copytree(EXAMPLE, pytester.path / "m")
    return pytester.path / "m"


@pytest.fixture
def run(audit_of_example, model, pytester, monkeypatch):
    """Audit ``m`` in this process, where measuring gives what was measured once. Returns the result, and how many times
    it was asked for."""
    from pytest_deaddir import Audit, api

    text, measured = audit_of_example.to_json(), []
    monkeypatch.setattr(api, "measure", lambda subject, **how: measured.append(subject.text) or Audit.from_json(text))

    def run(*options, spec="m"):
        before = len(measured)
        result = pytester.runpytest_inprocess(*HOW, f"--deaddir-model={spec}", *options)
        return result, len(measured) - before

    return run


def kept(pytester):
    """The files of the audits that are kept."""
    return [path for path in pytester.path.glob(".pytest_cache/d/deaddir/*.json") if path.name != "digests.json"]


def test_a_second_run_measures_nothing_and_says_the_same(with_torch, model, pytester):
    """Without a stand-in for measuring."""
    first = pytester.runpytest_inprocess(*OPTIONS, "--deaddir-report=first.json")
    first.stdout.no_fnmatch_line("*cache*")
    second = pytester.runpytest_inprocess(*OPTIONS, "--deaddir-report=second.json")
    second.stdout.fnmatch_lines(["m: GPT2LMHeadModel * s · measured 20??-??-?? ??:??, from the cache"])
    assert report_of("second.json") == report_of("first.json")  # the seconds too are those of the measuring
    assert outcomes(second) == outcomes(first)


def test_a_changed_limit_is_judged_by_what_was_measured(run, pytester):
    assert run()[1] == 1
    (pytester.path / "strict.toml").write_text(STRICT)
    result, count = run("--deaddir-rules=strict.toml", "--deaddir-ignore=DD9", "--deaddir-fail-on=warning")
    assert (failed(result), count) == (["m::ACME001"], 0)


def test_a_change_is_measured_once(run, model):
    run()
    with (model / "config.json").open("a") as file:
        file.write(" ")
    assert [run()[1] for _ in range(2)] == [1, 0]
    assert [run("--deaddir-dtype=bfloat16")[1] for _ in range(2)] == [1, 0]
    assert run()[1] == 0


def test_an_audit_is_called_by_the_name_that_it_is_asked_for(run, model, pytester):
    run()
    model.rename(pytester.path / "renamed")
    assert run("--deaddir-report=out.json", spec="renamed")[1] == 0
    assert report_of("out.json")[0]["model"]["spec"] == "renamed"


def test_the_fixtures_are_served_too(run, pytester):
    pytester.makepyfile("def test_one(deaddir_audit, deaddir_model): assert deaddir_audit.model['spec'] == 'm'")
    run()
    result = pytester.runpytest_inprocess(*OPTIONS[1:], "-k", "test_one")
    result.assert_outcomes(passed=1, deselected=len(FORWARD_ITEMS))
    assert run()[1] == 0


def test_the_read_level_and_what_cannot_be_known_are_not_kept(run, model, pytester):
    assert run("--deaddir-level=read")[1] == run("--deaddir-level=read")[1] == 1
    (model / "more.json").symlink_to(pytester.path)
    run()
    assert not kept(pytester)


def test_a_damaged_entry_is_measured_again_and_replaced(run, pytester):
    run()
    [entry] = kept(pytester)
    entry.write_bytes(entry.read_bytes()[:-100])
    result, count = run()
    assert (result.ret, count) == (0, 1)
    assert run()[1] == 0


def test_no_cache_neither_reads_nor_writes(run, pytester):
    assert run("--deaddir-no-cache")[1] == 1
    assert not kept(pytester)
    run()
    assert run("--deaddir-no-cache")[1] == 1
    pytester.makeini("[pytest]\ndeaddir_no_cache = true")
    assert run()[1] == 1


def test_pytest_decides_whether_there_is_a_cache_and_when_it_is_cleared(run, pytester):
    assert [run("-p", "no:cacheprovider")[1] for _ in range(2)] == [1, 1]
    assert not (pytester.path / ".pytest_cache").exists()
    run()
    assert [run(*clear)[1] for clear in (["--cache-clear"], [])] == [1, 0]


def test_processes_that_measure_together_each_measure(run, pytester, monkeypatch):
    """One that found it kept, on its own node, would leave the others waiting."""
    run()
    before = kept(pytester)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run of test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [run()[1] for _ in range(2)] == [1, 1]
    assert kept(pytester) == before


@pytest.mark.filterwarnings("ignore:.*cache")
def test_a_cache_that_cannot_be_written_to_fails_nothing(run, pytester):
    (pytester.path / ".pytest_cache").mkdir()
    (pytester.path / ".pytest_cache" / "d").write_text("in the way")
    result, count = run()
    assert (result.ret, count) == (0, 1)


def test_workers_keep_and_find_what_was_kept(audit_of_example, model, pytester):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed (dependency group test)")
    pytester.makeconftest(WITNESS)
    (pytester.path / "audit.json").write_text(audit_of_example.to_json())
    for expected in ((1, 2), (0, 0)):  # each worker that gets an item asks, and the second may find the first's
        (pytester.path / "measured.txt").write_text("")
        result = pytester.runpytest_subprocess(*OPTIONS, "-n", "2")
        assert result.ret == 0
        assert sum(result.parseoutcomes().values()) == len(FORWARD_ITEMS)
        least, most = expected
        assert least <= len((pytester.path / "measured.txt").read_text().split()) <= most
        assert len(kept(pytester)) == 1
    result.stdout.fnmatch_lines(["m: * from the cache"])


def test_a_run_that_is_served_imports_neither_torch_nor_numpy(run, pytester):
    run()
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure(config):
            heavy = {"torch", "transformers", "numpy", "safetensors", "huggingface_hub"} & sys.modules.keys()
            print("imported:", sorted(heavy))
        """
    )
    result = pytester.run(sys.executable, "-m", "pytest", "-s", *OPTIONS, "--deaddir-report=out.json")
    result.stdout.fnmatch_lines(["m: * from the cache", "imported: []*"])
