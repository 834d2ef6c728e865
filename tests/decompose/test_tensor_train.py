from math import prod, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.decompose import (
    TensorTrain,
    attainable_tt_ranks,
    largest_tt_ranks,
    tt_params,
    tt_round,
    tt_spectra,
    tt_svd,
    tt_to_tensor,
)
from tensorpress.errors import InvalidArgumentError

tl = pytest.importorskip("tensorly")
tensor_train = pytest.importorskip("tensorly.decomposition").tensor_train

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
)


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def decaying(*shape, seed=0):
    """A tensor whose entries fall off along every mode, and so do the spectra of its unfoldings."""
    tensor = draw(*shape, seed=seed)
    for mode, n in enumerate(shape):
        scales = 0.5 ** torch.arange(n, dtype=tensor.dtype)
        tensor = tensor * scales.reshape([-1 if i == mode else 1 for i in range(len(shape))])
    return tensor


def random_train(shape, ranks, seed=0):
    ends = [1, *ranks, 1]
    cores = [draw(ends[k], n, ends[k + 1], seed=seed + k) for k, n in enumerate(shape)]
    return TensorTrain(tuple(cores), 0.0)


def add_trains(first, second):
    """The train of a sum, of ranks that add up: block-diagonal cores."""
    cores = []
    for k, (a, b) in enumerate(zip(first.cores, second.cores, strict=True)):
        core = a.new_zeros(a.shape[0] + b.shape[0], a.shape[1], a.shape[2] + b.shape[2])
        core[: a.shape[0], :, : a.shape[2]] = a
        core[a.shape[0] :, :, a.shape[2] :] = b
        if k == 0:
            core = core.sum(0, keepdim=True)
        if k == len(first.cores) - 1:
            core = core.sum(2, keepdim=True)
        cores.append(core)
    return TensorTrain(tuple(cores), 0.0)


def distance(tensor, other):
    return float((tensor.double() - other.double()).norm() / tensor.double().norm())


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=5)


@st.composite
def shape_and_ranks(draw, min_order=1):
    shape = draw(st.lists(st.integers(1, 5), min_size=min_order, max_size=5))
    return shape, [draw(st.integers(1, most)) for most in largest_tt_ranks(shape)]


@given(shapes)
@settings(max_examples=30)
def test_largest_ranks_reproduce_the_tensor(shape):
    tensor = draw(*shape)
    train = tt_svd(tensor, ranks=largest_tt_ranks(shape))
    assert train.shape == tuple(shape)
    assert train.ranks == largest_tt_ranks(shape)
    assert distance(tensor, train.to_tensor()) < 1e-12
    assert train.relative_error < 1e-12


@given(shape_and_ranks())
@settings(max_examples=40)
def test_the_reported_error_is_exact(case):
    shape, ranks = case
    tensor = draw(*shape)
    train = tt_svd(tensor, ranks=ranks)
    assert train.relative_error == pytest.approx(distance(tensor, train.to_tensor()), abs=1e-9)


@given(shape_and_ranks())
@settings(max_examples=40)
def test_the_last_core_has_the_energy_that_is_not_discarded(case):
    shape, ranks = case
    tensor = draw(*shape)
    train = tt_svd(tensor, ranks=ranks)
    energy = float(train.cores[-1].square().sum() / tensor.square().sum())
    assert train.relative_error**2 == pytest.approx(1 - energy, abs=1e-12)
    for core in train.cores[:-1]:
        unfolding = core.flatten(0, 1)
        eye = torch.eye(core.shape[2], dtype=torch.float64)
        torch.testing.assert_close(unfolding.mT @ unfolding, eye)


@given(shape_and_ranks(min_order=2))
@settings(max_examples=40)
def test_ranks_are_the_attainable_ones(case):
    shape, ranks = case
    train = tt_svd(draw(*shape), ranks=ranks)
    assert train.ranks == attainable_tt_ranks(shape, ranks)
    assert all(rank <= limit for rank, limit in zip(train.ranks, ranks, strict=True))
    stored = sum(core.numel() for core in train.cores)
    assert train.num_params == tt_params(shape, train.ranks) == stored


@given(shape_and_ranks(min_order=2))
@settings(max_examples=40)
def test_attainable_ranks_fit_their_neighbours_and_stay(case):
    shape, ranks = case
    lowered = attainable_tt_ranks(shape, ranks)
    assert attainable_tt_ranks(shape, lowered) == lowered
    ends = [1, *lowered, 1]
    for k, n in enumerate(shape):
        assert ends[k] <= n * ends[k + 1]
        assert ends[k + 1] <= ends[k] * n


