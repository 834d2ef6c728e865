from math import log, log1p, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tensorpress.decompose.spectrum import singular_values
from tensorpress.errors import InvalidArgumentError
from tensorpress.ranks import evbmf
from tensorpress.ranks.evbmf import threshold_root

SHAPES = [(30, 600), (60, 600), (100, 200), (64, 64), (90, 100), (200, 1)]


def noise(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


def svdvals(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


def plant_components(rows, columns, strengths, seed=0):
    """Unit noise and components of singular values strengths·√M, well above (1 + √α)√M."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(rows, len(strengths))))[0]
    right = np.linalg.qr(rng.normal(size=(columns, len(strengths))))[0]
    scaled = np.asarray(strengths) * sqrt(max(rows, columns))
    return (left * scaled) @ right.T + noise(rows, columns, seed + 1)


def cutoff(aspect):
    root = threshold_root(aspect)
    return (1 + root) * (1 + aspect / root)


def free_energy(squares, small, large, variance):
    """The published objective, term by term."""
    aspect = small / large
    x = squares / (large * variance)
    low, high = x[x <= cutoff(aspect)], x[x > cutoff(aspect)]
    tau = (high - 1 - aspect + np.sqrt((high - 1 - aspect) ** 2 - 4 * aspect)) / 2
    signal = high - tau + np.log((tau + 1) / high) + aspect * np.log(tau / aspect + 1)
    return float((low - np.log(low)).sum() + signal.sum())


@st.composite
def spectra(draw):
    small = draw(st.integers(1, 25))
    large = small + draw(st.integers(0, 60))
    logs = st.lists(st.floats(-6, 0), min_size=small, max_size=small)
    values = draw(st.one_of(logs.map(np.exp), st.floats(0.1, 3).map(lambda a: _power(small, a))))
    return values, small, large


def _power(size, decay):
    return np.arange(1.0, size + 1) ** -decay


@pytest.mark.parametrize(("aspect", "root"), [(1.0, 2.5129), (0.1, 0.8222)])
def test_the_threshold_root_is_the_published_one(aspect, root):
    assert threshold_root(aspect) == pytest.approx(root, abs=5e-5)


@given(st.floats(1e-6, 1))
def test_the_threshold_root_solves_its_equation(aspect):
    def phi(z):
        return log1p(z) / z - 0.5

    root = threshold_root(aspect)
    assert phi(root) + phi(root / aspect) == pytest.approx(0, abs=1e-7)
    assert root > sqrt(aspect)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_pure_noise_has_rank_zero_and_its_variance(rows, columns, seed):
    result = evbmf(svdvals(3 * noise(rows, columns, seed)), rows, columns)
    assert result.rank == 0
    assert result.shrunk == ()
    assert result.noise_variance == pytest.approx(9, rel=6 / sqrt(rows * columns))


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize(
    ("rows", "columns"), [(30, 600), (60, 600), (100, 200), (100, 100), (400, 100)]
)
def test_planted_components_are_counted(rows, columns, count):
    strengths = np.linspace(4, 8, count)
    result = evbmf(svdvals(plant_components(rows, columns, strengths)), rows, columns)
    assert result.rank == count
    assert result.noise_variance == pytest.approx(1, rel=0.1)
    # In the limit of large matrices this is the shrinkage of least expected squared error: the
    # planted value times the cosines between the planted and the observed singular vectors.
    aspect, squared = min(rows, columns) / max(rows, columns), np.sort(strengths)[::-1] ** 2
    cosines = np.sqrt(squared / ((1 + squared) * (1 + aspect / squared)))
    best = np.sqrt(squared * max(rows, columns)) * cosines
    np.testing.assert_allclose(result.shrunk, best, rtol=0.05)


def test_components_below_the_noise_are_not_found():
    assert evbmf(svdvals(plant_components(60, 600, [0.3, 0.4])), 60, 600).rank == 0


@given(spectra())
@settings(max_examples=40)
def test_no_noise_variance_has_a_lower_free_energy(case):
    values, small, large = case
    squares = np.square(values)
    result = evbmf(values, small, large)
    lowest = free_energy(squares, small, large, result.noise_variance)
    mean = squares.sum() / (small * large)
    grid = np.concatenate(
        [np.geomspace(1e-8 * mean, 2 * mean, 1500), squares / (large * cutoff(small / large))]
    )
    energies = [free_energy(squares, small, large, variance) for variance in grid]
    assert lowest <= min(energies) + 1e-7
    best = grid[int(np.argmin(energies))]
    if abs(log(best / result.noise_variance)) < 1e-3:
        threshold = large * np.array([best, result.noise_variance]) * cutoff(small / large)
        assert np.count_nonzero(squares > threshold[1]) == result.rank


def test_the_global_of_several_minima_is_found():
    small, large = 40, 50
    values = np.concatenate([np.geomspace(1000, 300, 8), np.geomspace(10, 5, 10), np.ones(22)])
    squares = np.square(values)
    mean = squares.sum() / (small * large)
    grid = np.geomspace(1e-7 * mean, mean, 3000)
    energies = np.array([free_energy(squares, small, large, v) for v in grid])
    minima = np.flatnonzero((energies[1:-1] < energies[:-2]) & (energies[1:-1] < energies[2:])) + 1
    assert len(minima) >= 2
    result = evbmf(values, small, large)
    best = minima[energies[minima].argmin()]
    assert result.noise_variance == pytest.approx(grid[best], rel=0.01)
    assert result.rank == np.count_nonzero(squares > large * grid[best] * cutoff(small / large))


@given(spectra())
@settings(max_examples=30)
def test_a_matrix_and_its_transpose_agree(case):
    values, small, large = case
    assert evbmf(values, small, large) == evbmf(values[::-1], large, small)


@given(spectra(), st.floats(-60, 60))
@settings(max_examples=30)
def test_scale_changes_only_the_scale(case, exponent):
    values, small, large = case
    scale = 10.0**exponent
    one, other = evbmf(values, small, large), evbmf(scale * values, small, large)
    # The scaled values are rounded, so the best of two equal minima may change.
    assert other.noise_variance / scale / scale == pytest.approx(one.noise_variance, rel=1e-6)
    assert other.rank == one.rank
    np.testing.assert_allclose(np.array(other.shrunk) / scale, one.shrunk, rtol=1e-6)


@given(spectra(), st.floats(0.01, 10))
@settings(max_examples=30)
def test_a_known_noise_variance_gives_the_published_threshold_and_shrinkage(case, relative):
    values, small, large = case
    variance = relative * float(np.square(values).mean()) / large
    result = evbmf(values, small, large, noise_variance=variance)
    kept = np.sort(values[values > sqrt(large * variance * cutoff(small / large))])[::-1]
    ratio = (small + large) * variance / kept**2
    root = np.sqrt((1 - ratio) ** 2 - 4 * small * large * variance**2 / kept**4)
    assert result.rank == len(kept)
    assert result.noise_variance == variance
    np.testing.assert_allclose(result.shrunk, kept / 2 * (1 - ratio + root), rtol=1e-9)


@pytest.mark.parametrize(("large", "root"), [(1, 2.51286), (10, 0.82219)])
def test_the_exact_threshold_decides(large, root):
    aspect = 1 / large
    threshold = sqrt(large * (1 + root) * (1 + aspect / root))
    for value, rank in ((threshold * 0.9999, 0), (threshold * 1.0001, 1)):
        assert evbmf([value], 1, large, noise_variance=1.0).rank == rank


@given(spectra(), st.floats(1e-3, 1e3), st.floats(1, 100))
@settings(max_examples=30)
def test_more_noise_never_raises_the_rank(case, variance, factor):
    values, small, large = case
    little = evbmf(values, small, large, noise_variance=variance * 1e-4)
    much = evbmf(values, small, large, noise_variance=variance * 1e-4 * factor)
    assert much.rank <= little.rank
    assert all(a <= b * (1 + 1e-12) for a, b in zip(much.shrunk, little.shrunk, strict=False))


def test_almost_no_noise_shrinks_nothing():
    result = evbmf([3e100, 1e-100], 2, 2, noise_variance=1e-300)
    assert result.shrunk == pytest.approx((3e100,))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 9), (5, 5), (5, 70)])
@pytest.mark.parametrize("level", [0.0, 1e-30, 1.0, 1e30])
def test_equal_values_are_noise(rows, columns, level):
    result = evbmf([level] * min(rows, columns), rows, columns)
    assert result.rank == 0
    assert result.noise_variance == pytest.approx(level**2 / max(rows, columns))


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_a_matrix_without_noise_has_its_exact_rank(rank):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(60, rank)) @ rng.normal(size=(rank, 90))
    for values in (svdvals(matrix), singular_values(torch.from_numpy(matrix))):
        result = evbmf(values, 60, 90)
        assert result.rank == rank
        np.testing.assert_allclose(result.shrunk, svdvals(matrix)[:rank], rtol=1e-6)


def test_tensors_arrays_and_lists_agree():
    values = svdvals(plant_components(20, 50, [5, 4]))
    result = evbmf(values, 20, 50)
    assert result.rank == 2
    assert evbmf(torch.from_numpy(values).requires_grad_(), 20, 50) == result
    assert evbmf(values.tolist(), 20, 50) == result
    assert evbmf(torch.from_numpy(values).bfloat16(), 20, 50).rank == 2


def test_gram_values_of_trained_kernels_give_the_rank_of_exact_ones(data_root):
    weights = load_file(data_root / "cifar10_resnet" / "resnet56.safetensors")
    kernels = [kernel for kernel in weights.values() if kernel.ndim == 4]
    assert kernels
    for kernel in kernels:
        matrix = kernel.double().flatten(1)
        gram, exact = singular_values(matrix), torch.linalg.svdvals(matrix)
        assert evbmf(gram, *matrix.shape).rank == evbmf(exact, *matrix.shape).rank


@pytest.mark.parametrize("values", [[1.0, np.nan], [1.0, np.inf], [1.0, -1.0], [1.0, 1e200]])
def test_invalid_singular_values_are_refused(values):
    with pytest.raises(InvalidArgumentError, match="singular values must lie between 0 and"):
        evbmf(values, 2, 3)


def test_a_wrong_number_of_values_is_refused():
    with pytest.raises(InvalidArgumentError, match="a 3×5 matrix has 3 singular values, got 2"):
        evbmf([2.0, 1.0], 3, 5)
    with pytest.raises(InvalidArgumentError, match=r"of one matrix, got .* \(1, 2\)"):
        evbmf([[2.0, 1.0]], 2, 5)
    with pytest.raises(InvalidArgumentError, match="of one matrix"):
        evbmf([], 0, 5)


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_noise_variance_must_be_positive(variance):
    with pytest.raises(InvalidArgumentError, match="noise variance must be positive"):
        evbmf([2.0, 1.0], 2, 5, noise_variance=variance)


@pytest.mark.parametrize("aspect", [0.0, 1.5, float("nan")])
def test_an_aspect_ratio_is_at_most_one(aspect):
    with pytest.raises(InvalidArgumentError, match="aspect ratio"):
        threshold_root(aspect)
