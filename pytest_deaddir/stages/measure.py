"""From accumulated rows to the columns of tables: of a norm site, and of the residual stream at one place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pytest_deaddir.algebra.floor import (
    DEAD_FACTOR,
    UNIT_ROUNDOFF,
    arithmetic_excess,
    arithmetic_noise,
    coordinate_threshold,
    dead_threshold,
    direction_floor,
    mean_error,
)
from pytest_deaddir.discovery.discover import NormSite
from pytest_deaddir.stages.accumulate import Accumulator
from pytest_deaddir.stages.bottom import RESOLVED, bottom, deflated, singular_values
from pytest_deaddir.stages.read import BOTTOM
from pytest_deaddir.stages.taps import NormTap, Tap
from pytest_deaddir.tables import Row

#: Directions that are looked for at the bottom to begin with.
FIRST = 8

#: Centred over raw norm at which all activations are one point, as far as float32 can tell.
COLLAPSED = 1e-6

#: Rounding of the mean, as a part of the output, above which the measured bottom directions are those of the rounding.
TURNED = 1e-4

#: Part of all directions that rounding may hide before a dead one proves nothing.
HIDDEN = 0.5


@dataclass(frozen=True)
class Bottom:
    """The spectrum of N rows of d activations, float64, and its bottom.

    ``values``: standard deviations σ/√N, (d,), ascending. ``vectors``: the directions of the first k of them, (d, k): of
    all that may be dead, or up to one that is not. ``floors``: the standard deviation at which each would be dead, (k,).
    ``dead``: how many, from the smallest on, vary no more than rounding.
    """

    values: np.ndarray
    vectors: np.ndarray
    floors: np.ndarray
    dead: int

    @property
    def median(self) -> float:
        """Over all d directions."""
        return float(self.values[(len(self.values) - 1) // 2])

    @property
    def largest(self) -> float:
        """Over all d directions."""
        return float(self.values[-1])


def spectrum(
    rows: Accumulator,
    dtype: str,
    *,
    least: int = 0,
    solver: str = "inverse",
    without: np.ndarray | None = None,
    error: np.ndarray | float = 0.0,
) -> Bottom:
    """The spectrum of what was accumulated, with the directions of its bottom as far up as it is dead in ``dtype``.

    Most streams are healthy, and then no direction is computed at all: nothing that varies more than the coordinate with
    the highest floor can be dead. ``least``: directions to give in any case. ``without``: orthonormal directions, (d, j),
    that are taken out first. ``error``: of a LayerNorm's own arithmetic,
    as :func:`~pytest_deaddir.algebra.floor.mean_error` gives it.
    """
    factor, basis = rows.factor(), None
    if without is not None and without.shape[1]:
        factor, basis = deflated(factor, torch.from_numpy(without).to(factor.device))
    root = rows.samples**0.5
    values = singular_values(factor, solver).cpu().numpy() / root
    energy = rows.energy.cpu().numpy()
    # nor can a singular value below eps·√d·σ_max be told from 0: the rounding of the factorisation itself, which shows
    # where the model ran in float64
    rounding = np.finfo(np.float64).eps ** 2 * rows.width * values[-1] ** 2
    ceiling = float(coordinate_threshold(energy, dtype).max()) + DEAD_FACTOR[dtype] * float(np.sum(np.square(error)))
    ceiling = max(ceiling**0.5, RESOLVED * values[-1])
    most = max(least, int(np.searchsorted(values, ceiling, side="right")))
    k = min(most, max(FIRST, least))
    while k:
        sigma, directions = bottom(factor, k, solver)
        vectors = (directions if basis is None else basis @ directions).cpu().numpy()
        values[:k] = sigma.cpu().numpy() / root
        floors = np.sqrt(np.maximum(dead_threshold(vectors, energy, dtype, error), rounding))
        alive = np.flatnonzero(values[:k] > floors)
        if alive.size or k == most:
            return Bottom(values, vectors, floors, int(alive[0]) if alive.size else k)
        k = min(most, 4 * k)
    return Bottom(values, np.zeros((rows.width, 0)), np.zeros(0), 0)


def dtype_of(tap: Tap, default: str) -> str:
    """The dtype of what a tap took: the floor is that of the site's own output."""
    return tap.dtype if tap.dtype in UNIT_ROUNDOFF else default