@given(shapes, st.integers(1, 30))
@settings(max_examples=30)
def test_equal_ranks_are_attainable_up_to_the_largest(shape, rank):
    ranks = tuple(min(rank, most) for most in largest_tt_ranks(shape))
    assert attainable_tt_ranks(shape, ranks) == ranks


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("shape", [(6, 5, 7), (4, 3, 4, 3, 4), (9, 8), (5,)])
def test_a_tolerance_bounds_the_error(shape, tolerance):
    tensor = decaying(*shape)
    train = tt_svd(tensor, tolerance=tolerance)
    assert distance(tensor, train.to_tensor()) <= tolerance
    assert train.relative_error == pytest.approx(distance(tensor, train.to_tensor()), abs=1e-12)


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 1e-3, 1e-5])
def test_one_rank_less_misses_the_tolerance(tolerance):
    """No first rank smaller by one would have met its share of the tolerance."""
    tensor = decaying(6, 5, 7)
    first = tt_svd(tensor, tolerance=tolerance).ranks[0]
    values = torch.linalg.svdvals(tensor.flatten(1))
    share = tolerance * float(tensor.norm()) / sqrt(2)
    assert float(values[first:].norm()) <= share < float(values[first - 1 :].norm())


def test_a_smaller_tolerance_never_lowers_a_rank_of_a_matrix():
    matrix = decaying(9, 8)
    ranks = [tt_svd(matrix, tolerance=t).ranks[0] for t in (0.9, 0.3, 0.1, 1e-3, 1e-7, 0)]
    assert ranks == sorted(ranks)
    assert ranks[-1] == 8


@pytest.mark.parametrize("tolerance", [0, 1e-10, 1e-5])
@pytest.mark.parametrize(("shape", "ranks"), [((6, 5, 7), (2, 3)), ((4, 4, 4, 4), (2, 3, 2))])
def test_the_ranks_of_a_low_rank_tensor_are_found(shape, ranks, tolerance):
    tensor = random_train(shape, ranks).to_tensor()
    train = tt_svd(tensor, tolerance=tolerance)
    assert train.ranks == ranks
    assert distance(tensor, train.to_tensor()) < 1e-12


@pytest.mark.parametrize(
    ("shape", "ranks"), [((6, 5, 7), (3, 4)), ((4, 4, 4, 4), (3, 5, 2)), ((9, 8), (4,))]
)
@pytest.mark.parametrize("make", [draw, decaying])
def test_the_same_train_as_tensorly(make, shape, ranks):
    tensor = make(*shape)
    reference = tl.tt_to_tensor(tensor_train(tensor.numpy(), [1, *ranks, 1]))
    ours = tt_svd(tensor, ranks=ranks).to_tensor().numpy()
    np.testing.assert_allclose(ours, reference, atol=1e-6 * float(tensor.norm()))


def test_a_matrix_is_truncated_as_by_its_svd():
    matrix = draw(9, 6)
    tail = torch.linalg.svdvals(matrix)[3:]
    train = tt_svd(matrix, ranks=(3,))
    assert train.relative_error == pytest.approx(float(tail.norm() / matrix.norm()), rel=1e-9)


@given(st.integers(0, 30))
@settings(max_examples=10)
def test_the_error_of_three_modes_never_grows_with_a_rank(seed):
    tensor = draw(4, 5, 4, seed=seed)
    errors = {
        (a, b): tt_svd(tensor, ranks=(a, b)).relative_error
        for a in range(1, 5)
        for b in range(1, 5)
        if b <= 5 * a and a <= 5 * b
    }
    for (a, b), error in errors.items():
        for more in ((a + 1, b), (a, b + 1)):
            assert errors.get(more, 0.0) <= error + 1e-9


def test_the_error_falls_with_equal_ranks():
    tensor = decaying(4, 4, 4, 4, 4)
    most = largest_tt_ranks(tensor.shape)
    errors = [tt_svd(tensor, ranks=[min(r, m) for m in most]).relative_error for r in range(1, 17)]
    assert errors == sorted(errors, reverse=True)


@given(shape_and_ranks(min_order=2))
@settings(max_examples=30)
def test_the_error_lies_between_the_bounds_of_the_spectra(case):
    shape, ranks = case
    tensor = draw(*shape)
    spectra = tt_spectra(tensor)
    assert [len(spectrum.values) for spectrum in spectra] == list(largest_tt_ranks(shape))
    train = tt_svd(tensor, ranks=ranks)
    tails = [
        float(result.values[rank:].square().sum() / tensor.square().sum())
        for result, rank in zip(spectra, train.ranks, strict=True)
    ]
    assert sqrt(max(tails)) <= train.relative_error + 1e-7
    assert train.relative_error <= sqrt(sum(tails)) + 1e-7


