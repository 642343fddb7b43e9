"""The pluggy hooks that this plugin calls, in a conftest.py or a plugin. Each docstring holds an override that runs as it is.

None is called in a run that neither audits nor uses our fixtures. Overrides are found in a conftest.py that pytest loads
before it collects: in its root directory, in ``testpaths``, or beside a path that is given to pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn


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


@pytest.hookspec(firstresult=True)
def pytest_deaddir_inputs(config: pytest.Config, spec: str) -> Any:
    """Give the inputs of the subject that ``spec`` names, where ``--deaddir-inputs`` gives none.

    Return None to leave it the inputs that it has by default, a path as for that option, or the arguments of a forward pass: a
    mapping, a tuple, a tensor, or a list of these as batches. Called before a subject is measured, in the process that
    measures it::

        import torch


        def pytest_deaddir_inputs(config, spec):
            if "gpt2" in spec:
                generator = torch.Generator().manual_seed(0)
                return [{"input_ids": torch.randint(64, (4, 32), generator=generator)} for batch in range(2)]
    """


@pytest.hookspec(firstresult=True)
def pytest_deaddir_probe_arguments(
    config: pytest.Config, module: nn.Module
) -> Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] | None:
    """Give what the forward of a layer takes beside the tensor, for the fixture ``norm_probe``.

    Return None for a layer that takes nothing more, a mapping by argument name, or a function that makes one of the tensor
    that the layer is probed with (float64)::

        import torch


        def pytest_deaddir_probe_arguments(config, module):
            if type(module).__name__ == "GatedNorm":
                return lambda x: {"gate": torch.ones_like(x)}
    """


def pytest_deaddir_finding(config: pytest.Config, model: str, finding: Mapping[str, Any]) -> None:
    """See a finding when it is reported, whatever its severity and whether it is suppressed.

    Called under xdist in the controller alone. ``model``: the node id of the model's checks; ``finding``: as in the report::

        import json


        def pytest_deaddir_finding(config, model, finding):
            with open(config.rootpath / "findings.jsonl", "a") as file:
                file.write(json.dumps({"model": model, "code": finding["code"], "path": finding["path"]}) + "\\n")
    """


def pytest_deaddir_report_formats(config: pytest.Config) -> Mapping[str, Callable[..., str]]:  # type: ignore[empty-body]
    """Give formats of ``--deaddir-report``: a function for each suffix, which may be one of ours.

    It is given the entries of the report, as in its JSON, with ``label``, the run's name for the model, and the rules that
    judged, and returns the text::

        def verdicts(models, rules):
            return "".join(f"{model['label']}: {model['checks']['failed']} failed\\n" for model in models)


        def pytest_deaddir_report_formats(config):
            return {".txt": verdicts}
    """
