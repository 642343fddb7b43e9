"""Where torch is not installed: the read level works, and more is refused with the name of the extra."""

from __future__ import annotations

import os

import pytest

from plugin.helpers import CHECKS, GPT2, READ_ITEMS, assert_no_insides, assert_refused

#: Hides torch and transformers from imports and from importlib.util.find_spec.
HIDING = """\
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in ("torch", "transformers") else find(name, path, target)

PathFinder.find_spec = find_spec
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest in a process of its own that has no torch."""
    site = pytester.mkdir("site")
    (site / "hide_torch_for_test.py").write_text(HIDING)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    return lambda *options: pytester.runpytest_subprocess("-p", "hide_torch_for_test", *options)


def test_the_hidden_torch_cannot_be_imported(run, pytester):
    pytester.makepyfile("import pytest\n\ndef test_hidden():\n    pytest.importorskip('torch')")
    run().assert_outcomes(skipped=1)


def test_the_read_level_works(run, checkpoint):
    checkpoint()
    result = run("--deaddir-model=m", "--deaddir-level=read")
    result.assert_outcomes(passed=len(READ_ITEMS))


def test_the_forward_level_is_refused_with_the_name_of_the_extra(run, checkpoint):
    checkpoint()
    assert_refused(run("--deaddir-model=m"), "pytest-deaddir[torch]", "--deaddir-level read", "torch and transformers")


def test_a_random_model_is_refused_with_the_name_of_the_extra(run):
    assert_refused(run(f"--deaddir-model={GPT2}"), "pytest-deaddir[torch]")


def test_a_pickle_fails_with_the_name_of_the_extra(run, checkpoint):
    folder = checkpoint()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    result = run("--deaddir-model=m", "--deaddir-level=read")
    assert result.ret == 1
    result.assert_outcomes(failed=1, skipped=CHECKS)
    assert "pytest-deaddir[torch]" in result.stdout.str()
    assert_no_insides(result)
