from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.decompose import CP, cp_als, cp_nls, cp_to_tensor, max_cp_rank
from tensorpress.decompose.cp_als import decompose_slices, initialize_cp
from tensorpress.decompose.cp_mttkrp import HalvedTensor, hadamard
from tensorpress.errors import InvalidArgumentError

tl = pytest.importorskip("tensorly")
parafac = pytest.importorskip("tensorly.decomposition").parafac

BOTH = pytest.mark.parametrize("decompose", [cp_als, cp_nls])
SHAPES = st.lists(st.integers(1, 6), min_size=2, max_size=5).filter(lambda s: max_cp_rank(s) <= 60)


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def plant_terms(shape, rank):
    factors = [draw(n, rank, seed=i) for i, n in enumerate(shape)]
    return cp_to_tensor(torch.ones(rank, dtype=torch.float64), factors)


def measure_error(tensor, result):
    return float((tensor - result.to_tensor()).norm() / tensor.norm())


def kernel():
    """A convolution's kernel with the decaying spectra of trained ones."""
    falling = torch.arange(1, 13).double() ** -0.7
    return draw(12, 10, 3, 3) * falling[:, None, None, None] * falling[:10, None, None]


@BOTH
@pytest.mark.parametrize(
    ("shape", "rank"), [((6, 7, 8), 3), ((8, 6, 5, 4), 3), ((9, 8), 3), ((4, 5, 4, 3, 3), 2)]
)
def test_planted_terms_are_found(decompose, shape, rank):
    tensor = plant_terms(shape, rank)
    result = decompose(tensor, rank, max_iter=1000, tol=1e-12)
    assert measure_error(tensor, result) < 1e-9
    assert result.converged


@pytest.mark.parametrize(("shape", "rank"), [((6, 7, 8), 3), ((12, 10, 7), 5), ((7, 6, 5, 4), 3)])
@pytest.mark.parametrize("noise", [0.3, 3.0])
@pytest.mark.parametrize("init", ["svd", "random"])
def test_no_worse_than_tensorly(shape, rank, noise, init):
    tensor = plant_terms(shape, rank) + noise * draw(*shape, seed=9)
    reference = parafac(tensor.numpy(), rank, n_iter_max=200, tol=1e-9, init=init, random_state=0)
    error = tl.norm(tensor.numpy() - tl.cp_to_tensor(reference)) / tl.norm(tensor.numpy())
    # What is mostly noise has many minima, of about the same error.
    assert cp_als(tensor, rank).relative_error <= (1 + 2e-3) * error


@given(SHAPES, st.data())
@settings(max_examples=25, deadline=None)
def test_results_are_well_formed_and_errors_measured(shape, data):
    rank = data.draw(st.integers(1, max_cp_rank(shape)))
    tensor = draw(*shape)
    result = cp_als(tensor, rank, max_iter=10)
    assert result.weights.shape == (rank,)
    assert bool((result.weights >= 0).all())
    assert result.relative_error == pytest.approx(measure_error(tensor, result), abs=1e-9)
    assert result.num_params == rank * (1 + sum(shape))
    for factor in result.factors:
        norms = factor.norm(dim=0)
        assert bool(((norms - 1).abs() < 1e-9).logical_or(norms == 0).all())


@given(SHAPES)
@settings(max_examples=25, deadline=None)
def test_the_largest_rank_reproduces_the_tensor(shape):
    tensor = draw(*shape)
    result = cp_als(tensor, max_cp_rank(shape))
    assert measure_error(tensor, result) < 1e-13
    assert result.converged


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (7, 1, 9), (1, 7, 9, 1)])
def test_a_matrix_gets_its_singular_value_decomposition(shape):
    tensor = draw(*shape)
    values = np.linalg.svd(tensor.squeeze().numpy(), compute_uv=False)
    result = cp_als(tensor, 3)
    np.testing.assert_allclose(np.sort(result.weights.numpy())[::-1], values[:3], atol=1e-10)
    expected = np.sqrt((values[3:] ** 2).sum() / (values**2).sum())
    assert result.relative_error == pytest.approx(expected, abs=1e-10)


def test_modes_of_size_one_change_nothing():
    tensor = draw(6, 5, 4)
    slim, padded = cp_als(tensor, 3), cp_als(tensor[:, None, :, :, None], 3)
    assert padded.relative_error == pytest.approx(slim.relative_error, abs=1e-12)
    assert [tuple(f.shape) for f in padded.factors] == [(6, 3), (1, 3), (5, 3), (4, 3), (1, 3)]


