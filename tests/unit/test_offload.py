"""A limit of memory: the same audit of weights that are elsewhere, nothing left behind, and limits that make no sense."""

import copy
import tempfile

import pytest
import torch

from pytest_deaddir import audit
from pytest_deaddir.discovery.probe import probe
from pytest_deaddir.errors import CheckpointError, ModelError, SpecError
from pytest_deaddir.report.words import facts
from pytest_deaddir.source.load import load
from pytest_deaddir.source.memory import parse_memory
from pytest_deaddir.source.offload import is_offloaded, onloaded, placement
from pytest_deaddir.source.spec import parse_spec
from tiny import tiny

RANDOM = "random:gpt2?n_layer=2&n_embd=64&n_head=2&vocab_size=300&n_positions=64"
#: What two audits of one model may differ in.
OF_THE_RUN = {"seconds", "peak_memory", "max_memory", "placement"}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Our temporary folders that are there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return lambda: list(tmp_path.glob("deaddir-*"))


def saved(folder, kind, auto="AutoModelForCausalLM", dead=None, **overrides):
    """A sharded checkpoint; ``dead``: a norm with two γ of 1e-30 and no shift there."""
    module, _ = tiny(kind, auto, torch.float32, **overrides)
    if dead:
        norm = module.get_submodule(dead)
        norm.weight.data[[2, 5]] = 1e-30
        norm.bias.data[[2, 5]] = 0
    module.save_pretrained(folder, max_shard_size="20KB")
    return folder, sum(parameter.nbytes for parameter in module.parameters())


def without(audited, *columns):
    left_out = OF_THE_RUN | set(columns)
    tables = audited.as_dict()
    return {**tables, "model": {k: v for k, v in tables["model"].items() if k not in left_out}}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gpt2", {"dead": "transformer.ln_f"}),
        ("llama", {}),
        ("mixtral", {}),  # its experts are merged while they load, and written anew
    ],
)
def test_a_quarter_of_the_memory_gives_the_same_audit(tmp_path, scratch, kind, more):
    folder, size = saved(tmp_path / kind, kind, **more)
    whole = audit(folder)
    limited = audit(folder, max_memory=f"{size // 4}B")
    assert without(limited) == without(whole)
    assert bool(limited.findings) is (kind == "gpt2")
    assert limited.model["max_memory"] == f"{size // 4}B"
    assert sum(limited.model["placement"].values()) == size
    assert limited.model["placement"].get("cpu", 0) <= size // 4
    assert whole.model["placement"] == {"cpu": size}
    assert limited.model["accumulators"] == whole.model["accumulators"] > 0
    assert not scratch()


def test_at_level_full_the_twin_is_the_same_and_the_rest_says_why_it_is_missing(tmp_path, scratch):
    folder, size = saved(tmp_path / "gpt2", "gpt2", n_embd=128)
    whole, limited = audit(folder, level="full"), audit(folder, level="full", max_memory=f"{size // 4}B")
    twins = [{k: v for k, v in norm.items() if k.startswith(("twin", "depth", "dead_"))} for norm in whole.norms]
    assert [{k: norm[k] for k in twin} for norm, twin in zip(limited.norms, twins, strict=True)] == [
        {**twin, "dead_energy": None} for twin in twins
    ]
    assert limited.model["depth"] == whole.model["depth"] != 0
    assert all("offloaded" in norm["invariance_note"] for norm in limited.norms)
    assert limited.model["redundant_parameters"] is None
    assert not scratch()


def test_what_is_built_at_random_is_the_same_in_files():
    whole, limited = audit(RANDOM), audit(RANDOM, max_memory="10KB")
    assert without(limited) == without(whole)
    assert limited.model["placement"]["disk"] > 0.4 * sum(whole.model["placement"].values())
    model = load(parse_spec(RANDOM), "cpu", "bfloat16", "10KB")
    expected = load(parse_spec(RANDOM), "cpu", "bfloat16").module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.module.state_dict().items())
    model.close()


def full_beyond(most):
    def fallocate(_descriptor, _start, size):
        if size > most:
            raise OSError(28, "No space left on device")

    return fallocate


