from itertools import pairwise

import pytest
import torch

from tensorpress.decompose import CP, cp_als, cp_correct, cp_nls, cp_to_tensor
from tensorpress.errors import InvalidArgumentError


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_border_rank_tensor():
    """A tensor of rank 3 that terms of rank 2 approach as closely as one likes, by cancelling."""
    a, b = torch.eye(2, dtype=torch.float64)
    terms = [(a, a, b), (a, b, a), (b, a, a)]
    return sum(torch.einsum("i,j,k->ijk", *term) for term in terms)


def measure_error(tensor, cp):
    return float((tensor - cp.to_tensor()).norm() / tensor.norm())


@pytest.mark.parametrize("decompose", [cp_als, cp_nls])
def test_a_tensor_of_lower_border_rank_makes_terms_cancel(decompose):
    start = cp_als(make_border_rank_tensor(), 2, max_iter=5)
    long = decompose(make_border_rank_tensor(), 2, max_iter=300, tol=0, start=start)
    assert long.relative_error < 0.2 * start.relative_error
    assert long.degeneracy > max(50, 5 * start.degeneracy)


def test_correction_bounds_the_terms_of_a_degenerate_decomposition():
    cp = cp_nls(make_border_rank_tensor(), 2, max_iter=300, tol=0)
    bound = 0.1
    assert cp.relative_error < bound
    corrected = cp_correct(cp, make_border_rank_tensor(), max_error=bound)
    assert measure_error(make_border_rank_tensor(), corrected) <= bound * (1 + 1e-8)
    assert corrected.sensitivity < 0.2 * cp.sensitivity
    assert corrected.degeneracy < 0.1 * cp.degeneracy


@pytest.mark.parametrize(("shape", "rank"), [((8, 7, 6), 4), ((7, 6, 3, 3), 6), ((6, 5, 1, 4), 3)])
@pytest.mark.parametrize("room", [1.0, 1.02, 1.2])
def test_the_bound_holds_and_sensitivity_does_not_rise(shape, rank, room):
    tensor = draw(*shape)
    cp = cp_als(tensor, rank, max_iter=15)
    corrected = cp_correct(cp, tensor, max_error=room * cp.relative_error)
    assert measure_error(tensor, corrected) <= room * cp.relative_error * (1 + 1e-8)
    assert corrected.relative_error == pytest.approx(measure_error(tensor, corrected), abs=1e-9)
    assert corrected.sensitivity <= cp.sensitivity * (1 + 1e-12)


def test_the_error_of_the_decomposition_is_the_default_bound():
    tensor = draw(8, 7, 6)
    cp = cp_als(tensor, 6, max_iter=10)
    corrected = cp_correct(cp, tensor)
    assert measure_error(tensor, corrected) <= cp.relative_error * (1 + 1e-8)
    assert corrected.sensitivity < cp.sensitivity


def test_sensitivity_falls_with_sweeps_and_with_room():
    tensor = draw(8, 7, 6)
    cp = cp_als(tensor, 6)
    bound = 1.05 * cp.relative_error
    by_sweeps = [
        cp_correct(cp, tensor, max_error=bound, max_iter=n, tol=0).sensitivity for n in range(1, 12)
    ]
    assert all(late <= early * (1 + 1e-12) for early, late in pairwise(by_sweeps))
    by_room = [
        cp_correct(cp, tensor, max_error=room * cp.relative_error).sensitivity
        for room in (1.01, 1.05, 1.2)
    ]
    assert by_room[0] > by_room[1] > by_room[2]


def test_the_solution_for_one_factor_is_the_least_sensitive_one():
    """With one term the answer is known: shrink the weight until the error meets the bound."""
    cp = cp_als(draw(5, 4, 3), 1, tol=1e-12, max_iter=1000)
    energy = float(draw(5, 4, 3).square().sum())
    bound = 0.5 * (cp.relative_error + 1)
    missing = (bound**2 - cp.relative_error**2) * energy
    corrected = cp_correct(cp, draw(5, 4, 3), max_error=bound, max_iter=2000, tol=1e-12)
    expected = float(cp.weights) - missing**0.5
    assert float(corrected.weights) == pytest.approx(expected, rel=1e-4)


def test_dtype_and_size_one_modes_are_kept():
    tensor = draw(6, 1, 5, 4).to(torch.bfloat16)
    corrected = cp_correct(cp_als(tensor, 3), tensor, max_error=0.9)
    assert {corrected.weights.dtype, *(f.dtype for f in corrected.factors)} == {torch.bfloat16}
    assert [tuple(f.shape) for f in corrected.factors] == [(6, 3), (1, 3), (5, 3), (4, 3)]


def test_a_zero_tensor_stays_zero():
    zero = torch.zeros(4, 3, 2)
    corrected = cp_correct(cp_als(zero, 2), zero, max_error=0.1)
    assert float(corrected.to_tensor().abs().max()) == 0


@pytest.mark.parametrize("bound", [0.01, 1.0, float("nan"), -0.5])
def test_bounds_that_cannot_be_met_or_say_nothing_are_refused(bound):
    tensor = draw(6, 5, 4)
    with pytest.raises(InvalidArgumentError, match="max_error"):
        cp_correct(cp_als(tensor, 2), tensor, max_error=bound)


def test_factors_of_another_tensor_are_refused():
    with pytest.raises(InvalidArgumentError, match="not fit a tensor of shape"):
        cp_correct(cp_als(draw(6, 5, 4), 2), draw(6, 5, 3))


def test_values_that_are_not_finite_are_refused():
    cp = cp_als(draw(4, 3, 2), 2)
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        cp_correct(cp, torch.full((4, 3, 2), float("inf")))


def test_a_corrected_decomposition_is_less_hurt_by_noise():
    tensor = make_border_rank_tensor()
    cp = cp_nls(tensor, 2, max_iter=300, tol=0)
    corrected = cp_correct(cp, tensor, max_error=0.1)

    def hurt(result: CP) -> float:
        ones = torch.ones(2).double()
        noisy = [f + 1e-3 * draw(*f.shape, seed=i) for i, f in enumerate(result.absorb_weights())]
        return float((cp_to_tensor(ones, noisy) - result.to_tensor()).norm())

    assert hurt(corrected) < hurt(cp)
