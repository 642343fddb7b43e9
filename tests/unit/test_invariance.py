"""The parameter-space stage against the rank of Jacobians, against architectures, and against planted defects."""

import numpy as np
import pytest
import torch
from torch import nn

from pytest_deaddir import discover
from pytest_deaddir.algebra.gauge import canonical
from pytest_deaddir.algebra.kernel import direction
from pytest_deaddir.rules import evaluate, load_rules, shipped_rules
from pytest_deaddir.stages.invariance import parameter_space
from pytest_deaddir.tables import Audit, row
from tiny import tiny

RULES = {rule.code: rule for rule in load_rules([shipped_rules()])}


def space_of(module, arguments, sites=None, core=None, **options):
    sites = discover(module, arguments).norms if sites is None else sites
    return parameter_space(module, core or module, sites, arguments, **options)


def findings(columns):
    norms = [row("norms", path=path, **values) for path, values in columns.items()]
    audit = Audit(model=row("model", level="full"), norms=norms)
    return [f["code"] for code in ("DD401", "DD402", "DD403") for f in evaluate(RULES[code], audit).findings]


# --- the count, against the nullity of the Jacobian -----------------------------------------------------------------


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Net(nn.Module):
    """A norm and consumers of it, each behind a tanh, which leaves no freedom of its own."""

    def __init__(self, norm, consumers, residual=False, tied=False):
        super().__init__()
        self.norm, self.residual, self.tied = norm, residual, tied
        self.consumers = nn.ModuleList(consumers)

    def forward(self, x):
        y = self.norm(x)
        parts = [torch.tanh(consumer(y)) for consumer in self.consumers]
        if self.residual:
            parts.append(x + y)
        if self.tied:
            parts.append(torch.tanh(x @ self.consumers[0].weight.T))
        return torch.cat(parts, -1)


def net(outputs, *, zeros=0, shift=True, kind="layernorm", **options):
    """``outputs``: of each consumer, negative without a bias."""
    torch.manual_seed(0)
    d = 6
    norm = nn.LayerNorm(d, bias=shift) if kind == "layernorm" else RMSNorm(d)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    norm.weight.data[:zeros] = 0
    if kind == "layernorm" and shift:
        nn.init.uniform_(norm.bias, 0.5, 1.5)
    module = Net(norm, [nn.Linear(d, abs(m), bias=m > 0) for m in outputs], **options)
    return module.double().eval(), torch.randn(50, d, dtype=torch.float64)


def nullity(module, x, names):
    """Independent directions of these parameters along which no output changes, for 50 inputs."""
    fixed = {name: p.detach() for name, p in module.named_parameters()}

    def outputs(chosen):
        return torch.func.functional_call(module, {**fixed, **chosen}, (x,)).flatten()

    jacobian = torch.func.jacrev(outputs)({name: fixed[name] for name in names})
    matrix = torch.cat([part.flatten(1) for part in jacobian.values()], 1)
    return matrix.shape[1] - int(torch.linalg.matrix_rank(matrix, rtol=1e-11))


CASES = {
    "a bias": ({"outputs": (4,)}, 4),
    "no bias, no shift": ({"outputs": (-4,), "shift": False}, 4),
    "no bias": ({"outputs": (-4,)}, 4),  # β makes up for all of it: fewer outputs than dimensions
    "no bias, more outputs than dimensions": ({"outputs": (-9,)}, 6),
    "several without a bias": ({"outputs": (-4, -5, -3)}, 6),
    "with and without": ({"outputs": (4, -5, -3, 2)}, 4 + 2 + 6),
    "with and without, few": ({"outputs": (4, -2, -1)}, 4 + 3),
    "no bias, beside a residual stream": ({"outputs": (-4, 3), "residual": True}, 3),
    "two zeros": ({"outputs": (4,), "zeros": 2}, 8),
    "two zeros, no bias": ({"outputs": (-9, -2), "zeros": 2}, 9 + 2 + 6),
    "two zeros, no bias, beside a residual stream": ({"outputs": (-4, 3), "zeros": 2, "residual": True}, 4 + 6),
    "two zeros, no shift": ({"outputs": (-4, 3), "zeros": 2, "shift": False}, 14),
    "a tied weight": ({"outputs": (-4, 3), "tied": True}, 3),
    "a tied weight that holds the shift": ({"outputs": (-9, -3), "tied": True}, 0),
    "an RMSNorm": ({"outputs": (-4, 3), "kind": "rmsnorm"}, 0),
    "an RMSNorm with zeros": ({"outputs": (-4, 3), "kind": "rmsnorm", "zeros": 3}, 21),
}


