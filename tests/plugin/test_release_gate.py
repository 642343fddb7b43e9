"""examples/release-gate, run as its own workflow would, sound and with a defect."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def repository(tmp_path):
    pytest.importorskip("transformers", reason="the gate runs its models: pytest-deaddir[torch]")
    for name in ("release-gate", "tiny-gpt2", "tiny-llama"):
        shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    return tmp_path / "release-gate"


@pytest.fixture
def own_repository(repository):
    """The same as a model's own repository: the decoder lies in it."""
    shutil.copytree(repository.parent / "tiny-gpt2", repository, dirs_exist_ok=True)
    shutil.rmtree(repository.parent / "tiny-gpt2")
    gate = repository / "deaddir.toml"
    gate.write_text(gate.read_text(encoding="utf-8").replace('"../tiny-gpt2"', '"."'), encoding="utf-8")
    return repository


def call(repository, *arguments):
    root = str(EXAMPLES.parent)
    environment = os.environ | {
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "1",
        "PYTEST_ADDOPTS": "",
        "GITHUB_ACTIONS": "false",
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", "-p", "no:randomly", *arguments]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=300)


def test_in_a_models_own_repository_the_workflow_passes_too(own_repository):
    workflow = (own_repository / ".github" / "workflows" / "audit.yml").read_text(encoding="utf-8")
    for command in re.findall(r"run: pytest (.*)", workflow):
        done = call(own_repository, *shlex.split(command))
        assert done.returncode == 0, done.stdout + done.stderr
    assert "compared with ../tiny-gpt2" in done.stdout
    assert "2 from rules/" in done.stdout
    done = call(own_repository.parent, "release-gate/deaddir.toml::decoder::ACME002", "--rootdir=release-gate")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_workflow_passes_and_leaves_what_it_uploads(repository):
    workflow = (repository / ".github" / "workflows" / "audit.yml").read_text(encoding="utf-8")
    commands = re.findall(r"run: pytest (.*)", workflow)
    assert len(commands) == 2
    for command in commands:
        done = call(repository, *shlex.split(command))
        assert done.returncode == 0, done.stdout
    assert "compared with ../tiny-gpt2" in done.stdout
    assert (repository / "audit.sarif").exists()
    assert (repository / "audit.json").exists()


def test_a_planted_defect_fails_the_gate_at_its_site(repository):
    file = repository.parent / "tiny-gpt2" / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.ln_f.weight"][7] = 0
    save_file(tensors, file, {"format": "pt"})
    done = call(repository, "deaddir.toml", "-k", "decoder and not bf16")
    assert done.returncode == 1
    failed = set(re.findall(r"^FAILED deaddir.toml::decoder::(\w+)", done.stdout, re.MULTILINE))
    assert {"ACME001", "DD604"} <= failed
    assert not failed & {"DD101", "DD301", "DD903"}
    assert "|γ| of transformer.ln_f runs from 0 to" in done.stdout
