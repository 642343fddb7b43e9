"""The dead directions in the weights of trained checkpoints."""

import pytest
import torch
from torch import nn

from pytest_deaddir import discover
from pytest_deaddir.rules import evaluate, load_rules, shipped_rules
from pytest_deaddir.source.inputs import moved, prepare
from pytest_deaddir.source.load import DTYPES, load
from pytest_deaddir.source.spec import parse_spec
from pytest_deaddir.stages.invariance import parameter_space
from pytest_deaddir.stages.taps import call_arguments
from pytest_deaddir.tables import Audit, row


def loaded(path, dtype):
    model = load(parse_spec(str(path)), "cpu", dtype)
    small = prepare(model, None, 0).small
    arguments = call_arguments(model.core, moved(small, torch.device("cpu"), DTYPES[dtype]))
    prefix = next(path for path, child in model.module.named_modules() if child is model.core)
    return model, discover(model.core, arguments).below(prefix).norms, arguments


def space_of(path, dtype, **options):
    model, sites, arguments = loaded(path, dtype)
    return parameter_space(model.module, model.core, sites, arguments, **options)


def findings(columns):
    norms = [row("norms", path=path, **values) for path, values in columns.items()]
    audit = Audit(model=row("model", level="full"), norms=norms)
    rules = [rule for rule in load_rules([shipped_rules()]) if rule.code.startswith("DD4")]
    return [(f["code"], f["path"]) for rule in rules for f in evaluate(rule, audit).findings]


def test_iglm_can_be_moved_along_every_kernel(iglm):
    columns = space_of(iglm, "float64")
    inner = [norm for norm in columns.values() if norm["consumers_tested"]]
    assert len(inner) == 8
    assert sum(norm["redundant_parameters"] for norm in inner) == 4 * (3 * 512 + 2048)
    assert all(norm["invariance_error"] <= 1e-13 and norm["random_change"] >= 0.1 for norm in inner)
    assert all(norm["fisher_dead"] < 1e-28 and norm["fisher_random"] > 1e-2 for norm in inner)
    assert all(0.1 < norm["dead_energy"] < 2 for norm in inner)
    head = columns["transformer.ln_f"]
    assert (head["consumers"], head["redundant_parameters"]) == (["lm_head"], 0)  # tied to the embedding
    assert findings(columns) == []


@pytest.mark.parametrize(("dtype", "error"), [("float32", 5e-6), ("bfloat16", 0.02)])
def test_so_can_the_smaller_one_in_every_dtype(iglm_small, dtype, error):
    columns = space_of(iglm_small, dtype)
    inner = [norm for norm in columns.values() if norm["consumers_tested"]]
    assert len(inner) == 6
    assert all(norm["invariance_error"] <= error and norm["random_change"] >= 0.1 for norm in inner)
    assert all(norm["fisher_dead"] < 1e-3 * norm["fisher_random"] for norm in inner)
    assert findings(columns) == []


def test_an_inner_norm_of_iglm_that_drops_the_mean_is_found(iglm_small):
    class Centreless(nn.LayerNorm):
        def forward(self, x):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight + self.bias

    model, sites, arguments = loaded(iglm_small, "float32")
    model.core.h[1].ln_2.__class__ = Centreless
    columns = parameter_space(model.module, model.core, sites, arguments)
    assert findings(columns) == [("DD401", "transformer.h.1.ln_2")]
    assert columns["transformer.h.1.ln_2"]["invariance_error_relative"] > 1e5


def test_minilm_reads_its_norms_with_redundant_weights(minilm):
    columns = space_of(minilm, "float32", forwards=82)
    assert sum(norm["redundant_parameters"] for norm in columns.values()) == 6 * (3 * 384 + 1536) + 384
    tested = [norm for norm in columns.values() if norm["consumers_tested"]]
    assert sum(norm["consumers_tested"] for norm in tested) == 10
    assert all(norm["invariance_error_relative"] < 100 for norm in tested)
    assert all(norm["random_change"] > 0.05 for norm in tested)
    energies = [norm["dead_energy"] for norm in columns.values()]
    assert max(energies) == pytest.approx(6.92, abs=0.01)  # of the keys in the second block
    assert findings(columns) == []