@pytest.mark.parametrize("case", CASES)
def test_the_count_is_the_nullity_of_the_jacobian(case):
    options, expected = CASES[case]
    module, x = net(**options)
    names = [n for n, _ in module.named_parameters() if n != "norm.weight"]
    unmoved = [n for n in names if "weight" not in n]  # β against biases, which has nothing to do with the kernel
    kernels = nullity(module, x, names) - (nullity(module, x, unmoved) if unmoved else 0)
    [columns] = space_of(module, (x,)).values()
    assert columns["redundant_parameters"] == kernels == expected
    if expected:
        assert columns["invariance_error"] < 1e-14
        assert columns["random_change"] > 0.05
        assert columns["fisher_dead"] < 1e-28
        assert columns["fisher_random"] > 1e-3
    else:
        assert columns["invariance_error"] is columns["dead_energy"] is None


def test_weights_of_lower_rank_have_fewer_directions_for_a_shift_to_make_up_for():
    module, x = net((-4, -5))
    for consumer in module.consumers:
        consumer.weight.data[:, 3:] = consumer.weight.data[:, :3]
    names = [n for n, _ in module.named_parameters() if n != "norm.weight"]
    assert space_of(module, (x,))["norm"]["redundant_parameters"] == 3
    assert nullity(module, x, names) - nullity(module, x, ["norm.bias"]) == 3


# --- architectures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "redundant"),
    [
        ("gpt2", 2 * (96 + 128)),
        ("bert", 2 * (96 + 64) + 32),
        ("vit", 2 * (96 + 64) + 32),
        ("opt", 2 * (96 + 64)),
        ("gptj", 2 * (128 + 32)),  # 3 × 32 rows without a bias have the 32 directions of their shift
        ("llama", 0),
        ("t5", 0),
    ],
)
def test_healthy_models_do_not_change(kind, redundant):
    columns = space_of(*tiny(kind))
    assert sum(norm["redundant_parameters"] for norm in columns.values()) == redundant
    assert findings(columns) == []
    tested = [norm for norm in columns.values() if norm["consumers_tested"]]
    assert bool(tested) is bool(redundant)
    for norm in tested:
        assert norm["consumers_tested"] >= len(norm["consumers"])  # one by itself and again with the others
        assert norm["invariance_error"] < 1e-14
        assert norm["random_change"] > 100 * norm["invariance_error"]
        assert norm["fisher_dead"] < 1e-12 * norm["fisher_random"]
        assert 0 < norm["dead_energy"] < 4
        assert norm["invariance_note"] == ""


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 0.06), (torch.float16, 0.008)])
def test_the_error_is_round_off_in_every_dtype(dtype, limit):
    columns = space_of(*tiny("gpt2", dtype=dtype))
    tested = [norm for norm in columns.values() if norm["consumers_tested"]]
    assert all(0 < norm["invariance_error"] < limit for norm in tested)
    assert all(norm["invariance_error_relative"] < 20 for norm in tested)
    assert columns["h.0.ln_1"]["dtype"] == str(dtype).removeprefix("torch.")
    assert findings(columns) == []


def test_a_norm_that_computes_in_less_than_it_returns_is_measured_by_that():
    module, x = net((-4, 3))
    module.norm = nn.LayerNorm(6, elementwise_affine=False)
    module.norm.forward = lambda x: nn.functional.layer_norm(x.float(), (6,)).double()  # as OLMo and Cohere
    columns = space_of(module, (x,))
    assert 1e-9 < columns["norm"]["invariance_error"] < 1e-6
    assert findings(columns) == []


def test_an_untied_head_is_counted_with_the_whole_model():
    module, arguments = tiny("gpt2", "AutoModelForCausalLM", tie_word_embeddings=False)
    columns = space_of(module, arguments, core=module.transformer)["transformer.ln_f"]
    assert columns["consumers"] == ["lm_head"]
    assert columns["redundant_parameters"] == 32  # 64 rows without a bias, and a shift of 32
    assert columns["invariance_error"] < 1e-14
    tied, arguments = tiny("gpt2", "AutoModelForCausalLM")
    columns = space_of(tied, arguments, core=tied.transformer)["transformer.ln_f"]
    assert columns["redundant_parameters"] == 0
    assert columns["invariance_note"] == "no linear map that reads it can be moved"


def test_a_head_that_does_not_take_the_arguments_is_left_out():
    class Headed(nn.Module):
        def __init__(self, core):
            super().__init__()
            self.core, self.head = core, nn.Linear(1, 1)

        def forward(self, x, labels):
            return self.head(self.core(x)) - labels

    core, x = net((4, -5))
    module = Headed(core)
    sites = [*discover(module.core, (x,)).below("core").norms]
    columns = space_of(module, (x,), sites, core)["core.norm"]
    assert columns["consumers"] == ["core.consumers.0", "core.consumers.1"]
    assert columns["redundant_parameters"] == 4 + 5
    assert columns["invariance_error"] < 1e-14
    module.head.weight = core.consumers[0].weight  # a tie with the part that is not run
    assert space_of(module, (x,), sites, core)["core.norm"]["redundant_parameters"] == 0  # what can be proved


