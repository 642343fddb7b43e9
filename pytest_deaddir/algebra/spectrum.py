"""What γ alone predicts of the spectrum of a norm's output.

For whitened z the covariance of a LayerNorm's output is A = diag(γ²) − γγᵀ/d, a rank-one downdate (arXiv 2606.19491).
Its characteristic equation is, for μ ≠ 0,

    g(μ) = Σᵢ 1/(γᵢ² − μ) = 0        (from 1 − (1/d) Σ γᵢ²/(γᵢ² − μ) = −(μ/d) g(μ), which leaves nothing to cancel)

so its eigenvalues are 0 and one number between each two neighbours of the sorted γ², each with the eigenvector
(diag(γ²) − μ)⁻¹ γ. Counting them costs one evaluation of g and finding one about five, O(d) each: no eigensolve.
"""

from __future__ import annotations

import math

import numpy as np

from pytest_deaddir.algebra.floor import DEAD_FACTOR, UNIT_ROUNDOFF, coordinate_threshold, mean_floor, rounded
from pytest_deaddir.algebra.kernel import _finite, direction

#: What models are deployed in.
DEPLOYED_IN = ("float32", "bfloat16", "float16")


def count_below(gamma: np.ndarray, threshold: float) -> int:
    """How many eigenvalues of diag(γ²) − γγᵀ/d lie below ``threshold`` > 0, which is in the units of γ²: O(d).

    By Sylvester's law of inertia, from the sign of the secular function.
    """
    if not threshold > 0:
        raise ValueError(f"the threshold must be positive, not {threshold}")
    squares = np.square(_finite(gamma))
    gaps = squares - threshold
    if (gaps == 0).any():  # on a pole: the eigenvalue on either side is told apart one ulp further
        gaps = squares - np.nextafter(threshold, 0)
    with np.errstate(over="ignore"):
        return int(np.count_nonzero(gaps < 0)) + int(np.sum(1.0 / gaps) > 0)


