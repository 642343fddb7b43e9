"""Discovery on a sample of transformers' architectures that holds each kind, convention, layout and style at least once.

The whole is in docs/zoo.md, written by ``python -m tests.zoo.census``.
"""

import pytest
import torch

from pytest_deaddir.discovery.discover import discover
from pytest_deaddir.errors import InputsError
from pytest_deaddir.source.synthetic import synthetic_inputs
from zoo import shrink
from zoo.compare import built, compared, truth_row

pytestmark = pytest.mark.filterwarnings("ignore")  # models warn of their own settings

# What each is here for. Together they are to take a minute on one core.
SAMPLE = {
    # layernorm: pre-norm, post-norm, parallel, without bias, without parameters, 1 + w, over dim 1
    "gpt2": {"pre-norm"},
    "bert": {"post-norm"},
    "bloom": {"pre-norm"},
    "gpt_neox": {"parallel"},
    "falcon": {"parallel"},
    "phi": {"parallel"},
    "cohere": {"parallel"},
    "mpt": {"pre-norm"},
    "olmo": {"pre-norm"},
    "nemotron": {"pre-norm"},
    "modernbert": {"pre-norm"},
    "dbrx": set(),
    "squeezebert": set(),
    "deberta-v2": {"post-norm"},
    "layoutlmv3": {"post-norm"},
    "rwkv": {"pre-norm"},
    # rmsnorm: weight, 1 + w, without scale, sandwich, norm after the sublayer, beside gated norms
    "llama": {"pre-norm"},
    "qwen3": {"pre-norm"},
    "gemma": {"pre-norm"},
    "gemma2": {"sandwich"},
    "gemma3_text": {"sandwich"},
    "gemma4_text": {"sandwich"},
    "olmo2": set(),
    "exaone4": set(),
    "glm4": {"sandwich"},
    "qwen3_next": {"pre-norm"},
    "recurrent_gemma": {"pre-norm"},
    "deepseek_v3": {"pre-norm"},
    "llama4_text": {"pre-norm"},
    "jamba": {"pre-norm"},
    "mamba": set(),
    "xlstm": set(),
    "imagegpt": {"pre-norm"},  # calls its RMSNorm LayerNorm
    # encoder-decoders
    "t5": {"pre-norm"},
    "bart": {"post-norm"},
    "mbart": {"pre-norm"},
    "t5gemma": {"sandwich"},
    "time_series_transformer": {"post-norm"},
    # vision: plain, no final norm, hierarchical, over dim 1
    "vit": {"pre-norm"},
    "dinov2": {"pre-norm"},
    "beit": {"pre-norm"},
    "vitdet": {"pre-norm"},
    "swin": set(),
    "swinv2": set(),
    "convnext": set(),
    "hiera": set(),
    "pix2struct_vision_model": {"pre-norm"},
    "resnet": set(),
    # audio
    "wav2vec2": {"post-norm"},
    "data2vec-audio": set(),
    "whisper": {"pre-norm"},
    "moonshine_streaming": {"pre-norm"},
    "speecht5": {"post-norm"},
    # several models in one
    "clip": {"pre-norm"},
    "siglip": {"pre-norm"},
    "lxmert": set(),
    "idefics": {"pre-norm"},
    "paligemma": {"pre-norm"},
    "chameleon": {"pre-norm"},
    "musicgen": {"pre-norm"},
    # shared and repeated layers, parallel lists, unusual streams
    "albert": {"post-norm"},
    "hrm_text": set(),
    "xlnet": set(),
    "xlm": set(),
    "funnel": set(),
    "decision_transformer": {"pre-norm"},
}

# Where discovery's style is known to be wrong.
WRONG_STYLE = {
    "vitdet": "the block permutes its input before the norm, so that no norm seems to read the stream",
}


