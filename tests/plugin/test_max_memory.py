"""--deaddir-max-memory as its users meet it: the same checks and findings, what the summary says, and what is refused."""

import pytest

from plugin.helpers import EXAMPLE, FORWARD_ITEMS, GPT2, assert_refused, outcomes, report_of, rerun_lines, text_of


@pytest.fixture(scope="module")
def with_accelerate(with_torch):
    """As ``with_torch``, for runs that load a model within a limit."""
    import pytest_deaddir

    pytest_deaddir.audit(EXAMPLE, max_memory="700KB")


def test_a_limited_run_has_the_same_checks_and_says_where_the_weights_are(with_accelerate, pytester):
    asked = ["--deaddir-only", f"--deaddir-model={EXAMPLE}"]
    whole = outcomes(pytester.runpytest_inprocess(*asked))
    result = pytester.runpytest_inprocess(*asked, "--deaddir-max-memory=700KB", "--deaddir-report=audit.json")
    assert outcomes(result) == whole
    assert len(whole) == len(FORWARD_ITEMS)
    assert "weights within 700KB: " in text_of(result)
    assert " GB on disk" in text_of(result)
    [model] = report_of(pytester.path / "audit.json")
    assert model["model"]["placement"]["disk"] > 1_000_000


def test_the_ini_twin_is_meant_too_and_the_rerun_names_the_limit(with_accelerate, pytester):
    pytester.makeini(f"[pytest]\ndeaddir_model = {GPT2}\ndeaddir_max_memory = 5KB\ndeaddir_samples = 33\n")
    result = pytester.runpytest_inprocess("--deaddir-only", "--deaddir-fail-on=warning")
    assert "weights within 5KB" in text_of(result)
    assert all("--deaddir-max-memory=5KB" in command for command in rerun_lines(result))
    assert rerun_lines(result)


def test_what_level_full_leaves_out_stands_among_the_facts(with_accelerate, pytester):
    asked = ["--deaddir-only", f"--deaddir-model={EXAMPLE}", "--deaddir-level=full", "--deaddir-max-memory=700KB"]
    result = pytester.runpytest_inprocess(*asked, "--deaddir-report=audit.md")
    note = "parameter space: weights are offloaded (--deaddir-max-memory), and are not moved there"
    assert note in " ".join(text_of(result).split())
    assert note in (pytester.path / "audit.md").read_text(encoding="utf-8")


def test_what_cannot_be_limited_is_a_usage_error(pytester):
    pytester.makepyfile(made="def factory(): ...")
    for size in ("much", "cpu=1GB,2GB"):
        assert_refused(
            pytester.runpytest_inprocess("--deaddir-only", f"--deaddir-model={GPT2}", f"--deaddir-max-memory={size}"),
            f"--deaddir-max-memory {size}: ",
        )
    assert_refused(
        pytester.runpytest_inprocess("--deaddir-only", "--deaddir-model=made:factory", "--deaddir-max-memory=1GB"),
        "made:factory: a limit of memory is only for",
    )


def test_a_device_that_is_not_there_is_named(with_torch, pytester):
    asked = [f"--deaddir-model={GPT2}", "--deaddir-max-memory=97=1GB,cpu=1GB"]
    result = pytester.runpytest_inprocess("--deaddir-only", *asked)
    assert result.ret == 1
    assert "--deaddir-max-memory 97=1GB,cpu=1GB: torch" in text_of(result)
    assert "sees no device 97 here" in " ".join(text_of(result).split())
