"""The residual stream on small models: healthy, and with one planted defect that must be found at its place and alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_deaddir import audit
from pytest_deaddir.rules import judge, load_rules, shipped_rules
from pytest_deaddir.source.load import load
from pytest_deaddir.source.spec import parse_spec
from pytest_deaddir.stages.forward import forward_stage
from pytest_deaddir.stages.read import read_stage

EXAMPLES = Path(__file__).parents[2] / "examples"
RULES = load_rules([shipped_rules()])
BLOCK = "transformer.h.2"


def audited(plant=None, name="tiny-gpt2", **options):
    """The example, after ``plant(module)``, judged by the shipped rules."""
    spec = parse_spec(str(EXAMPLES / name))
    stored, model = read_stage(spec), load(spec)
    if plant is not None:
        plant(model.module)
    return judge(forward_stage(model, stored, spec=spec.text, **options)[0], RULES)


def codes(result):
    return [(finding["code"], finding["path"]) for finding in result.findings]


def block(result, path=BLOCK):
    [found] = [row for row in result.blocks if row["path"] == path]
    return found


class Changed(nn.Module):
    """A block whose output is changed by a function."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, *args, **kwargs):
        output = self.inner(*args, **kwargs)
        return (self.change(output[0]), *output[1:]) if isinstance(output, tuple) else self.change(output)


def changing(function):
    """Plant: the third block's output goes through ``function``."""

    def plant(module):
        module.transformer.h[2] = Changed(module.transformer.h[2], function)

    return plant


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
@pytest.mark.parametrize("solver", ["inverse", "svd"])
def test_a_healthy_stream_keeps_its_smallest_singular_value(name, solver):
    result = audited(name=name, solver=solver)
    assert codes(result) == []
    blocks = result.blocks
    assert [row["index"] for row in blocks] == list(range(-1, len(blocks) - 1))
    assert all(row["readable"] and row["sigma_min"] > 0 and row["dead_dimension"] == 0 for row in blocks)
    assert all(row["smin_ratio"] > 0.1 for row in blocks[1:])


def test_both_solvers_give_the_same_table():
    fast, exact = (audited(solver=solver).blocks for solver in ("inverse", "svd"))
    for column in ("sigma_min", "sigma_median", "sigma_max", "smin_ratio_relative"):
        assert [row[column] for row in fast[1:]] == pytest.approx([row[column] for row in exact[1:]], rel=1e-5)


def test_a_block_that_kills_a_coordinate_is_named_with_it():
    def kill(hidden):
        return hidden * (torch.arange(hidden.shape[-1]) != 17)

    result = audited(changing(kill))
    assert codes(result) == [("DD301", BLOCK)]
    found = block(result)
    assert found["pinpoint_coordinates"] == [17]
    assert found["pinpoint_participation"] == pytest.approx(1)
    assert found["dead_dimension"] == 1
    assert found["smin_ratio_relative"] < 1e-3


