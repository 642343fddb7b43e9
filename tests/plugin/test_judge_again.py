"""--deaddir-from: an earlier report is judged again, and nothing is measured."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from plugin.helpers import (
    READ_ITEMS,
    STRICT,
    assert_no_insides,
    assert_refused,
    failed,
    outcomes,
    report_of,
    rerun_lines,
)
from pytest_deaddir.tables import CHOICES, COLUMNS, TYPES

#: A report of every level, with an audit that ended in an error.
GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "report.json"


@pytest.fixture
def again(pytester):
    """Judge reports again in this process."""

    def run(*options, files=("audit.json",)):
        return pytester.runpytest_inprocess("--deaddir-only", *(f"--deaddir-from={file}" for file in files), *options)

    return run


@pytest.fixture
def report(audit, checkpoint, pytester):
    """A report of two models of the level read, one with a NaN; the models are gone."""
    checkpoint("healthy", tiny="transformer.h.0.ln_1")
    checkpoint("broken", nan="transformer.ln_f")
    audit("--deaddir-report=audit.json", models=["healthy", "broken"])
    shutil.rmtree("healthy")
    shutil.rmtree("broken")
    return pytester.path / "audit.json"


def test_it_is_judged_as_it_was_and_nothing_is_opened(report, again, nothing_is_measured):
    result = again("--deaddir-report=again.json")
    assert failed(result) == ["broken::DD001"]
    assert list(outcomes(result)) == [f"{model}::{name}" for model in ("healthy", "broken") for name in READ_ITEMS]
    assert report_of("again.json") == report_of("audit.json")
    result.stdout.fnmatch_lines(
        ["deaddir: 2 models, level read, nothing is measured, judged again from audit.json",
         "healthy: * s · measured earlier, from audit.json"]
    )  # fmt: skip


def test_by_other_rules(report, again, pytester):
    (pytester.path / "strict.toml").write_text(STRICT)
    result = again("--deaddir-rules=strict.toml", "--deaddir-select=ACME", "--deaddir-report=again.json")
    assert outcomes(result)["healthy::ACME001"] == "failed"
    before, after = report_of("audit.json"), report_of("again.json")
    for model in (*before, *after):
        del model["findings"], model["checks"]
    assert before == after


def test_the_level_is_that_of_the_report(with_torch, again, pytester):
    import pytest_deaddir
    from plugin.helpers import FORWARD_ITEMS, GPT2

    (pytester.path / "audit.json").write_text(pytest_deaddir.audit(GPT2).to_json())
    result = again("--deaddir-report=again.json")
    assert [name.rpartition("::")[2] for name in outcomes(result)] == FORWARD_ITEMS
    assert report_of("again.json") == report_of("audit.json")
    assert_refused(
        again("--deaddir-level=full"), "--deaddir-from audit.json", "level forward", "level full must be measured"
    )
    assert again("--deaddir-level=read").ret == 0


def test_options_of_measuring_are_refused_where_nothing_is_measured(report, again, checkpoint, pytester):
    options = ("--deaddir-dtype=bfloat16", "--deaddir-samples=5", "--deaddir-max-memory=2GB")
    told = "nothing is measured, so that --deaddir-dtype, --deaddir-samples and --deaddir-max-memory say nothing"
    assert_refused(again(*options), f"--deaddir-from: {told}")
    assert_refused(again("--deaddir-sites=final"), "nothing is measured, so that --deaddir-sites says nothing")
    checkpoint("mine")
    assert again(*options[:1], "--deaddir-model=mine", "--deaddir-level=read").ret == 1  # broken::DD001
    assert again(*options[:1], "--deaddir-baseline=mine", "-k", "healthy and only:DD001").ret == 0
    (pytester.path / "deaddir.toml").write_text('level = "read"\n[models.mine]\npath = "mine"\n')
    assert again(*options[:1], "-k", "healthy or mine").ret == 0


def test_beside_it_models_of_the_command_line_are_measured(report, again, checkpoint):
    checkpoint("healthy")
    result = again("--deaddir-model=healthy", "--deaddir-level=read")
    assert {name.partition("::")[0] for name in outcomes(result)} == {"healthy", "healthy-2", "broken"}
    result.stdout.fnmatch_lines(["deaddir: 3 models, level read, device auto, *, judged again from audit.json"])
    result.stdout.no_fnmatch_line("healthy: *measured earlier*")
    result.stdout.fnmatch_lines(["healthy-2: *measured earlier*"])


def test_models_of_the_ini_file_are_not_measured_beside_it(report, again, checkpoint, pytester):
    checkpoint("mine")
    pytester.makeini("[pytest]\ndeaddir_model = mine\ndeaddir_level = full")
    assert {name.partition("::")[0] for name in outcomes(again())} == {"healthy", "broken"}


def test_the_ini_file_can_name_it(report, pytester):
    pytester.makeini("[pytest]\ndeaddir_from = audit.json")
    result = pytester.runpytest_inprocess()
    assert failed(result) == ["broken::DD001"]
    only = pytester.runpytest_inprocess("--deaddir-model=random:gpt2", "--collect-only", "-q")
    only.stdout.no_fnmatch_line("healthy*")


def test_several_reports_and_one_that_is_named_twice(report, again, pytester):
    shutil.copy(report, pytester.path / "other.json")
    result = again(files=("audit.json", "other.json", "./audit.json"))
    labels = dict.fromkeys(name.partition("::")[0] for name in outcomes(result))
    assert list(labels) == ["healthy", "broken", "healthy-2", "broken-2"]


def test_the_models_have_the_names_that_they_had(audit, checkpoint, again, pytester, tmp_path_factory):
    far = tmp_path_factory.mktemp("far")
    checkpoint(far / "org" / "m")
    checkpoint("sub/m")
    first = audit("--deaddir-report=audit.json", models=[far / "org" / "m", "sub/m"])
    assert list(outcomes(again())) == list(outcomes(first))
    shutil.rmtree(far)
    shutil.rmtree("sub")
    assert list(outcomes(again())) == list(outcomes(first))


def test_an_error_is_told_again(audit, checkpoint, again, pytester):
    checkpoint("bad", truncated=True)
    checkpoint("good")
    audit("--deaddir-report=audit.json", models=["bad", "good"])
    shutil.rmtree("bad")
    result = again("--deaddir-report=again.json")
    assert failed(result) == ["bad::discovery"]
    assert report_of("again.json") == report_of("audit.json")
    assert_no_insides(result)


def test_what_was_never_audited_fails(report, again):
    document = json.loads(report.read_text())
    document["models"][0] = {"model": {"spec": "killed"}, "norms": [], "blocks": [], "findings": [], "checks": {}}
    report.write_text(json.dumps(document))
    result = again()
    assert failed(result) == ["killed::discovery", "broken::DD001"]
    result.stdout.fnmatch_lines(["it was not audited in the run that wrote the report"])


def test_a_failing_check_says_how_to_run_it_again(report, again, pytester):
    [command] = rerun_lines(again())
    result = pytester.runpytest_inprocess(*command)
    assert outcomes(result) == {"healthy::DD001": "passed", "broken::DD001": "failed"}


def test_a_report_may_be_replaced_by_what_is_judged_of_it(report, again):
    before = report_of("audit.json")
    again("--deaddir-report=audit.json")
    assert report_of("audit.json") == before


def test_the_fixtures_give_it(report, again, pytester):
    pytester.makepyfile(
        """
        import pytest

        def test_level(deaddir_audit):
            assert deaddir_audit.model["level"] == "read"

        @pytest.mark.deaddir(level="full")
        def test_more(deaddir_audit): pass
        """
    )
    result = pytester.runpytest_inprocess("--deaddir-from=audit.json", "-k", "test_level or test_more")
    assert result.parseoutcomes() == {"passed": 2, "errors": 2, "deselected": 2 * len(READ_ITEMS)}
    result.stdout.fnmatch_lines(["*audit.json: healthy was audited at level read, and level full is asked for"])


def test_there_is_nothing_that_it_is_fed(report, pytester):
    pytester.makepyfile("def test_inputs(deaddir_inputs): pass")
    result = pytester.runpytest_inprocess("--deaddir-from=audit.json", "-k", "test_inputs")
    assert result.parseoutcomes()["errors"] == 2
    result.stdout.fnmatch_lines(["*healthy is judged again from audit.json and fed nothing*"])
    assert_no_insides(result)


def test_a_baseline_is_compared_with_what_was_stored(report, again, pytester):
    shutil.copy(report, pytester.path / "before.json")
    document = json.loads(report.read_text())
    document["models"][0]["norms"].pop()
    report.write_text(json.dumps(document))
    result = again("--deaddir-baseline=before.json", "--deaddir-report=again.json")
    assert "healthy::DD601" in failed(result)
    once_more = again("--deaddir-report=twice.json", files=("again.json",))
    assert failed(once_more) == failed(result), "what was compared in the first run is judged in the second"
    assert report_of("twice.json") == report_of("again.json")


def test_with_workers(report, pytester):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed (dependency group test)")
    options = ["--deaddir-from=audit.json", "--deaddir-report=again.json", "-n", "2"]
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=2 * len(READ_ITEMS) - 1, failed=1)
    assert report_of("again.json") == report_of("audit.json")


def test_nothing_heavy_is_imported(report, pytester):
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure(config):
            heavy = {"torch", "transformers", "numpy", "safetensors", "huggingface_hub"} & sys.modules.keys()
            print("imported:", sorted(heavy))
        """
    )
    result = pytester.run(
        sys.executable, "-m", "pytest", "-s", "--deaddir-from=audit.json", "--deaddir-report=again.json"
    )
    result.stdout.fnmatch_lines(["imported: []*"])


