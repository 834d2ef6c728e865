from itertools import pairwise

import pytest
import tensorly as tl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac

from tensorpress.decompose import cp_als, cp_to_tensor
from tensorpress.errors import InvalidArgumentError


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def planted(shape, rank):
    factors = [draw(n, rank, seed=i) for i, n in enumerate(shape)]
    return cp_to_tensor(torch.ones(rank, dtype=torch.float64), factors)


def measured(tensor, found):
    return float((tensor - found.to_tensor()).norm() / tensor.norm())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 4))
@settings(max_examples=30)
def test_rebuilding_is_tensorlys(shape, rank):
    weights, factors = draw(rank), [draw(n, rank, seed=i) for i, n in enumerate(shape)]
    expected = tl.cp_to_tensor((weights.numpy(), [f.numpy() for f in factors]))
    torch.testing.assert_close(cp_to_tensor(weights, factors), torch.from_numpy(expected))


@pytest.mark.parametrize(("shape", "rank"), [((6, 7, 8), 3), ((8, 6, 5, 4), 3), ((9, 8), 3)])
def test_planted_terms_are_found(shape, rank):
    tensor = planted(shape, rank)
    found = cp_als(tensor, rank, max_iter=1000, tol=1e-12)
    assert measured(tensor, found) < 1e-6
    assert found.converged


@pytest.mark.parametrize(("shape", "rank"), [((6, 7, 8), 3), ((20, 15, 10), 5), ((7, 6, 5, 4), 3)])
@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_no_worse_than_tensorly(shape, rank, noise):
    tensor = planted(shape, rank) + noise * draw(*shape, seed=9)
    theirs = parafac(tensor.numpy(), rank, n_iter_max=300, tol=1e-9, init="svd")
    error = tl.norm(tensor.numpy() - tl.cp_to_tensor(theirs)) / tl.norm(tensor.numpy())
    assert cp_als(tensor, rank, max_iter=300).relative_error <= 1.05 * error


@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(1, 4))
@settings(max_examples=25)
def test_columns_have_unit_norm_and_errors_are_measured(shape, rank):
    tensor = draw(*shape)
    found = cp_als(tensor, rank, max_iter=10)
    assert found.weights.shape == (rank,)
    assert bool((found.weights >= 0).all())
    assert found.relative_error == pytest.approx(measured(tensor, found), abs=1e-9)
    assert found.num_params == rank * (1 + sum(shape))
    for factor in found.factors:
        norms = factor.norm(dim=0)
        assert bool(((norms - 1).abs() < 1e-9).logical_or(norms == 0).all())


def test_error_never_grows_with_sweeps():
    tensor = draw(6, 5, 4)
    errors = [cp_als(tensor, 3, max_iter=n, tol=0).relative_error for n in range(1, 9)]
    assert all(late <= early + 1e-12 for early, late in pairwise(errors))


def test_the_result_is_always_the_same():
    tensor = draw(5, 4, 3)
    first, again = cp_als(tensor, 6, max_iter=2), cp_als(tensor, 6, max_iter=2)
    assert torch.equal(first.weights, again.weights)


def test_a_rank_above_every_mode():
    tensor = draw(3, 2, 2)
    assert cp_als(tensor, 6, max_iter=2000, tol=1e-12).relative_error < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_come_back_in_their_own(dtype):
    found = cp_als(planted((5, 4, 3), 2).to(dtype), 2)
    assert {found.weights.dtype, *(f.dtype for f in found.factors)} == {dtype}


def test_a_zero_tensor_has_no_error():
    found = cp_als(torch.zeros(4, 3, 2), 2)
    assert found.relative_error == 0
    assert float(found.to_tensor().abs().max()) == 0


@pytest.mark.parametrize("rank", [0, -1])
def test_ranks_below_one_are_refused(rank):
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        cp_als(draw(3, 2), rank)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        cp_als(torch.tensor([[1.0, float("nan")]]), 1)


def test_a_vector_is_refused():
    with pytest.raises(InvalidArgumentError, match="two modes"):
        cp_als(draw(4), 1)
