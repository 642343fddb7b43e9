"""Who reads a norm's output: in transformers' architectures, and in modules made to mislead."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_deaddir import discover
from pytest_deaddir.discovery.consumers import find_consumers
from tiny import tiny


def uses_of(module, arguments, whole=None):
    return find_consumers(module, discover(module, arguments).norms, arguments, whole)


def told(uses):
    """Site → (its consumers' last names, whether they are all uses)."""
    return {path: ([c.path.rpartition(".")[2] for c in found.consumers], found.only) for path, found in uses.items()}


def blocks(first, second, paths):
    return {path.format(i): told for i in range(2) for path, told in zip(paths, (first, second), strict=True)}


QKV = ["q_proj", "k_proj", "v_proj"]
EXPECTED = {
    "gpt2": {**blocks((["c_attn"], True), (["c_fc"], True), ("h.{}.ln_1", "h.{}.ln_2")), "ln_f": ([], False)},
    "bert": {  # post-norm: the output goes on as the residual stream
        "embeddings.LayerNorm": (["query", "key", "value"], False),
        "encoder.layer.0.attention.output.LayerNorm": (["dense"], False),
        "encoder.layer.0.output.LayerNorm": (["query", "key", "value"], False),
        "encoder.layer.1.attention.output.LayerNorm": (["dense"], False),
        "encoder.layer.1.output.LayerNorm": (["dense"], False),  # the pooler takes the first row of each
    },
    "vit": {
        **blocks((QKV, True), (["fc1"], True), ("layers.{}.layernorm_before", "layers.{}.layernorm_after")),
        "layernorm": (["dense"], False),
    },
    "opt": {
        **blocks(
            *((QKV, True), (["fc1"], True)),
            ("decoder.layers.{}.self_attn_layer_norm", "decoder.layers.{}.final_layer_norm"),
        ),
        "decoder.final_layer_norm": ([], False),
    },
    "llama": {
        **blocks(
            *((QKV, True), (["gate_proj", "up_proj"], True)),
            ("layers.{}.input_layernorm", "layers.{}.post_attention_layernorm"),
        ),
        "norm": ([], False),
    },
    "t5": {
        **blocks(
            (["q", "k", "v"], True),
            (["wi"], True),
            ("encoder.block.{}.layer.0.layer_norm", "encoder.block.{}.layer.1.layer_norm"),
        ),
        "encoder.final_layer_norm": (["k", "v", "k", "v"], False),  # every decoder block reads it, and it is returned
        **blocks(
            (["q", "k", "v"], True),
            (["q"], True),
            ("decoder.block.{}.layer.0.layer_norm", "decoder.block.{}.layer.1.layer_norm"),
        ),
        "decoder.block.0.layer.2.layer_norm": (["wi"], True),
        "decoder.block.1.layer.2.layer_norm": (["wi"], True),
        "decoder.final_layer_norm": ([], False),
    },
    "gptj": {"h.0.ln_1": ([*QKV, "fc_in"], True), "h.1.ln_1": ([*QKV, "fc_in"], True), "ln_f": ([], False)},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_consumers_of_known_architectures(kind):
    assert told(uses_of(*tiny(kind))) == EXPECTED[kind]


def test_parameters_of_consumers():
    module, arguments = tiny("gpt2")
    [consumer] = uses_of(module, arguments)["h.0.ln_1"].consumers
    assert (consumer.weight, consumer.bias) == ("h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias")
    assert (consumer.outputs, consumer.transposed, consumer.tied) == (96, True, False)
    found = uses_of(*tiny("gptj"))["h.0.ln_1"]
    assert [(c.bias is not None, c.outputs, c.transposed) for c in found.consumers] == [
        *[(False, 32, False)] * 3,
        (True, 128, False),
    ]
    assert found.shift == "h.0.ln_1.bias"


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_counts_and_one_tied_to_the_embedding_is_not_free(tied):
    found = uses_of(*tiny("gpt2", "AutoModelForCausalLM", tie_word_embeddings=tied))["transformer.ln_f"]
    assert told({"": found}) == {"": (["lm_head"], True)}
    assert found.consumers[0].tied is tied


class One(nn.Module):
    """A norm, two linear maps of its output, and what ``use`` makes of them."""

    def __init__(self, use):
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 5), nn.Linear(8, 8, bias=False)
        self.other, self.embedding = nn.LayerNorm(8), nn.Embedding(8, 8)
        self.linears, self.use = nn.ModuleDict(), use

    def forward(self, x):
        return self.use(self, self.norm(x), x)


def one(use, prepare=lambda module: None):
    module = One(use).eval()
    for norm in (module.norm, module.other):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, 0.5, 1.5)
    prepare(module)
    return uses_of(module, (torch.randn(2, 6, 8),))["norm"]


