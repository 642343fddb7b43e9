"""examples/training-repo: its suite audits a freshly built model, in each of the ways in which one is built."""

from __future__ import annotations

import shutil

import pytest

from plugin.helpers import EXAMPLE, outcomes

FAST = "mean = x.mean(-1, keepdim=True)"


@pytest.fixture
def repository(pytester, with_torch):
    """A copy of the example, to work in."""
    shutil.copytree(EXAMPLE.parent / "training-repo", pytester.path, dirs_exist_ok=True)
    return pytester.path


def test_all_of_it_passes(pytester, repository):
    result = pytester.runpytest_inprocess()
    assert result.ret == 0
    names = {nodeid.partition("[")[0] for nodeid, outcome in outcomes(result).items() if outcome == "passed"}
    assert {"tinylm.build:fresh::DD101", "tests/test_model.py::test_the_loss_falls"} < names
    assert len([name for name in names if name.startswith("tests/test_norms.py")]) == 4


def test_a_norm_made_faster_that_forgets_the_mean_where_it_is_used(pytester, repository):
    """Right in float64, in which a unit test may well compare it."""
    model = repository / "tinylm" / "model.py"
    text = model.read_text(encoding="utf-8")
    assert FAST in text
    model.write_text(text.replace(FAST, f"{FAST} * (x.dtype == torch.float64)"), encoding="utf-8")
    result = pytester.runpytest_inprocess()
    failed = {nodeid.partition("[")[0] for nodeid, outcome in outcomes(result).items() if outcome == "failed"}
    assert failed == {
        "tinylm.build:fresh::DD101",
        "tests/test_norms.py::test_its_kernel_is_dead_in_the_dtype_of_training",
    }


@pytest.mark.parametrize("way", ["with_transformers", "with_timm"])
def test_the_other_ways_to_build_a_model(pytester, repository, way):
    if way == "with_timm":
        pytest.importorskip("timm", reason="timm is not installed (extra timm)", exc_type=ImportError)
    result = pytester.runpytest_inprocess("--deaddir-only", f"--deaddir-model=tinylm.build:{way}")
    assert result.ret == 0
    assert outcomes(result)[f"tinylm.build:{way}::discovery"] == "passed"
