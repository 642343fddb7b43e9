"""``timm:NAME``, and discovery on timm's architectures: sizes and layouts that transformers has not.

timm needs torchvision, which has no build for the CPU torch here. Where timm cannot be imported as it is installed,
DEADDIR_TEST_TIMM may name a folder that holds it (pip install --no-deps --target FOLDER timm pillow); torchvision is then
stood in for by torchvision_stub while timm is imported. Both are taken off the path again: transformers looks for them too.
"""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

from pytest_deaddir.discovery.discover import discover
from pytest_deaddir.discovery.probe import probe
from pytest_deaddir.errors import ModelError, SpecError
from pytest_deaddir.source.load import load
from pytest_deaddir.source.spec import parse_spec
from pytest_deaddir.source.synthetic import synthetic_inputs
from zoo import judge
from zoo.compare import compared

pytestmark = pytest.mark.filterwarnings("ignore")


def import_timm(folder):
    """timm from ``folder``, or as it is installed where that is None."""
    path = list(sys.path)
    if folder is not None:
        sys.path[:0] = [folder, str(Path(__file__).parent / "torchvision_stub")]
    try:
        return importlib.import_module("timm")
    except Exception:  # a torchvision that was built for another torch raises what it likes
        forget("timm", "torchvision")
        raise
    finally:
        sys.path[:] = path


def forget(*packages):
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def timm():
    folder = os.environ.get("DEADDIR_TEST_TIMM")
    try:
        yield import_timm(folder)
    except Exception as error:
        pytest.skip(f"timm cannot be imported: {type(error).__name__}: {error} (see this file's docstring)")
    if folder:
        forget("timm", "torchvision")


def test_a_spec_names_a_model_its_overrides_and_a_seed():
    spec = parse_spec("timm:vit_tiny_patch16_224?depth=3&global_pool=avg&seed=7")
    assert (spec.form, spec.model_type, spec.seed) == ("timm", "vit_tiny_patch16_224", 7)
    assert dict(spec.overrides) == {"depth": 3, "global_pool": "avg"}


def test_without_timm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SpecError, match=r"needs timm, not installed here: pip install 'pytest-deaddir\[timm\]'"):
        load(parse_spec("timm:vit_tiny_patch16_224"))


def test_what_a_spec_names_is_built_alike_for_the_same_seed(timm):
    text = "timm:vit_tiny_patch16_224?depth=2&img_size=64&seed={}"
    weights = [load(parse_spec(text.format(seed)), "cpu").module.blocks[0].mlp.fc1.weight for seed in (7, 7, 8)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("timm:vit_tiny_patch16_223", SpecError, "no model 'vit_tiny_patch16_223'; did you mean vit_tiny_patch16_224"),
        ("timm:vit_tiny_patch16_224?dephts=3", ModelError, "dephts"),
    ],
)
def test_what_cannot_be_built_is_said(timm, text, error, said):
    with pytest.raises(error, match=said):
        load(parse_spec(text), "cpu")


@pytest.mark.parametrize(
    ("name", "overrides", "shape"),
    [
        ("vit_tiny_patch16_224", {}, (2, 3, 224, 224)),
        ("vit_tiny_patch16_224", {"img_size": 64, "in_chans": 1}, (2, 1, 64, 64)),
        ("convnext_atto", {"in_chans": 5}, (2, 5, 224, 224)),
    ],
)
def test_images_are_made_up_in_the_size_that_the_model_states(timm, name, overrides, shape):
    assert synthetic_inputs(timm.create_model(name, **overrides))["x"].shape == shape


CASES = {  # overrides, image side, final norm, {stack: blocks}
    "vit_tiny_patch16_224": ({"depth": 3, "img_size": 64}, 64, "norm", {"blocks": 3}),
    "vit_tiny_patch16_224.pooled": (
        {"depth": 3, "img_size": 64, "global_pool": "avg"}, 64, "fc_norm", {"blocks": 3}
    ),
    "beit_base_patch16_224": (
        {"depth": 3, "img_size": 64, "embed_dim": 48, "num_heads": 3}, 64, "fc_norm", {"blocks": 3}
    ),
    "convnext_atto": ({}, 64, "head.norm", {"stages": 4}),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "window_size": 2, "depths": (2, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 8)},
        64, "norm", {"layers": 4},
    ),
    "davit_tiny": (
        {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128), "num_heads": (1, 2, 4, 8)},
        64, "head.norm", {"stages": 4},
    ),
    "pit_ti_224": ({"depth": (2, 2, 2)}, 224, "norm", {"transformers": 3}),
    "mixer_s32_224": ({}, 224, "norm", {"blocks": 8}),
    "xcit_nano_12_p16_224": ({"depth": 3}, 64, "norm", {"blocks": 3, "cls_attn_blocks": 2}),
    "vit_small_patch16_dinov3": ({"depth": 3, "img_size": 64}, 64, "norm", {"blocks": 3}),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request, timm):
    """A model's name, the model, its inputs, and what discovery finds."""
    overrides, side, *_ = CASES[request.param]
    torch.manual_seed(0)
    model = timm.create_model(request.param.partition(".")[0], **overrides).eval()
    judge.randomise(model)
    inputs = {"x": torch.randn(2, 3, side, side)}
    return request.param, model, inputs, discover(model, inputs)


def test_norms_and_stacks_are_what_the_judge_finds(case):
    name, model, inputs, found = case
    output, trace = judge.traced(model, inputs)
    norms = judge.norms_of(model, trace)
    outer, nested, broken = judge.stacks_of(model, trace, norms)
    row = judge.row(
        {
            "ran": True,
            "class": name,
            "norms": norms,
            "stacks": outer,
            "nested_stacks": nested,
            "broken_stacks": broken,
            "final": judge.final_of(output, trace, norms, outer),
            "towers": {},
            "left_out_tensors": trace.left_out,
        }
    )
    result = compared(found, row)
    assert result["sites"] > 5
    assert result["wrong"] == []
    assert result["stacks"], result["stack_pair"]
    assert {s.path: len(s.blocks) for s in found.stacks if s.within is None} == CASES[name][3]
    assert found.how == "values"


def test_the_final_norm(case):
    """Where timm keeps it: ``norm``, or behind the pooling ``head.norm`` or ``fc_norm``."""
    name, _, _, found = case
    *_, final, _ = CASES[name]
    assert found.final_norm == final


def test_norms_over_channels_of_images(timm):
    from timm.layers import LayerNorm2d, LayerNormAct2d

    assert (probe(LayerNorm2d(8)).kind, probe(LayerNorm2d(8)).axis) == ("layernorm", 1)
    assert probe(LayerNormAct2d(8)).kind == "other"  # an activation is fused into it