def names(found):
    return [consumer.path for consumer in found.consumers]


def copied(_, y, x):
    return functional.dropout(y, training=False).clone().transpose(0, 1).reshape(-1, 8).double()


ONLY_CONSUMERS = {
    "both": lambda m, y, x: (m.a(y), m.b(y) + x),
    "twice": lambda m, y, x: (m.b(y), m.b(y)),
    "the first row of each": lambda m, y, x: m.a(y[:, 0]),
    "some rows": lambda m, y, x: m.a(y[:, [4, 1]].flatten(0, 1)),
    "windows": lambda m, y, x: m.a(y.unflatten(1, (2, 3)).roll(1, 2)),
    "a copy": lambda m, y, x: m.b(copied(m, y, x).float()),
    "expanded": lambda m, y, x: m.a(y.unsqueeze(0).expand(3, -1, -1, -1)),
    "under no_grad and detached": lambda m, y, x: m.a(y.detach().data),
}


@pytest.mark.parametrize("use", ONLY_CONSUMERS)
def test_consumers_are_all_uses(use):
    found = one(ONLY_CONSUMERS[use])
    assert found.only
    assert set(names(found)) <= {"a", "b"}
    assert names(found)


def test_a_widening_cast_on_the_way():
    found = one(lambda m, y, x: m.b(y.double()), lambda m: m.b.double())
    assert (names(found), found.only) == (["b"], True)


def test_a_module_in_training_is_watched_without_its_dropout():
    found = one(lambda m, y, x: m.b(functional.dropout(y, training=m.training)), lambda m: m.train())
    assert (names(found), found.only) == (["b"], True)


def branch(m, y, x):
    return m.a(y) if y.sum() > 1e9 else m.a(y) * 2


def in_place(m, y, x):
    given = m.a(y)
    x = x.clone()
    x += y
    return given, x


def through_a_buffer(m, y, x):
    kept = torch.empty_like(y)
    kept.copy_(y)
    return m.a(y), kept.argmax(-1)


OTHER_USES = {
    "the residual stream": (lambda m, y, x: x + y + m.b(y), ["b"]),
    "returned": (lambda m, y, x: {"last": y, "logits": m.a(y)}, ["a"]),
    "a gate": (lambda m, y, x: m.b(y) * y.sigmoid(), ["b"]),
    "a branch of the code": (branch, ["a"]),
    "added in place": (in_place, ["a"]),
    "an index, through a buffer": (through_a_buffer, ["a"]),
    "a function of a parameter": (lambda m, y, x: (m.a(y), functional.linear(y, m.embedding.weight)), ["a"]),
    "a map of something else too": (lambda m, y, x: (m.a(y), m.b(y), m.b(x)), ["a"]),
    "another norm": (lambda m, y, x: (m.a(y), m.b(m.other(y))), ["a"]),
}


@pytest.mark.parametrize("use", OTHER_USES)
def test_another_use_is_seen(use):
    use, consumers = OTHER_USES[use]
    found = one(use)
    assert not found.only
    assert names(found) == consumers


