"""The forward stage: one pass over the inputs, and what the final norm's output does along the kernel that γ names."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from pytest_deaddir.algebra.floor import UNIT_ROUNDOFF, dead_threshold, direction_floor
from pytest_deaddir.algebra.kernel import direction, kernel_basis
from pytest_deaddir.discovery.discover import Discovery, NormSite, discover
from pytest_deaddir.discovery.names import matched_paths
from pytest_deaddir.discovery.trace import evaluating, floating
from pytest_deaddir.errors import ModelError
from pytest_deaddir.source.inputs import Inputs, moved, prepare, require_samples, samples_wanted
from pytest_deaddir.source.load import Model
from pytest_deaddir.stages.accumulate import Accumulator, Moments
from pytest_deaddir.stages.read import BOTTOM, gamma_columns, normalisation, peak_memory, versions
from pytest_deaddir.tables import Audit, Row, row

#: Columns of the model's row that the read stage fills and the forward stage keeps.
_FROM_FILES = (
    "revision",
    "fingerprint",
    "architecture",
    "norm_eps",
    "duplicate_tensors",
    "differing_weights",
    "uncompared_weights",
    "unsafe_names",
)

#: Where a model's parameters are, and in what dtype.
Place = tuple[torch.device, torch.dtype]

#: Centred over raw norm at which all activations are one point, as far as float32 can tell.
COLLAPSED = 1e-6


def forward_stage(
    model: Model, audit: Audit | None, *, spec: str, inputs: Any = None, samples: int | None = None, seed: int = 0
) -> Audit:
    """Audit a loaded model with one forward pass.

    ``audit``: the read stage's, whose rows say which file each γ came from; None where there are no files.
    Raises :class:`InputsError` and :class:`ModelError`. The model is left without hooks.
    """
    started = time.perf_counter()
    parameter = next(model.module.parameters(), None)
    place = (parameter.device, parameter.dtype) if parameter is not None else (torch.device("cpu"), torch.float32)
    prepared = prepare(model, inputs, seed)
    found = _discovered(model, prepared, place)
    if not found.norms:
        raise ModelError(f"{model.name}: no module in it behaves as a LayerNorm or RMSNorm: nothing to audit")
    closing = [site for site in found.norms if site.role == "final"]
    main = found.final or (closing[-1] if closing else None)
    taps = {site.path: Tap(site) for site in closing}
    if main is not None:
        wanted = samples_wanted(samples, main.features)
        _run(model, prepared, place, taps, taps[main.path], wanted)
        if taps[main.path].finite:
            require_samples(taps[main.path].samples, main.features)

    stored = {} if audit is None else {norm["path"]: norm for norm in audit.norms}
    homes = matched_paths([site.path for site in found.norms], stored)
    norms = [_site_row(site, model, taps.get(site.path), stored.get(homes.get(site.path, ""))) for site in found.norms]
    fed = taps[main.path].samples if main else 0
    facts: Row = {} if audit is None else {k: audit.model[k] for k in _FROM_FILES}
    facts.setdefault("architecture", model.name)
    facts["architecture"] = facts["architecture"] or model.name
    read_seconds = {} if audit is None else audit.model["seconds"]
    return Audit(
        model=row(
            "model",
            spec=spec,
            **facts,
            parameters=sum(parameter.numel() for parameter in model.module.parameters()),
            width=main.features if main else None,
            final_norm=(main.path or "the module itself") if main else "",
            normalisation=normalisation(norms),
            level="forward",
            dtype=model.dtype,
            **_orphans(model, audit),
            device=place[0].type,
            seed=seed,
            inputs=prepared.name,
            inputs_source=prepared.source,
            samples=fed or None,
            samples_per_width=round(fed / main.features, 4) if main and fed else None,
            versions=versions("numpy", "torch", *(["transformers"] if model.config is not None else [])),
            seconds=read_seconds | {"forward": round(time.perf_counter() - started, 4)},
            peak_memory=peak_memory(),
        ),
        norms=norms,
    )


def _orphans(model: Model, audit: Audit | None) -> Row:
    """Tensors of the files that no module took."""
    if audit is None:
        return {}
    scales = {f"{norm['path']}." for norm in audit.norms}
    norms = [name for name in model.orphans if f"{name.rpartition('.')[0]}." in scales]
    return {"orphan_tensors": sorted(model.orphans), "orphan_norms": sorted(norms)}


def _discovered(model: Model, inputs: Inputs, place: Place) -> Discovery:
    """Discovery over the part that runs, with the paths that the whole module gives them."""
    prefix = next((path for path, child in model.module.named_modules() if child is model.core), "")
    try:
        found = discover(model.core, _call_arguments(model.core, moved(inputs.small, *place)))
    except Exception as error:  # the model's own code runs here, so anything can be raised
        raise ModelError(f"{model.name}: its forward pass fails: {type(error).__name__}: {error}") from error
    return found.below(prefix)


def _call_arguments(core: nn.Module, batch: Any) -> Any:
    """The batch, with a transformers model's cache switched off: nothing is generated here."""
    cached = isinstance(batch, Mapping) and hasattr(getattr(core, "config", None), "use_cache")
    return {"use_cache": False, **batch} if cached else batch