@given(shape_and_ranks(min_order=2))
@settings(max_examples=30)
def test_rounding_by_ranks_is_the_decomposition_of_the_tensor(case):
    shape, ranks = case
    tensor = draw(*shape)
    full = tt_svd(tensor, ranks=largest_tt_ranks(shape))
    rounded, direct = tt_round(full, ranks=ranks), tt_svd(tensor, ranks=ranks)
    assert rounded.ranks == direct.ranks
    assert rounded.relative_error == pytest.approx(direct.relative_error, abs=1e-9)
    assert rounded.relative_error == pytest.approx(distance(tensor, rounded.to_tensor()), abs=1e-9)


@pytest.mark.parametrize("tolerance", [0, 1e-12, 1e-4])
def test_rounding_a_sum_finds_its_ranks(tolerance):
    train = random_train((4, 5, 6, 4), (2, 3, 2))
    doubled = add_trains(train, train)
    assert doubled.ranks == (4, 6, 4)
    rounded = tt_round(doubled, tolerance=tolerance)
    assert rounded.ranks == train.ranks
    assert distance(2 * train.to_tensor(), rounded.to_tensor()) < 1e-12


def test_rounding_finds_the_ranks_of_an_inflated_train():
    train = random_train((4, 5, 6, 4), (2, 3, 2))
    cores = list(train.cores)
    wide = draw(3, 20, seed=9)
    cores[1], cores[2] = cores[1] @ wide, torch.tensordot(torch.linalg.pinv(wide), cores[2], 1)
    inflated = TensorTrain(tuple(cores), 0.0)
    assert inflated.ranks == (2, 20, 2)
    rounded = tt_round(inflated, tolerance=1e-10)
    assert rounded.ranks == train.ranks
    assert distance(train.to_tensor(), rounded.to_tensor()) < 1e-10


@pytest.mark.parametrize("tolerance", [0.7, 0.2, 1e-2, 1e-7])
def test_rounding_stays_within_its_tolerance(tolerance):
    tensor = decaying(5, 4, 5, 4)
    full = tt_svd(tensor, tolerance=0)
    rounded = tt_round(full, tolerance=tolerance)
    measured = distance(full.to_tensor(), rounded.to_tensor())
    assert measured <= tolerance
    assert rounded.relative_error == pytest.approx(measured, abs=1e-12)
    assert rounded.num_params <= full.num_params


def test_rounding_never_raises_a_rank():
    train = random_train((4, 5, 4), (1, 2))
    assert tt_round(train, ranks=(4, 4)).ranks == (1, 2)


def test_rounding_a_tensor_too_large_to_build():
    train = random_train((10,) * 30, (3,) * 29)
    rounded = tt_round(add_trains(train, train), tolerance=1e-9)
    assert rounded.ranks == train.ranks


@given(shape_and_ranks())
@settings(max_examples=30)
def test_contraction_agrees_with_einsum(case):
    shape, ranks = case
    train = random_train(shape, ranks)
    expected = torch.ones(1, dtype=torch.float64)
    for core in train.cores:
        expected = torch.einsum("...r,rns->...ns", expected, core)
    torch.testing.assert_close(tt_to_tensor(train.cores), expected[..., 0])


def test_contraction_is_differentiable():
    cores = [core.requires_grad_() for core in random_train((2, 3, 2, 2), (2, 3, 2)).cores]
    assert torch.autograd.gradcheck(lambda *cores: tt_to_tensor(cores), cores)


def test_one_mode_is_its_own_core():
    tensor = draw(7)
    for train in (tt_svd(tensor, ranks=()), tt_svd(tensor, tolerance=0.1)):
        assert train.ranks == ()
        assert train.relative_error == 0
        assert torch.equal(train.cores[0], tensor.reshape(1, 7, 1))
        assert torch.equal(tt_round(train, ranks=()).to_tensor(), tensor)


@pytest.mark.parametrize("options", [{"ranks": (2, 2)}, {"tolerance": 0.1}, {"tolerance": 0}])
def test_a_zero_tensor_has_no_error(options):
    for train in (
        tt_svd(torch.zeros(3, 4, 5), **options),
        tt_round(TensorTrain(tt_svd(torch.zeros(3, 4, 5), ranks=(2, 2)).cores, 0.0), **options),
    ):
        assert train.relative_error == 0
        assert float(train.to_tensor().abs().max()) == 0
        assert all(bool(core.isfinite().all()) for core in train.cores)
        if "tolerance" in options:
            assert train.ranks == (1, 1)


def test_a_constant_has_ranks_of_one():
    train = tt_svd(torch.full((3, 1, 4, 5), -2.0), tolerance=1e-5)
    assert train.ranks == (1, 1, 1)
    torch.testing.assert_close(train.to_tensor(), torch.full((3, 1, 4, 5), -2.0))


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_device_are_those_of_the_tensor(dtype, device):
    tensor = decaying(4, 5, 4).to(device, dtype)
    train = tt_svd(tensor, tolerance=1e-4)
    rounded = tt_round(train, tolerance=1e-3)
    for core in (*train.cores, *rounded.cores):
        assert core.dtype == dtype
        assert core.device.type == device
    assert distance(tensor, train.to_tensor()) < 20 * torch.finfo(dtype).eps + 1e-4