# --- what is no report ----------------------------------------------------------------------------------------------------


def test_a_report_of_an_earlier_release_lacks_columns(again, pytester):
    """At the worst all but those that no row can be without."""
    needed = {"spec", "level", "path", "kind", "role", "stack", "index"}
    document = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for model in document["models"]:
        model["model"] = {name: value for name, value in model["model"].items() if name in needed}
        for table in ("norms", "blocks"):
            model[table] = [{name: value for name, value in row.items() if name in needed} for row in model[table]]
    (pytester.path / "audit.json").write_text(json.dumps(document))
    result = again("-v", *(f"--deaddir-report=again.{suffix}" for suffix in ("json", "html", "md", "sarif", "csv")))
    assert failed(result) == ["models/broken::discovery"]  # which ended in an error
    assert_no_insides(result)
    for model in report_of("again.json")[:2]:
        assert set(model["model"]) == set(COLUMNS["model"])
        assert model["norms"][0]["gamma_min"] is model["blocks"][0]["sigma_min"] is None


def change(document, *keys, value):
    """A document with another value somewhere in it."""
    place = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return document


WRONG = {
    "not a schema": (("schema",), "acme/1", "pytest-deaddir/audit/1"),
    "another schema": (("schema",), "pytest-deaddir/audit/2", "pytest-deaddir/audit/1"),
    "models is no list": (("models",), {}, "models"),
    "no models": (("models",), [], "holds no model"),
    "a model is no object": (("models", 0), 3, "models"),
    "a table is missing": (("models", 1, "norms"), None, "model 2 has no norms"),
    "a row is no object": (("models", 0, "norms", 0), [], "not an object"),
    "a number is text": (("models", 0, "norms", 0, "gamma_min"), "0.1", "gamma_min"),
    "an integer is a fraction": (("models", 0, "norms", 0, "features"), 1.5, "features"),
    "a number is a flag": (("models", 0, "norms", 0, "gamma_max"), True, "gamma_max"),
    "a word that is no kind": (("models", 0, "norms", 0, "kind"), "batchnorm", "kind"),
    "no level": (("models", 0, "model", "level"), None, "level"),
    "a spec that is a number": (("models", 0, "model", "spec"), 3, "spec"),
    "NaN": (("models", 0, "norms", 0, "gamma_min"), float("nan"), "NaN"),
    "an integer of 400 digits": (("models", 0, "norms", 0, "features"), 10**400, "features"),
    "seconds without a number": (("models", 0, "model", "seconds"), {"read": None}, "seconds"),
    "a column of tomorrow": (("models", 0, "norms", 0, "charm"), 1, "charm"),
    "a rule that raised and has no code": (
        ("models", 0, "broken"),
        [{"code": "x", "error": "y"}],
        "model 1: a rule that",
    ),
    "an error that is no text": (("models", 0, "error"), 3, "model 1"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_report_is_refused_before_anything_runs(report, again, wrong):
    keys, value, said = WRONG[wrong]
    report.write_text(json.dumps(change(json.loads(report.read_text()), *keys, value=value)))
    result = again()
    assert_refused(result, "--deaddir-from audit.json", said)
    result.stdout.no_fnmatch_line("collected*")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[]", b"[" * 100_000, b'"x"'])
def test_a_corrupt_file_is_refused(again, pytester, content):
    (pytester.path / "audit.json").write_bytes(content)
    assert_refused(again(), "--deaddir-from audit.json")


def test_a_number_too_large_is_refused(report, again):
    """JSON can write what is read as infinity."""
    text = report.read_text()
    report.write_text(re.sub(r'"gamma_max": [\d.]+', '"gamma_max": 1e999', text, count=1))
    assert report.read_text() != text
    assert_refused(again(), "audit.json", "gamma_max")


def test_a_file_that_is_not_there_and_a_folder(again, pytester):
    pytester.mkdir("folder.json")
    assert_refused(
        again(files=("nothing.json", "folder.json")), "nothing.json: cannot be read", "folder.json: cannot be read"
    )


def test_a_strangers_words_are_shown_harmless(again, pytester):
    hostile = "x\x1b[31m\u202e<script>"
    document = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for model in document["models"]:
        for table in COLUMNS:
            for row in [model["model"]] if table == "model" else model[table]:
                texts = [column for column in row if TYPES.get(column) == "text" and column not in CHOICES]
                row |= dict.fromkeys(texts, hostile)
    (pytester.path / "audit.json").write_text(json.dumps(document))
    result = again("-v", "--deaddir-report=again.html", "--deaddir-report=again.md")
    assert_no_insides(result)
    shown = result.stdout.str()
    assert "checks ran" in shown
    for control in ("\x1b", "\u202e"):
        assert control not in shown
    assert "<script>x" not in (pytester.path / "again.html").read_text(encoding="utf-8")
    assert "x<script>" not in (pytester.path / "again.md").read_text(encoding="utf-8")