# --- planted defects ------------------------------------------------------------------------------------------------


class Centreless(nn.LayerNorm):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_norm_that_drops_the_mean_where_it_runs(dtype):
    module, arguments = tiny("gpt2", dtype=dtype)
    sites = discover(module, arguments).norms
    module.h[0].ln_2.__class__ = Centreless  # as a fast path would, behind the back of the probe
    columns = space_of(module, arguments, sites)
    assert columns["h.0.ln_2"]["invariance_error"] > 0.05
    assert columns["h.0.ln_1"]["invariance_error_relative"] < 20
    assert findings(columns) == (["DD403"] if dtype == torch.float16 else ["DD401"])


def hidden(width=128):
    """A GPT-2 type model, and another of the same function with numbers in the dead direction of one weight."""
    module, arguments = tiny("gpt2", n_embd=width)
    other, _ = tiny("gpt2", n_embd=width)
    block = other.h[0]
    v = torch.from_numpy(direction(block.ln_2.weight.detach().numpy()))
    weight, bias = block.mlp.c_fc.weight.data, block.mlp.c_fc.bias.data
    numbers = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    numbers *= 3 * weight.norm() / numbers.norm()
    weight += torch.outer(v, numbers)
    bias -= (v @ block.ln_2.bias.detach()) * numbers
    return module, other, arguments


def last(module, arguments):
    with torch.no_grad():
        return module(**arguments).last_hidden_state


def test_numbers_hidden_along_a_kernel_show_in_its_energy_and_nowhere_else():
    module, other, arguments = hidden()
    before, after = last(module, arguments), last(other, arguments)
    assert (after - before).norm() < 1e-14 * before.norm()
    healthy, planted = space_of(module, arguments), space_of(other, arguments)
    assert healthy["h.0.ln_2"]["dead_energy"] < 2
    assert planted["h.0.ln_2"]["dead_energy"] == pytest.approx(128 * 0.9, rel=0.02)  # 3²/(1 + 3²) of its squares
    assert planted["h.0.ln_1"]["dead_energy"] == healthy["h.0.ln_1"]["dead_energy"]
    assert findings(healthy) == []
    assert findings(planted) == ["DD402"]


def test_the_canonical_form_has_no_energy_there_and_the_same_function():
    _, other, arguments = hidden()
    before = last(other, arguments)
    block = other.h[0]
    gamma, beta = (p.detach().numpy() for p in (block.ln_2.weight, block.ln_2.bias))
    weight, bias = canonical(
        block.mlp.c_fc.weight.detach().numpy().T, block.mlp.c_fc.bias.detach().numpy(), direction(gamma)[:, None], beta
    )
    block.mlp.c_fc.weight.data = torch.from_numpy(weight.T.copy())
    block.mlp.c_fc.bias.data = torch.from_numpy(bias)
    assert (last(other, arguments) - before).norm() < 1e-13 * before.norm()
    assert space_of(other, arguments)["h.0.ln_2"]["dead_energy"] < 1e-25


def test_without_a_bias_there_is_no_canonical_form_but_where_the_shift_vanishes():
    kernel = np.eye(3)[:, :1]
    weight, _ = canonical(np.ones((2, 3)), None, kernel, np.array([0.0, 1.0, 1.0]))
    assert weight.tolist() == [[0, 1, 1]] * 2
    with pytest.raises(ValueError, match="without a bias"):
        canonical(np.ones((2, 3)), None, kernel, np.ones(3))


# --- what cannot be measured ----------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    def __init__(self, body, around):
        super().__init__()
        self.body, self.around = body, around

    def forward(self, x):
        return self.around(self.body(x))


def wrapped(around):
    body, x = net((4,))
    return space_of(Wrapped(body, around).eval(), (x,))["body.norm"]


def test_random_numbers_in_a_forward_pass_are_the_same_each_time():
    assert wrapped(lambda y: y + torch.randn_like(y))["invariance_error"] < 1e-14


def test_a_model_that_is_never_the_same_is_not_measured():
    calls = []
    columns = wrapped(lambda y: y + len(calls.append(None) or calls))
    assert columns["invariance_note"] == "the model's output is not the same in two runs"
    assert columns["invariance_error"] is columns["fisher_dead"] is None
    assert columns["redundant_parameters"] == 4


def test_a_model_that_jumps_at_rounding_is_not_judged():
    """As where queries are selected by their scores."""
    columns = wrapped(lambda y: torch.sin(1e17 * y).sign())
    assert columns["invariance_note"] == "rounding alone changes the model's output as much"
    assert columns["invariance_error"] is None


