"""The forward stage on small models whose answer is known, healthy and with planted defects."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pytest_deaddir import audit
from pytest_deaddir.errors import InputsError, ModelError
from pytest_deaddir.rules import judge, load_rules, shipped_rules
from pytest_deaddir.source.load import load
from pytest_deaddir.source.spec import parse_spec
from pytest_deaddir.stages.forward import forward_stage
from pytest_deaddir.stages.read import read_stage

EXAMPLES = Path(__file__).parents[2] / "examples"
RULES = load_rules([shipped_rules()])
LLAMA = (
    "random:llama?num_hidden_layers=1&hidden_size=32&num_attention_heads=2&num_key_value_heads=1"
    "&intermediate_size=32&vocab_size=64"
)


def final(audited):
    [norm] = [norm for norm in audited.norms if norm["role"] == "final"]
    return norm


def codes(audited):
    return [(finding["code"], finding["path"]) for finding in audited.findings]


class Centreless(nn.LayerNorm):
    """A LayerNorm whose kernel forgot the mean."""

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


def test_a_layernorm_that_no_longer_centres_is_told_from_what_the_file_stores():
    spec = parse_spec(str(EXAMPLES / "tiny-gpt2"))
    stored, model = read_stage(spec), load(spec)
    healthy = model.module.transformer.ln_f
    model.module.transformer.ln_f = Centreless(128)
    model.module.transformer.ln_f.load_state_dict(healthy.state_dict())
    audited = judge(forward_stage(model, stored, spec=spec.text)[0], RULES)
    assert codes(audited) == [("DD202", "transformer.ln_f")]


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_shipped_checkpoints_are_healthy_in_every_dtype(name, dtype):
    audited = audit(EXAMPLES / name, dtype=dtype)
    assert codes(audited) == []
    assert audited.model["samples_per_width"] >= 4
    assert all(norm["kind_agrees"] for norm in audited.norms)
    assert audited.checks["run"] + audited.checks["skipped"] == audited.checks["planned"]


def test_a_module_of_ones_own_with_its_inputs():
    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.LayerNorm(16))
    audited = audit(module, inputs=torch.randn(200, 8))
    norm = final(audited)
    assert (norm["path"], norm["kind"], norm["gamma_source"]) == ("3", "layernorm", "module")
    assert norm["noise_ratio"] <= 64
    assert norm["alignment"] > 0.9999
    assert audited.model["inputs_source"] == "own"


def test_a_module_that_is_itself_a_norm():
    audited = audit(nn.LayerNorm(16), inputs=torch.randn(200, 16, generator=torch.Generator().manual_seed(0)))
    assert final(audited)["path"] == ""
    assert audited.checks["failed"] == 0


def test_batches_add_up():
    module = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16))
    rows = torch.randn(200, 8)
    whole, parts = audit(module, inputs=rows), audit(module, inputs=list(rows.split(64)))
    assert final(parts)["samples"] == 200
    assert final(parts)["bottom_singular_values"][1:] == pytest.approx(final(whole)["bottom_singular_values"][1:])


def test_too_few_rows_are_an_error_that_says_how_many():
    with pytest.raises(InputsError, match="at least 17 are needed"):
        audit(nn.LayerNorm(16), inputs=torch.randn(16, 16))


def test_collapsed_activations_are_not_measured():
    audited = audit(nn.Sequential(nn.Identity(), nn.LayerNorm(16)), inputs=torch.ones(99, 1) * torch.randn(16))
    assert "collapsed" in final(audited)["unmeasured"]
    assert final(audited)["alignment"] is None


def test_nan_activations_are_not_measured():
    audited = audit(nn.LayerNorm(16), inputs=torch.full((99, 16), float("nan")))
    assert final(audited)["unmeasured"] == "its activations are not finite"


def test_a_run_that_measured_nothing_is_not_green():
    """NaN or collapsed activations in front of a healthy norm."""
    for rows in (torch.full((99, 16), float("nan")), torch.ones(99, 1) * torch.randn(16)):
        assert [code for code, _ in codes(audit(nn.Sequential(nn.Identity(), nn.LayerNorm(16)), inputs=rows))] == [
            "DD902"
        ]


def test_a_row_says_up_to_where_its_directions_would_be_dead_and_holds_the_scale_s_profile():
    torch.manual_seed(0)
    module = nn.LayerNorm(100)
    with torch.no_grad():
        module.weight.uniform_(0.5, 1.5)[7] = 1e-30
    norm = final(audit(module, inputs=torch.randn(500, 100)))
    dead = [
        sigma <= most for sigma, most in zip(norm["bottom_singular_values"], norm["bottom_thresholds"], strict=False)
    ]
    assert sum(dead) == norm["dead_dimension"] == 1
    assert norm["bottom_singular_values"][-1] < norm["sigma_max"] < 2
    scale = module.weight.detach().double().abs().sort().values.tolist()
    profile = norm["gamma_profile"]
    assert (profile[0], profile[16], profile[32]) == (scale[0], scale[9], scale[99])  # of ranks 1, 10 and 100
    assert len(profile) == 33
    assert profile == sorted(profile)


def test_a_large_mean_is_no_defect_of_the_norm():
    """The rounding of the computed mean lies along γ⁻¹; at d = 1024 and a mean of five it is far above output rounding."""
    audited = audit(nn.LayerNorm(1024), inputs=torch.randn(4200, 1024) + 5)
    assert final(audited)["noise_ratio"] > 64
    assert codes(audited) == []
    assert final(audited)["dead_dimension"] == 1  # the rounding lies along γ, and makes no other direction dead
    assert final(audited)["bottom_singular_values"][1] > 0.1


class RoundsInside(nn.LayerNorm):
    """In float32 whatever it is given, as Cohere's LayerNorm."""

    def forward(self, x):
        return nn.functional.layer_norm(x.float(), x.shape[-1:], self.weight.float(), None, self.eps).to(x.dtype)


