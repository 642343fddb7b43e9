"""The defect set: each is planted into a sound model and caught by the right rule at the right site.

What a file alone shows is in tests/formats; a comparison with a baseline in tests/unit/test_compare.py.
"""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from formats.test_hostile import FINDINGS
from pytest_deaddir import audit
from pytest_deaddir.algebra.kernel import direction
from pytest_deaddir.rules import judge, load_rules, shipped_rules
from pytest_deaddir.source.load import load
from pytest_deaddir.source.spec import parse_spec
from pytest_deaddir.stages.forward import forward_stage
from pytest_deaddir.stages.full import full_stage
from pytest_deaddir.stages.read import read_stage

RULES = load_rules([shipped_rules()])
EXAMPLES = Path(__file__).parents[2] / "examples"
GPT2, LLAMA = "tiny-gpt2", "tiny-llama"


class Centreless(nn.LayerNorm):
    """A LayerNorm that forgot the mean."""

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


def scale(path, index, value):
    def plant(module):
        module.get_submodule(path).weight.data[index] = value

    return plant


def output(path, change):
    """What the module at ``path`` returns is changed on the way, behind the back of whoever looks at the module alone."""

    def plant(module):
        def hook(_module, _arguments, given):
            return (change(given[0]), *given[1:]) if isinstance(given, tuple) else change(given)

        module.get_submodule(path).register_forward_hook(hook)

    return plant


def centreless(path):
    def plant(module):
        module.get_submodule(path).__class__ = Centreless

    return plant


def centred(hidden):
    """Before an RMSNorm: what it gives then has the kernel of a LayerNorm."""
    return hidden - hidden.mean(-1, keepdim=True)


def other_scale(path):
    def plant(module):
        module.get_submodule(path).weight.data *= 1.5

    return plant


def hidden_numbers(module):
    """Numbers in a weight along the kernel before it: the function is the same, and the weight can hold a message."""
    block = module.transformer.h[0]
    v = torch.from_numpy(direction(block.ln_2.weight.detach().double().numpy())).float()
    weight, bias = block.mlp.c_fc.weight.data, block.mlp.c_fc.bias.data
    numbers = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(1))
    numbers *= 3 * weight.norm() / numbers.norm()
    weight += torch.outer(v, numbers)
    bias -= (v @ block.ln_2.bias.detach()) * numbers


def without(*coordinates):
    def kill(hidden):
        alive = torch.ones(hidden.shape[-1], dtype=hidden.dtype)
        alive[list(coordinates)] = 0
        return hidden * alive

    return kill


def along(seed):
    def kill(hidden):
        v = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(seed), dtype=hidden.dtype)
        v /= v.norm()
        return hidden - (hidden @ v)[..., None] * v

    return kill


def nan(hidden):
    return hidden + float("nan")


BLOCK, LLAMA_BLOCK = "transformer.h.2", "model.layers.1"

