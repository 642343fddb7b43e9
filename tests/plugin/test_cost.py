"""What a run pays for: nothing where nothing is audited, and never more than its level needs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from plugin.helpers import FORWARD_ITEMS, READ_ITEMS, collected

HEAVY = {"numpy", "torch", "transformers", "safetensors", "huggingface_hub", "tabulate"}

#: Says at the end of a run, in a file, which modules it has imported.
WITNESS = """
    import pathlib, sys

    def pytest_sessionfinish():
        names = sorted({name.partition(".")[0] for name in sys.modules})
        pathlib.Path("imported.txt").write_text("\\n".join(names))
"""


@pytest.fixture
def imported(pytester):
    """Run pytest in a process of its own; gives the result and which of the heavy packages it imported."""
    pytester.makeconftest(WITNESS)

    def run(*options):
        result = pytester.runpytest_subprocess(*options)
        return result, HEAVY & set((pytester.path / "imported.txt").read_text().split())

    return run


def test_a_run_without_our_options_imports_nothing_heavy_and_says_nothing(imported, pytester):
    pytester.makepyfile(test_mine="def test_one(): pass")
    result, heavy = imported("-v")
    assert result.ret == 0
    assert not heavy
    mentions = [line for line in result.outlines if "deaddir" in line]
    assert [line.partition(":")[0] for line in mentions] == ["plugins"]


def test_without_the_plugin_its_options_are_unknown(imported, pytester):
    pytester.makepyfile(test_mine="def test_one(): pass")
    result, _ = imported("-p", "no:deaddir")
    assert result.ret == 0
    assert not [line for line in result.outlines if "deaddir" in line and not line.startswith(("plugins", "rootdir"))]
    assert pytester.runpytest_subprocess("-p", "no:deaddir", "--deaddir-model=m").ret == pytest.ExitCode.USAGE_ERROR


def test_our_tests_cost_nothing_where_only_a_test_of_another_file_is_collected(imported, pytester):
    pytester.makepyfile(test_mine="def test_one(): pass", test_theirs="def test_two(norm_site): pass")
    result, heavy = imported("test_mine.py")
    assert result.ret == 0
    assert not heavy


def test_listing_an_audit_imports_nothing_that_computes(imported, checkpoint):
    checkpoint()
    result, heavy = imported("--collect-only", "-q", "--deaddir-model=m", "--deaddir-report=out.json")
    assert result.ret == 0
    assert len(collected(result)) == len(FORWARD_ITEMS)
    assert not heavy & {"torch", "numpy", "transformers", "safetensors"}


def test_the_read_level_imports_no_torch(imported, checkpoint):
    checkpoint()
    result, heavy = imported("--deaddir-model=m", "--deaddir-level=read")
    result.assert_outcomes(passed=len(READ_ITEMS))
    assert "numpy" in heavy
    assert not heavy & {"torch", "transformers"}


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, json, pytest_deaddir; print(json.dumps(sorted(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(json.loads(shown))
