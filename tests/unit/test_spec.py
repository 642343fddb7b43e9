import pytest

from pytest_deaddir.errors import SpecError
from pytest_deaddir.source.spec import parse_spec


def checkpoint(path, *names):
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).write_text("{}")
    return path


@pytest.mark.parametrize(
    "weights",
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"],
)
def test_a_directory_with_a_config_and_weights_is_a_checkpoint(tmp_path, weights):
    checkpoint(tmp_path / "m", "config.json", weights)
    spec = parse_spec("m", tmp_path)
    assert (spec.form, spec.path, spec.highest_level) == ("directory", tmp_path / "m", "full")


def test_a_bare_file_can_only_be_read(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"")
    spec = parse_spec(str(tmp_path / "x.safetensors"))
    assert (spec.form, spec.highest_level) == ("safetensors", "read")


def test_random_init_takes_overrides_and_a_seed():
    spec = parse_spec("random:gpt2?n_layer=4&activation_function=relu&scale=0.5&tie_word_embeddings=false&seed=7")
    assert (spec.form, spec.model_type, spec.seed) == ("random", "gpt2", 7)
    assert dict(spec.overrides) == {
        "n_layer": 4,
        "activation_function": "relu",
        "scale": 0.5,
        "tie_word_embeddings": False,
    }


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("package.module:factory", "factory"),
        ("module:Class.method", "factory"),
        ("org/name", "hub"),
        ("org/name-1.5_x@refs/pr/3", "hub"),
    ],
)
def test_forms_that_are_no_paths(text, form):
    assert parse_spec(text).form == form


def test_a_path_that_exists_wins_over_a_hub_id(tmp_path):
    checkpoint(tmp_path / "org" / "name", "config.json", "model.safetensors")
    assert parse_spec("org/name", tmp_path).form == "directory"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nope", "no such model"),
        ("", "no such model"),
        ("./org/name", "no such model"),
        ("a/b/c", "no such model"),
        ("org/gone.safetensors", "no such model"),
        ("random:", "no such model"),
        ("random:gpt2?n_layer", "not name=value"),
        ("random:gpt2?n_layer=1&n_layer=2", "given twice"),
        ("random:gpt2?seed=x", "seed must be"),
        ("x" * 5000, "path"),
        ("nul\0", "path"),
    ],
)
def test_what_names_nothing_says_so(tmp_path, text, problem):
    with pytest.raises(SpecError, match=problem):
        parse_spec(text, tmp_path)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ([], "empty"),
        (["README.md"], "no config.json"),
        (["config.json", "adapter_model.safetensors"], "none of model.safetensors"),
    ],
)
def test_a_directory_that_is_no_checkpoint_says_what_it_holds(tmp_path, names, problem):
    checkpoint(tmp_path / "m", *names)
    with pytest.raises(SpecError, match=problem) as caught:
        parse_spec("m", tmp_path)
    assert all(name in str(caught.value) for name in names)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(SpecError, match="give its directory"):
        parse_spec("weights.bin", tmp_path)
