"""The streaming moments against a direct SVD of all rows at once, in float64."""

import numpy as np
import pytest
import torch

from pytest_deaddir.stages.accumulate import Accumulator


def planted(rows=700, d=48, seed=0):
    """Rows with known small standard deviations along random orthonormal directions, far from the origin."""
    generator = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(generator.normal(size=(d, d)))
    sigma = np.concatenate([[1e-9, 1e-6], np.linspace(0.1, 3, d - 2)])
    return generator.normal(size=(rows, d)) * sigma @ basis.T + generator.normal(size=d)


@pytest.mark.parametrize("batch", [700, 64, 7, 1])
def test_batches_of_any_size_give_the_spectrum_of_the_whole(batch):
    data = planted()
    tap = Accumulator(48, torch.zeros(48, 0, dtype=torch.float64))
    for start in range(0, len(data), batch):
        tap.update(torch.from_numpy(data[start : start + batch]))
    moments = tap.moments()
    centred = data - data.mean(0)
    _, sigma, transposed = np.linalg.svd(centred, full_matrices=False)
    expected = sigma[::-1] / np.sqrt(len(data))
    assert moments.samples == 700
    assert moments.values.numpy() == pytest.approx(expected, rel=1e-5)
    assert abs(moments.vectors[:, 0].numpy() @ transposed[-1]) == pytest.approx(1, abs=1e-9)
    assert moments.energy.numpy() == pytest.approx(np.square(data).mean(0))


@pytest.mark.parametrize("batch", [700, 13])
def test_variance_along_a_known_direction_is_resolved_far_below_a_gram_matrix(batch):
    """Along v the rows vary by 1e-12 around 5, beside a σ_max of 1: a Gram matrix stops at 1e-8."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(700, 16, generator=generator, dtype=torch.float64)
    wiggle = torch.randn(700, generator=generator, dtype=torch.float64) * 1e-12
    data[:, 3] = 5 + wiggle
    tap = Accumulator(16, torch.eye(16, dtype=torch.float64)[:, 3:4])
    for rows in data.split(batch):
        tap.update(rows)
    assert float(tap.moments().variance) == pytest.approx(float((data[:, 3]).var(correction=0)), rel=1e-2)


def test_activations_of_any_shape_and_dtype():
    data = torch.randn(4, 50, 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    tap = Accumulator(16, torch.zeros(16, 0, dtype=torch.float64))
    tap.update(data)
    expected = np.linalg.svd(data.double().reshape(-1, 16).numpy() - data.double().reshape(-1, 16).numpy().mean(0))[1]
    assert tap.moments().values.numpy() == pytest.approx(expected[::-1] / np.sqrt(200))


def test_a_single_nan_ends_the_measurement():
    tap = Accumulator(4, torch.zeros(4, 0, dtype=torch.float64))
    tap.update(torch.ones(3, 4))
    tap.update(torch.full((1, 4), float("nan")))
    assert not tap.finite


def test_one_point_has_no_spread():
    tap = Accumulator(4, torch.zeros(4, 0, dtype=torch.float64))
    tap.update(torch.ones(50, 4))
    assert tap.moments().spread < 1e-12