def bottom_eigenpairs(gamma: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest eigenvalues of diag(γ²) − γγᵀ/d, ascending (k,), with orthonormal eigenvectors (d, k): O(d k).

    Raises ValueError for a non-finite γ and for k outside 1 … d.
    """
    gamma = _finite(gamma)
    d = gamma.size
    if not 1 <= k <= d:
        raise ValueError(f"k must be between 1 and {d}, not {k}")
    scale = np.abs(gamma).max()
    if scale == 0:
        return np.zeros(k), np.eye(d, k)
    order = np.argsort(np.abs(gamma), kind="stable")
    magnitude = np.abs(gamma[order]) / scale
    squares = np.square(magnitude)
    zeros = int(np.count_nonzero(magnitude == 0))

    values, vectors = np.zeros(k), np.zeros((d, k))
    for i in range(k):
        if i < zeros:
            vectors[i, i] = 1.0
        elif i == 0:
            vectors[:, 0] = direction(magnitude)
        elif magnitude[i] == magnitude[i - 1]:
            values[i] = squares[i]
            vectors[:, i] = _within_equal(magnitude, i)
        else:
            values[i], vectors[:, i] = _between(squares, magnitude, i)
    unsorted = np.empty_like(vectors)
    unsorted[order] = vectors
    return values * scale**2, np.where(gamma < 0, -1.0, 1.0)[:, None] * unsorted


def _between(squares: np.ndarray, magnitude: np.ndarray, i: int) -> tuple[float, np.ndarray]:
    """The eigenpair between the neighbours i−1 and i of the sorted γ².

    g rises from −∞ to ∞ between the two poles. The root is sought as a distance t from the nearer one, so that
    squares − μ keeps its relative accuracy. With the m poles at that origin taken out, t·g(t) = t·R(t) − m is smooth:
    Newton's steps on it, kept inside a bracket by halving, take about five evaluations.
    """
    gap = squares[i] - squares[i - 1]
    nearest_is_lower = np.sum(1.0 / ((squares - squares[i - 1]) - gap / 2)) > 0
    origin = squares[i - 1] if nearest_is_lower else squares[i]
    distances = squares - origin
    others = distances[distances != 0]
    poles = squares.size - others.size
    low, high = (0.0, gap / 2) if nearest_is_lower else (-gap / 2, 0.0)
    offset = (low + high) / 2
    for _ in range(100):
        inverse = 1.0 / (others - offset)
        rest = float(inverse.sum())
        value = offset * rest - poles
        if value * offset > 0:  # the sign of g
            high = offset
        else:
            low = offset
        slope = rest + offset * float(inverse @ inverse)
        step = offset - value / slope if slope else low
        previous, offset = offset, step if low < step < high else (low + high) / 2
        if abs(offset - previous) <= 4 * np.finfo(float).eps * abs(offset):
            break
    differences = distances - offset
    vector = magnitude / (differences / np.abs(differences).min())
    return float(origin + offset), vector / np.linalg.norm(vector)


def _within_equal(magnitude: np.ndarray, i: int) -> np.ndarray:
    """m equal |γ| have an (m−1)-fold eigenvalue γ² on the vectors of zero sum among them; the one that ends at i (Helmert)."""
    first = int(np.searchsorted(magnitude, magnitude[i], side="left"))
    r = i - first
    vector = np.zeros_like(magnitude)
    vector[first:i] = 1.0
    vector[i] = -r
    return vector / np.sqrt(r * (r + 1.0))


def whitened_energy(gamma: np.ndarray, beta: np.ndarray | None) -> np.ndarray:
    """E[yᵢ²] = γᵢ² + βᵢ² of a norm's output for whitened z, (d,): what stands in for the energy before any forward pass."""
    return np.square(gamma) + (0.0 if beta is None else np.square(beta))


def _scaled(gamma: np.ndarray, beta: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """γ and β over the largest of them: what is dead does not depend on their unit, and their squares must not overflow."""
    largest = max(np.abs(gamma).max(), 0.0 if beta is None else np.abs(beta).max()) or 1.0
    return gamma / largest, None if beta is None else beta / largest


def dead_coordinates(gamma: np.ndarray, beta: np.ndarray | None, dtype: str) -> np.ndarray:
    """Indices of the coordinates whose predicted variance γᵢ² is at or below the noise floor of ``dtype``, ascending."""
    if _is_clear(*_extremes(gamma, beta), dtype):
        return np.empty(0, dtype=int)
    gamma, beta = _scaled(_finite(gamma), beta)
    energy = whitened_energy(gamma, beta)
    return np.flatnonzero(np.square(gamma) <= coordinate_threshold(energy, dtype))


def dead_dimension(gamma: np.ndarray, beta: np.ndarray | None, dtype: str, *, centred: bool) -> int:
    """Predicted number of dead directions of a norm's output in ``dtype``.

    ``centred``: LayerNorm, whose kernel counts (k tiny γ give k dead directions in all, not k + 1); otherwise RMSNorm.
    """
    if _is_clear(*_extremes(gamma, beta), dtype):
        return int(centred)
    dead = dead_coordinates(gamma, beta, dtype).size
    if not centred:
        return dead
    gamma, beta = _scaled(_finite(gamma), beta)
    energy = whitened_energy(gamma, beta)
    threshold = DEAD_FACTOR[dtype] * mean_floor(energy, dtype)
    return max(dead, 1, count_below(gamma, threshold) if threshold > 0 else 0)


def dead_by_dtype(
    weight: np.ndarray, beta: np.ndarray | None, *, added: float, centred: bool
) -> dict[str, int | None] | None:
    """:func:`dead_dimension` in every dtype that models are deployed in, with the parameters rounded to it first.

    ``weight``, ``beta``: (d,), as stored; γ is ``weight`` + ``added`` (1 for norms that multiply by 1 + w, else 0). None in
    a dtype in which one of them is infinite, and None altogether where one is not finite as it is.
    """
    smallest, largest = _extremes(weight + added, beta)
    if not math.isfinite(largest):
        return None
    in_range = smallest >= 2.0**-14 and largest < 2.0**15  # of float16, the narrowest: there rounding is relative
    found: dict[str, int | None] = {}
    for dtype in DEPLOYED_IN:
        if in_range and _is_clear(smallest, max(largest, added), dtype):
            found[dtype] = int(centred)
            continue
        gamma, shift = rounded(weight, dtype) + added, None if beta is None else rounded(beta, dtype)
        usable = math.isfinite(_extremes(gamma, shift)[1])
        found[dtype] = dead_dimension(gamma, shift, dtype, centred=centred) if usable else None
    return found


def _extremes(gamma: np.ndarray, beta: np.ndarray | None) -> tuple[float, float]:
    """The least |γ|, and the largest of |γ| and |β|, which is not finite where any of them is not."""
    magnitude = np.abs(gamma)
    largest = magnitude.max() if beta is None else np.maximum(magnitude.max(), np.abs(beta).max())  # a NaN stays one
    return float(magnitude.min()), float(largest)


def _is_clear(smallest: float, largest: float, dtype: str) -> bool:
    """Whether no scale is near the floor, so that nothing is dead but the kernel: nearly always, and quickly told.

    With s = √F·u the floor is at most √2·s·``largest``, and rounding to ``dtype`` (of γ, or of w in 1 + w) takes at most
    2u·``largest`` off the ``smallest`` scale: 4·s·``largest`` leaves room for both.
    """
    return smallest > 4 * DEAD_FACTOR[dtype] ** 0.5 * UNIT_ROUNDOFF[dtype] * largest
