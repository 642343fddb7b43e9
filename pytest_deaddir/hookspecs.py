"""The pluggy hooks that this plugin calls. Each docstring holds an override that runs as it is."""

from __future__ import annotations

from typing import Any

import pytest


def pytest_deaddir_register_rules(config: pytest.Config) -> Any:
    """Give rules to judge by, beside the catalogue; called once in a run, before anything is measured.

    Return a rule, a path to a rule file or a folder of them, a module, or a list of these. In a conftest.py or a plugin::

        from pytest_deaddir import rule


        @rule("ACME001", table="norms", severity="warning")
        def gamma_outlier(row):
            "One coordinate carries this norm."
            if row.gamma_max > 50 * row.gamma_median:
                return f"max/median of |γ| of {row.path} is {row.gamma_max / row.gamma_median:.0f}"


        def pytest_deaddir_register_rules(config):
            return [gamma_outlier]
    """
