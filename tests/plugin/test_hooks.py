"""The hooks that others extend an audit by: the override in each docstring runs as it is, and does what it is for."""

from __future__ import annotations

import inspect
import json
import textwrap

import pytest

from plugin.helpers import CHECKS, GPT2, assert_no_insides, assert_refused, outcomes, report_of, text_of
from pytest_deaddir import hookspecs

READ = "--deaddir-level=read"


def example_of(name):
    """The override in a hook's docstring."""
    return textwrap.dedent(inspect.getdoc(getattr(hookspecs, name)).partition("::\n\n")[2])


@pytest.fixture
def override(pytester):
    """Make the override of a hook's docstring the conftest."""
    return lambda name: pytester.makeconftest(example_of(name))


def test_every_hook_has_an_override_in_its_docstring_and_a_test_here():
    hooks = [name for name in vars(hookspecs) if name.startswith("pytest_deaddir_")]
    assert len(hooks) == 5
    for name in hooks:
        assert f"def {name}(" in example_of(name)
        assert f"test_{name.removeprefix('pytest_deaddir_')}" in globals()


def test_register_rules(audit, checkpoint, override):
    checkpoint()
    override("pytest_deaddir_register_rules")
    result = audit()
    assert outcomes(result)["m::ACME001"] == "passed"
    result.stdout.fnmatch_lines(["deaddir rules: 1 from the hook pytest_deaddir_register_rules, * from the catalogue"])


def test_inputs(pytester, with_torch, override):
    override("pytest_deaddir_inputs")
    options = ["--deaddir-only", f"--deaddir-model={GPT2}", "--deaddir-report=out.json"]
    assert pytester.runpytest_inprocess(*options).ret == 0
    (model,) = report_of("out.json")
    assert (model["model"]["inputs_source"], model["model"]["samples"]) == ("own", 2 * 4 * 32)


def test_inputs_of_the_option_come_before_those_of_the_hook(pytester, with_torch, override):
    import numpy as np

    override("pytest_deaddir_inputs")
    np.savez(pytester.path / "mine.npz", input_ids=np.arange(60).reshape(6, 10))
    options = ["--deaddir-only", f"--deaddir-model={GPT2}", "--deaddir-report=out.json", "--deaddir-inputs=mine.npz"]
    pytester.runpytest_inprocess(*options)
    (model,) = report_of("out.json")
    assert (model["model"]["inputs"], model["model"]["samples"]) == ("mine.npz", 60)


def test_inputs_that_are_none_are_an_error_that_says_so(pytester, with_torch):
    pytester.makeconftest("def pytest_deaddir_inputs(config, spec): return 7")
    result = pytester.runpytest_inprocess("--deaddir-only", f"--deaddir-model={GPT2}")
    assert "inputs must be a mapping, a tuple or a tensor, not a int" in text_of(result)
    assert_no_insides(result)


def test_probe_arguments(pytester, with_torch, override):
    override("pytest_deaddir_probe_arguments")
    pytester.makepyfile(
        """
        import torch
        from torch import nn

        class GatedNorm(nn.LayerNorm):
            def forward(self, x, gate):
                return super().forward(x) * gate

        def test_gated(norm_probe):
            module = GatedNorm(16)
            found = norm_probe(module)
            assert (found.kind, found.gamma_parameter) == ("layernorm", "weight"), found.reason
            assert not module._forward_pre_hooks

        def test_its_own_argument_comes_first(norm_probe):
            assert norm_probe(GatedNorm(16), arguments={"gate": torch.rand(16).double()}).convention == "fitted"

        def test_plain(norm_probe):
            assert norm_probe(nn.RMSNorm(16)).kind == "rmsnorm"
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=3)


def test_finding(audit, checkpoint, override, pytester):
    checkpoint(nan="transformer.ln_f", tiny="transformer.h.0.ln_1")
    override("pytest_deaddir_finding")
    audit()
    seen = [json.loads(line) for line in (pytester.path / "findings.jsonl").read_text().splitlines()]
    assert seen == [
        {"model": "m", "code": "DD001", "path": "transformer.ln_f"},
        {"model": "m", "code": "DD002", "path": "transformer.h.0.ln_1"},
    ]


def test_a_finding_is_seen_once_where_workers_report_it(pytester, checkpoint, override):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed (dependency group test)")
    checkpoint(nan="transformer.ln_f")
    override("pytest_deaddir_finding")
    pytester.runpytest_subprocess("--deaddir-model=m", READ, "-n", "2")
    assert len((pytester.path / "findings.jsonl").read_text().splitlines()) == 1


def test_report_formats(audit, checkpoint, override, pytester):
    checkpoint(nan="transformer.ln_f")
    override("pytest_deaddir_report_formats")
    audit("--deaddir-report=out.txt", "--deaddir-report=out.json")
    assert (pytester.path / "out.txt").read_text() == "m: 1 failed\n"
    (model,) = report_of("out.json")
    assert model["checks"]["planned"] == CHECKS


def test_a_suffix_that_nobody_renders_is_refused_with_those_that_are_known(audit, checkpoint, override):
    checkpoint()
    override("pytest_deaddir_report_formats")
    assert_refused(audit("--deaddir-report=out.xml"), "out.xml", ".json", ".txt")


def test_no_hook_is_called_where_nothing_is_audited(pytester):
    hooks = [name for name in vars(hookspecs) if name.startswith("pytest_deaddir_")]
    pytester.makeconftest("\n".join(f"def {name}(config): raise AssertionError" for name in hooks))
    pytester.makepyfile("def test_one(): pass")
    assert pytester.runpytest_inprocess().ret == 0


def test_a_hook_that_fails_on_a_finding_costs_no_finding(audit, checkpoint, pytester):
    checkpoint(nan="transformer.ln_f")
    pytester.makeconftest("def pytest_deaddir_finding(finding): raise KeyError('nobody home')")
    result = audit("--deaddir-report=out.json")
    assert result.ret == 1
    assert report_of("out.json")[0]["findings"][0]["code"] == "DD001"
    result.stdout.fnmatch_lines(
        ["DD001 error*", "pytest_deaddir_finding failed: Traceback*", "KeyError: 'nobody home'"]
    )


def test_formats_that_are_no_mapping_are_a_usage_error(audit, checkpoint, pytester):
    checkpoint()
    pytester.makeconftest("def pytest_deaddir_report_formats(): return ['.txt']")
    assert_refused(audit(), "pytest_deaddir_report_formats gave a list, not {'.suffix': render}")