def test_nan_is_not_measured():
    assert wrapped(lambda y: y * float("nan"))["invariance_note"] == "the model's output is not finite"


def test_infinite_entries_are_masks():
    def masked(y):
        return torch.where(torch.arange(4) == 1, -torch.inf, y)

    assert 0 <= wrapped(masked)["invariance_error"] < 1e-14


class NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_an_operation_without_forward_derivative_is_named():
    columns = wrapped(NoDerivative.apply)
    assert columns["invariance_error"] < 1e-14
    assert columns["fisher_dead"] is columns["fisher_random"] is None
    assert "jvp function" in columns["invariance_note"]


def test_a_scale_that_is_only_fitted_gives_no_exact_kernel():
    class Squared(nn.LayerNorm):
        def forward(self, x):
            return nn.functional.layer_norm(x, (6,), self.weight.square(), self.bias)

    module, x = net((4,))
    module.norm.__class__ = Squared
    columns = space_of(module, (x,))["norm"]
    assert columns["consumers"] == ["consumers.0"]
    assert columns["redundant_parameters"] is None
    assert "fitted" in columns["invariance_note"]


# --- cost, and what is left behind ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("forwards", "tested"), [(0, []), (9, []), (10, [0]), (26, [0, 2, 5]), (50, range(6))])
def test_the_cost_is_bounded_and_what_is_tried_is_spread_evenly(forwards, tested):
    module, arguments = tiny("gpt2", n_layer=3)
    calls = []
    with_hook = module.register_forward_hook(lambda *_: calls.append(None))
    sites = discover(module, arguments).norms
    calls.clear()
    columns = space_of(module, arguments, sites, forwards=forwards)
    with_hook.remove()
    assert [i for i, norm in enumerate(columns.values()) if norm["consumers_tested"]] == list(tested)
    assert len(calls) <= 1 + (2 + 4 * len(tested) if tested else 0)
    untested = [norm for norm in list(columns.values())[:-1] if not norm["consumers_tested"]]
    assert all(norm["invariance_note"] == "more consumers than forward passes" for norm in untested)
    assert all(norm["redundant_parameters"] and norm["dead_energy"] for norm in untested)


def test_the_seed_decides():
    module, arguments = tiny("vit")
    first, same, other = (space_of(module, arguments, seed=seed) for seed in (0, 0, 1))
    assert first == same
    assert first != other


def test_a_module_in_training_is_measured_without_its_dropout():
    module, arguments = tiny("gpt2", n_layer=1, resid_pdrop=0.5)
    assert space_of(module, arguments) == space_of(module.train(), arguments)


@pytest.mark.parametrize("fails_at", [None, 1, 2, 4, 5, 6, 7])
def test_the_model_is_left_bit_for_bit_as_it_was(fails_at):
    module, arguments = tiny("gpt2", n_layer=1, attn_pdrop=0.3)
    module.train()
    module.h[0].mlp.eval()
    module.h[0].ln_1.weight.requires_grad_(False)
    sites = discover(module, arguments).norms
    calls = []

    def interrupt(*_):
        calls.append(None)
        if len(calls) == fails_at:
            raise KeyboardInterrupt

    interruption = module.h[0].mlp.act.register_forward_hook(interrupt)
    values = {name: (id(t), t._version, t.clone()) for name, t in [*module.named_parameters(), *module.named_buffers()]}
    modes = [child.training for child in module.modules()]
    hooks = [(len(c._forward_hooks), len(c._forward_pre_hooks)) for c in module.modules()]
    torch.manual_seed(5)
    random = torch.get_rng_state()
    if fails_at is None:
        space_of(module, arguments, sites)
    else:
        with pytest.raises(KeyboardInterrupt):
            space_of(module, arguments, sites)
        assert len(calls) == fails_at
    interruption.remove()
    after = dict([*module.named_parameters(), *module.named_buffers()])
    assert list(after) == list(values)
    for name, (identity, version, value) in values.items():
        assert (id(after[name]), after[name]._version) == (identity, version)
        assert torch.equal(after[name], value)
    assert modes == [child.training for child in module.modules()]
    assert not module.h[0].ln_1.weight.requires_grad
    assert module.h[0].ln_2.weight.requires_grad
    assert all(parameter.grad is None for parameter in module.parameters())
    interruptions = [(len(c._forward_hooks), len(c._forward_pre_hooks)) for c in module.modules()]
    assert sum(map(sum, interruptions)) == sum(map(sum, hooks)) - 1
    assert torch.equal(torch.get_rng_state(), random)


def test_a_forward_pass_that_fails_raises_what_it_raised():
    module, arguments = tiny("gpt2")
    with pytest.raises(IndexError):
        space_of(module, {"input_ids": torch.full((1, 4), 999)}, discover(module, arguments).norms)
