"""What the tests of the pytest behaviour share: checkpoints to audit, and ways to see what came of a run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pytest_deaddir.rules import load_rules, shipped_rules

#: Models that run at level forward within a fraction of a second.
GPT2 = "random:gpt2?n_layer=1&n_embd=32&n_head=2&vocab_size=64&n_positions=64"
#: The same with a stack of blocks, which takes more than one.
DEEP_GPT2 = GPT2.replace("n_layer=1", "n_layer=3")
LLAMA = (
    "random:llama?num_hidden_layers=1&hidden_size=32&num_attention_heads=2&num_key_value_heads=2"
    "&intermediate_size=64&vocab_size=64&max_position_embeddings=64"
)
#: A trained GPT-2 with its tokenizer, of width 128.
EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-gpt2"
#: A rule file, by which every norm of the checkpoints here is a finding.
RULE = """
code = "ACME001"
name = "narrow"
severity = "error"
table = "norms"
require = { features = { max = 4 } }
message = "{path} is {features} wide"
summary = "A norm is wide."
"""
#: A limit that only a norm with no dead coordinate keeps.
STRICT = """
code = "ACME001"
name = "strict"
severity = "error"
table = "norms"
require = { dead_coordinate_count = { max = 0 } }
message = "{path}"
summary = "Strict."
"""
_ALL_RULES = load_rules([shipped_rules()])
_RULES = [rule for rule in _ALL_RULES if not rule.compares]
#: The names of a model's items at each level; the catalogue may grow.
READ_ITEMS = ["discovery", *(rule.code for rule in _RULES if rule.level == "read")]
FORWARD_ITEMS = ["discovery", *(rule.code for rule in _RULES if rule.level != "full")]
#: What comes beside a baseline at level read.
COMPARED_ITEMS = [rule.code for rule in _ALL_RULES if rule.compares and rule.level == "read"]
#: How many checks a model has at level read.
CHECKS = len(READ_ITEMS) - 1


def write_checkpoint(folder, *, width=16, layers=1, nan=None, tiny=None, missing=None, rms=False, truncated=False):
    """A GPT-2-like checkpoint, healthy but for what is planted. Returns its folder.

    ``nan``: a norm whose γ gets one NaN. ``tiny``: a norm with two γ of 1e-30 and no shift there. ``missing``: a norm
    whose γ is left out. ``rms``: norms without shift, and a config that says RMSNorm. ``truncated``: the weights' last
    kilobyte is cut off.
    """
    rng = np.random.default_rng(0)
    norms = [f"transformer.h.{i}.{name}" for i in range(layers) for name in ("ln_1", "ln_2")] + ["transformer.ln_f"]
    tensors = {"transformer.wte.weight": rng.standard_normal((64, width))}
    for layer in range(layers):
        tensors[f"transformer.h.{layer}.attn.c_attn.weight"] = rng.standard_normal((width, 3 * width))
    for norm in norms:
        tensors[f"{norm}.weight"] = 1 + 0.1 * rng.standard_normal(width)
        if not rms:
            tensors[f"{norm}.bias"] = 0.1 * rng.standard_normal(width)
    if nan:
        tensors[f"{nan}.weight"][3] = np.nan
    if tiny:
        tensors[f"{tiny}.weight"][[2, 5]] = 1e-30
        tensors[f"{tiny}.bias"][[2, 5]] = 0
    if missing:
        del tensors[f"{missing}.weight"]
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": width, "n_layer": layers}
    config |= {"n_head": 2, "vocab_size": 64, "n_positions": 64}
    config |= {"rms_norm_eps": 1e-6} if rms else {"layer_norm_epsilon": 1e-5}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    save_file({name: values.astype(np.float32) for name, values in tensors.items()}, weights)
    if truncated:
        weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def outcomes(result):
    """Node id → outcome of every test that an in-process run called, in the order of the run."""
    assert result.ret in (0, 1, 2, 5), text_of(result)
    reports = result.reprec.getreports("pytest_runtest_logreport")
    return {report.nodeid: report.outcome for report in reports if report.when == "call" or not report.passed}


def failed(result):
    """The node ids of the tests that failed in an in-process run."""
    return [nodeid for nodeid, outcome in outcomes(result).items() if outcome == "failed"]


def collected(result):
    """The node ids that ``--collect-only -q`` printed."""
    return [line for line in result.outlines if "::" in line]


def text_of(result):
    """Everything that a run printed."""
    return f"{result.stdout.str()}\n{result.stderr.str()}"


def rerun_lines(result):
    """The commands that a run's failing items offer, as arguments of pytest."""
    lines = [line for line in result.outlines if line.startswith("re-run ")]
    commands = [shlex.split(line.removeprefix("re-run")) for line in lines]
    assert all(command[0] == "pytest" for command in commands), lines
    return [command[1:] for command in commands]


def assert_refused(result, *parts):
    """A usage error (exit 4) that says every part of ``parts``, and shows nobody our insides."""
    shown = text_of(result)
    assert result.ret == 4, shown
    for part in parts:
        assert part in shown, shown
    assert_no_insides(result)


def assert_no_insides(result):
    """What is wrong with the input is told in words, not as a traceback of ours."""
    shown = text_of(result)
    for sign in ("Traceback", "INTERNALERROR", "pytest_deaddir/", "During handling"):
        assert sign not in shown, shown


def report_of(path):
    """The models of a JSON report."""
    document = json.loads(Path(path).read_text(encoding="utf-8"))
    assert document["schema"] == "pytest-deaddir/audit/1"
    return document["models"]