def test_a_tensor_of_one_value():
    result = cp_als(torch.tensor([[-3.0]]), 1)
    assert float(result.to_tensor()) == pytest.approx(-3)


def test_the_order_of_the_modes_does_not_matter():
    tensor = plant_terms((7, 6, 5), 2) + 0.1 * draw(7, 6, 5, seed=9)
    errors = [
        cp_als(tensor.permute(order), 2, tol=1e-10).relative_error
        for order in permutations(range(3))
    ]
    assert max(errors) - min(errors) < 1e-7


@given(st.integers(1, 70), st.integers(1, 12))
@settings(max_examples=10, deadline=None)
def test_the_error_of_als_never_grows_with_sweeps(sweeps, rank):
    errors = [
        cp_als(kernel(), rank, max_iter=n, tol=0).relative_error for n in (sweeps, sweeps + 3)
    ]
    assert errors[1] <= errors[0] + 1e-12


def test_the_error_of_nls_never_grows_with_steps():
    start = cp_als(kernel(), 6, max_iter=3)
    errors = [
        cp_nls(kernel(), 6, max_iter=n, tol=0, start=start).relative_error for n in range(1, 9)
    ]
    assert errors[0] <= start.relative_error
    assert all(late <= early + 1e-12 for early, late in pairwise(errors))


@pytest.mark.parametrize("rank", [4, 12])
def test_nls_is_no_worse_than_als(rank):
    assert cp_nls(kernel(), rank, max_iter=10).relative_error <= (
        cp_als(kernel(), rank).relative_error + 1e-12
    )


def test_starting_from_a_result_lowers_the_error():
    first = cp_als(kernel(), 8, max_iter=5)
    on = cp_als(kernel(), 8, max_iter=20, start=first)
    assert on.relative_error < first.relative_error


def test_a_start_may_have_any_signs_and_norms():
    tensor = 5 * plant_terms((6, 1, 5, 4), 2)
    factors = [draw(n, 2, seed=20 + i) for i, n in enumerate(tensor.shape)]
    start = CP(torch.tensor([-3.0, 1e-3]).double(), tuple(factors), 1.0, 0, False)
    result = cp_als(tensor, 2, tol=1e-12, max_iter=1000, start=start)
    assert result.relative_error < 1e-9


def test_the_result_is_always_the_same():
    tensor = draw(5, 4, 3)
    first, again = cp_als(tensor, 6, max_iter=2), cp_als(tensor, 6, max_iter=2)
    assert torch.equal(first.weights, again.weights)


@given(SHAPES.filter(lambda s: len(s) > 2 and len(set(s)) == len(s)), st.data())
@settings(max_examples=25, deadline=None)
def test_the_error_of_slices_is_the_discarded_energy(shape, data):
    tensor = draw(*shape)
    rank = data.draw(st.integers(1, max_cp_rank(shape)))
    *_, a, b = sorted(range(len(shape)), key=lambda mode: shape[mode])
    slices = tensor.movedim((a, b), (-2, -1)).flatten(0, -3).numpy()
    values = np.sort(np.linalg.svd(slices, compute_uv=False).flatten())[::-1]
    rebuilt = cp_to_tensor(torch.ones(rank).double(), decompose_slices(tensor, rank))
    lost = float((tensor - rebuilt).square().sum())
    assert lost == pytest.approx((values[rank:] ** 2).sum(), abs=1e-10)


def test_rotating_the_small_modes_lowers_the_error_of_slices():
    fixed = draw(8, 7, 1, 1) * draw(1, 1, 3, 1) * draw(1, 1, 1, 3)
    tensor = fixed + 0.01 * draw(8, 7, 3, 3, seed=3)
    plain, turned, *_ = [cp_to_tensor(torch.ones(7).double(), f) for f in initialize_cp(tensor, 7)]
    assert float((tensor - turned).norm()) < 0.2 * float((tensor - plain).norm())


