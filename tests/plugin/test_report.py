"""The JSON report and the section in the terminal."""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import load_file, save_file

from plugin.helpers import CHECKS, FORWARD_ITEMS, GPT2, outcomes, report_of


def test_the_report_has_the_tables_with_every_column(audit, checkpoint):
    from pytest_deaddir.tables import COLUMNS

    checkpoint(nan="transformer.ln_f")
    audit("--deaddir-report=out.json")
    (model,) = report_of("out.json")
    assert set(model) == {"model", "norms", "blocks", "findings", "checks"}
    assert set(model["model"]) == set(COLUMNS["model"])
    assert all(set(norm) == set(COLUMNS["norms"]) for norm in model["norms"])
    assert set(model["checks"]) == {"planned", "run", "passed", "failed", "warned", "known", "skipped"}
    assert model["findings"] == [
        {
            "code": "DD001",
            "name": "non-finite-gamma",
            "severity": "error",
            "confidence": "exact",
            "table": "norms",
            "path": "transformer.ln_f",
            "message": "γ of transformer.ln_f has 1 NaN or infinite entries out of 16",
            "measured": {"gamma_nonfinite": 1},
            "limit": {"gamma_nonfinite": {"max": 0}},
            "suppressed": None,
            "known": False,
        }
    ]


def test_what_was_not_measured_is_null_and_json_stays_strict(audit, checkpoint, pytester):
    checkpoint(nan="transformer.ln_f")
    audit("--deaddir-report=out.json")

    def refuse(constant):
        raise AssertionError(constant)

    document = json.loads((pytester.path / "out.json").read_text(), parse_constant=refuse)
    norm = document["models"][0]["norms"][-1]
    assert norm["alignment"] is norm["predicted_dead_dimension"] is None


def test_the_report_is_an_audit_of_the_api(audit, checkpoint, pytester):
    from pytest_deaddir import Audit

    checkpoint(tiny="transformer.ln_f")
    audit("--deaddir-report=out.json")
    text = (pytester.path / "out.json").read_text()
    assert Audit.from_json(text).to_json() == text


def test_the_report_says_what_the_api_says(audit, checkpoint):
    import pytest_deaddir

    folder = checkpoint(tiny="transformer.ln_f")
    audit("--deaddir-report=out.json", models=[folder])
    (reported,) = report_of("out.json")
    direct = pytest_deaddir.audit(folder, level="read").as_dict()
    for model in (reported, direct):
        del model["model"]["seconds"], model["model"]["peak_memory"]
    assert reported == direct


def test_the_dead_dimension_of_each_dtype_is_shown_where_they_differ(audit, checkpoint):
    folder = checkpoint()
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.weight"][[2, 5, 7]] = [1e-3, 1e-3, 1e-4]
    tensors["transformer.ln_f.bias"][[2, 5, 7]] = 0
    save_file(tensors, folder / "model.safetensors")
    shown = audit("-v").stdout
    shown.fnmatch_lines(
        ["norm * dead * fp32/bf16/fp16", "*", "transformer.h.0.ln_1 * 1", "*", "transformer.ln_f * 1 * 1/3/1"]
    )


def test_nothing_is_shown_of_other_dtypes_where_they_agree(audit, checkpoint):
    checkpoint(tiny="transformer.ln_f")
    audit("-v").stdout.no_fnmatch_line("*fp32*")


def test_several_reports_of_several_models(audit, checkpoint, pytester):
    checkpoint("a")
    checkpoint("b")
    result = audit("--deaddir-report=one.json", "--deaddir-report=two.json", models=["a", "b"])
    assert [model["model"]["spec"] for model in report_of("one.json")] == ["a", "b"]
    assert report_of("one.json") == report_of("two.json")
    result.stdout.fnmatch_lines(["report written to *one.json", "report written to *two.json"])


def test_a_report_replaces_the_last_one_whole(audit, checkpoint, pytester):
    (pytester.path / "out.json").write_text("x" * 100_000)
    checkpoint()
    audit("--deaddir-report=out.json")
    assert report_of("out.json")
    assert [path.name for path in pytester.path.glob("*out.json*")] == ["out.json"]


def test_no_section_and_no_report_where_there_is_nothing_to_audit(pytester):
    pytester.makepyfile("def test_one(): pass")
    result = pytester.runpytest_inprocess()
    assert outcomes(result)
    result.stdout.no_fnmatch_line("*= deaddir =*")


def test_the_facts_of_a_forward_pass_name_the_inputs_and_that_they_are_synthetic(audit, with_torch):
    result = audit(models=[GPT2], level="forward")
    planned = len(FORWARD_ITEMS) - 1
    result.stdout.fnmatch_lines(
        [f"{GPT2}: GPT2Model · * parameters · d = 32 · 3 norms (layernorm) · forward in float32 on cpu · "
         "* rows of uniform token ids, synthetic (N/d *) · * s"]
    )  # fmt: skip
    result.stdout.fnmatch_lines([f"{planned} of {planned} checks ran: * passed, 0 failed, * with nothing to judge"])


def test_a_rule_that_judged_no_row_says_so(audit, checkpoint, pytester):
    checkpoint()
    (pytester.path / "rule.toml").write_text(
        """
        code = "ACME001"
        name = "nothing"
        severity = "error"
        table = "norms"
        where = { role = "qk" }
        require = { features = { max = 4 } }
        message = "{path}"
        summary = "Nothing."
        """
    )
    result = audit("--deaddir-rules=rule.toml", "-rs")
    assert outcomes(result)["m::ACME001"] == "skipped"
    result.stdout.fnmatch_lines(["SKIPPED * no row of norms with role = qk"])
    result.stdout.fnmatch_lines(
        [f"{CHECKS + 1} of {CHECKS + 1} checks ran: {CHECKS} passed, 0 failed, 1 with nothing to judge"]
    )


@pytest.mark.parametrize("severity", ["warning", "info"])
def test_only_errors_fail(audit, checkpoint, pytester, severity):
    checkpoint()
    (pytester.path / "rule.toml").write_text(
        f"""
        code = "ACME001"
        name = "wide"
        severity = "{severity}"
        table = "norms"
        where = {{ role = "final" }}
        require = {{ features = {{ max = 4 }} }}
        message = "{{path}} is {{features}} wide"
        summary = "Wide."
        """
    )
    result = audit("--deaddir-rules=rule.toml", "--deaddir-report=out.json")
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"ACME001 {severity} * transformer.ln_f is 16 wide"])
    (model,) = report_of("out.json")
    assert model["checks"]["warned"] == (1 if severity == "warning" else 0)
    assert model["checks"]["passed"] == CHECKS + 1
