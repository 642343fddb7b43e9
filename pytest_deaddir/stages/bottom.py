"""The bottom of a factor's spectrum by inverse iteration: O(k d²) instead of the O(d³) of a decomposition.

The smallest singular values of R are the largest of R⁻¹, and R is triangular, so a step costs two triangular solves. The
blocks of all steps span a Krylov space of (RᵀR)⁻¹, in which R itself is then projected (Rayleigh–Ritz), so that what is
returned is as accurate as R and not as its inverse. Measured with eight planted σ of 1e-6…1e-9 σ_max: benchmarks/solver.py.
"""

from __future__ import annotations

import torch

#: Columns in a block beyond those wanted: convergence is set by the first singular value that does not fit in it.
OVERSAMPLING = 8
#: Blocks at most. The values converge with the square of the error of the vectors; eight were enough for flat spectra.
STEPS = 12
TOLERANCE = 1e-6

#: Part of σ_max above which RᵀR gives a singular value as well: to eps · (σ_max/σ)².
RESOLVED = 1e-5


def bottom(factor: torch.Tensor, k: int, solver: str = "inverse") -> tuple[torch.Tensor, torch.Tensor]:
    """The k smallest singular values of R, ascending, (k,), with their right singular vectors, (d, k), float64.

    ``factor``: R, (d, d) upper triangular. ``solver``: ``inverse``, or ``svd`` for a full decomposition, the oracle; where
    the iteration would span most of the space, it is what runs in any case.
    """
    d = factor.shape[1]
    block = k + OVERSAMPLING
    if solver == "svd" or 4 * block >= d:
        _, sigma, transposed = torch.linalg.svd(factor)
        return sigma.flip(0)[:k], transposed.flip(0)[:k].T
    pivots = factor.diagonal()
    floor = torch.finfo(torch.float64).eps * pivots.abs().max().clamp(min=1e-300)
    solvable = factor.clone()  # an exact zero on the diagonal is a dead direction, and must not divide
    solvable.diagonal().copy_(torch.where(pivots.abs() < floor, floor, pivots))

    generator = torch.Generator().manual_seed(d)
    start = torch.randn(d, block, generator=generator, dtype=torch.float64).to(factor.device)
    basis = last = torch.linalg.qr(start).Q
    images = last.T @ factor.T  # as rows: the product of this layout is several times quicker than factor @ last
    previous = None
    for _ in range(STEPS):
        # orthonormal between the two solves: each can blow one column up over the others by σ_max/σ_min
        half = torch.linalg.qr(torch.linalg.solve_triangular(solvable.T, last, upper=False)).Q
        last = torch.linalg.solve_triangular(solvable, half, upper=True)
        # Householder's QR of all blocks: orthonormal even where a block lies in the span of those before it
        last = torch.linalg.qr(torch.cat([basis, last], 1)).Q[:, basis.shape[1] :]
        basis, images = torch.cat([basis, last], 1), torch.cat([images, last.T @ factor.T])
        values = torch.linalg.svdvals(images).flip(0)[:k]
        if previous is not None and ((previous - values).abs() <= TOLERANCE * values + floor).all():
            break
        previous = values
    left, sigma, _ = torch.linalg.svd(images, full_matrices=False)
    return sigma.flip(0)[:k], basis @ left.flip(1)[:, :k]


def deflated(factor: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """R without the given orthonormal directions, (d, j): the factor on their complement, (d−j, d−j), and an orthonormal
    basis of that, (d, d−j), which takes its vectors back (one Householder reflection a direction)."""
    complement = torch.linalg.qr(directions, mode="complete").Q[:, directions.shape[1] :]
    return torch.linalg.qr(factor @ complement, mode="r").R, complement


def singular_values(factor: torch.Tensor, solver: str = "inverse") -> torch.Tensor:
    """All singular values of R, ascending, (d,): by a full decomposition with ``solver`` svd, else from RᵀR at two thirds of
    its cost, where those above :data:`RESOLVED` · σ_max are right to 1e-5 and those below are rounding."""
    if solver == "svd":
        return torch.linalg.svdvals(factor).flip(0)
    return torch.linalg.eigvalsh(factor.T @ factor).clamp(min=0).sqrt()