def test_a_full_disk_while_the_model_runs_is_told_with_what_to_do(tmp_path, monkeypatch):
    folder, size = saved(tmp_path / "gpt2", "gpt2", n_embd=128)
    monkeypatch.setattr("os.posix_fallocate", full_beyond(0), raising=False)
    with pytest.raises(ModelError, match=r"^\d+ bytes cannot be kept in .*No space left on device; .*TMPDIR"):
        audit(folder, max_memory=f"{size // 4}B")


def test_a_full_disk_while_weights_are_converted_is_told_with_what_to_do(tmp_path, scratch, monkeypatch):
    from safetensors import SafetensorError

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    module, _ = tiny("gpt2", "AutoModelForCausalLM", torch.float32)
    module.config.save_pretrained(tmp_path / "gpt2")
    torch.save(module.state_dict(), tmp_path / "gpt2" / "pytorch_model.bin")
    monkeypatch.setattr("transformers.integrations.accelerate.save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left .* it is written to .*deaddir-.*TMPDIR"):
        audit(tmp_path / "gpt2", max_memory="5KB")
    assert not scratch()


def test_a_full_disk_leaves_the_twin_out_and_says_so(tmp_path, monkeypatch):
    folder, size = saved(tmp_path / "gpt2", "gpt2", n_embd=128, n_inner=4096)
    monkeypatch.setattr("os.posix_fallocate", full_beyond(10**6), raising=False)
    limited = audit(folder, level="full", max_memory=f"{size // 4}B")
    note = limited.model["twin_note"]
    assert "No space left" in note
    assert ("twin", f"no twin: {note}") in facts(limited.as_dict())
    assert limited.model["twin_seed"] is None
    assert all(norm["noise_ratio"] for norm in limited.norms)


def test_nothing_is_left_behind_where_the_model_fails(tmp_path, scratch, monkeypatch):
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

    folder, size = saved(tmp_path / "gpt2", "gpt2")

    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(GPT2MLP, "forward", broken)
    with pytest.raises(ModelError, match="broken"):
        audit(folder, max_memory=f"{size // 4}B")
    assert not scratch()


def test_a_norm_is_brought_without_the_weights_of_the_whole_model(tmp_path, monkeypatch):
    folder, _ = saved(tmp_path / "gpt2", "gpt2")
    model = load(parse_spec(str(folder)), "cpu", None, "1KB")
    assert is_offloaded(model.module)
    assert set(placement(model.module)) == {"disk"}
    norm = model.module.get_submodule("transformer.ln_f")
    expected = load(parse_spec(str(folder))).module.get_submodule("transformer.ln_f")
    copies = []
    deepcopy = copy.deepcopy
    monkeypatch.setattr(copy, "deepcopy", lambda value, memo=None: copies.append(memo) or deepcopy(value, memo))
    brought = onloaded(norm)
    assert norm._hf_hook in copies[0].values()  # known to the copying, and so not copied
    assert not hasattr(brought, "_hf_hook")
    assert torch.equal(brought.weight, expected.weight)
    assert (probe(norm).gamma == probe(expected).gamma).all()
    assert norm.weight.is_meta
    model.close()


@pytest.mark.parametrize(
    "text", ["", "2", "GB", "2XB", "-1GB", "cpu=", "=2GB", "cpu=1GB,2GB", "cpu=1GB,cpu=2GB", "tpu=1GB"]
)
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(ValueError, match=r"size|names no device|twice"):
        parse_memory(text)


def test_sizes():
    assert parse_memory("2GB") == {None: 2 * 10**9}
    assert parse_memory("cpu=1.5GiB, 0=20gb,1=500B") == {"cpu": 3 * 2**29, 0: 20 * 10**9, 1: 500}


def test_only_what_is_loaded_here_can_be_limited():
    with pytest.raises(SpecError, match="limit of memory"):
        audit("tiny:tiny", max_memory="1GB")
    with pytest.raises(SpecError, match="loaded already"):
        audit(torch.nn.LayerNorm(8), inputs=torch.randn(99, 8), max_memory="1GB")