@given(SHAPES, st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_mttkrps_by_halves_agree_with_tensorly(shape, rank):
    tensor = draw(*shape)
    factors = [draw(n, rank, seed=i) for i, n in enumerate(shape)]
    for mode, mttkrp in enumerate(HalvedTensor(tensor).compute_mttkrps(factors)):
        arrays = [factor.numpy() for factor in factors]
        expected = tl.tenalg.unfolding_dot_khatri_rao(tensor.numpy(), (None, arrays), mode)
        np.testing.assert_allclose(mttkrp.numpy(), expected, atol=1e-9)


def test_stacked_runs_have_separate_mttkrps():
    tensor, runs = draw(4, 3, 5), [[draw(n, 2, seed=10 * r + n) for n in (4, 3, 5)] for r in (0, 1)]
    stacked = [torch.stack(pair, dim=1) for pair in zip(*runs, strict=True)]
    halves = HalvedTensor(tensor)
    for mode, mttkrp in enumerate(halves.compute_mttkrps(stacked)):
        for run, factors in enumerate(runs):
            torch.testing.assert_close(mttkrp[:, run], halves.compute_mttkrps(factors)[mode])


def test_errors_lost_in_cancellation_are_measured():
    factors = [draw(n, 2, seed=n) for n in (5, 4, 3)]
    tensor = cp_to_tensor(torch.ones(2).double(), factors)
    halves = HalvedTensor(tensor / tensor.norm())
    factors[0] = factors[0] / tensor.norm() * (1 + 1e-9)
    products = hadamard([factor.mT @ factor for factor in factors])
    error2 = halves.squared_error(
        factors, products, halves.compute_mttkrps(factors)[halves.modes[1][-1]]
    )
    assert float(error2) == pytest.approx(1e-18, rel=1e-5)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_come_back_in_their_own(decompose, dtype):
    tensor = plant_terms((5, 4, 3), 2).to(dtype)
    result = decompose(tensor, 2)
    assert {result.weights.dtype, *(f.dtype for f in result.factors)} == {dtype}
    assert (
        measure_error(
            tensor.double(),
            CP(result.weights.double(), tuple(f.double() for f in result.factors), 0, 0, True),
        )
        < 0.05
    )


@BOTH
@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3), (1, 1, 1)])
def test_a_zero_tensor_has_no_error(decompose, shape):
    result = decompose(torch.zeros(shape), 1)
    assert result.relative_error == 0
    assert float(result.to_tensor().abs().max()) == 0


@BOTH
def test_a_zero_tensor_from_a_start(decompose):
    start = cp_als(draw(4, 3, 2), 2)
    result = decompose(torch.zeros(4, 3, 2), 2, start=start)
    assert float(result.to_tensor().abs().max()) < 1e-6


@BOTH
def test_constants_and_missing_directions(decompose):
    assert decompose(torch.full((5, 4, 3), 7.0), 3).relative_error < 1e-12
    gaps = draw(6, 5, 4)
    gaps[2:], gaps[:, 1] = 0, 0
    assert decompose(gaps, 8).relative_error < 1e-6


@BOTH
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_results_stay_on_the_device(decompose, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    result = decompose(kernel().to(device), 4, max_iter=25)
    assert {result.weights.device.type, *(f.device.type for f in result.factors)} == {device}
    assert result.relative_error == pytest.approx(
        decompose(kernel(), 4, max_iter=25).relative_error
    )


@BOTH
@pytest.mark.parametrize("rank", [0, -1, 7])
def test_ranks_out_of_range_are_refused(decompose, rank):
    with pytest.raises(InvalidArgumentError, match=f"at least 1 .* at most 6, got {rank}"):
        decompose(draw(7, 3, 2), rank)


@BOTH
def test_values_that_are_not_finite_are_refused(decompose):
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        decompose(torch.tensor([[1.0, float("nan")]]), 1)


@BOTH
def test_a_vector_is_refused(decompose):
    with pytest.raises(InvalidArgumentError, match="two modes"):
        decompose(draw(4), 1)


@BOTH
@pytest.mark.parametrize("limits", [{"max_iter": 0}, {"tol": -1.0}, {"tol": float("nan")}])
def test_limits_out_of_range_are_refused(decompose, limits):
    with pytest.raises(InvalidArgumentError, match="max_iter must be at least 1"):
        decompose(draw(4, 3, 2), 2, **limits)


@BOTH
@pytest.mark.parametrize(("shape", "rank"), [((4, 3, 2), 3), ((4, 3, 3), 2), ((4, 3), 2)])
def test_a_start_that_does_not_fit_is_refused(decompose, shape, rank):
    with pytest.raises(InvalidArgumentError, match="a start for 2 terms"):
        decompose(draw(4, 3, 2), 2, start=cp_als(draw(*shape), rank))


def test_terms_too_large_for_the_dtype_are_an_error():
    with pytest.raises(InvalidArgumentError, match=r"does not fit torch\.float16"):
        cp_als(torch.full((50, 50, 4), 1000.0, dtype=torch.float16), 1)


@BOTH
def test_results_can_be_trained(decompose):
    result = decompose(kernel(), 3, max_iter=3)
    trained = [factor.requires_grad_() for factor in result.factors]
    cp_to_tensor(result.weights, trained).square().sum().backward()
    assert all(factor.grad is not None for factor in trained)