class Tap(Accumulator):
    """Watches a norm's output: its moments, and its variance along the kernel that γ names.

    ``kernel``: the directions, (d, k): a LayerNorm's kernel, or γ⁻¹ of an RMSNorm, which should not be dead.
    """

    def __init__(self, site: NormSite) -> None:
        gamma = site.probe.gamma
        self.kernel = np.zeros((site.features, 0))
        if gamma is not None and np.isfinite(gamma).all():
            if site.kind == "layernorm":
                self.kernel = kernel_basis(gamma)
            elif (gamma != 0).all():
                self.kernel = direction(gamma)[:, None]
        self.axis = site.probe.axis or -1
        self.dtype = ""
        super().__init__(site.features, torch.from_numpy(self.kernel))

    def hook(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """A forward hook."""
        activations = next(floating(output), None)
        if activations is not None:
            self.dtype = str(activations.dtype).removeprefix("torch.")
            self.update(activations.movedim(self.axis, -1))


def _run(model: Model, inputs: Inputs, place: Place, taps: dict[str, Tap], main: Tap, wanted: int) -> None:
    """The forward pass, batch by batch, until the main tap has seen as many rows as wanted or the inputs end."""
    with ExitStack() as hooks, torch.no_grad():
        hooks.enter_context(evaluating(model.module))
        for path, tap in taps.items():
            hooks.callback(model.module.get_submodule(path).register_forward_hook(tap.hook).remove)
        for batch in inputs.batches(wanted):
            seen = main.samples
            arguments = _call_arguments(model.core, moved(batch, *place))
            try:
                _ = model.core(**arguments) if isinstance(arguments, Mapping) else model.core(*arguments)
            except Exception as error:  # as above
                raise ModelError(f"{model.name}: its forward pass fails: {type(error).__name__}: {error}") from error
            if inputs.source == "synthetic" and (main.samples >= wanted or main.samples == seen):
                break


def _site_row(site: NormSite, model: Model, tap: Tap | None, stored: Row | None) -> Row:
    probed = site.probe
    facts: Row = {"gamma_source": "none"}
    if probed.gamma_parameter:
        name = f"{site.path}.{probed.gamma_parameter}"
        facts = {"gamma_source": "module"}
        if stored is not None and stored["gamma_source"] == "file":
            kept = ("gamma_source", "gamma_file", "gamma_offset", "gamma_dtype", "gamma_denormal")
            facts = {k: stored[k] for k in kept}
        if name in model.missing:
            facts = {"gamma_source": "missing"}
    if probed.gamma is not None:
        facts |= gamma_columns(probed.gamma, probed.beta, site.kind, model.dtype, site.role == "final")
    measured = {} if tap is None else _measured(site, tap, model.dtype, facts.get("predicted_dead_dimension") or 1)
    return row(
        "norms",
        path=site.path,
        **{"class": site.class_name},
        kind=site.kind,
        kind_agrees=_kind_agrees(site, stored),
        gamma_agrees=_gamma_agrees(facts, stored),
        how="probe",
        role=site.role,
        role_how=site.how,
        stack=site.stack,
        features=site.features,
        eps=probed.eps,
        gamma_convention=probed.convention,
        **facts,
        **measured,
    )


def _kind_agrees(site: NormSite, stored: Row | None) -> bool | None:
    """Whether the module is of the kind that its files say, or without files that its shift says: RMSNorms have none."""
    if stored is not None and stored["kind"] != "undecided":
        return bool(stored["kind"] == site.kind)
    return False if site.kind == "rmsnorm" and site.probe.beta_parameter else None


def _gamma_agrees(columns: Row, stored: Row | None) -> bool | None:
    """Whether the scale in use is the stored one: another file, an adapter or a renaming may have come between."""
    profile = ("gamma_min", "gamma_median", "gamma_max")
    if stored is None or any(values.get(name) is None for values in (stored, columns) for name in profile):
        return None
    return all(math.isclose(stored[name], columns[name], rel_tol=0.02, abs_tol=1e-7) for name in profile)


def _measured(site: NormSite, tap: Tap, default_dtype: str, predicted: int) -> Row:
    """The measured columns of a tapped site, or why there are none. The floor is that of the site's own output dtype."""
    dtype = tap.dtype if tap.dtype in UNIT_ROUNDOFF else default_dtype
    if not tap.finite:
        return {"dtype": dtype, "unmeasured": "its activations are not finite"}
    if tap.samples <= site.features:
        return {"samples": tap.samples}  # of a tower beside the main one, on whose rows the inputs are sized
    moments = tap.moments()
    if moments.spread < COLLAPSED:
        return {"samples": moments.samples, "dtype": dtype, "unmeasured": "its activations have collapsed to one point"}
    kernel = tap.kernel
    largest = float(moments.values[-1]) ** 2
    dead = _dead(moments, dtype)
    columns: Row = {
        "samples": moments.samples,
        "dtype": dtype,
        "unmeasured": "",
        "dead_dimension": int(dead.sum()),
        "bottom_singular_values": moments.values[:BOTTOM].tolist(),
    }
    if kernel.shape[1] == 0:
        return columns  # an RMSNorm with zeros in γ has no γ⁻¹
    variance = moments.variance.numpy()
    floors = direction_floor(kernel, moments.energy.numpy(), dtype)
    along = float(variance.max())
    vectors = moments.vectors.numpy()
    subspace = vectors[:, : max(int(dead.sum()), min(predicted, site.features - 1))]
    columns |= {
        "eigenvalue": along,
        "eigenvalue_relative": along / largest,
        # a coordinate with γ = β = 0 has neither variance nor floor, and nothing is as dead as that
        "noise_ratio": float(np.max(variance / np.where(floors > 0, floors, 1.0))),
        "alignment": _alignment(subspace, kernel),
        "alignment_bottom": _alignment(vectors[:, :1], kernel) if kernel.shape[1] == 1 else None,
    }
    return columns


def _dead(moments: Moments, dtype: str) -> np.ndarray:
    """Which principal directions vary no more than rounding to ``dtype`` makes anything vary, (d,) bool.

    Nor can a singular value below eps·√d·σ_max be told from 0, whatever the dtype: the float64 factorisations' own
    rounding, which shows where the model itself ran in float64.
    """
    values = moments.values.numpy()
    thresholds = dead_threshold(moments.vectors.numpy(), moments.energy.numpy(), dtype)
    return values**2 <= np.maximum(thresholds, np.finfo(np.float64).eps ** 2 * values.size * values[-1] ** 2)


def _alignment(subspace: np.ndarray, kernel: np.ndarray) -> float:
    """The smallest cosine between the kernel and the measured subspace: σ_min of Uᵀ K, 1.0 where it holds the kernel."""
    cosines = np.linalg.svd(subspace.T @ kernel, compute_uv=False)
    return float(min(1.0, cosines[-1])) if subspace.shape[1] >= kernel.shape[1] else 0.0
