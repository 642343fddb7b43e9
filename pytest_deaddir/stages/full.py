"""The stage full: beside the forward pass, a random twin of the model, and its parameter space."""

from __future__ import annotations

import time

from pytest_deaddir.source.load import Model
from pytest_deaddir.stages.forward import Pass
from pytest_deaddir.stages.twin import twin_stage
from pytest_deaddir.tables import Audit


def full_stage(model: Model, audit: Audit, done: Pass, *, seed: int, solver: str) -> None:
    """Fill the columns of level full in what :func:`~pytest_deaddir.stages.forward.forward_stage` gave."""
    started = time.perf_counter()
    twin_stage(model, audit, done, seed=seed, solver=solver)
    audit.model["seconds"]["twin"] = round(time.perf_counter() - started, 4)
    audit.model["level"] = "full"