NOT_CONSUMERS = {
    "some features": lambda m, y, x: m.b(torch.cat([y[..., :4], x[..., 4:]], -1)),
    "padded with zeros": lambda m, y, x: m.a(functional.pad(y, (0, 0, 0, 2))),
    "rows of something else beside": lambda m, y, x: m.a(torch.cat([y, x], 1)),
    "scaled": lambda m, y, x: m.a(y * 1.5),
    "called elsewhere with something else": lambda m, y, x: (m.b(y), m.b(x)),
    "equal values by another way": lambda m, y, x: (m.a(functional.layer_norm(x, (8,), m.norm.weight, m.norm.bias)), y),
}


@pytest.mark.parametrize("use", NOT_CONSUMERS)
def test_a_linear_map_that_takes_something_else_is_no_consumer(use):
    found = one(NOT_CONSUMERS[use])
    assert names(found) == []
    assert not found.only


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class BiasFirst(nn.Linear):
    """Adds its bias to what it takes."""

    def forward(self, x):
        return functional.linear(x + self.bias, self.weight)


@pytest.mark.parametrize("kind", [Scaled, BiasFirst])
def test_a_module_with_a_weight_that_is_no_linear_map(kind):
    def prepare(module):
        module.linears["odd"] = kind(8, 8)

    found = one(lambda m, y, x: m.linears["odd"](y), prepare)
    assert names(found) == []
    assert not found.only


def test_two_norms_with_the_same_values_are_told_apart_by_what_flows():
    def prepare(module):
        module.other.load_state_dict(module.norm.state_dict())

    def use(m, y, x):
        other = m.other(x)
        return m.a(y), m.b(other)

    found = one(use, prepare)
    assert names(found) == ["a"]
    assert found.only


TIED = {
    "to an embedding that nothing runs": (lambda m: setattr(m.embedding, "weight", m.b.weight), lambda m, y, x: m.b(y)),
    "by a function of the weight": (lambda m: None, lambda m, y, x: m.b(y) @ m.b.weight),
    "by a view of it": (lambda m: None, lambda m, y, x: (m.b(y), x + m.b.weight[0])),
}


@pytest.mark.parametrize("how", TIED)
def test_a_weight_with_another_use_is_tied(how):
    prepare, use = TIED[how]
    [consumer] = one(use, prepare).consumers
    assert consumer.tied


def test_a_tie_with_the_rest_of_the_model_counts():
    core = One(lambda m, y, x: m.b(y)).eval()
    whole = nn.ModuleDict({"core": core, "head": nn.Linear(8, 8, bias=False)})
    whole["head"].weight = core.b.weight
    x = torch.randn(2, 6, 8)
    assert not uses_of(core, (x,))["norm"].consumers[0].tied
    assert uses_of(core, (x,), whole)["norm"].consumers[0].tied


def test_a_bias_that_something_else_uses_is_not_free():
    [consumer] = one(lambda m, y, x: (m.a(y), m.a.bias * 2)).consumers
    assert consumer.bias is None
    assert not consumer.tied


def test_a_shift_that_something_else_uses_is_not_free():
    assert one(lambda m, y, x: m.a(y)).shift == "norm.bias"
    assert one(lambda m, y, x: (m.a(y), x + m.norm.bias)).shift is None


def test_channels_are_moved_last_before_a_linear_map():
    class Channels(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = ChannelNorm(), nn.Linear(6, 3)

        def forward(self, x):
            return self.out(self.norm(x).permute(0, 2, 3, 1))

    class ChannelNorm(nn.LayerNorm):
        def __init__(self):
            super().__init__(6)

        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    assert told(uses_of(Channels().eval(), (torch.randn(2, 6, 4, 5),))) == {"norm": (["out"], True)}


def test_the_module_is_left_as_it_was_also_by_a_failing_forward():
    def fail(m, y, x):
        m.a(y)
        raise KeyboardInterrupt

    module = One(lambda m, y, x: m.a(y)).train()
    sites = discover(module, (torch.randn(2, 6, 8),)).norms
    module.use = fail
    with pytest.raises(KeyboardInterrupt):
        find_consumers(module, sites, (torch.randn(2, 6, 8),))
    assert all(child.training for child in module.modules())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