def unmeasurable(tap: Tap) -> str:
    """Why nothing can be measured, empty where something can."""
    collapsed = tap.samples > tap.rows.width and tap.rows.spread < COLLAPSED  # first, since it takes what is waiting
    if not tap.rows.finite:
        return "its activations are not finite"
    if collapsed:
        return "its activations have collapsed to one point"
    limits = torch.finfo(getattr(torch, tap.dtype or "float32"))
    if tap.samples and float(tap.rows.energy.mean()) ** 0.5 < min(limits.tiny / limits.eps, 1e-3):  # float16 ends early
        return f"its activations underflow: they lie at the end of {tap.dtype}'s range"
    return ""


def too_few(tap: Tap) -> str:
    """Why the rows do not span the space, and what would settle it; empty where they do."""
    if tap.samples > tap.rows.width:
        return ""
    return (
        f"{tap.samples} rows for {tap.rows.width} dimensions: give more inputs "
        f"(--deaddir-samples, more than {tap.rows.width} rows here)"
    )


def site_columns(site: NormSite, tap: NormTap, default_dtype: str, predicted: int, solver: str) -> Row:
    """The measured columns of a norm site, or why there are none."""
    dtype = dtype_of(tap, default_dtype)
    columns: Row = {"samples": tap.samples or None, "dtype": dtype if tap.samples else None}
    if not tap.samples and tap.rows.finite:
        return {"inconclusive": "it did not run on these inputs: give inputs that reach it (--deaddir-inputs)"}
    if reason := unmeasurable(tap):
        return columns | {"unmeasured": reason}
    if reason := too_few(tap):
        return columns | {"inconclusive": reason}
    if site.features == 1:
        return columns | {"inconclusive": "a norm of one feature gives one value: nothing settles it"}
    error: np.ndarray | float = 0.0
    if site.kind == "layernorm" and site.probe.gamma is not None and np.isfinite(site.probe.gamma).all():
        error = mean_error(site.probe.gamma, tap.offset, dtype)
    found = spectrum(tap.rows, dtype, least=min(predicted, site.features - 1), solver=solver, error=error)
    columns |= {
        "unmeasured": "",
        "inconclusive": "",
        "dead_dimension": found.dead,
        "bottom_singular_values": found.values[:BOTTOM].tolist(),
        "bottom_thresholds": found.floors[:BOTTOM].tolist(),
        "sigma_max": found.largest,
    }
    if found.dead > HIDDEN * site.features:
        columns["inconclusive"] = (
            f"{found.dead} of {site.features} directions vary no more than rounding to {dtype}, so that a dead one says "
            "little: more distinct inputs (--deaddir-inputs) or a wider dtype (--deaddir-dtype=float32) would settle it"
        )
    if site.kind == "layernorm" and arithmetic_noise(site.features, tap.offset, dtype) > TURNED:
        columns["inconclusive"] = (
            f"its input's mean is {tap.offset**0.5:.3g} times its standard deviation, so that the rounding of the computed "
            "mean hides the kernel: float64 would settle it (--deaddir-dtype=float64)"
        )
    kernel = tap.kernel
    if kernel.shape[1] == 0:
        return columns  # an RMSNorm with zeros in γ has no γ⁻¹
    variance = tap.rows.variance.cpu().numpy()
    floors = direction_floor(kernel, tap.rows.energy.cpu().numpy(), dtype)
    along = float(variance.max())
    # a coordinate with γ = β = 0 has neither variance nor floor, and nothing is as dead as that
    noise_ratio = float(np.max(variance / np.where(floors > 0, floors, 1.0)))
    subspace = found.vectors[:, : max(found.dead, min(predicted, site.features - 1))]
    return columns | {
        "eigenvalue": along,
        "eigenvalue_relative": along / found.largest**2,
        "noise_ratio": noise_ratio,
        "noise_excess": noise_ratio / arithmetic_excess(site.features, tap.offset, dtype),
        "alignment": _alignment(subspace, kernel),
        "alignment_bottom": _alignment(found.vectors[:, :1], kernel) if kernel.shape[1] == 1 else None,
    }


def _alignment(subspace: np.ndarray, kernel: np.ndarray) -> float:
    """The smallest cosine between the kernel and the measured subspace: σ_min of Uᵀ K, 1.0 where it holds the kernel."""
    cosines = np.linalg.svd(subspace.T @ kernel, compute_uv=False)
    return float(min(1.0, cosines[-1])) if subspace.shape[1] >= kernel.shape[1] else 0.0
