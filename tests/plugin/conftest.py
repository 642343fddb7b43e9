"""The plugin as its users see it: pytester runs, mostly in this process, on checkpoints of a few kilobytes."""

import pytest

from plugin.helpers import GPT2, write_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _loaded():
    """After an in-process run pytester forgets what that run imported, and numpy cannot be loaded twice."""
    import huggingface_hub.errors  # noqa: F401

    import pytest_deaddir.api
    import pytest_deaddir.collection
    import pytest_deaddir.fixtures
    import pytest_deaddir.report.json
    import pytest_deaddir.report.terminal
    import pytest_deaddir.session
    import pytest_deaddir.stages.read  # noqa: F401


@pytest.fixture(scope="session")
def with_torch(_loaded):
    """For tests that run a model. Loads all that an in-process run would load and forget.

    Ask for it by name in the test's signature: where it comes after ``pytester``, torch is forgotten as well, and
    loading it a second time crashes the process.
    """
    pytest.importorskip("transformers", reason="the forward level needs pytest-deaddir[torch]")
    import transformers.models.llama.modeling_llama  # noqa: F401

    import pytest_deaddir

    pytest_deaddir.audit(GPT2)


@pytest.fixture(autouse=True)
def _without_strangers(pytester, monkeypatch):
    """Other plugins of this environment would cost each inner run more than the audit, or change its order and what it prints."""
    monkeypatch.delenv("CI", raising=False)  # under CI pytest's summary repeats whole messages
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    monkeypatch.setenv("COLUMNS", "400")  # a sentence is one line
    others = "hypothesispytest anyio randomly html metadata pytest_github_actions_annotate_failures"
    monkeypatch.setenv("PYTEST_ADDOPTS", " ".join(f"-p no:{name}" for name in others.split()))


@pytest.fixture
def checkpoint(pytester):
    """Factory of small checkpoints below the folder that the tests run in; see :func:`write_checkpoint`."""

    def make(name="m", **planted):
        return write_checkpoint(pytester.path / name, **planted)

    return make


@pytest.fixture
def audit(pytester):
    """Run the audit of ``models`` in this process, by itself, at ``level``."""

    def run(*options, models=("m",), level="read"):
        subjects = [f"--deaddir-model={model}" for model in models]
        return pytester.runpytest_inprocess("--deaddir-only", f"--deaddir-level={level}", *subjects, *options)

    return run


@pytest.fixture
def nothing_is_measured(monkeypatch):
    """From here on, what opens or measures a checkpoint fails."""
    monkeypatch.setattr("pytest_deaddir.api.measure", lambda *_, **how: pytest.fail("measured"))
    monkeypatch.setattr("pytest_deaddir.stages.read.open_checkpoint", lambda *_, **how: pytest.fail("opened"))
