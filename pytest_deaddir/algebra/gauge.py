"""What the kernel of a norm leaves open in the parameters of the linear maps that read it.

Let y = Dz + β be a norm's output, K (d, k) an orthonormal basis of its kernel and c = Kᵀβ, so that Kᵀy = c for every input
(arXiv 2606.19491). Around c nothing else is fixed: the y − β span all that is orthogonal to K. A change of the consumers
Wⱼ (mⱼ, d) and bⱼ and of β therefore leaves every Wⱼy + bⱼ as it was, for every input, exactly where

    δWⱼ = Aⱼ Kᵀ     and     Aⱼ c + Wⱼ δβ + δbⱼ = 0,     Aⱼ any (mⱼ, k) matrix, to first order.

The Aⱼ that have a solution are the directions in which the weights can be moved while biases and β make up for it:

* where j has a bias, δbⱼ = −Aⱼc − Wⱼδβ solves it for any Aⱼ: mⱼ k directions;
* where c = 0, δβ = δbⱼ = 0 does: mⱼ k directions, with a bias or without;
* without a bias and with c ≠ 0, Aⱼc = −Wⱼδβ. The Aⱼ with Aⱼc = 0 need no δβ: mⱼ (k−1) directions. The rest is shared:
  one δβ for all bias-free consumers together, which gives as many directions as their stacked weights have rank, at most
  d. It needs β to be free: known by no other use of y than consumers that can all be moved.

The exchange between β and biases with all Aⱼ = 0 is left out: every affine map before biases has it, kernel or not.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def free_directions(k: int, biased: Iterable[int], bias_free: Iterable[int], constant: bool, rank: int) -> int:
    """How many independent directions the consumers' weights have that leave the function as it is (see above).

    ``k``: dimension of the kernel. ``biased``, ``bias_free``: the mⱼ of the consumers with and without a bias.
    ``constant``: whether c ≠ 0. ``rank``: of the bias-free consumers' stacked weights where β is free, 0 where it is not.
    """
    with_bias, without = sum(biased), sum(bias_free)
    if not constant:
        return k * (with_bias + without)
    return k * with_bias + ((k - 1) * without + rank if without and k else 0)


def canonical(
    weight: np.ndarray, bias: np.ndarray | None, kernel: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """The member of the family that holds nothing along the kernel, and has the same function: W(1 − KKᵀ), b + WKKᵀβ.

    ``weight``: (m, d). ``bias``: (m,). ``kernel``: (d, k), orthonormal. ``shift``: the norm's β, (d,). Without a bias
    Kᵀβ must be 0: ValueError where it is not.
    """
    constant = kernel.T @ shift
    if bias is None and np.any(constant):
        raise ValueError(
            "without a bias nothing takes up what the weight holds along a kernel on which β does not vanish"
        )
    along = weight @ kernel
    return weight - along @ kernel.T, None if bias is None else bias + along @ constant
