"""The streaming factor and the bottom of its spectrum against a direct SVD of all rows at once, in float64."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_deaddir.stages.accumulate import Accumulator
from pytest_deaddir.stages.bottom import bottom, deflated, singular_values
from pytest_deaddir.stages.measure import spectrum


def planted(rows=700, d=48, seed=0):
    """Rows with known small standard deviations along random orthonormal directions, far from the origin."""
    generator = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(generator.normal(size=(d, d)))
    sigma = np.concatenate([[1e-9, 1e-6], np.linspace(0.1, 3, d - 2)])
    return generator.normal(size=(rows, d)) * sigma @ basis.T + generator.normal(size=d)


def oracle(data):
    """Standard deviations, ascending, and their directions."""
    _, sigma, transposed = np.linalg.svd(data - data.mean(0), full_matrices=False)
    return sigma[::-1] / np.sqrt(len(data)), transposed[::-1].T


def accumulated(data, batch=None, directions=None):
    rows = Accumulator(data.shape[1], directions)
    for part in torch.as_tensor(data).split(batch or len(data)):
        rows.update(part)
    return rows


def spectrum_of(rows, k, solver="inverse"):
    sigma, vectors = bottom(rows.factor(), k, solver)
    return sigma.numpy() / rows.samples**0.5, vectors.numpy()


@pytest.mark.parametrize("batch", [700, 200, 64, 7, 1])
def test_batches_of_any_size_give_the_spectrum_of_the_whole(batch):
    data = planted()
    rows = accumulated(data, batch)
    values, vectors = spectrum_of(rows, 48)
    expected, directions = oracle(data)
    assert rows.samples == 700
    assert values == pytest.approx(expected, rel=1e-5)
    assert abs(vectors[:, 0] @ directions[:, 0]) == pytest.approx(1, abs=1e-9)
    assert rows.energy.numpy() == pytest.approx(np.square(data).mean(0))
    assert singular_values(rows.factor()).numpy()[2:] / 700**0.5 == pytest.approx(expected[2:])


@pytest.mark.parametrize("d", [192, 384])
def test_planted_directions_that_a_gram_matrix_cannot_tell_apart(d):
    """Eight σ of 1e-9 … 1e-6 σ_max: the subspace, and every value."""
    generator = torch.Generator().manual_seed(d)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    sigma = torch.cat([torch.logspace(-9, -6, 8), torch.linspace(0.05, 1, d - 8)]).double()
    rows = torch.randn(4 * d, d, generator=generator, dtype=torch.float64)
    rows = torch.linalg.qr(rows - rows.mean(0)).Q
    values, vectors = bottom(accumulated(rows * sigma @ basis.T, 512).factor(), 8)
    true = basis[:, :8]
    assert torch.linalg.matrix_norm(vectors - true @ (true.T @ vectors), 2) <= 1e-11
    assert values.numpy() == pytest.approx(sigma[:8].numpy(), rel=1e-5)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    d=st.integers(2, 90),
    k=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    exponents=st.lists(st.integers(-12, 0), min_size=1, max_size=6),
    zeros=st.integers(0, 3),
)
def test_the_iteration_agrees_with_a_full_decomposition(d, k, seed, exponents, zeros):
    """Whatever the spectrum: gaps, clusters, exact zeros."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.ones(d, dtype=torch.float64)
    scales[: len(exponents)] = 10.0 ** torch.tensor(exponents[:d], dtype=torch.float64)
    scales[-1 - min(zeros, d - 1) : -1] = 0.0
    factor = accumulated(torch.randn(4 * d, d, generator=generator, dtype=torch.float64) * scales).factor()
    k = min(k, d)
    values, vectors = bottom(factor, k)
    expected, _ = bottom(factor, k, "svd")
    largest = float(torch.linalg.matrix_norm(factor, 2))
    assert values.numpy() == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-14 * largest)
    assert (vectors.T @ vectors).numpy() == pytest.approx(np.eye(k), abs=1e-10)
    residual = torch.linalg.vector_norm(factor @ vectors, dim=0)
    assert residual.numpy() == pytest.approx(values.numpy(), rel=1e-4, abs=1e-14 * largest)