def test_a_block_that_kills_a_direction_spread_over_all_coordinates():
    direction = torch.randn(128, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    result = audited(changing(lambda hidden: hidden - (hidden @ direction)[..., None] * direction))
    assert codes(result) == [("DD301", BLOCK)]
    assert block(result)["pinpoint_participation"] > 20
    assert block(result)["pinpoint_coordinates"] == []


def test_a_rescaled_stream_is_no_collapse():
    result = audited(changing(lambda hidden: hidden * 1e-4))
    assert codes(result) == [("DD302", BLOCK)]
    assert result.findings[0]["severity"] == "info"
    assert block(result)["scale_ratio"] < 1e-3
    assert block(result)["smin_ratio_relative"] > 0.1


def test_nan_is_reported_where_it_begins():
    def nan(hidden):
        return hidden + torch.tensor(float("nan"))

    result = audited(changing(nan))
    assert codes(result) == [("DD303", BLOCK), ("DD902", "transformer.ln_f")]


def test_nan_in_a_scale_of_a_block():
    def plant(module):
        module.transformer.h[1].ln_2.weight.data[3] = float("nan")

    assert ("DD001", "transformer.h.1.ln_2") in codes(audited(plant))
    assert ("DD303", "transformer.h.1") in codes(audited(plant))


def test_one_zero_in_gamma():
    def plant(module):
        module.transformer.h[1].ln_1.weight.data[5] = 0.0

    result = audited(plant)
    assert ("DD002", "transformer.h.1.ln_1") in codes(result)
    [norm] = [row for row in result.norms if row["path"] == "transformer.h.1.ln_1"]
    assert norm["dead_dimension"] == norm["predicted_dead_dimension"] == 1
    assert norm["alignment"] > 0.9999
    assert not any(code == "DD101" for code, _ in codes(result))


def test_three_scales_near_zero():
    def plant(module):
        module.transformer.ln_f.weight.data[[3, 50, 99]] = 1e-9

    result = audited(plant)
    [norm] = [row for row in result.norms if row["role"] == "final"]
    assert ("DD002", "transformer.ln_f") in codes(result)
    assert norm["predicted_dead_coordinates"] == [3, 50, 99]
    assert norm["alignment"] > 0.9999


def test_every_layernorm_is_measured_and_one_without_its_mean_is_found():
    class Centreless(nn.LayerNorm):
        def forward(self, x):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight + self.bias

    def plant(module):
        healthy = module.transformer.h[1].ln_1
        module.transformer.h[1].ln_1 = Centreless(128)
        module.transformer.h[1].ln_1.load_state_dict(healthy.state_dict())

    healthy = audited()
    assert all(norm["noise_ratio"] < 64 and norm["alignment"] > 0.9999 for norm in healthy.norms)
    assert ("DD202", "transformer.h.1.ln_1") in codes(audited(plant))


def test_a_hook_that_puts_the_mean_back():
    """The norm is no norm any more, so that nothing is measured at it; it is built like its neighbours all the same."""

    def plant(module):
        norm = module.transformer.h[1].ln_1
        norm.register_forward_hook(lambda _m, args, out: out + 0.1 * args[0].mean(-1, keepdim=True))

    assert codes(audited(plant)) == [("DD202", "transformer.h.1.ln_1")]


def test_a_norm_whose_probe_is_healthy_and_whose_run_is_not():
    """A fast path that leaves the mean in, taken only by the model's own shapes: what ran was not what is probed."""

    class Fast(nn.LayerNorm):
        def forward(self, x):
            if x.dim() < 3 or x.shape[1] < 32:
                return super().forward(x)
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight + self.bias

    def plant(module):
        healthy = module.transformer.h[1].ln_1
        module.transformer.h[1].ln_1 = Fast(128)
        module.transformer.h[1].ln_1.load_state_dict(healthy.state_dict())

    assert codes(audited(plant)) == [("DD101", "transformer.h.1.ln_1")]


def post_norm(zeroed=()):
    """A BERT-like stack of two post-norm layers."""
    torch.manual_seed(0)
    layers = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), 3, enable_nested_tensor=False
    )
    for index in zeroed:
        layers.layers[1].norm2.weight.data[index] = 1e-12
    return layers


def test_the_kernel_of_a_post_norm_block_is_no_collapse():
    rows = torch.randn(20, 16, 32, generator=torch.Generator().manual_seed(1))
    result = audit(post_norm(), inputs=rows)
    assert codes(result) == []
    assert [row["deflated"] for row in result.blocks] == ["", *(f"the kernel of layers.{i}.norm2" for i in range(3))]
    assert all(row["readable"] for row in result.blocks)


def test_a_dead_coordinate_of_a_post_norm_block_is_pinned_to_its_norm():
    rows = torch.randn(20, 16, 32, generator=torch.Generator().manual_seed(1))
    result = audit(post_norm([4, 9]), inputs=rows)
    assert ("DD301", "layers.1") in codes(result)
    found = block(result, "layers.1")
    assert found["pinpoint_site"] == "layers.1.norm2"
    assert found["pinpoint_coordinates"] == [4, 9]
    assert found["pinpoint_overlap"] > 0.99