@pytest.mark.parametrize("level", ["forward", "full"])
def test_a_norm_that_rounds_to_float32_inside_is_no_defect_in_float64(level):
    module = nn.Sequential(nn.Linear(16, 32), RoundsInside(32, bias=False), nn.Linear(32, 8))
    audited = audit(module, inputs=torch.randn(300, 16), dtype="float64", level=level)
    assert audited.norms[0]["dtype"] == "float32"
    assert codes(audited) == []


def test_a_norm_that_rounds_inside_and_forgets_the_mean_is_found_in_float64():
    class FastPath(RoundsInside):
        def forward(self, x):
            y = super().forward(x)
            return y if len(x) < 100 else y * (1 + 1e-3 * torch.linspace(0, 1, x.shape[-1], dtype=x.dtype))

    audited = audit(FastPath(32, bias=False), inputs=torch.randn(300, 32), dtype="float64")
    assert codes(audited) == [("DD101", None)]


def test_an_rmsnorm_with_a_shift_is_a_layernorm_that_forgot_the_mean():
    module = Centreless(16)
    assert [code for code, _ in codes(audit(module, inputs=torch.randn(99, 16)))] == ["DD202"]


def test_the_floor_is_that_of_the_norms_own_output():
    """A float32 model whose last norm runs in bfloat16."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm = nn.Linear(64, 64), nn.LayerNorm(64).bfloat16()

        def forward(self, x):
            return self.norm(self.body(x).bfloat16())

    audited = audit(Half(), inputs=torch.randn(999, 64))
    assert final(audited)["dtype"] == "bfloat16"
    assert codes(audited) == []


def test_a_config_of_ones_own_is_no_transformers_config():
    module = nn.LayerNorm(16)
    module.config = object()  # nanoGPT has a dataclass there
    assert audit(module, inputs=torch.randn(99, 16)).checks["failed"] == 0


def test_another_scale_than_the_files_is_found():
    spec = parse_spec(str(EXAMPLES / "tiny-llama"))
    stored, model = read_stage(spec), load(spec)
    model.module.model.layers[1].input_layernorm.weight.data *= 1.5
    audited = judge(forward_stage(model, stored, spec=spec.text)[0], RULES)
    assert codes(audited) == [("DD203", "model.layers.1.input_layernorm")]


def test_what_is_dead_in_another_dtype_is_told_of_the_files_and_not_of_the_rounded_module(tmp_path):
    """1e-8 beside 1e-2 is alive in float32; in float16 it is 0, and of the module's own 0 every dtype would say dead."""
    shutil.copytree(EXAMPLES / "tiny-llama", tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] *= 0.01 / tensors["model.norm.weight"].abs().max()
    tensors["model.norm.weight"][[3, 5]] = 1e-8
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    norms = [final(audit(tmp_path, dtype="float16")), final(audit(tmp_path, level="read"))]
    assert [norm["gamma_min"] for norm in norms] == [0, pytest.approx(1e-8)]
    assert all(norm["predicted_dead_by_dtype"] == {"float32": 0, "bfloat16": 2, "float16": 2} for norm in norms)


def test_what_is_dead_in_each_dtype_is_told_of_a_module_without_files():
    module = nn.LayerNorm(16)
    module.weight.data[:3] = torch.tensor([1e-3, 1e-12, -1e-3])
    norm = final(audit(module, inputs=torch.randn(99, 16, generator=torch.Generator().manual_seed(0))))
    assert norm["predicted_dead_by_dtype"] == {"float32": 1, "bfloat16": 3, "float16": 1}


def test_the_callers_module_keeps_its_dtype():
    module = nn.LayerNorm(16)
    audit(module, inputs=torch.randn(99, 16), dtype="bfloat16")
    assert module.weight.dtype == torch.float32


def test_a_module_without_a_norm_is_an_error():
    with pytest.raises(ModelError, match="nothing to audit"):
        audit(nn.Linear(4, 4), inputs=torch.randn(9, 4))


def test_a_module_without_inputs_says_how_to_give_them():
    with pytest.raises(InputsError, match=r"package\.module:factory"):
        audit(nn.LayerNorm(16))


def test_the_module_is_left_as_it_was():
    module = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.LayerNorm(16)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    audit(module, inputs=torch.randn(200, 8))
    assert all(child.training for child in module.modules())
    assert not any(child._forward_hooks for child in module.modules())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_experts_run_in_float64():
    """torch's grouped product of matrices, which transformers takes for experts, has no float64."""
    mixtral = LLAMA.replace("llama", "mixtral") + "&num_local_experts=2"
    assert audit(mixtral, dtype="float64").model["dtype"] == "float64"


def test_two_runs_give_the_same_tables():
    first, second = (audit("random:gpt2?n_layer=1&n_embd=32&n_head=2&vocab_size=64") for _ in range(2))
    assert first.norms == second.norms
    assert first.blocks == second.blocks


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention_gives_the_same_verdict(attention):
    transformers = pytest.importorskip("transformers", reason="needs pytest-deaddir[torch]")
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64, attn_implementation=attention)
    audited = audit(transformers.GPT2Model(config).train())  # dropout is off while it is measured
    assert audited.checks["failed"] == 0
    assert all(row["readable"] for row in audited.blocks)
