"""The algebra against independent oracles: float64 eigendecompositions, exact fractions, hand-worked cases."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_deaddir.algebra.floor import DEAD_FACTOR, UNIT_ROUNDOFF, dead_threshold, direction_floor
from pytest_deaddir.algebra.kernel import direction, kernel_basis, participation_ratio
from pytest_deaddir.algebra.spectrum import (
    bottom_eigenpairs,
    count_below,
    dead_by_dtype,
    dead_coordinates,
    dead_dimension,
)

SCALES = st.floats(1e-3, 1e2).flatmap(lambda size: st.sampled_from([size, -size]))
GAMMAS = st.lists(SCALES, min_size=2, max_size=24).map(np.array)
#: Few distinct values, so that repeated and zero scales come often.
COARSE = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.5, 1.0, 3.0]), min_size=2, max_size=16).map(np.array)


def covariance(gamma):
    """diag(γ) P diag(γ), the covariance of a LayerNorm's output for whitened z."""
    centring = np.eye(gamma.size) - 1 / gamma.size
    return np.diag(gamma) @ centring @ np.diag(gamma)


@given(GAMMAS)
def test_nothing_varies_along_the_direction(gamma):
    v = direction(gamma)
    assert np.linalg.norm(v) == pytest.approx(1)
    assert np.abs(covariance(gamma) @ v).max() <= 1e-13 * np.square(gamma).max()


@given(GAMMAS)
def test_the_direction_is_the_inverse_of_gamma(gamma):
    exact = [1 / Fraction(float(g)) for g in gamma]
    largest = max(map(abs, exact))
    expected = np.array([float(e / largest) for e in exact])
    assert direction(gamma) == pytest.approx(expected / np.linalg.norm(expected), rel=1e-14)


def test_direction_survives_the_smallest_scales_of_a_real_checkpoint():
    gamma = np.array([4.8e-33, 6.0e-33, 1.5e-9, 0.65])
    assert direction(gamma)[:2] == pytest.approx([0.78086881, 0.62469505])
    assert direction(gamma * 1e-280) == pytest.approx(direction(gamma))  # denormal


@pytest.mark.parametrize("bad", [[1.0, np.nan], [np.inf, 1.0], [], [[1.0, 2.0]]])
def test_direction_refuses_what_has_no_inverse(bad):
    with pytest.raises(ValueError, match="γ"):
        direction(np.array(bad))


def test_zeros_span_the_kernel():
    gamma = np.array([1.0, 0.0, 2.0, 0.0])
    with pytest.raises(ValueError, match="zero"):
        direction(gamma)
    assert np.array_equal(kernel_basis(gamma), np.eye(4)[:, [1, 3]])
    assert np.linalg.matrix_rank(covariance(gamma)) == 2  # k zeros give a kernel of k, not k + 1


def test_participation_ratio_counts_the_carrying_coordinates():
    assert participation_ratio(np.eye(5)[0]) == pytest.approx(1)
    assert participation_ratio(np.full(9, 1 / 3)) == pytest.approx(9)


@settings(max_examples=200)
@given(st.one_of(GAMMAS, COARSE), st.data())
def test_bottom_eigenpairs_are_those_of_the_eigensolve(gamma, data):
    k = data.draw(st.integers(1, gamma.size))
    scale = max(np.square(gamma).max(), 1e-300)
    values, vectors = bottom_eigenpairs(gamma, k)
    expected = np.linalg.eigvalsh(covariance(gamma))[:k]
    assert np.abs(values - expected).max() <= 1e-13 * scale
    assert np.abs(covariance(gamma) @ vectors - vectors * values).max() <= 1e-13 * scale
    assert np.abs(vectors.T @ vectors - np.eye(k)).max() <= 1e-8


@given(st.one_of(GAMMAS, COARSE), st.floats(1e-8, 1e5))
def test_count_below_is_that_of_the_eigensolve(gamma, threshold):
    eigenvalues = np.linalg.eigvalsh(covariance(gamma))
    if np.abs(eigenvalues - threshold).min() > 1e-12 * max(np.square(gamma).max(), threshold):
        assert count_below(gamma, threshold) == np.count_nonzero(eigenvalues < threshold)