def test_gradients_do_not_flow_into_a_decomposition():
    assert not tt_svd(draw(4, 3).requires_grad_(), ranks=(2,)).cores[0].requires_grad


def test_the_same_input_gives_the_same_train():
    tensor = draw(5, 6, 7)
    first, second = (tt_svd(tensor, ranks=(3, 4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.cores, second.cores, strict=True))


@pytest.mark.parametrize("ranks", [(), (2,), (2, 2, 2)])
def test_a_wrong_number_of_ranks_is_refused(ranks):
    with pytest.raises(InvalidArgumentError, match=rf"has 2 inner ranks, got {len(ranks)}"):
        tt_svd(draw(3, 4, 5), ranks=ranks)


@pytest.mark.parametrize(("ranks", "position", "most"), [((0, 2), 1, 3), ((3, -1), 2, 5)])
def test_ranks_below_one_are_refused(ranks, position, most):
    with pytest.raises(InvalidArgumentError, match=rf"TT-rank {position} .* from 1 to {most}"):
        tt_svd(draw(3, 4, 5), ranks=ranks)


@pytest.mark.parametrize(("ranks", "position", "most"), [((4, 2), 1, 3), ((3, 6), 2, 5)])
def test_ranks_above_the_largest_are_refused(ranks, position, most):
    message = rf"TT-rank {position} .* from 1 to {most}, got {ranks[position - 1]}"
    for decompose in (tt_svd, lambda t, **o: tt_round(tt_svd(t, tolerance=0), **o)):
        with pytest.raises(InvalidArgumentError, match=message):
            decompose(draw(3, 4, 5), ranks=ranks)


@pytest.mark.parametrize("options", [{}, {"ranks": (2, 2), "tolerance": 0.1}])
def test_both_or_none_of_ranks_and_tolerance_are_refused(options):
    tensor = draw(3, 4, 5)
    with pytest.raises(InvalidArgumentError, match="either ranks or a tolerance"):
        tt_svd(tensor, **options)
    with pytest.raises(InvalidArgumentError, match="either ranks or a tolerance"):
        tt_round(tt_svd(tensor, ranks=(2, 2)), **options)


@pytest.mark.parametrize("tolerance", [-0.1, 1, 2, float("nan"), float("inf")])
def test_tolerances_out_of_range_are_refused(tolerance):
    with pytest.raises(InvalidArgumentError, match="0 and below 1"):
        tt_svd(draw(3, 4), tolerance=tolerance)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    tensor = draw(4, 3)
    tensor[1, 2] = bad
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        tt_svd(tensor, ranks=(2,))
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        tt_spectra(tensor)
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        tt_round(TensorTrain((tensor[None], torch.ones(3, 2, 1)), 0.0), ranks=(2,))


@pytest.mark.parametrize("tensor", [torch.tensor(1.0), torch.ones(3, 0, 2)])
def test_tensors_without_modes_or_entries_are_refused(tensor):
    with pytest.raises(InvalidArgumentError, match=r"one mode|no entries"):
        tt_svd(tensor, tolerance=0.1)


@pytest.mark.parametrize(
    "cores",
    [
        [],
        [torch.ones(2, 3)],
        [torch.ones(1, 3, 2), torch.ones(3, 3, 1)],
        [torch.ones(2, 3, 1)],
        [torch.ones(1, 3, 2)],
    ],
)
def test_cores_that_make_no_train_are_refused(cores):
    with pytest.raises(InvalidArgumentError, match="core"):
        tt_to_tensor(cores)
    with pytest.raises(InvalidArgumentError, match="core"):
        tt_round(TensorTrain(tuple(cores), 0.0), tolerance=0.1)


@given(shapes)
@settings(max_examples=30)
def test_largest_ranks_are_those_of_the_unfoldings(shape):
    expected = [min(prod(shape[:k]), prod(shape[k:])) for k in range(1, len(shape))]
    assert list(largest_tt_ranks(shape)) == expected


def test_parameters_of_the_published_fully_connected_layer():
    """The first layer of VGG, 25088×4096 (Novikov et al. 2015, table 2)."""
    sizes = [m * n for m, n in zip((2, 7, 8, 8, 7, 4), (4,) * 6, strict=True)]
    assert tt_params(sizes, (4,) * 5) == 2016
    assert 25088 * 4096 / tt_params(sizes, (2,) * 5) == pytest.approx(194_622, abs=0.5)
