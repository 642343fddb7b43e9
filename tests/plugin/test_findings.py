"""Which rule fires on what, and what a finding does to the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.helpers import (
    CHECKS,
    FORWARD_ITEMS,
    GPT2,
    LLAMA,
    READ_ITEMS,
    assert_no_insides,
    failed,
    outcomes,
    report_of,
)

EXAMPLES = Path(__file__).parents[2] / "examples"


def codes(report="out.json"):
    (model,) = report_of(report)
    return [(finding["code"], finding["path"]) for finding in model["findings"]]


def test_a_healthy_checkpoint_has_no_finding(audit, checkpoint):
    checkpoint()
    result = audit("--deaddir-report=out.json")
    assert result.ret == 0
    assert list(outcomes(result)) == [f"m::{name}" for name in READ_ITEMS]
    assert failed(result) == []
    assert codes() == []


def test_nan_in_a_scale_fails_dd001_alone(audit, checkpoint):
    checkpoint(nan="transformer.h.0.ln_2")
    result = audit("--deaddir-report=out.json")
    assert result.ret == 1
    assert failed(result) == ["m::DD001"]
    assert codes() == [("DD001", "transformer.h.0.ln_2")]


def test_tiny_scales_warn_of_dead_coordinates_and_nothing_else(audit, checkpoint):
    checkpoint(tiny="transformer.ln_f")
    result = audit("--deaddir-report=out.json")
    assert result.ret == 0
    assert outcomes(result)["m::DD002"] == "passed"
    assert codes() == [("DD002", "transformer.ln_f")]
    result.stdout.fnmatch_lines(["DD002 warning *2 of 16 coordinates of transformer.ln_f are dead: 2, 5*"])
    result.stdout.fnmatch_lines([f"{CHECKS} of {CHECKS} checks ran: {CHECKS} passed (1 with warnings), 0 failed"])
    (model,) = report_of("out.json")
    assert model["checks"] == {
        "planned": CHECKS,
        "run": CHECKS,
        "passed": CHECKS,
        "failed": 0,
        "warned": 1,
        "known": 0,
        "skipped": 0,
    }


def test_a_shift_without_its_scale_fails_dd003_alone_at_read(audit, checkpoint):
    checkpoint(missing="transformer.ln_f")
    result = audit("--deaddir-report=out.json")
    assert result.ret == 1
    assert failed(result) == ["m::DD003"]
    assert codes() == [("DD003", "transformer.ln_f")]


def test_rms_norms_without_shifts_are_healthy(audit, checkpoint):
    checkpoint(rms=True)
    result = audit("--deaddir-report=out.json")
    assert result.ret == 0
    (model,) = report_of("out.json")
    assert model["model"]["normalisation"] == "rmsnorm"
    assert model["findings"] == []


@pytest.fixture
def saved(pytester, with_torch):
    """Save a random GPT-2 as transformers does, with its tensors changed by a function."""
    import transformers
    from safetensors.torch import load_file, save_file

    def save(change):
        config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64, n_positions=64)
        transformers.GPT2LMHeadModel(config).save_pretrained(pytester.path / "m")
        weights = pytester.path / "m" / "model.safetensors"
        tensors = load_file(weights)
        change(tensors)
        save_file(tensors, weights, {"format": "pt"})

    return save


def test_a_scale_that_transformers_made_up_fails_dd003_alone_at_forward(with_torch, audit, saved):
    saved(lambda tensors: tensors.pop("transformer.ln_f.weight"))
    result = audit("--deaddir-report=out.json", level="forward")
    assert result.ret == 1
    assert codes() == [("DD003", "transformer.ln_f")]
    assert list(outcomes(result)) == [f"m::{name}" for name in FORWARD_ITEMS]
    assert failed(result) == ["m::DD003"]
    assert outcomes(result)["m::DD101"] == "passed"


def test_nan_in_the_final_scale_fails_dd001_alone_at_forward(with_torch, audit, saved):
    saved(lambda tensors: tensors["transformer.ln_f.weight"].__setitem__(3, float("nan")))
    result = audit("--deaddir-report=out.json", level="forward")
    assert result.ret == 1
    assert codes() == [("DD001", "transformer.ln_f")]
    (model,) = report_of("out.json")
    (final,) = [norm for norm in model["norms"] if norm["role"] == "final"]
    assert final["path"] == "transformer.ln_f"
    assert final["alignment"] is None
    assert final["unmeasured"]
    assert_no_insides(result)


#: Norms with a fast path that is another norm: what 48 rows of a probe see is not what runs.
NORMS = """
    import torch
    from torch import nn

    class Norm(nn.Module):
        def __init__(self, healthy):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 16))
            self.healthy = healthy

        def forward(self, x):
            centred = x - x.mean(-1, keepdim=True)
            many = x.numel() // x.shape[-1] > 64
            y = centred if (self.healthy == "layernorm") != many else x
            return self.weight * y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def made(healthy):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 16), Norm(healthy)), (torch.randn(4, 64, 16) + 1,)

    def layernorm():
        return made("layernorm")

    def rmsnorm():
        return made("rmsnorm")
"""


@pytest.mark.parametrize(("factory", "code", "other"), [("layernorm", "DD101", "DD201"), ("rmsnorm", "DD201", "DD101")])
def test_a_fast_path_that_is_another_norm_fails_the_rule_on_its_kernel(
    audit, pytester, with_torch, factory, code, other
):
    pytester.makepyfile(norms_for_test=NORMS)
    result = audit("--deaddir-report=out.json", models=[f"norms_for_test:{factory}"], level="forward")
    assert result.ret == 1
    assert codes() == [(code, "1")]
    label = f"norms_for_test:{factory}"
    assert failed(result) == [f"{label}::{code}"]
    assert outcomes(result)[f"{label}::{other}"] == "skipped"


@pytest.mark.parametrize("model", ["bare", "wrapped"])
def test_a_model_that_is_nothing_but_a_norm_is_judged(audit, pytester, with_torch, model):
    pytester.makepyfile(
        only_norms_for_test="""
        import torch
        from torch import nn

        torch.manual_seed(0)

        def bare():
            return nn.LayerNorm(16), (torch.randn(100, 16),)

        def wrapped():
            return nn.Sequential(nn.Identity(), nn.LayerNorm(16)), (torch.randn(100, 16),)
        """
    )
    result = audit(models=[f"only_norms_for_test:{model}"], level="forward")
    assert result.ret == 0
    assert outcomes(result)[f"only_norms_for_test:{model}::DD101"] == "passed"


def test_few_samples_warn_dd901_alone(audit, with_torch):
    result = audit("--deaddir-report=out.json", "--deaddir-samples=40", models=[GPT2], level="forward")
    assert result.ret == 0
    assert codes() == [("DD901", GPT2)]
    result.stdout.fnmatch_lines(["DD901 warning *"])


@pytest.mark.parametrize(
    "model",
    [GPT2, LLAMA, EXAMPLES / "tiny-gpt2", EXAMPLES / "tiny-llama"],
    ids=["random gpt2", "random llama", "tiny-gpt2", "tiny-llama"],
)
def test_a_healthy_model_gives_no_error_and_no_warning(audit, with_torch, model):
    result = audit("--deaddir-report=out.json", models=[model], level="forward")
    assert result.ret == 0
    assert codes() == []
    passed = {nodeid.rpartition("::")[2] for nodeid, outcome in outcomes(result).items() if outcome == "passed"}
    assert {"discovery", "DD001", "DD002", "DD003", "DD901"} <= passed
    assert len({"DD101", "DD201"} & passed) == 1  # the rule on the other kind of norm has nothing to judge