def test_tiny_eigenvalues_keep_their_relative_accuracy():
    """The last norm of all-MiniLM-L6-v2: an eigensolve cannot resolve 5e-33² beside 0.65², the secular equation can."""
    gamma = np.concatenate([[4.8e-33, 6.0e-33, 1.5e-9], np.linspace(0.5, 0.8, 381)])
    values, _ = bottom_eigenpairs(gamma, 4)
    sigma = np.sqrt(values)
    assert sigma[0] == 0
    # two poles a, b far below all others: 1/(a² − μ) + 1/(b² − μ) = 0, so μ = (a² + b²)/2
    assert sigma[1] == pytest.approx(np.sqrt((4.8e-33**2 + 6.0e-33**2) / 2), rel=1e-12)
    assert sigma[2] == pytest.approx(1.5e-9 * np.sqrt(2 / 3), rel=1e-9)  # 2/μ = 1/(c² − μ)
    assert gamma[3] > sigma[3] > gamma[2]


@pytest.mark.parametrize("k", [0, 4])
def test_k_outside_the_width_is_refused(k):
    with pytest.raises(ValueError, match="k must be"):
        bottom_eigenpairs(np.ones(3), k)


def test_a_threshold_must_be_positive():
    with pytest.raises(ValueError, match="threshold"):
        count_below(np.ones(3), 0.0)


@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_a_healthy_scale_has_its_kernel_and_no_dead_coordinate(dtype):
    gamma = np.random.default_rng(0).uniform(0.2, 2.0, 64)
    assert dead_coordinates(gamma, None, dtype).size == 0
    assert dead_dimension(gamma, None, dtype, centred=True) == 1
    assert dead_dimension(gamma, None, dtype, centred=False) == 0


def test_more_coordinates_are_dead_in_a_coarser_dtype():
    gamma = np.concatenate([[1e-3, 1e-6, 1e-12, 0.0], np.ones(60)])
    dead = {dtype: dead_coordinates(gamma, None, dtype).tolist() for dtype in UNIT_ROUNDOFF}
    assert dead == {"bfloat16": [0, 1, 2, 3], "float16": [1, 2, 3], "float32": [2, 3], "float64": [3]}
    assert dead_dimension(gamma, None, "bfloat16", centred=True) == 4  # k tiny scales: k dead directions, not k + 1


@pytest.mark.parametrize(
    ("weight", "added", "layernorm", "rmsnorm"),
    [
        # 1e-3, 1e-6 and 0 beside 61 ones: at u = 2⁻²⁴, 2⁻⁸, 2⁻¹¹ (F = 64, 1, 1) the floor of γ is 4.7e-7, 3.8e-3, 4.8e-4
        ([1e-3, 1e-6, 0, *[1] * 61], 0.0, [1, 3, 2], [1, 3, 2]),
        ([1] * 8, 0.0, [1, 1, 1], [0, 0, 0]),
        # a norm may be small as a whole, unless the dtype cannot hold it: float16 ends at 2⁻²⁴, and 2⁻²⁶ rounds to 0
        ([2.0**-24] * 2 + [2.0**-26] * 2, 0.0, [1, 1, 2], [0, 0, 2]),
        ([2.0**-26] * 4, 0.0, [1, 1, 4], [0, 0, 4]),
        # 1 + w is added in float32, but w itself rounds to −1 in the half types
        ([2.0**-12 - 1, 0.5, 0.25, 0], 1.0, [1, 1, 1], [0, 1, 1]),
        ([2.0**-12 - 1, 2.0**-12 - 1, 0.25, 0], 1.0, [1, 2, 2], [0, 2, 2]),
        ([1e5, 1, 1, 1], 0.0, [1, 3, None], [0, 3, None]),  # float16 ends at 65504; 1 is below 1e5/2 · 2⁻⁸
        ([1e5] * 4, 0.0, [1, 1, None], [0, 0, None]),
        ([np.inf, 1], 0.0, None, None),
        ([np.nan, 1], 0.0, None, None),
    ],
)
def test_the_dead_dimension_in_each_dtype_worked_by_hand(weight, added, layernorm, rmsnorm):
    for centred, expected in ((True, layernorm), (False, rmsnorm)):
        found = dead_by_dtype(np.array(weight, float), None, added=added, centred=centred)
        assert found == (
            None if expected is None else dict(zip(("float32", "bfloat16", "float16"), expected, strict=True))
        )


