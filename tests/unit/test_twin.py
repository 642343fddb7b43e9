"""The twin: the same architecture at random init, on the same inputs."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_deaddir import audit
from pytest_deaddir.source.load import load, wrap
from pytest_deaddir.source.spec import parse_spec
from pytest_deaddir.stages.twin import twin_of

GPT2 = Path(__file__).parents[2] / "examples" / "tiny-gpt2"


def test_the_twin_has_the_shapes_and_not_the_weights():
    model = load(parse_spec(str(GPT2)), dtype="bfloat16")
    twin = twin_of(model, 0)
    ours, theirs = model.module.state_dict(), twin.module.state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert twin.dtype == "bfloat16"
    assert not torch.equal(ours["transformer.wte.weight"], theirs["transformer.wte.weight"])


def test_the_seed_decides_the_twin_and_leaves_the_callers_generator_alone():
    model = load(parse_spec(str(GPT2)))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = twin_of(model, 1), twin_of(model, 1), twin_of(model, 2)
    assert torch.equal(torch.rand(1), expected)
    weights = [twin.module.transformer.wte.weight for twin in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_depth_is_the_difference_of_the_logarithms():
    audited = audit(GPT2, level="full", seed=3)
    [final] = [norm for norm in audited.norms if norm["role"] == "final"]
    assert audited.model["level"] == "full"
    assert audited.model["twin_seed"] == 3
    assert 10 ** final["depth"] == pytest.approx(final["twin_eigenvalue_relative"] / final["eigenvalue_relative"])
    assert audited.model["depth"] == final["depth"] > 0
    assert all(norm["twin_noise_ratio"] < 64 and norm["dead_directions_opened"] == 0 for norm in audited.norms)
    assert not audited.findings


def test_an_rmsnorm_has_no_depth():
    audited = audit(GPT2.with_name("tiny-llama"), level="full")
    assert all(norm["depth"] is None and norm["twin_alignment"] is None for norm in audited.norms)


def test_a_module_without_a_config_has_no_twin():
    module = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16))
    assert twin_of(wrap(module), 0) is None
    audited = audit(module, inputs=torch.randn(99, 8), level="full")
    assert audited.model["twin_seed"] is None
    assert audited.model["depth"] is None
