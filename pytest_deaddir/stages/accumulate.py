"""Streaming second moments of activations: bounded memory, float64, one pass.

R of the QR factorisation of [1 | Y], with its first row and column dropped, is the R of the centred Y: its singular
values and right vectors are those of the centred data, down to σ_min ≈ 1e-16 σ_max, where a Gram matrix stops at 1e-8.
R factors merge (the QR of stacked factors), so rows can come in any batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Moments:
    """Of N rows of d activations, float64 on the CPU.

    ``values``: standard deviations along the principal directions, σ/√N, ascending, (d,). ``vectors``: those directions,
    (d, d), columns in the same order. ``energy``: E[yᵢ²], (d,). ``variance``: along each known direction, (k,),
    accumulated there and not read off the factor. ``spread``: centred over raw norm; at rounding level where all
    rows are one point.
    """

    samples: int
    values: torch.Tensor
    vectors: torch.Tensor
    energy: torch.Tensor
    variance: torch.Tensor
    spread: float


class Accumulator:
    """Takes batches of rows and gives :class:`Moments`. ``directions``: known unit directions, (d, k), possibly k = 0."""

    def __init__(self, width: int, directions: torch.Tensor) -> None:
        self.width = width
        self.samples = 0
        self.finite = True
        self._directions = directions
        self._energy = torch.zeros(width, dtype=torch.float64)
        self._mean = torch.zeros(directions.shape[1], dtype=torch.float64)
        self._squares = torch.zeros_like(self._mean)
        self._factor = torch.zeros(0, width + 1, dtype=torch.float64)
        self._waiting: list[torch.Tensor] = []

    def update(self, activations: torch.Tensor) -> None:
        """Take (…, d) activations of any dtype. Non-finite ones end the measurement; :attr:`finite` says so."""
        rows = activations.detach().reshape(-1, self.width).to("cpu", torch.float64)
        self.finite = self.finite and bool(torch.isfinite(rows).all())
        if not self.finite:
            return
        self._energy += rows.square().sum(0)
        along = rows @ self._directions
        batch_mean = along.mean(0)
        # pairwise merging of means and centred squares (Chan, Golub & LeVeque 1983)
        total = self.samples + len(rows)
        shift = batch_mean - self._mean
        self._squares += (along - batch_mean).square().sum(0) + shift.square() * self.samples * len(rows) / total
        self._mean += shift * len(rows) / total
        self.samples = total
        self._waiting.append(torch.cat([torch.ones(len(rows), 1, dtype=torch.float64), rows], 1))
        if sum(map(len, self._waiting)) >= 3 * self.width:  # small factorisations cost the most
            self._reduce()

    def _reduce(self) -> None:
        self._factor = torch.linalg.qr(torch.cat([self._factor, *self._waiting]), mode="r").R
        self._waiting = []

    def moments(self) -> Moments:
        """What was accumulated. Needs more rows than the width."""
        self._reduce()
        _, sigma, transposed = torch.linalg.svd(self._factor[1:, 1:])
        values = sigma.flip(0) / self.samples**0.5
        energy = self._energy / self.samples
        return Moments(
            samples=self.samples,
            values=values,
            vectors=transposed.flip(0).T,
            energy=energy,
            variance=self._squares / self.samples,
            spread=float((values.square().sum() / energy.sum().clamp(min=1e-300)).sqrt()),
        )
