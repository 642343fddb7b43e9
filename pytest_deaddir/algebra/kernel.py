"""The exact kernel of a LayerNorm, read from its scale γ.

LayerNorm is y = diag(γ) z + β with 1ᵀz = 0 for every input, so wᵀy is constant exactly where diag(γ) w is a multiple of 1
(arXiv 2606.19491). With every γᵢ ≠ 0 that is one line, γ⁻¹; with k zeros it is the span of those k coordinates.
RMSNorm does not centre, so it has only the second kind.
"""

from __future__ import annotations

import numpy as np


def direction(gamma: np.ndarray) -> np.ndarray:
    """v = γ⁻¹/‖γ⁻¹‖, the direction in which a LayerNorm's output never varies.

    ``gamma``: (d,), finite, without zeros, in any unit: v does not depend on its scale. Returns (d,) float64.
    Computed as min|γ|/γᵢ, whose norm cannot overflow however small trained scales are (4.8e-33 was seen, and denormals).
    Raises ValueError on a zero or non-finite entry.
    """
    gamma = _finite(gamma)
    smallest = np.abs(gamma).min()
    if smallest == 0:
        raise ValueError("γ has a zero: its kernel is spanned by coordinates, see kernel_basis()")
    v = smallest / gamma
    return v / np.linalg.norm(v)


def kernel_basis(gamma: np.ndarray) -> np.ndarray:
    """Orthonormal basis (d, k) of a LayerNorm's exact kernel: v alone, or the k coordinates where γᵢ = 0."""
    gamma = _finite(gamma)
    zeros = np.flatnonzero(gamma == 0)
    return np.eye(gamma.size)[:, zeros] if zeros.size else direction(gamma)[:, None]


def participation_ratio(w: np.ndarray) -> float:
    """1/Σwᵢ⁴ of a unit vector: the number of coordinates that carry it, from 1 (one-hot) to d (uniform)."""
    return float(1.0 / np.sum(np.square(np.square(w))))


def _finite(gamma: np.ndarray) -> np.ndarray:
    gamma = np.asarray(gamma, dtype=np.float64)
    if gamma.ndim != 1 or gamma.size == 0:
        raise ValueError(f"γ must be a non-empty vector, not of shape {gamma.shape}")
    if not np.isfinite(gamma).all():
        raise ValueError(f"γ has {np.count_nonzero(~np.isfinite(gamma))} non-finite entries")
    return gamma
