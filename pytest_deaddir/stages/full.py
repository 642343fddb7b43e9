"""The stage full: beside the forward pass, a random twin of the model, and its parameter space."""

from __future__ import annotations

import time

from pytest_deaddir.errors import ModelError
from pytest_deaddir.progress import Step, tell
from pytest_deaddir.source.inputs import moved
from pytest_deaddir.source.load import Model
from pytest_deaddir.source.offload import is_offloaded
from pytest_deaddir.stages.forward import Pass
from pytest_deaddir.stages.invariance import parameter_space
from pytest_deaddir.stages.read import peak_memory
from pytest_deaddir.stages.taps import call_arguments
from pytest_deaddir.stages.twin import twin_stage
from pytest_deaddir.tables import Audit


def full_stage(model: Model, audit: Audit, done: Pass, *, seed: int, solver: str) -> None:
    """Fill the columns of level full in what :func:`~pytest_deaddir.stages.forward.forward_stage` gave.

    Raises :class:`ModelError` where the model's own code fails.
    """
    started = time.perf_counter()
    tell(Step("building the twin"))
    twin_stage(model, audit, done, seed=seed, solver=solver)
    between = time.perf_counter()
    tell(Step("parameter space"))
    if is_offloaded(model.module):
        for norm in audit.norms:
            norm["invariance_note"] = "weights are offloaded (--deaddir-max-memory), and are not moved there"
    else:
        _fill_parameter_space(model, audit, done, seed)
    counts = [norm["redundant_parameters"] for norm in audit.norms if norm["redundant_parameters"] is not None]
    audit.model["redundant_parameters"] = sum(counts) if counts else None
    audit.model["seconds"] |= {
        "twin": round(between - started, 4),
        "invariance": round(time.perf_counter() - between, 4),
    }
    audit.model["peak_memory"] = peak_memory()
    audit.model["level"] = "full"


def _fill_parameter_space(model: Model, audit: Audit, done: Pass, seed: int) -> None:
    arguments = call_arguments(model.core, moved(done.inputs.small, *done.place))
    try:
        spaces = parameter_space(model.module, model.core, done.found.norms, arguments, seed=seed)
    except Exception as error:  # the model's own code runs here, so anything can be raised
        raise ModelError(f"{model.name}: its forward pass fails: {type(error).__name__}: {error}") from error
    for norm in audit.norms:
        norm |= spaces.get(norm["path"], {}) | ({"dtype": norm["dtype"]} if norm["dtype"] else {})  # as measured
