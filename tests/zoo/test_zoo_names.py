"""What the read level makes of tensor names and a config alone, against what a probe of the same model finds."""

import json

import numpy as np
import pytest
from safetensors.torch import save_file

from pytest_deaddir import read
from pytest_deaddir.discovery.names import sites_from_names
from pytest_deaddir.discovery.probe import is_vectors_only, probe
from zoo import judge, shrink

pytestmark = pytest.mark.filterwarnings("ignore")  # models warn of their own settings

#: Every convention: w, 1 + w (all norms, all but some, LayerNorms), with and without a shift, names that lie, mixtures.
TYPES = [
    *("gpt2", "bert", "llama", "t5", "cohere", "mpt", "gemma2", "gemma3_text", "qwen3_next", "nemotron", "paligemma"),
    *("moonshine_streaming", "muse_spark_text", "videoprism_text_model", "cohere2_moe", "olmo2", "clip", "step3p5"),
]


def parts(model_type):
    """A small model, its config as config.json has it, and its norms by probing."""
    model = shrink.build(model_type)
    judge.randomise(model)
    config = json.loads(model.config.to_json_string(use_diff=False))
    children = {path: child for path, child in model.named_modules() if is_vectors_only(child)}
    found = {path: probe(child) for path, child in children.items() if next(child.parameters(), None) is not None}
    return model, config, {path: norm for path, norm in found.items() if norm.kind != "other"}


@pytest.mark.parametrize("model_type", TYPES)
def test_kind_and_convention_are_right_or_undecided(model_type):
    model, config, probed = parts(model_type)
    named = {
        site.path: site for site in sites_from_names({k: tuple(v.shape) for k, v in model.state_dict().items()}, config)
    }
    assert probed
    for path, norm in probed.items():
        if norm.convention != "none" and not any(path.startswith(f"{outer}.") for outer in probed):
            assert named[path].convention == norm.convention, path
            assert named[path].kind in (norm.kind, "undecided"), path


@pytest.mark.parametrize("model_type", ["cohere", "mpt", "gemma2", "t5", "cohere2_moe"])
def test_the_class_on_the_meta_device_decides_what_names_leave_open(model_type, tmp_path):
    model, config, probed = parts(model_type)
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [type(model).__name__]}))
    save_file({k: v.clone().contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    audited = read(tmp_path)
    for norm in audited.norms:
        assert norm["kind"] == probed[norm["path"]].kind
        assert norm["gamma_source"] == "file"
        assert norm["gamma_max"] == np.abs(probed[norm["path"]].gamma).max()
    assert {norm["path"] for norm in audited.norms} == set(probed)


def test_the_class_knows_which_scales_the_file_lacks(tmp_path):
    """A bias-free norm leaves no trace of itself in the names once its scale is gone."""
    model, config, _ = parts("cohere")
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [type(model).__name__]}))
    tensors = {
        k: v.clone().contiguous() for k, v in model.state_dict().items() if k != "layers.1.input_layernorm.weight"
    }
    save_file(tensors, tmp_path / "model.safetensors")
    missing = [norm["path"] for norm in read(tmp_path).norms if norm["gamma_source"] == "missing"]
    assert missing == ["layers.1.input_layernorm"]
