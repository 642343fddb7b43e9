"""The twin: the same architecture at random init, on the same inputs. What training made of a kernel is seen beside it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import Any

import torch

from pytest_deaddir.errors import ModelError
from pytest_deaddir.source.load import DTYPES, Model, quiet, wrap
from pytest_deaddir.source.offload import built, place_of
from pytest_deaddir.stages.forward import Pass, forward_pass
from pytest_deaddir.stages.measure import site_columns
from pytest_deaddir.tables import Audit

#: What is measured on the twin too.
_MEASURED = ("alignment", "eigenvalue_relative", "noise_ratio", "dead_dimension")


def twin_of(model: Model, seed: int) -> Model | None:
    """The model's class and config with random weights, on its device and in its dtype; None where nothing says how to
    build it: a module without a transformers config. Under a limit of memory its weights are in files."""
    model_class: Any = type(model.module)
    if model.config is None or not hasattr(model_class, "_from_config"):
        return None
    config: Any = copy.deepcopy(model.module.config)
    config.__dict__.pop("quantization_config", None)  # random weights are not packed ones
    make = functools.partial(model_class._from_config, config, dtype=torch.float32)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model.limit is not None:
            module = built(make, model.limit, DTYPES[model.dtype])
            return dataclasses.replace(wrap(module), limit=model.limit)
        module = make()
    return wrap(module.to(place_of(model.module)[0], DTYPES[model.dtype]))


def twin_stage(model: Model, audit: Audit, done: Pass, *, seed: int, solver: str = "inverse") -> None:
    """Fill the twin's columns of ``audit``: its LayerNorms beside the model's, and what training made of them.

    ``done``: the model's own pass; the twin is fed the same inputs. depth is the logarithm to 10 of the variance along the
    kernel over the largest, at random init over trained: how many orders deeper training made it (arXiv 2606.19491).
    """
    audit.model["twin_note"] = "" if done.main is not None else "there was nothing to measure"
    if done.main is None:
        return
    try:
        twin = twin_of(model, seed)
    except ModelError as error:  # no room for its files
        audit.model["twin_note"] = str(error)
        return
    if twin is None:
        audit.model["twin_note"] = "nothing says how to build it: no transformers config"
        return
    beside = forward_pass(twin, done.inputs, samples=done.wanted, sites=done.sites)
    sites = {site.path: site for site in beside.found.norms}
    for norm in audit.norms:
        tap = beside.norms.get(norm["path"])
        if tap is None or norm["kind"] != "layernorm" or sites[norm["path"]].kind != "layernorm":
            continue
        columns = site_columns(sites[norm["path"]], tap, model.dtype, 1, solver)
        norm |= {f"twin_{name}": columns.get(name) for name in _MEASURED}
        if norm["dead_dimension"] is not None and norm["twin_dead_dimension"] is not None:
            norm["dead_directions_opened"] = norm["dead_dimension"] - norm["twin_dead_dimension"]
        if norm["eigenvalue_relative"] and norm["twin_eigenvalue_relative"]:
            norm["depth"] = math.log10(norm["twin_eigenvalue_relative"] / norm["eigenvalue_relative"])
        if norm["path"] == audit.model["final_norm"]:
            audit.model["depth"] = norm["depth"]
    audit.model["twin_seed"] = seed
