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
