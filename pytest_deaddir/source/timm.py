"""timm's architectures with random weights; timm is imported only when a spec names one."""

from __future__ import annotations

import difflib
import importlib

import torch
from torch import nn

from pytest_deaddir.errors import ModelError, SpecError
from pytest_deaddir.source.spec import Spec


def create(spec: Spec) -> nn.Module:
    """The model that ``timm:NAME?key=value`` names, from ``timm.create_model`` without pretrained weights.

    Raises :class:`SpecError` for a name that timm has not, and where timm cannot be imported.
    """
    name = spec.model_type or ""
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise SpecError(
            f"{spec.text} needs {error.name}, not installed here: pip install 'pytest-deaddir[timm]'"
        ) from error
    except Exception as error:  # a torchvision that was built for another torch raises what it likes
        raise SpecError(f"{spec.text}: timm cannot be imported: {type(error).__name__}: {error}") from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise SpecError(f"{spec.text}: timm has no model {name!r}{hint}")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed or 0)
            module = timm.create_model(name, pretrained=False, **dict(spec.overrides))
    except Exception as error:  # an override that its constructor does not take, sizes that do not fit …
        raise ModelError(f"{spec.text}: timm cannot build it: {type(error).__name__}: {error}") from error
    assert isinstance(module, nn.Module)
    return module
