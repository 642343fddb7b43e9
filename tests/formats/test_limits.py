"""What a config may make us build: a hostile one is refused before it takes time or memory, a healthy one never."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file
from torch import nn

from formats.bounds import patience
from pytest_deaddir import api
from pytest_deaddir.errors import CheckpointError
from pytest_deaddir.source import limits
from pytest_deaddir.source.checkpoint import Checkpoint
from pytest_deaddir.source.limits import within_limits
from pytest_deaddir.source.load import load
from pytest_deaddir.source.safetensors import StoredTensor
from pytest_deaddir.source.spec import parse_spec

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 30

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
GPT2 = {"model_type": "gpt2", "architectures": ["GPT2Model"], "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64}
VISION = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
TEXT = {key: value for key, value in LLAMA.items() if key != "architectures"}
LLAVA = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "text_config": TEXT,
    "vision_config": VISION,
}


def write(folder, config):
    """A model's scale and nothing else, under any config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"model.norm.weight": np.ones(16, np.float32)}, folder / "model.safetensors")
    return folder


def changed(config, path, value):
    config = json.loads(json.dumps(config))
    *sections, key = path.split(".")
    section = config
    for name in sections:
        section = section[name]
    section[key] = value
    return config


@pytest.mark.parametrize(
    ("config", "path", "value", "says"),
    [
        (LLAMA, "num_hidden_layers", 10**6, "'num_hidden_layers' is 1000000, and no model has more than 30000"),
        (LLAMA, "num_hidden_layers", 20_000, "it describes more than 8208 modules and tensors, and the files have 1 "),
        (LLAMA, "vocab_size", 10**9, "it describes at least 16000000000 numbers, and the files hold 16"),
        (LLAMA, "intermediate_size", 10**7, "it describes at least 16"),
        (GPT2, "n_embd", 10**6, "it describes at least"),
        (GPT2, "n_positions", 10**9, "it describes at least"),
        (GPT2, "num_labels", 10**9, "'num_labels' is 1000000000"),
        (LLAVA, "text_config.num_hidden_layers", 10**6, "'num_hidden_layers' is 1000000"),
        (LLAVA, "text_config.vocab_size", 10**9, "it describes at least"),
        (LLAVA, "vision_config.image_size", 10**6, "it describes at least"),
        (LLAVA, "vision_config.num_hidden_layers", 10**12, "'num_hidden_layers' is 1000000000000"),
    ],
)
def test_a_config_that_describes_more_than_the_files_hold_is_refused(tmp_path, config, path, value, says):
    write(tmp_path, changed(config, path, value))
    with patience(SECONDS), pytest.raises(CheckpointError) as caught:
        load(parse_spec(str(tmp_path)), "cpu")
    assert f"{tmp_path / 'config.json'}: refused: {says}" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [("num_hidden_layers", 10**9), ("num_hidden_layers", 20_000), ("vocab_size", 10**9), ("hidden_size", 10**9)],
)
def test_the_read_level_leaves_open_what_it_does_not_build(tmp_path, path, value):
    assert {norm["kind"] for norm in api.read(write(tmp_path / "healthy", LLAMA)).norms} == {"rmsnorm"}
    with patience(SECONDS):
        [norm] = api.read(write(tmp_path / "hostile", changed(LLAMA, path, value))).norms
    assert norm["kind"] == "undecided"


def test_the_metadata_of_a_gguf_file_is_limited_too(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_block_count(10**9)
    writer.add_embedding_length(16)
    writer.add_tensor("output_norm.weight", np.ones(16, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with patience(SECONDS), pytest.raises(CheckpointError, match=r"x\.gguf: refused: 'num_hidden_layers' is 10+, "):
        load(parse_spec(str(tmp_path / "x.gguf")), "cpu")


@pytest.fixture
def without_margins(monkeypatch):
    """Nothing beside what is in proportion to the files, so that small models stand for large ones."""
    monkeypatch.setattr(limits, "MORE_NUMBERS", 0)
    monkeypatch.setattr(limits, "MORE_PARTS", 0)


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bart", "albert", "mixtral", "clip"])
def test_what_transformers_saves_it_may_load(tmp_path, without_margins, kind):
    """Tied weights are saved once and built up to four times; half precision changes no count."""
    small = {"t5": {"d_model": 32, "num_heads": 2, "num_layers": 1, "d_ff": 64, "d_kv": 16}}
    small |= {"gpt2": {"n_embd": 32, "n_head": 2, "n_layer": 1}, "clip": {"text_config": {"num_hidden_layers": 1}}}
    small |= {"mixtral": {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 4}}
    small |= {
        "bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    }
    small |= {"albert": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}}
    config = transformers.AutoConfig.for_model(kind, **small[kind])
    model = transformers.AutoModel.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert load(parse_spec(str(tmp_path)), "cpu").missing == frozenset()


def test_what_is_tied_while_it_is_built_counts_once(without_margins):
    config = transformers.AutoConfig.for_model("t5", d_model=32, num_heads=2, num_layers=1, d_ff=64, d_kv=16)
    embedding = StoredTensor("shared.weight", Path("x"), "F32", (config.vocab_size, 32), 0, config.vocab_size * 128)
    others = {str(i): StoredTensor(str(i), Path("x"), "F32", (1000,), 0, 4000) for i in range(30)}
    with within_limits(Checkpoint(Path("m"), {}, {"shared.weight": embedding, **others})), torch.device("meta"):
        transformers.AutoModel.from_config(config)


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_the_shipped_checkpoints_are_far_from_the_limits(without_margins, name):
    assert load(parse_spec(str(EXAMPLES / name)), "cpu").missing == frozenset()


def test_packed_weights_are_worth_what_they_hold(without_margins):
    """Two bits a weight, 16 in an integer of 32: 1024 × 1024 in a quarter of the bytes that float16 would halve."""
    packed = StoredTensor("q.weight", Path("x"), "I32", (1024, 64), 0, 1024 * 64 * 4)
    with within_limits(Checkpoint(Path("m"), {}, {"q.weight": packed})), torch.device("meta"):
        nn.Linear(1024, 1024, bias=False)
    with (
        pytest.raises(CheckpointError, match=r"at least 4194304 numbers, and the files hold 524288"),
        within_limits(Checkpoint(Path("m"), {}, {"q.weight": packed})),
        torch.device("meta"),
    ):
        nn.Linear(2048, 2048, bias=False)


def test_what_is_built_outside_is_not_limited(tmp_path):
    with pytest.raises(CheckpointError), within_limits(Checkpoint(tmp_path, {})), torch.device("meta"):
        nn.Linear(10**5, 10**5)
    with torch.device("meta"):
        nn.Linear(10**5, 10**5)


def test_labels_that_are_called_layers_are_no_counts():
    config = {"label2id": {f"layer {n}": n for n in range(21_843)}, "layer_norm_eps": 1e-6, "block_size": 131_072}
    assert limits.excessive_count(config) is None
    assert limits.excessive_count({"sections": [{"depths": [[2, 10**9]]}]}) is not None