@pytest.mark.parametrize("model_type", SAMPLE)
def test_discovery_agrees_with_the_truth_table(model_type):
    model, inputs = built(model_type)
    found = discover(model, inputs)
    result = compared(found, truth_row(model_type))
    assert found.how == "values"
    assert result["wrong"] == []
    assert result["final"] is not False, result["final_pair"]
    assert result["stacks"], result["stack_pair"]
    styles = {stack.style for stack in found.stacks if stack.within is None}
    if model_type in WRONG_STYLE and not SAMPLE[model_type] <= styles:
        pytest.xfail(WRONG_STYLE[model_type])
    assert SAMPLE[model_type] <= styles


def test_the_sample_holds_every_kind_convention_and_style():
    """What the comparison above says nothing of, if nobody looks: that the sample is as mixed as it claims to be."""
    rows = {t: truth_row(t) for t in SAMPLE}
    norms = [norm for row in rows.values() for norm in row.get("norms", {}).values()]
    assert {norm.split()[0] for norm in norms} == {"layernorm", "rmsnorm"}
    assert any("dim1" in norm for norm in norms)
    assert any(not row["final"].get("norms") for row in rows.values())
    assert any(row.get("nested") for row in rows.values())
    assert any(len(row.get("stacks", ())) > 1 for row in rows.values())
    assert set().union(*SAMPLE.values()) == {"pre-norm", "post-norm", "parallel", "sandwich"}


@pytest.mark.parametrize(
    ("model_type", "kind", "convention"),
    [
        ("gpt2", "layernorm", "w"),
        ("nemotron", "layernorm", "1+w"),
        ("moonshine_streaming", "layernorm", "1+w"),
        ("olmo", "layernorm", "none"),
        ("llama", "rmsnorm", "w"),
        ("gemma2", "rmsnorm", "1+w"),
        ("gemma4_text", "rmsnorm", "none"),
    ],
)
def test_conventions(model_type, kind, convention):
    model = shrink.build(model_type)
    assert (kind, convention) in {(norm.kind, norm.probe.convention) for norm in discover(model).norms}


FAMILIES = {
    "gpt2": "ln_f",
    "bert": "encoder.layer.2.output.LayerNorm",
    "t5": "decoder.final_layer_norm",
    "whisper": "decoder.layer_norm",
    "wav2vec2": "encoder.layers.2.final_layer_norm",
    "vit": "layernorm",
    "swin": "layernorm",
    "clip": None,
    "time_series_transformer": "decoder.layers.1.final_layer_norm",
    "decision_transformer": "encoder.ln_f",
    "qwen2_vl_vision": None,
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_inputs_are_made_up(model_type):
    """Token ids, decoder ids, spectrograms, waveforms, images, packed patches, series and trajectories."""
    model = shrink.build(model_type)
    modes = [module.training for module in model.modules()]
    found = discover(model)
    assert found.how == "values"
    assert found.stacks
    if model_type != "clip":  # which returns similarities, and no hidden state that could be compared
        assert found.final_norm == FAMILIES[model_type]
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model_type", "depth", "final", "style"),
    [
        ("gpt2", {"n_layer": 100}, "ln_f", "pre-norm"),
        ("llama", {"num_hidden_layers": 100}, "norm", "pre-norm"),
    ],
)
def test_a_hundred_layers_on_the_meta_device(model_type, depth, final, style):
    """At full width, without memory for weights. How long it takes: benchmarks/discovery.py."""
    from transformers import CONFIG_MAPPING, AutoModel

    config = CONFIG_MAPPING[model_type](**depth)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    found = discover(model)
    assert found.how == "identity"
    [stack] = found.stacks
    assert (len(stack.blocks), stack.final_norm, stack.style) == (100, final, style)
    assert found.final_norm == final
    assert {norm.role for norm in found.norms} == {"block", "final"}
    assert len(found.norms) == 201
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize(
    ("model_type", "argument"), [("sam3_detr_encoder", "vision_features"), ("edgetam_video", "inference_session")]
)
def test_inputs_that_cannot_be_made_up_are_named(model_type, argument):
    model = shrink.build(model_type)
    with pytest.raises(InputsError, match=rf"{argument}.*\(package\.module:factory\).*\(module, inputs\)"):
        synthetic_inputs(model)
    assert argument in discover(model).how
