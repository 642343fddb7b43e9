"""The panel of the paper: its configs are those of the published models, and its table says what was audited."""

import importlib.util
import shutil
import sys
import tomllib

import pytest

from plugin.helpers import EXAMPLE

FOLDER = EXAMPLE.parent / "paper_panel"
PANEL = tomllib.loads((FOLDER / "panel.toml").read_text(encoding="utf-8"))

#: Parameters as published, in millions.
PUBLISHED = {
    **{"pythia-160m": 162, "gpt2": 124, "opt-1.3b": 1316, "bloom-1b1": 1065, "falcon-7b": 6922, "gpt-j-6b": 6053},
    **{"phi-2": 2780, "vit-base": 86, "dinov2-large": 304, "llama-3-8b": 8030, "mistral-7b": 7242, "qwen3-8b": 8191},
    **{"gemma-4-31b": 30_700, "qwen3.5-35b-a3b": 34_700},
}

TINY = """
[gpt2]
trained = "nobody/nothing"
type = "gpt2"
kind = "layernorm"
depth = "n_layer"
config = { n_embd = 32, n_layer = 3, n_head = 2, vocab_size = 300, n_positions = 256 }
cut = { n_layer = 2, vocab_size = 128 }
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run the script on a panel of one tiny model; gives its exit code and the cells of its last row by column."""
    spec = importlib.util.spec_from_file_location("paper_panel_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*words, panel=TINY):
        (tmp_path / "panel.toml").write_text(panel, encoding="utf-8")
        monkeypatch.setattr(module, "PANEL", tmp_path / "panel.toml")
        monkeypatch.setattr(sys, "argv", ["run.py", "--device=cpu", *words])
        code = int(module.main())
        lines = capfd.readouterr().out.splitlines()
        header, _, *rows = [line.replace("\\|", "∣").strip("| ").split(" | ") for line in lines if line.startswith("|")]
        below = " ".join(line for line in lines if line and not line.startswith("|"))
        cells = rows[-1]
        names = [*header[: len(module.COLUMNS)], *(f"trained {name}" for name in header[len(module.COLUMNS) :])]
        return code, dict(zip(names, [cell.strip() for cell in cells], strict=False)) | {"below": below}

    call.module = module
    return call


@pytest.mark.parametrize("name", PANEL)
def test_its_configs_have_the_published_numbers_of_parameters(name, with_torch):
    import torch
    import transformers

    model = PANEL[name]
    config = transformers.AutoConfig.for_model(model["type"], **model["config"])
    vision = model["type"] in ("vit", "dinov2")
    with torch.device("meta"):
        module = (transformers.AutoModel if vision else transformers.AutoModelForCausalLM).from_config(config)
    count = sum(parameter.numel() for parameter in module.parameters()) / 1e6
    assert count == pytest.approx(PUBLISHED[name], rel=0.03)


def test_it_is_of_nine_layernorms_and_five_rmsnorms():
    assert [model["kind"] for model in PANEL.values()].count("layernorm") == 9
    assert [model["kind"] for model in PANEL.values()].count("rmsnorm") == 5


def test_the_table_says_what_was_cut_and_fills_the_trained_columns_from_a_folder(tmp_path, run):
    shutil.copytree(EXAMPLE, tmp_path / "hub" / "gpt2")
    code, row = run(f"--trained={tmp_path / 'hub'}")
    assert code == 0
    assert (row["depth (true/run)"], row["cut or changed"]) == ("3/2", "n_layer 2, vocab_size 128")
    assert row["below"] == ""
    assert (row["kind"], row["∣cos∣"], row["kernel"], row["verdict"]) == ("layernorm", "1.0000", "present", "passed")
    assert (row["trained trained ∣cos∣"], row["trained dead"], row["trained verdict"]) == ("1.0000", "1", "passed")


def test_a_kind_that_is_not_what_it_should_be_and_a_model_that_is_not_there_are_no_success(tmp_path, run):
    code, row = run("--full", f"--trained={tmp_path}", panel=TINY.replace('"layernorm"', '"rmsnorm"'))
    assert (code, row["cut or changed"], row["verdict"]) == (1, "nothing", "passed")
    assert row["trained verdict"] == "not audited"
    assert row["below"].startswith("gpt2 trained: not audited: ")


def test_the_table_says_what_is_not_as_published_lists_too(run):
    config = "hidden_size = 32, num_attention_heads = 2, num_key_value_heads = 2, head_dim = 16, intermediate_size = 64"
    code, row = run(
        panel='[tiny]\ntype = "qwen3"\nkind = "rmsnorm"\ndepth = "num_hidden_layers"\nchanged = "decoder only"\n'
        f"config = {{ {config}, vocab_size = 256, num_hidden_layers = 3 }}\n"
        'cut = { num_hidden_layers = 2, layer_types = ["full_attention", "full_attention"] }\n'
    )
    assert code == 0
    assert row["cut or changed"] == "decoder only, num_hidden_layers 2, layer_types full_attention/full_attention"


def test_a_block_that_does_not_preserve_the_least_singular_value_is_no_success(run, monkeypatch):
    monkeypatch.setattr(run.module, "PRESERVED", 10.0)
    code, row = run()
    assert (code, row["verdict"]) == (1, "passed")


def test_the_rotary_settings_are_those_of_the_checkpoints():
    factors = {name: model["config"].get("rope_parameters", {}) for name, model in PANEL.items()}
    assert factors["phi-2"]["partial_rotary_factor"] == 0.4
    assert {name: of["rope_theta"] for name, of in factors.items() if of} == {
        "phi-2": 1e4,
        "llama-3-8b": 5e5,
        "qwen3-8b": 1e6,
    }
