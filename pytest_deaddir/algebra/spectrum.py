"""What γ alone predicts of the spectrum of a norm's output.

For whitened z the covariance of a LayerNorm's output is A = diag(γ²) − γγᵀ/d, a rank-one downdate (arXiv 2606.19491).
Its characteristic equation is, for μ ≠ 0,

    g(μ) = Σᵢ 1/(γᵢ² − μ) = 0        (from 1 − (1/d) Σ γᵢ²/(γᵢ² − μ) = −(μ/d) g(μ), which leaves nothing to cancel)

so its eigenvalues are 0 and one number between each two neighbours of the sorted γ², each with the eigenvector
(diag(γ²) − μ)⁻¹ γ. Counting them costs one evaluation of g and finding one about five, O(d) each: no eigensolve.
"""

from __future__ import annotations

import numpy as np

from pytest_deaddir.algebra.floor import DEAD_FACTOR, coordinate_threshold, mean_floor
from pytest_deaddir.algebra.kernel import _finite, direction


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
    gamma, beta = _scaled(_finite(gamma), beta)
    energy = whitened_energy(gamma, beta)
    return np.flatnonzero(np.square(gamma) <= coordinate_threshold(energy, dtype))


def dead_dimension(gamma: np.ndarray, beta: np.ndarray | None, dtype: str, *, centred: bool) -> int:
    """Predicted number of dead directions of a norm's output in ``dtype``.

    ``centred``: LayerNorm, whose kernel counts (k tiny γ give k dead directions in all, not k + 1); otherwise RMSNorm.
    """
    dead = dead_coordinates(gamma, beta, dtype).size
    if not centred:
        return dead
    gamma, beta = _scaled(_finite(gamma), beta)
    energy = whitened_energy(gamma, beta)
    threshold = DEAD_FACTOR[dtype] * mean_floor(energy, dtype)
    return max(dead, 1, count_below(gamma, threshold) if threshold > 0 else 0)