#: Defect → the sound model, how it is planted, and the rule and the site that tell of it. Level full where it says so.
DEFECTS = {
    "nan in the last scale": (GPT2, scale("transformer.ln_f", 3, float("nan")), "DD001", "transformer.ln_f"),
    "nan in a block's scale": (GPT2, scale("transformer.h.1.ln_2", 3, float("nan")), "DD001", "transformer.h.1.ln_2"),
    "infinity in a scale": (LLAMA, scale("model.norm", 0, float("inf")), "DD001", "model.norm"),
    "a scale of zero": (GPT2, scale("transformer.ln_f", 7, 0.0), "DD002", "transformer.ln_f"),
    "a scale of zero in a block": (GPT2, scale("transformer.h.1.ln_1", 5, 0.0), "DD002", "transformer.h.1.ln_1"),
    "three scales near zero": (GPT2, scale("transformer.ln_f", [3, 50, 99], 1e-9), "DD002", "transformer.ln_f"),
    "a scale of zero of an RMSNorm": (LLAMA, scale("model.norm", 9, 0.0), "DD002", "model.norm"),
    "a last norm without its mean": (GPT2, centreless("transformer.ln_f"), "DD202", "transformer.ln_f"),
    "a block's norm without its mean": (GPT2, centreless("transformer.h.1.ln_1"), "DD202", "transformer.h.1.ln_1"),
    "a centred RMSNorm": (LLAMA, output("model.layers.2", centred), "DD201", "model.norm"),
    "another last scale than the file's": (LLAMA, other_scale("model.norm"), "DD203", "model.norm"),
    "another scale in a block": (
        LLAMA,
        other_scale("model.layers.1.input_layernorm"),
        "DD203",
        "model.layers.1.input_layernorm",
    ),
    "a dead coordinate of the stream": (GPT2, output(BLOCK, without(17)), "DD301", BLOCK),
    "four dead coordinates of the stream": (GPT2, output(BLOCK, without(1, 2, 3, 100)), "DD301", BLOCK),
    "a dead direction of the stream": (GPT2, output(BLOCK, along(0)), "DD301", BLOCK),
    "a dead coordinate of a Llama's stream": (LLAMA, output(LLAMA_BLOCK, without(40)), "DD301", LLAMA_BLOCK),
    "a dead direction of a Llama's stream": (LLAMA, output(LLAMA_BLOCK, along(1)), "DD301", LLAMA_BLOCK),
    "a stream ten thousand times smaller": (GPT2, output(BLOCK, lambda hidden: hidden * 1e-4), "DD302", BLOCK),
    "a stream ten thousand times larger": (
        LLAMA,
        output(LLAMA_BLOCK, lambda hidden: hidden * 1e4),
        "DD302",
        LLAMA_BLOCK,
    ),
    "nan from a block on": (GPT2, output(BLOCK, nan), "DD303", BLOCK),
    "nan from a Llama's block on": (LLAMA, output(LLAMA_BLOCK, nan), "DD303", LLAMA_BLOCK),
    "nan before the last norm": (GPT2, output(BLOCK, nan), "DD902", "transformer.ln_f"),
    "numbers hidden along a kernel": (GPT2, hidden_numbers, "DD402", "transformer.h.0.ln_2"),
}
FULL = ("DD401", "DD402", "DD403")


@cache
def sound(name):
    spec = parse_spec(str(EXAMPLES / name))
    return read_stage(spec), load(spec)


def findings(name, plant=None, level="forward"):
    """Code and path of what is found in a copy of the sound model after ``plant``; a changed file stays as it was read."""
    stored, model = copy.deepcopy(sound(name))
    if plant is not None:
        plant(model.module)
    audited, done = forward_stage(model, stored, spec=name)
    if level == "full":
        full_stage(model, audited, done, seed=0, solver="inverse")
    return [(finding["code"], finding["path"]) for finding in judge(audited, RULES).findings]


@pytest.mark.parametrize("name", [GPT2, LLAMA])
@pytest.mark.parametrize("level", ["forward", "full"])
def test_nothing_is_found_before_anything_is_planted(name, level):
    assert findings(name, level=level) == []


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught(defect):
    name, plant, code, path = DEFECTS[defect]
    found = findings(name, plant, "full" if code in FULL else "forward")
    assert (code, path) in found
    if code in ("DD301", "DD302", "DD402"):  # the others may well be seen at more than one place
        assert {one for one, _ in found if one != code} <= {"DD203"}


def test_too_few_samples():
    audited = audit(EXAMPLES / GPT2, samples=200)
    assert [(finding["code"], finding["severity"]) for finding in audited.findings] == [("DD901", "warning")]


def test_every_rule_is_in_one_of_the_sets():
    """Beside these: DD101 and DD904 in test_forward, DD401 and DD403 in test_invariance, DD004 in tests/formats."""
    elsewhere = {"DD101", "DD904", "DD401", "DD403", "DD004", "DD009", "DD010", "DD011", "DD903", "DD901"}
    caught = {code for _, _, code, _ in DEFECTS.values()} | {code for code, _ in FINDINGS.values()}
    compared = {rule.code for rule in RULES if rule.code.startswith("DD6")}
    assert {rule.code for rule in RULES} == caught | elsewhere | compared
    assert len(DEFECTS) + len(FINDINGS) >= 30
