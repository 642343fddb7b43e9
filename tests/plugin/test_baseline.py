"""--deaddir-baseline and --deaddir-baseline-update: what is compared, what is known, what is written and what is refused."""

from __future__ import annotations

import json
import shutil
import textwrap

import pytest
from safetensors.numpy import load_file, save_file

from plugin.helpers import (
    CHECKS,
    COMPARED_ITEMS,
    EXAMPLE,
    GPT2,
    READ_ITEMS,
    assert_refused,
    collected,
    failed,
    outcomes,
    report_of,
    text_of,
)

BASE = "--deaddir-baseline=base.json"
UPDATE = "--deaddir-baseline-update"


@pytest.fixture
def written(audit, checkpoint):
    """A model with dead coordinates in its last norm, and base.json, its baseline."""
    folder = checkpoint(tiny="transformer.ln_f")
    audit("--deaddir-report=base.json")
    return folder


def edit(folder, change):
    """Change the tensors of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def kill(*coordinates, norm="transformer.ln_f"):
    """A change that takes coordinates of a norm out."""

    def change(tensors):
        for name, value in (("weight", 1e-30), ("bias", 0)):
            tensors[f"{norm}.{name}"][list(coordinates)] = value

    return change


def findings():
    return {(f["code"], f["path"]): f["known"] for m in report_of("out.json") for f in m["findings"]}


# --- comparing --------------------------------------------------------------------------------------------------------


def test_without_a_baseline_nothing_is_compared_and_nothing_skipped(audit, checkpoint):
    checkpoint()
    result = audit("--deaddir-report=out.json", "--collect-only", "-q")
    assert collected(result) == [f"m::{name}" for name in READ_ITEMS]
    result = audit("--deaddir-report=out.json")
    (model,) = report_of("out.json")
    assert model["model"]["baseline"] is model["norms"][0]["kind_change"] is None
    assert model["checks"]["planned"] == CHECKS
    result.stdout.no_fnmatch_line("*compared with*")


def test_with_one_the_rules_that_compare_are_planned(audit, written):
    result = audit(BASE, "--collect-only", "-q")
    assert sorted(collected(result)) == sorted(f"m::{name}" for name in [*READ_ITEMS, *COMPARED_ITEMS])


def test_what_the_baseline_holds_is_known_and_fails_nothing(audit, written):
    strict = "--deaddir-fail-on=warning"
    assert failed(audit(strict)) == ["m::DD002"]
    result = audit(strict, BASE, "--deaddir-report=out.json")
    assert result.ret == 0
    assert findings() == {("DD002", "transformer.ln_f"): True}
    (model,) = report_of("out.json")
    assert (model["checks"]["known"], model["checks"]["warned"]) == (1, 0)
    assert model["model"]["baseline"] == "m"
    planned = CHECKS + len(COMPARED_ITEMS)
    result.stdout.fnmatch_lines(
        [
            "deaddir baseline: *base.json",
            "compared with m",
            "DD002 warning *",
            "  known since the baseline",
            f"{planned} of {planned} checks ran: {planned} passed (1 known since the baseline), 0 failed",
        ]
    )


def test_one_more_dead_coordinate_is_a_new_finding(audit, written):
    edit(written, kill(2, 5, 9))
    result = audit(BASE, "--deaddir-report=out.json")
    assert failed(result) == ["m::DD604"]
    assert findings() == {("DD002", "transformer.ln_f"): False, ("DD604", "transformer.ln_f"): False}
    result.stdout.fnmatch_lines(["DD604 *", "re-run * --deaddir-baseline=*base.json*"])


def test_a_lost_norm_and_a_norm_of_another_kind(audit, written):
    def change(tensors):
        for name in ("weight", "bias"):
            del tensors[f"transformer.h.0.ln_2.{name}"]
        del tensors["transformer.h.0.ln_1.bias"]

    edit(written, change)
    config = json.loads((written / "config.json").read_text())
    (written / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    result = audit(BASE, "--deaddir-report=out.json")
    assert failed(result) == ["m::DD601", "m::DD602", "m::DD603"]
    (model,) = report_of("out.json")
    assert model["model"]["lost_sites"] == ["transformer.h.0.ln_2"]
    assert model["norms"][0]["kind_change"] == "layernorm → rmsnorm"


def test_another_checkpoint_as_baseline_is_audited_in_the_same_way(audit, checkpoint, written):
    other = checkpoint("other")
    result = audit("--deaddir-baseline=m", "--deaddir-report=out.json", "-v", models=["other"])
    assert result.ret == 0
    assert findings() == {}
    edit(other, kill(2))  # of two that are dead in the baseline
    result = audit("--deaddir-baseline=m", "--deaddir-report=out.json", models=["other"])
    assert findings() == {("DD002", "transformer.ln_f"): True}
    result.stdout.fnmatch_lines(["compared with m"])


def test_a_baseline_that_cannot_be_audited_is_named(audit, checkpoint):
    checkpoint()
    checkpoint("other", truncated=True)
    result = audit("--deaddir-baseline=other")
    assert failed(result) == ["m::discovery"]
    result.stdout.fnmatch_lines(["the baseline *other: *model.safetensors*"])


def test_at_level_forward_a_model_beside_itself_is_quiet(audit, with_torch):
    model = GPT2.replace("n_layer=1", "n_layer=2")
    audit("--deaddir-report=base.json", models=[model], level="forward")
    for baseline in (BASE, f"--deaddir-baseline={model}"):
        result = audit(baseline, "--deaddir-report=out.json", models=[model], level="forward")
        assert result.ret == 0
        (reported,) = report_of("out.json")
        assert [block["sigma_min_moved"] for block in reported["blocks"]] == [0.0, 0.0, 0.0]
        assert reported["model"]["not_compared"] == []


def test_a_baseline_of_a_higher_level_is_compared_in_what_both_have(audit, with_torch):
    audit("--deaddir-report=base.json", "--deaddir-samples=200", models=[EXAMPLE], level="forward")
    result = audit(BASE, models=[EXAMPLE])
    assert result.ret == 0
    result.stdout.fnmatch_lines(["  not compared: what only level forward measures: this audit is of level read"])


def test_a_test_sees_what_is_known(audit, written, pytester):
    pytester.makepyfile(
        """
        def test_known(deaddir_audit):
            assert [f["known"] for f in deaddir_audit.findings] == [True]
            assert deaddir_audit.model["lost_sites"] == []
            assert deaddir_audit.checks["known"] == 1
        """
    )
    result = pytester.runpytest_inprocess("--deaddir-model=m", "--deaddir-level=read", BASE, "-k", "test_known")
    assert list(outcomes(result).values()) == ["passed"]


def test_with_xdist_as_without(audit, written, pytester):
    pytest.importorskip("xdist", reason="in the dependency group test")
    edit(written, kill(2, 5, 9))
    result = pytester.runpytest_subprocess(
        "-n1", "--deaddir-only", "--deaddir-level=read", "--deaddir-model=m", BASE, f"{UPDATE}=all"
    )
    assert result.ret == 0, text_of(result)
    result.stdout.fnmatch_lines(["baseline written to *base.json: 1 model, 1 finding"])
    assert audit(BASE, "--deaddir-fail-on=warning").ret == 0


# --- which model of the file ------------------------------------------------------------------------------------------


def test_the_only_model_of_a_file_is_the_only_one_of_a_run_whatever_they_are_called(audit, written):
    shutil.move(written, "renamed")
    assert audit(BASE, "--deaddir-fail-on=warning", models=["renamed"]).ret == 0


def test_of_several_each_finds_its_own(audit, checkpoint, pytester):
    checkpoint("a", tiny="transformer.ln_f")
    checkpoint("b", layers=2)
    audit("--deaddir-report=base.json", models=["a", "b"])
    here = pytester.path
    result = audit(BASE, "--deaddir-fail-on=warning", models=["./b", here / "a"])
    assert result.ret == 0, text_of(result)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file: --deaddir-baseline-update writes it"),
        ("{", "no baseline: Expecting property name"),
        ('{"schema": "pytest-deaddir/audit/2", "models": []}', "not a report of schema pytest-deaddir/audit/1"),
        ('{"schema": "pytest-deaddir/audit/1", "models": []}', "holds no audit of m, only of no model"),
        ('{"schema": "pytest-deaddir/audit/1", "models": [{}]}', "model 1 has no model"),
        ('{"schema": "pytest-deaddir/audit/1", "models": [[]]}', "its models are no list of objects"),
        ("[" * 100_000, "no baseline: "),
        (b"\xff", "no baseline: "),
    ],
    ids=range(8),
)
def test_a_file_that_is_no_baseline_is_a_usage_error(audit, checkpoint, pytester, content, told):
    checkpoint()
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        (pytester.path / "base.json").write_bytes(raw)
    assert_refused(audit(BASE), "--deaddir-baseline base.json: ", told)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("norms", "predicted_dead_by_dtype", {"float32": "1"}),
        ("norms", "predicted_dead_coordinates", [1.5]),
        ("norms", "path", None),
        ("norms", "kind", "lstm"),
        ("norms", "features", True),
        ("findings", "measured", None),
        ("findings", "table", "layers"),
    ],
)
def test_a_file_that_somebody_spoiled_is_told_where(audit, written, pytester, table, column, value):
    file = pytester.path / "base.json"
    document = json.loads(file.read_text())
    document["models"][0][table][0][column] = value
    file.write_text(json.dumps(document))
    where = "a finding lacks" if table == "findings" else f"a row of {table}: "
    assert_refused(audit(BASE), f"base.json: no baseline: model 1: {where}")


def test_a_baseline_of_a_lower_level_and_an_unknown_model_and_a_missing_rule_are_told_at_once(
    audit, checkpoint, written, with_torch
):
    checkpoint("other")
    result = audit(BASE, "--deaddir-select=DD999", models=["m", "other"], level="forward")
    assert_refused(
        result,
        "base.json: m was audited at level read, which cannot be compared with level forward: use --deaddir-level=read",
        "base.json: holds no audit of other, only of m",
        "DD999",
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([UPDATE], "nothing to update: give --deaddir-baseline=PATH.json"),
        (["--deaddir-baseline=m", UPDATE], "m is a model: a file PATH.json can be updated, no model"),
        ([BASE, f"{UPDATE}=some"], "--deaddir-baseline-update some: write it without a value, or"),
        (["--deaddir-baseline=nowhere/base.json", UPDATE], "nowhere/base.json: no such folder"),
        (["--deaddir-baseline=./none"], "--deaddir-baseline no such model: './none'"),
        (["--deaddir-select=DD6"], "every rule that was selected compares with a baseline: give --deaddir-baseline"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(audit, written, options, told):
    assert_refused(audit(*options), told)


# --- updating ---------------------------------------------------------------------------------------------------------


def test_a_new_file_takes_findings_in_only_when_told(audit, checkpoint, pytester):
    checkpoint(tiny="transformer.ln_f")
    result = audit(BASE, UPDATE)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["baseline *base.json left as it is: m has findings that it does not hold: DD002 transformer.ln_f *=all*"]
    )
    assert not (pytester.path / "base.json").exists()
    result = audit(BASE, f"{UPDATE}=all", "--deaddir-fail-on=warning")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["baseline written to *base.json: 1 model, 1 finding"])
    assert audit(BASE, "--deaddir-fail-on=warning").ret == 0


def test_an_update_writes_what_got_better_and_refuses_what_got_worse(audit, written, pytester):
    file = pytester.path / "base.json"
    edit(written, kill(2, 5, 9))
    before = file.read_bytes()
    result = audit(BASE, UPDATE)
    assert failed(result) == ["m::DD604"]
    assert file.read_bytes() == before

    edit(written, lambda tensors: tensors["transformer.ln_f.weight"].__setitem__(slice(None), 1))
    result = audit(BASE, UPDATE)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["baseline written to *base.json: 1 model, 0 findings"])
    (held,) = report_of("base.json")
    assert held["findings"] == []
    assert held["model"]["baseline"] is held["norms"][0]["baseline_path"] is None

    edit(written, kill(2, 5))  # what was held once is new again
    assert failed(audit(BASE)) == ["m::DD604"]


def test_all_takes_in_what_changed_and_the_next_change_is_new_again(audit, written):
    edit(written, kill(2, 5, 9))
    assert audit(BASE, f"{UPDATE}=all").ret == 0
    assert [f["code"] for f in report_of("base.json")[0]["findings"]] == ["DD002"]
    assert audit(BASE, "--deaddir-fail-on=warning").ret == 0
    edit(written, kill(2, 5, 9, 11))
    assert failed(audit(BASE)) == ["m::DD604"]


def test_other_models_of_the_file_and_rules_that_did_not_judge_stay(audit, checkpoint):
    checkpoint("a", tiny="transformer.ln_f")
    checkpoint("b", nan="transformer.ln_f")
    audit("--deaddir-report=base.json", models=["a", "b"])
    assert audit(BASE, f"{UPDATE}=all", "--deaddir-ignore=DD001", models=["b"]).ret == 0
    assert audit(BASE, UPDATE, models=["./a"]).ret == 0
    held = report_of("base.json")
    assert [model["model"]["spec"] for model in held] == ["./a", "b"]
    assert [[f["code"] for f in model["findings"]] for model in held] == [["DD002"], ["DD001"]]
    checkpoint("c")
    assert audit(BASE, UPDATE, models=["c"]).ret == 0
    assert [model["model"]["spec"] for model in report_of("base.json")] == ["./a", "b", "c"]


PARTIAL = [
    ["--deaddir-select=DD001"],
    ["--deaddir-ignore=DD604"],
    ["-k", "not DD604"],
    ["-k", "only:DD001"],
    ["-k", "discovery"],
    ["--deselect=m::DD604"],
]


@pytest.mark.parametrize("partial", PARTIAL, ids=" ".join)
def test_what_some_rules_never_judged_is_not_taken_in(audit, written, pytester, partial):
    before = (pytester.path / "base.json").read_bytes()
    edit(written, kill(2, 5, 9))
    result = audit(BASE, UPDATE, *partial)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["baseline * left as it is: *m was not judged by *: run all of its rules*=all takes it in as it is)*"]
    )
    assert (pytester.path / "base.json").read_bytes() == before
    assert audit(BASE, f"{UPDATE}=all", *partial).ret == 0


def test_rules_that_never_ran_are_named(audit, written):
    result = audit(BASE, UPDATE, "-k", "not DD604")
    result.stdout.fnmatch_lines(["*left as it is: m was not judged by DD604: *"])
    result = audit(BASE, UPDATE, "-k", "discovery")
    result.stdout.fnmatch_lines(["*m was not judged by DD001, DD002, DD003, DD004, DD005 and * more: *"])


def test_rules_that_a_repository_left_out_for_good_are_not_missed(audit, written, pytester):
    pytester.makeini("[pytest]\ndeaddir_ignore = DD6,DD002\n")
    assert audit(BASE, UPDATE).ret == 0
    pytester.makeini("[pytest]\n")
    (pytester.path / "deaddir.toml").write_text(
        'level = "read"\nbaseline = "base.json"\nselect = ["DD0"]\n[models.first]\npath = "m"\nignore = ["DD005"]\n'
    )
    result = pytester.runpytest_inprocess("deaddir.toml", UPDATE)
    assert result.ret == 0, text_of(result)
    result = pytester.runpytest_inprocess("deaddir.toml", UPDATE, "-k", "not DD001")
    result.stdout.fnmatch_lines(["*left as it is: *first was not judged by DD001: *"])
    result = pytester.runpytest_inprocess("deaddir.toml", UPDATE, "--deaddir-select=DD001,DD002")
    result.stdout.fnmatch_lines(["*left as it is: *first was not judged by DD003, DD004, *"])


def test_an_update_that_looks_less_far_is_refused(audit, with_torch, pytester):
    audit("--deaddir-report=base.json", models=[GPT2], level="forward")
    result = audit(BASE, UPDATE, models=[EXAMPLE])
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["*left as it is: * is held at level forward, of which level read measures a part*=all*"]
    )
    assert audit(BASE, f"{UPDATE}=all", models=[EXAMPLE]).ret == 0


def test_what_a_rule_found_stays_where_it_breaks(audit, checkpoint, pytester):
    checkpoint()
    rule = """
        from pytest_deaddir import rule

        @rule("ACME001", table="norms", severity="warning", where={{"role": "final"}})
        def too_wide(row):
            "Too wide."
            {body}
    """
    file = pytester.path / "acme.py"
    file.write_text(textwrap.dedent(rule.format(body='return "wide"')))
    audit("--deaddir-rules=acme.py", BASE, f"{UPDATE}=all")
    file.write_text(textwrap.dedent(rule.format(body="raise ValueError")))
    for option in (UPDATE, f"{UPDATE}=all"):
        result = audit("--deaddir-rules=acme.py", BASE, option)
        assert failed(result) == ["m::ACME001"]
        result.stdout.fnmatch_lines(
            ["baseline * left as it is: m could not be judged by ACME001, which raised an error"]
        )
    assert [f["code"] for f in report_of("base.json")[0]["findings"]] == ["ACME001"]


@pytest.mark.parametrize("option", [UPDATE, f"{UPDATE}=all"])
def test_an_audit_that_failed_or_is_incomplete_is_no_baseline(audit, checkpoint, pytester, option):
    folder = checkpoint(nan="transformer.ln_f")
    result = audit(BASE, f"{UPDATE}", "-x")
    result.stdout.fnmatch_lines(["baseline * left as it is: some checks of m never reported"])
    (folder / "model.safetensors").write_bytes(b"")
    result = audit(BASE, option)
    result.stdout.fnmatch_lines(["baseline * left as it is: m could not be audited"])
    assert not (pytester.path / "base.json").exists()


def test_nothing_is_written_while_collecting_and_nothing_is_left_beside(audit, checkpoint, pytester):
    checkpoint()
    audit(BASE, UPDATE, "--collect-only")
    assert not (pytester.path / "base.json").exists()
    audit(BASE, UPDATE)
    assert [path.name for path in pytester.path.glob("*base.json*")] == ["base.json"]


def test_a_place_that_cannot_be_written_fails_the_run(audit, checkpoint, pytester, monkeypatch):
    checkpoint()

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pytest_deaddir.report.write", refuse)
    result = audit(BASE, UPDATE)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["baseline *base.json cannot be written: Permission denied"])


# --- elsewhere --------------------------------------------------------------------------------------------------------


def test_the_ini_file_may_name_it(audit, written, pytester):
    pytester.makeini("[pytest]\ndeaddir_baseline = base.json")
    assert audit("--deaddir-fail-on=warning").ret == 0


def test_a_gate_file_may_name_one_for_all_or_for_one(written, checkpoint, pytester, audit):
    checkpoint("b", tiny="transformer.h.0.ln_1")
    audit("--deaddir-report=b.json", models=["b"])
    (pytester.path / "deaddir.toml").write_text(
        """
        level = "read"
        fail-on = "warning"
        baseline = "base.json"
        [models.first]
        path = "m"
        [models.second]
        path = "b"
        baseline = "b.json"
        """
    )
    result = pytester.runpytest_inprocess("--deaddir-report=out.json", "deaddir.toml")
    assert result.ret == 0, text_of(result)
    assert [[f["known"] for f in model["findings"]] for model in report_of("out.json")] == [[True], [True]]
    edit(written, kill(2, 5, 9))
    result = pytester.runpytest_inprocess("deaddir.toml", f"{UPDATE}=all")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["baseline written to *base.json: 1 model*", "baseline written to *b.json: 1 model*"])


def test_sarif_and_markdown_say_what_is_new(audit, written, pytester):
    edit(written, kill(2, norm="transformer.h.0.ln_1"))
    audit(BASE, "--deaddir-report=out.sarif", "--deaddir-report=out.md")
    results = json.loads((pytester.path / "out.sarif").read_text())["runs"][0]["results"]
    assert {(r["ruleId"], r["baselineState"]) for r in results} == {
        ("DD002", "unchanged"),
        ("DD002", "new"),
        ("DD604", "new"),
    }
    assert (pytester.path / "out.md").read_text().count("(known since the baseline)") == 1