def test_deflation_takes_out_what_is_known_and_leaves_the_rest():
    data = planted()
    expected, directions = oracle(data)
    factor, back = deflated(accumulated(data).factor(), torch.from_numpy(directions[:, :1].copy()))
    values, vectors = bottom(factor, 3)
    assert values.numpy() / 700**0.5 == pytest.approx(expected[1:4], rel=1e-5)
    assert abs((back @ vectors[:, 0]).numpy() @ directions[:, 1]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("batch", [700, 13])
def test_variance_along_a_known_direction_is_resolved_far_below_a_gram_matrix(batch):
    """Along v the rows vary by 1e-12 around 5, beside a σ_max of 1: a Gram matrix stops at 1e-8."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(700, 16, generator=generator, dtype=torch.float64)
    data[:, 3] = 5 + torch.randn(700, generator=generator, dtype=torch.float64) * 1e-12
    rows = accumulated(data, batch, torch.eye(16, dtype=torch.float64)[:, 3:4])
    assert float(rows.variance) == pytest.approx(float((data[:, 3]).var(correction=0)), rel=1e-2)


@pytest.mark.parametrize("cut", [0, 1, 300, 699])
def test_accumulators_merge(cut):
    """As processes that each took a share of the inputs do."""
    data = torch.from_numpy(planted())
    direction = torch.from_numpy(oracle(planted())[1][:, 5:6].copy())
    whole, first, second = (accumulated(part, 90, direction) for part in (data, data[:cut], data[cut:]))
    first.merge(second)
    assert first.samples == 700
    assert spectrum_of(first, 48)[0] == pytest.approx(spectrum_of(whole, 48)[0], rel=1e-6, abs=1e-13)
    assert first.energy.numpy() == pytest.approx(whole.energy.numpy())
    assert float(first.variance) == pytest.approx(float(whole.variance))


def test_a_copy_is_a_state_to_return_to():
    """Where a batch does not fit into memory, what was taken of it is taken back."""
    data = torch.from_numpy(planted())
    rows = accumulated(data[:650], 13)
    kept = copy.copy(rows)
    rows.update(data)
    assert rows.samples == 1350
    kept.update(data[650:])
    assert spectrum_of(kept, 48)[0] == pytest.approx(oracle(planted())[0], rel=1e-5)


def test_what_is_waiting_is_no_view_of_what_the_model_goes_on_to_change():
    data = torch.from_numpy(planted(100, 48))
    rows = Accumulator(48)
    for part in data.clone().split(10):
        rows.update(part)
        part.zero_()  # as hidden_states += residual does
    assert rows.energy.numpy() == pytest.approx(data.square().mean(0).numpy())


def test_memory_does_not_grow_with_the_rows():
    rows = Accumulator(8)
    for _ in range(50):
        rows.update(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)))
        assert sum(map(len, rows._waiting)) <= 32
    assert rows._factor.shape == (9, 9)


def test_activations_of_any_shape_and_dtype():
    data = torch.randn(4, 50, 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    rows = Accumulator(16)
    rows.update(data)
    assert spectrum_of(rows, 16)[0] == pytest.approx(oracle(data.double().reshape(-1, 16).numpy())[0])


def test_a_single_nan_ends_the_measurement():
    rows = Accumulator(4)
    rows.update(torch.ones(30, 4))
    rows.update(torch.full((1, 4), float("nan")))
    assert rows.factor() is not None
    assert not rows.finite


@pytest.mark.parametrize("solver", ["inverse", "svd"])
def test_every_value_of_a_spectrum_is_right_and_only_what_may_be_dead_has_a_direction(solver):
    """1e-9 and 1e-6 beside a σ_max of 3 are alive in float64, and dead in float32."""
    rows = accumulated(planted())
    expected, directions = oracle(planted())
    wide, narrow = (spectrum(rows, dtype, solver=solver) for dtype in ("float64", "float32"))
    assert wide.values == pytest.approx(expected, rel=1e-5)
    assert (wide.dead, narrow.dead) == (0, 2)
    assert np.linalg.svd(directions[:, :2].T @ narrow.vectors[:, :2])[1] == pytest.approx([1, 1])
    assert wide.median == pytest.approx(np.sort(expected)[23])
    healthy = spectrum(accumulated(planted() @ directions[:, 2:]), "float32", solver=solver)
    assert healthy.vectors.shape == (46, 0)
    assert healthy.dead == 0


def test_a_direction_is_dead_below_the_floor_of_its_own_coordinate():
    """A coordinate around 1e4 is rounded more coarsely than the other 47 vary: the mean floor would not see it."""
    data = np.random.default_rng(0).normal(size=(700, 48))
    data[:, 5] = 1e4 + data[:, 5] * 2e-3
    found = spectrum(accumulated(data), "float32")
    assert found.dead == 1
    assert abs(found.vectors[5, 0]) == pytest.approx(1)
    data[:, 5] -= 1e4
    assert spectrum(accumulated(data), "float32").dead == 0


def test_one_point_has_no_spread():
    assert accumulated(torch.ones(50, 4)).spread < 1e-12


def test_a_copy_is_the_rows_as_they_are_and_not_what_another_process_gets():
    """Taps are copied before each batch, to go back to where one does not fit: the copy keeps its device and its files."""
    rows = Accumulator(3, torch.eye(3)[:1].double(), keep=lambda tensor: tensor)
    rows.update(torch.ones(2, 3))
    twin = copy.copy(rows)
    assert {name: id(value) for name, value in vars(twin).items()} == {n: id(v) for n, v in vars(rows).items()}
