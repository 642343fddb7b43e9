"""Everything here runs without a network."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _on_no_runner(monkeypatch):
    """The runs inside tests are no job of GitHub's, whatever the outer one is."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
