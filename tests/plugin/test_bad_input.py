"""Bad input: a usage error before anything is loaded, or a failure that names the file. Never a half, never our insides."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from pathlib import Path

import pytest

from plugin.helpers import (
    CHECKS,
    EXAMPLE,
    GPT2,
    READ_ITEMS,
    RULE,
    assert_no_insides,
    assert_refused,
    outcomes,
    report_of,
    text_of,
)
from pytest_deaddir.rules import shipped_rules


def assert_fails_whole(result, *parts, report="out.json"):
    """The discovery item fails and says every part of ``parts``, the others skip, and no judgement is reported."""
    shown = text_of(result)
    assert result.ret == 1, shown
    seen = list(outcomes(result).items())
    assert seen[0][1] == "failed"
    assert seen[0][0].endswith("::discovery")
    assert {outcome for _, outcome in seen[1:]} == {"skipped"}
    section = shown.partition("= FAILURES =")[2].partition("= deaddir =")[0]
    for part in parts:
        assert section.count(part) == 1, shown
    assert_no_insides(result)
    (model,) = report_of(report)
    for part in parts:
        assert part in model["error"]
    assert model["findings"] == model["norms"] == model["blocks"] == []
    assert model["checks"]["run"] == model["checks"]["passed"] == 0
    result.stdout.fnmatch_lines([f"0 of {len(seen) - 1} checks ran*"])


# --- usage errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nothing-here", "no such model: 'nothing-here'"),
        ("nothing/below/here", "no such model: 'nothing/below/here'"),
        ("nothing.safetensors", "no such model: 'nothing.safetensors'"),
        ("", "no such model: ''"),
        ("x" * 5000, "cannot be a path"),
        ("random:", "no such model: 'random:'"),
        ("random:gpt2?n_layer", "'n_layer' is not name=value"),
        ("random:gpt2?n_layer=1&n_layer=2", "n_layer is given twice"),
        ("random:gpt2?seed=x", "seed must be a whole number"),
    ],
    ids=lambda value: value[:24],
)
def test_a_spec_that_names_nothing_is_refused(audit, nothing_is_measured, model, says):
    assert_refused(audit(models=[model], level="forward"), says)


def test_a_spec_that_names_nothing_is_told_what_forms_there_are(audit, nothing_is_measured):
    assert_refused(audit(models=["nothing-here"]), "path/to/checkpoint", "random:gpt2", "org/name")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "m: the directory is empty"),
        (["notes.txt"], "no config.json (it holds notes.txt)"),
        (["model.safetensors"], "no config.json"),
        (["config.json", "notes.txt"], "none of model.safetensors,"),
    ],
    ids=["empty", "no config", "weights alone", "config alone"],
)
def test_a_directory_that_is_no_checkpoint_is_refused(audit, pytester, nothing_is_measured, files, says):
    folder = pytester.mkdir("m")
    for name in files:
        (folder / name).write_text("{}")
    assert_refused(audit(), says)


@pytest.mark.parametrize("name", ["weights.bin", "notes.txt"])
def test_a_file_that_is_no_checkpoint_is_refused(audit, pytester, nothing_is_measured, name):
    (pytester.path / name).write_bytes(b"")
    assert_refused(audit(models=[name]), name, "must be .safetensors or .gguf")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--deaddir-level=deep", "--deaddir-level deep: not one of read, forward, full"),
        ("--deaddir-solver=magic", "--deaddir-solver magic: not one of inverse, svd"),
        ("--deaddir-level=", "--deaddir-level"),
        ("--deaddir-device=abacus", "--deaddir-device abacus: not one of auto, cpu, cuda, mps"),
        ("--deaddir-dtype=int8", "--deaddir-dtype int8: not one of auto,"),
        ("--deaddir-samples=0", "--deaddir-samples 0: not a positive whole number"),
        ("--deaddir-samples=-5", "--deaddir-samples -5"),
        ("--deaddir-samples=many", "--deaddir-samples many"),
        ("--deaddir-samples=1.5", "--deaddir-samples 1.5"),
        ("--deaddir-batch-size=0", "--deaddir-batch-size 0: not a positive whole number"),
        ("--deaddir-batch-size=all", "--deaddir-batch-size all"),
        ("--deaddir-inputs=nothing.txt", "--deaddir-inputs nothing.txt: no such file"),
        (f"--deaddir-inputs={'x' * 5000}", "no such file or folder"),
        ("--deaddir-report=out.pdf", "out.pdf: the suffix must be one of .json, .md"),
        ("--deaddir-report=out", "out: the suffix must be one of .json, .md"),
        ("--deaddir-report=nowhere/out.json", "nowhere/out.json: no such folder"),
        ("--deaddir-report=folder.json", "folder.json"),
        ("--deaddir-rules=nothing.toml", "nothing.toml: cannot be read"),
        ("--deaddir-rules=m", "no *.toml rule file in this folder"),
    ],
    ids=lambda value: value.removeprefix("--deaddir-")[:24] if value.startswith("--deaddir-") else None,
)
def test_an_option_that_cannot_be_meant_is_refused(audit, checkpoint, pytester, nothing_is_measured, option, says):
    checkpoint()
    pytester.mkdir("folder.json")
    assert_refused(audit(option), says)


@pytest.mark.parametrize(
    "option", ["level=deep", "device=abacus", "dtype=int8", "samples=0", "inputs=nothing.txt", "report=out", "rules=m"]
)
def test_an_option_that_cannot_be_meant_is_refused_where_no_model_is_given_too(pytester, nothing_is_measured, option):
    pytester.makepyfile("def test_one(): pass")
    pytester.mkdir("m")
    assert_refused(pytester.runpytest_inprocess(f"--deaddir-{option}"), option.partition("=")[2])


def test_the_audit_and_nothing_else_is_no_pass_where_no_model_is_given(pytester):
    pytester.makepyfile("def test_one(): pass")
    result = pytester.runpytest_inprocess("--deaddir-only")
    assert result.ret in (4, 5), text_of(result)


def test_a_random_model_has_no_files_to_read(audit, nothing_is_measured):
    assert_refused(audit(models=[GPT2]), GPT2, "--deaddir-level forward")


def test_a_bare_file_has_nothing_to_run(audit, checkpoint, nothing_is_measured):
    checkpoint()
    result = audit(models=["m/model.safetensors"], level="forward")
    assert_refused(result, "m/model.safetensors", "--deaddir-level read")


def test_every_mistake_of_a_command_line_is_told_at_once(audit, pytester, nothing_is_measured):
    result = audit("--deaddir-dtype=int8", "--deaddir-samples=0", "--deaddir-rules=nothing.toml", models=["a", "b"])
    assert_refused(result, "int8", "--deaddir-samples 0", "nothing.toml", "model: 'a'", "model: 'b'")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"code = ", "not TOML"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "missing code, message, name"),
        (RULE.replace("ACME001", "DD001").encode(), "code DD001 is taken by"),
    ],
    ids=["not toml", "not text", "empty", "code of a shipped rule"],
)
def test_a_rule_file_that_cannot_be_used_stops_the_run(audit, checkpoint, pytester, nothing_is_measured, text, says):
    checkpoint()
    (pytester.path / "rule.toml").write_bytes(text)
    assert_refused(audit("--deaddir-rules=rule.toml"), "rule.toml", says)


def test_every_mistake_of_every_rule_file_is_told_at_once(audit, checkpoint, pytester, nothing_is_measured):
    checkpoint()
    rules = pytester.mkdir("rules")
    first = RULE.replace('"error"', '"fatal"').replace("features = { max = 4 }", "girth = { about = 4 }")
    (rules / "a.toml").write_text(first)
    (rules / "b.toml").write_text(RULE.replace("max = 4", 'max = "wide"'))
    result = audit("--deaddir-rules=rules")
    assert_refused(result, "a.toml", "'fatal'", "no column 'girth'", "b.toml", "max must be a number, not 'wide'")


def test_the_header_counts_the_rules_and_names_where_they_come_from(audit, checkpoint, pytester):
    checkpoint()
    (pytester.path / "rule.toml").write_text(RULE)
    shown = audit("--deaddir-rules=rule.toml").outlines
    (line,) = [line.removeprefix("deaddir rules: ") for line in shown if line.startswith("deaddir rules:")]
    assert set(line.split(", ")) == {
        f"{len(list(shipped_rules().glob('*.toml')))} from the catalogue",
        "1 from rule.toml",
    }


# --- failures that name the file ------------------------------------------------------------------------------------


def test_truncated_weights(audit, checkpoint):
    checkpoint(truncated=True)
    assert_fails_whole(audit("--deaddir-report=out.json"), "m/model.safetensors: truncated")


def test_a_bare_truncated_file(audit, checkpoint):
    checkpoint(truncated=True)
    result = audit("--deaddir-report=out.json", models=["m/model.safetensors"])
    assert_fails_whole(result, "m/model.safetensors: truncated")


def header(text):
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "truncated"),
        (b"\x00" * 7, "truncated"),
        (struct.pack("<Q", 2**40) + b"{}", "(the limit is"),
        (struct.pack("<Q", 5000) + b"{}", "truncated"),
        (header(b"{"), "not safetensors"),
        (header(b"[1]"), "not safetensors"),
        (header(b"[" * 100_000), "not safetensors"),
        (header(b"{}"), "no norm among its 0 tensors"),
        (header(b'{"a.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}') + b"\0" * 8, "contradicts"),
        (header(b'{"a.weight": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}') + b"\0" * 16, "contradicts"),
        (header(b'{"a.weight": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}') + b"\0" * 16, "contradicts"),
        (header(b'{"a.weight": 7}'), "contradicts"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "(the limit is"),
    ],
    ids=lambda value: (
        value.decode("latin-1")[8:30].encode("ascii", "replace").decode() if isinstance(value, bytes) else ""
    ),
)
def test_weights_that_are_not_what_they_say(audit, checkpoint, content, says):
    (checkpoint() / "model.safetensors").write_bytes(content)
    result = audit("--deaddir-report=out.json")
    assert_fails_whole(result, says)
    assert "/m" in report_of("out.json")[0]["error"]


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff\xfe\x00", b"[" * 100_000], ids=["cut", "a list", "not text", "deep"]
)
def test_a_config_that_is_no_config(audit, checkpoint, content):
    (checkpoint() / "config.json").write_bytes(content)
    assert_fails_whole(audit("--deaddir-report=out.json"), "m/config.json: ")


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": "GPT2"},
        {"architectures": [1]},
        {"n_embd": [16], "hidden_size": {"a": 1}},
        {"n_embd": -1},
        {"rms_norm_eps": None},
    ],
    ids=str,
)
def test_a_config_of_odd_values_does_not_stop_the_read(audit, checkpoint, config):
    (checkpoint() / "config.json").write_text(json.dumps(config))
    result = audit()
    assert result.ret == 0
    assert_no_insides(result)


@pytest.fixture
def sharded(checkpoint):
    """A checkpoint in two shards; gives its folder and its index."""
    from safetensors.numpy import load_file, save_file

    folder = checkpoint()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder, index


def test_a_sharded_checkpoint_is_read_as_one(audit, sharded):
    result = audit("--deaddir-report=out.json")
    assert result.ret == 0
    (model,) = report_of("out.json")
    assert [norm["path"] for norm in model["norms"]] == [
        "transformer.h.0.ln_1",
        "transformer.h.0.ln_2",
        "transformer.ln_f",
    ]
    assert {norm["gamma_file"] for norm in model["norms"]} <= {"one.safetensors", "two.safetensors"}


def test_one_truncated_shard_of_two_leaves_nothing_half_reported(audit, sharded):
    folder, _ = sharded
    shard = folder / "two.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert_fails_whole(audit("--deaddir-report=out.json"), "m/two.safetensors: truncated")


def test_a_missing_shard(audit, sharded):
    folder, _ = sharded
    (folder / "two.safetensors").unlink()
    assert_fails_whole(audit("--deaddir-report=out.json"), "'two.safetensors', which is not there")


def test_weights_that_shrink_while_they_are_read_leave_nothing_half_reported(audit, checkpoint, monkeypatch):
    from pytest_deaddir.source import checkpoint as module

    folder = checkpoint()
    read_header = module.read_header

    def torn(path):
        found = read_header(path)
        Path(path).write_bytes(Path(path).read_bytes()[:-7000])
        return found

    monkeypatch.setattr(module, "read_header", torn)
    assert_fails_whole(audit("--deaddir-report=out.json"), f"{folder / 'model.safetensors'}: truncated within tensor")


@pytest.fixture
def opened(monkeypatch):
    """The paths that were opened through pathlib."""
    paths = []
    plain = Path.open

    def recording(path, *args, **kwargs):
        paths.append(path)
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", recording)
    return paths


def lead_outside(sharded, name):
    """Make the index of a sharded checkpoint name a shard at ``name``, where a healthy one is."""
    folder, index = sharded
    shutil.copy(folder / "two.safetensors", folder.parent / "out.safetensors")
    shards = {"one.safetensors": "one.safetensors", "two.safetensors": name}
    index["weight_map"] = {tensor: shards[shard] for tensor, shard in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "sub/../../out.safetensors", "/etc/passwd", "..", "..\\out.safetensors"]
)
def test_an_index_that_leads_outside_is_refused_before_anything_there_is_opened(audit, sharded, opened, name):
    lead_outside(sharded, name)
    result = audit("--deaddir-report=out.json")
    assert_fails_whole(result, "model.safetensors.index.json: refused", repr(name))
    assert not [path for path in opened if path.name in ("out.safetensors", "passwd")]


def test_transformers_is_not_asked_to_follow_an_index_that_leads_outside(audit, sharded, with_torch, monkeypatch):
    import transformers

    def from_pretrained(*args, **kwargs):
        raise AssertionError("asked")

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "from_pretrained", from_pretrained)
    lead_outside(sharded, "../out.safetensors")
    result = audit("--deaddir-report=out.json", level="forward")
    assert_fails_whole(result, "model.safetensors.index.json: refused")


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, "x"], ids=str)
def test_an_index_that_is_no_index(audit, sharded, weight_map):
    folder, _ = sharded
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_fails_whole(audit("--deaddir-report=out.json"), "model.safetensors.index.json: weight_map")


def test_weights_without_a_norm_are_not_a_pass(audit, checkpoint):
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"wte.weight": np.zeros((4, 4), "f4")}, checkpoint() / "model.safetensors")
    assert_fails_whole(audit("--deaddir-report=out.json"), "no norm among its 1 tensors")


def test_a_healthy_model_beside_a_broken_one_is_reported_in_full(audit, checkpoint):
    checkpoint("broken", truncated=True)
    checkpoint("healthy")
    result = audit("--deaddir-report=out.json", models=["broken", "healthy"])
    assert result.ret == 1
    assert list(outcomes(result).values()) == ["failed"] + ["skipped"] * CHECKS + ["passed"] * len(READ_ITEMS)
    broken, healthy = report_of("out.json")
    assert "error" in broken
    assert "error" not in healthy
    assert healthy["checks"]["passed"] == CHECKS


def test_the_skipped_checks_of_a_failed_audit_say_why(audit, checkpoint):
    checkpoint(truncated=True)
    audit("-rs").stdout.fnmatch_lines([f"SKIPPED [[]{CHECKS}] *: not judged: the audit of m failed, see m::discovery"])


def test_the_discovery_item_tells_the_error_whatever_the_order(audit, checkpoint, pytester):
    checkpoint(truncated=True)
    pytester.makeconftest("def pytest_collection_modifyitems(items): items.reverse()")
    result = audit()
    assert result.ret == 1
    assert list(outcomes(result)) == [f"m::{name}" for name in reversed(READ_ITEMS)]
    assert list(outcomes(result).values()) == ["skipped"] * CHECKS + ["failed"]


def test_a_check_chosen_alone_fails_where_its_audit_does(audit, checkpoint):
    checkpoint(truncated=True)
    result = audit("-k", "DD002")
    assert result.ret == 1
    assert outcomes(result) == {"m::DD002": "failed"}


# --- at the forward level -------------------------------------------------------------------------------------------


def test_an_unknown_model_type_is_told_with_what_comes_near(audit, with_torch):
    result = audit("--deaddir-report=out.json", models=["random:gtp2"], level="forward")
    assert_fails_whole(result, "transformers has no model type 'gtp2'; did you mean", "gpt2")


def test_an_unknown_setting_of_a_model_type(audit, with_torch):
    result = audit("--deaddir-report=out.json", models=["random:gpt2?n_layers=1"], level="forward")
    assert_fails_whole(result, "the gpt2 config has no 'n_layers'")


@pytest.mark.parametrize(
    "spec",
    [
        "random:gpt2?num_hidden_layers=1&n_embd=32&n_head=4&vocab_size=64",  # an alias of n_layer
        "random:gemma4_text?hidden_size=64&num_hidden_layers=2&num_attention_heads=4&num_key_value_heads=2&head_dim=16"
        "&intermediate_size=64&vocab_size=128&hidden_size_per_layer_input=0",  # layers differ in head_dim
    ],
)
def test_settings_a_config_has_by_another_name_or_for_each_layer(audit, with_torch, spec):
    result = audit(models=[spec], level="forward")
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["* checks ran: * 0 failed, *"])


def test_settings_that_transformers_cannot_build(audit, with_torch):
    result = audit("--deaddir-report=out.json", models=["random:gpt2?n_embd=32&n_head=5"], level="forward")
    assert_fails_whole(result, "transformers cannot build it")


def test_a_checkpoint_of_an_unknown_model_type(audit, checkpoint, with_torch):
    folder = checkpoint()
    (folder / "config.json").write_text('{"model_type": "no-such-model", "architectures": ["NoSuchModel"]}')
    assert_fails_whole(audit("--deaddir-report=out.json", level="forward"), "transformers cannot load it")


def test_as_many_rows_as_dimensions_is_an_error_with_the_number_needed(audit, with_torch):
    result = audit("--deaddir-report=out.json", "--deaddir-samples=32", models=[GPT2], level="forward")
    assert_fails_whole(result, "N = 32 rows for width d = 32; at least 33 are needed")


def test_a_text_file_for_a_model_without_a_tokenizer(audit, pytester, with_torch):
    (pytester.path / "text.txt").write_text("word " * 1000)
    options = ["--deaddir-report=out.json", "--deaddir-inputs=text.txt"]
    assert_fails_whole(audit(*options, models=[GPT2], level="forward"), "text.txt: the model has no tokenizer")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": 2}\n', "a.jsonl: line 2: its text is not a string, but int"),
        ("a.jsonl", b'{"text": "one"}\n\xff\n', "a.jsonl: line 2: not UTF-8"),
        ("a.jsonl", b'{"text": "one"}\n', "at least 129 are needed, 512 are advised: a.jsonl gives no more"),
    ],
    ids=["text", "bytes", "few"],
)
def test_records_that_cannot_be_fed(audit, pytester, with_torch, name, content, says):
    (pytester.path / name).write_bytes(content)
    options = ["--deaddir-report=out.json", f"--deaddir-inputs={name}"]
    assert_fails_whole(audit(*options, models=[EXAMPLE], level="forward"), says)


def test_the_name_of_a_strangers_file_does_nothing_to_a_terminal(audit, pytester, with_torch):
    pytester.mkdir("data")
    (pytester.path / "data" / "\x1b[2J.jsonl").write_bytes(b"{")
    shown = text_of(audit("--deaddir-inputs=data", models=[EXAMPLE], level="forward"))
    assert r"data/\x1b[2J.jsonl: line 1: not JSON" in shown
    assert "\x1b" not in shown


def test_a_folder_of_nothing_to_feed(audit, pytester, with_torch):
    pytester.mkdir("data")
    (pytester.path / "data" / "script.py").write_text("raise SystemExit")
    options = ["--deaddir-report=out.json", "--deaddir-inputs=data"]
    result = audit(*options, models=[EXAMPLE], level="forward")
    assert_fails_whole(result, "data: nothing in this folder can be fed")


def test_a_device_that_is_not_there(audit, with_torch, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = audit("--deaddir-report=out.json", "--deaddir-device=cuda", models=[GPT2], level="forward")
    assert_fails_whole(result, "--deaddir-device cuda", "no such device here")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("no_such_module_for_test:make", "No module named 'no_such_module_for_test'"),
        ("factories_for_test:nothing", "has no attribute 'nothing'"),
        ("factories_for_test:number", "returned a int, not an nn.Module"),
        ("factories_for_test:linear", "no module in it behaves as a LayerNorm or RMSNorm"),
        ("factories_for_test:fails_when_run", "its forward pass fails: ValueError: no"),
        ("factories_for_test:few", "too few samples: N = 8 rows for width d = 16"),
    ],
    ids=lambda value: value.partition(":")[2],
)
def test_a_factory_that_makes_nothing_to_audit(audit, pytester, with_torch, spec, says):
    pytester.makepyfile(
        factories_for_test="""
        import torch
        from torch import nn

        torch.manual_seed(0)

        def number():
            return 1

        def linear():
            return nn.Linear(4, 4), (torch.randn(100, 4),)

        class Fails(nn.Module):
            def forward(self, x):
                raise ValueError("no")

        def fails_when_run():
            return Fails(), (torch.randn(100, 4),)

        def few():
            return nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16)), (torch.randn(8, 16),)
        """
    )
    result = audit("--deaddir-report=out.json", models=[spec], level="forward")
    assert_fails_whole(result, says)


def test_a_hub_name_without_a_network_is_told_as_such(audit):
    result = audit("--deaddir-report=out.json", models=["no-such-org/no-such-model"])
    assert_fails_whole(result, "no-such-org/no-such-model: no local path of that name, and the hub does not give it")


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_a_pickle_with_code_is_refused_and_not_run(audit, checkpoint, pytester, with_torch):
    folder = checkpoint()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"ln_f.weight": Bomb()}))
    assert_fails_whole(audit("--deaddir-report=out.json"), "m/pytorch_model.bin: refused")
    assert not (pytester.path / "exploded").exists()