def test_rank_deficient_inputs_are_the_inputs_fault():
    """A few tokens and no positions: the stream has fewer centred dimensions than tokens until the first block mixes."""
    result = audit(
        "random:llama?num_hidden_layers=3&hidden_size=64&num_attention_heads=4&num_key_value_heads=4"
        "&intermediate_size=128&vocab_size=9"
    )
    assert not any(code == "DD301" for code, _ in codes(result))
    first = result.blocks[0]
    assert 1 <= 64 - first["dead_dimension"] < 9
    assert f"span {64 - first['dead_dimension']} of 64 dimensions" in first["inconclusive"]
    assert result.blocks[1]["smin_ratio"] is None


def test_a_folded_model_says_so():
    """Centred writers and γ = 1: the mean is dead by construction in every block, and what is left is judged."""

    def plant(module):
        core = module.transformer
        for block in core.h:
            for norm in (block.ln_1, block.ln_2):
                norm.weight.data.fill_(1.0)
            for writer in (block.attn.c_proj, block.mlp.c_proj):
                writer.weight.data -= writer.weight.data.mean(1, keepdim=True)
                writer.bias.data -= writer.bias.data.mean()
        for table in (core.wte, core.wpe):
            table.weight.data -= table.weight.data.mean(1, keepdim=True)

    result = audited(plant)
    assert not any(code.startswith("DD3") for code, _ in codes(result))
    assert all("every writer is centred" in row["deflated"] for row in result.blocks)


def test_in_half_precision_what_lies_below_the_floor_is_called_unreadable():
    def plant(module):
        module.transformer.h[2] = Changed(
            module.transformer.h[2],
            lambda hidden: hidden * torch.where(torch.arange(128) == 17, 1e-3, 1.0).to(hidden.dtype),
        )

    wide = audited(plant)
    assert block(wide)["readable"]
    spec = parse_spec(str(EXAMPLES / "tiny-gpt2"))
    model = load(spec, dtype="bfloat16")
    plant(model.module)
    half = forward_stage(model, read_stage(spec), spec=spec.text)[0]
    assert block(half)["readable"] is False


def test_a_layer_that_runs_several_times_is_several_blocks():
    result = audit(
        "random:albert?num_hidden_layers=3&hidden_size=32&num_attention_heads=2&intermediate_size=64"
        "&embedding_size=16&vocab_size=99"
    )
    stack = [row for row in result.blocks if row["stack"] == "encoder.albert_layer_groups"]
    assert [row["index"] for row in stack] == [-1, 0, 1, 2]
    assert len({row["sigma_max"] for row in stack}) == 4
    assert all(row["deflated"] for row in stack[1:])


def test_padding_is_left_out():
    """The same tables whether sequences are fed whole, or padded with what the mask leaves out."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 64, (60, 12), generator=generator)
    padded = torch.cat([ids, torch.full((60, 5), 63)], 1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(60, 5, dtype=torch.long)], 1)
    spec = "random:gpt2?n_layer=2&n_embd=32&n_head=2&vocab_size=64&n_positions=32"
    whole = audit(spec, inputs={"input_ids": ids})
    masked = audit(spec, inputs={"input_ids": padded, "attention_mask": mask})
    assert [row["samples"] for row in masked.blocks] == [720] * 3
    for plain, left in zip(whole.blocks, masked.blocks, strict=True):
        assert left["sigma_min"] == pytest.approx(plain["sigma_min"], rel=1e-3)


def test_a_batch_that_does_not_fit_is_run_in_halves():
    """The second try sees the same rows once."""
    module = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16))
    sizes = []

    def refuse(_module, args):
        sizes.append(len(args[0]))
        if len(args[0]) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")

    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    plain = audit(module, inputs=rows)
    module[0].register_forward_pre_hook(refuse)
    result = audit(module, inputs=[rows[:10], rows[10:]])  # the small one first, which discovery runs on
    assert result.norms[0]["samples"] == plain.norms[0]["samples"] == 200
    assert max(size for size in sizes[1:]) == 190
    assert result.norms[0]["bottom_singular_values"][1] == pytest.approx(plain.norms[0]["bottom_singular_values"][1])
