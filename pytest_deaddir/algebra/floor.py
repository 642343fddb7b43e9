"""What "zero" means in floating point.

Rounding y to a dtype with unit round-off u puts a variance of about u² Σᵢ wᵢ² E[yᵢ²] on a direction w
(arXiv 2606.19491; each coordinate is rounded on its own, with a relative error of at most u). A direction whose variance
does not rise above that floor cannot be seen by any consumer computing in that dtype.
"""

from __future__ import annotations

import numpy as np

#: Largest relative error of one rounding (half a unit in the last place), by dtype name.
UNIT_ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}

#: How far above the floor of one rounding a dead direction may lie. Half types round once, at the end of a computation
#: in float32; in float32 and float64 the arithmetic of the norm itself adds to the last rounding.
DEAD_FACTOR = {"bfloat16": 1.0, "float16": 1.0, "float32": 64.0, "float64": 64.0}


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """``values`` rounded to nearest even in ``dtype``, in float64; what it cannot hold is infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "bfloat16":  # numpy has none: keep the upper half of a float32, rounding as the hardware does
            bits = values.astype(np.float32).view(np.uint32)
            upper = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
            return np.where(np.isfinite(values), upper.view(np.float32), values).astype(np.float64)
        return values.astype(dtype).astype(np.float64)


def direction_floor(w: np.ndarray, energy: np.ndarray, dtype: str) -> np.ndarray:
    """Variance that rounding to ``dtype`` puts on each direction.

    ``w``: unit directions, (d,) or (d, k). ``energy``: E[yᵢ²] of each coordinate, (d,). Returns a scalar or (k,),
    in the units of ``energy``.
    """
    return UNIT_ROUNDOFF[dtype] ** 2 * (energy @ np.square(w))


def dead_threshold(w: np.ndarray, energy: np.ndarray, dtype: str, error: np.ndarray | float = 0.0) -> np.ndarray:
    """Variance at or below which a direction is dead in ``dtype``; shapes as in :func:`direction_floor`.

    A coordinate whose scale is 1e-33 and whose shift is 0 has a floor as tiny as itself, but a consumer adds it to the
    other coordinates: the mean floor over all coordinates counts as well. ``error``: of a LayerNorm's own
    arithmetic, as :func:`mean_error` gives it, (d,).
    """
    floor = np.maximum(direction_floor(w, energy, dtype), mean_floor(energy, dtype))
    return DEAD_FACTOR[dtype] * (floor + np.square(np.broadcast_to(error, energy.shape) @ w))


def mean_error(gamma: np.ndarray, offset: float, dtype: str) -> np.ndarray:
    """What the rounding of a LayerNorm's computed mean adds to its output, (d,): γ times one random number for each row, of
    which this is the standard deviation. ``offset`` as in :func:`arithmetic_excess`, which is the same along γ⁻¹."""
    return gamma * offset**0.5 * _computing_roundoff(dtype)


def mean_floor(energy: np.ndarray, dtype: str) -> float:
    """The floor of :func:`direction_floor` averaged over all directions: u² times the mean of ``energy``."""
    return UNIT_ROUNDOFF[dtype] ** 2 * float(energy.mean())


def coordinate_threshold(energy: np.ndarray, dtype: str) -> np.ndarray:
    """:func:`dead_threshold` of each coordinate axis, (d,)."""
    return DEAD_FACTOR[dtype] * np.maximum(UNIT_ROUNDOFF[dtype] ** 2 * energy, mean_floor(energy, dtype))


def arithmetic_excess(width: int, offset: float, dtype: str) -> float:
    """How far above :func:`direction_floor` the arithmetic of a LayerNorm alone can lift the variance along its kernel.

    The error of the computed mean is the same for all coordinates, so that it lies along γ⁻¹: 1 + d · offset · (u_c/u)², with
    ``offset`` the mean of (mean/std)² of the norm's input rows and u_c the unit round-off of what it computes in (float32
    for half types). Measured over it, in float32: 0.75 at d = 768 with offset 1 and at d = 8192 with offset 100.
    """
    return 1.0 + width * offset * (_computing_roundoff(dtype) / UNIT_ROUNDOFF[dtype]) ** 2


def arithmetic_noise(width: int, offset: float, dtype: str) -> float:
    """The same error as a part of the output's root mean square: above about 1e-4 it turns the bottom directions."""
    return float((width * offset) ** 0.5 * _computing_roundoff(dtype))


def _computing_roundoff(dtype: str) -> float:
    """Unit round-off of what a norm that gives ``dtype`` computes in: float32 for half types."""
    return UNIT_ROUNDOFF["float64" if dtype == "float64" else "float32"]