def test_a_shift_that_is_not_finite_predicts_nothing():
    assert dead_by_dtype(np.ones(4), np.array([0, np.nan, 0, 0]), added=0.0, centred=True) is None
    found = dead_by_dtype(np.ones(4), np.array([0, 0, 7e4, 0]), added=0.0, centred=False)
    assert found == {"float32": 0, "bfloat16": 4, "float16": None}  # 1 is below 3.5e4 · 2⁻⁸, the floor of a mean


@settings(max_examples=300, derandomize=True)
@given(st.integers(2, 12), st.floats(-16, 1), st.sampled_from([0.0, 1.0]), st.booleans(), st.integers(0, 2**32 - 1))
def test_the_dead_dimension_in_each_dtype_is_that_of_an_eigensolve(d, decades, added, shifted, seed):
    """Scales down to so many decades below 1: what is decided at once, because no scale is small, is decided rightly."""
    generator = np.random.default_rng(seed)
    gamma = generator.choice([-1, 1], d) * 10 ** generator.uniform(min(decades, 0), max(decades, 0), d)
    beta = generator.normal(size=d) * 10.0 ** generator.integers(-2, 3) if shifted else None
    for centred in (True, False):
        found = dead_by_dtype(gamma - added, beta, added=added, centred=centred)
        for dtype, dead in found.items():
            cast = getattr(torch, dtype)
            weight, shift = (
                torch.tensor(v).to(cast).double().numpy()
                for v in (gamma - added, np.zeros(d) if beta is None else beta)
            )
            scale = weight + added
            energy = scale**2 + shift**2
            floor = DEAD_FACTOR[dtype] * UNIT_ROUNDOFF[dtype] ** 2
            expected = np.count_nonzero(scale**2 <= floor * np.maximum(energy, energy.mean()))
            if centred:
                eigenvalues = np.linalg.eigvalsh(covariance(scale))
                if np.abs(eigenvalues - floor * energy.mean()).min() <= 1e-12 * np.square(scale).max():
                    continue  # too close for an eigensolve
                expected = max(expected, 1, np.count_nonzero(eigenvalues < floor * energy.mean()))
            assert dead == expected


def test_a_large_shift_buries_a_small_scale():
    """Rounding y = γz + β leaves noise in proportion to β, so what γz adds may be lost."""
    gamma, beta = np.full(32, 1.0), np.zeros(32)
    gamma[5], beta[5] = 1e-4, 1e3
    assert dead_coordinates(gamma, None, "float32").size == 0
    assert dead_coordinates(gamma, beta, "float32").tolist() == [5]


def test_the_floor_is_what_rounding_does():
    """Rounding random float64 data to float16 puts a variance on a direction that the formula bounds."""
    generator = np.random.default_rng(1)
    data = generator.normal(size=(20_000, 16)) * np.linspace(0.1, 3, 16)
    w = generator.normal(size=16)
    w /= np.linalg.norm(w)
    noise = (data.astype(np.float16).astype(np.float64) - data) @ w
    floor = direction_floor(w, np.square(data).mean(0), "float16")
    assert 0.05 < noise.var() / floor < 1


def test_threshold_is_never_below_the_mean_floor():
    energy = np.array([0.0, 1.0, 1.0, 2.0])
    threshold = dead_threshold(np.eye(4), energy, "float32")
    assert threshold == pytest.approx(DEAD_FACTOR["float32"] * UNIT_ROUNDOFF["float32"] ** 2 * np.array([1, 1, 1, 2]))
