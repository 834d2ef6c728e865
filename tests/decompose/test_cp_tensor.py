import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.decompose import CP, cp_sensitivity, cp_to_tensor, max_cp_rank

tl = pytest.importorskip("tensorly")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_cp(weights, factors):
    return CP(weights, tuple(factors), 0.0, 0, True)


def orthonormal(size, rank, seed):
    return torch.linalg.qr(draw(size, rank, seed=seed)).Q


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_rebuilding_is_tensorlys(shape, rank):
    weights, factors = draw(rank), [draw(n, rank, seed=i) for i, n in enumerate(shape)]
    expected = tl.cp_to_tensor((weights.numpy(), [f.numpy() for f in factors]))
    torch.testing.assert_close(cp_to_tensor(weights, factors), torch.from_numpy(expected))


def test_factors_that_absorb_the_weights_give_the_same_tensor():
    cp = make_cp(draw(3).abs(), [orthonormal(n, 3, n) for n in (4, 5, 6)])
    factors = cp.absorb_weights()
    torch.testing.assert_close(cp_to_tensor(torch.ones(3).double(), factors), cp.to_tensor())
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    torch.testing.assert_close(norms, norms[:1].expand(3, -1))


def test_orthogonal_terms_are_not_degenerate():
    cp = make_cp(draw(3).abs(), [orthonormal(n, 3, n) for n in (4, 5, 6)])
    assert cp.degeneracy == pytest.approx(1)


def test_equal_terms_have_the_least_degeneracy():
    factors = [orthonormal(n, 1, n).expand(-1, 4) for n in (4, 5, 6)]
    assert make_cp(torch.ones(4).double(), factors).degeneracy == pytest.approx(1 / 4)


def test_terms_that_cancel_are_degenerate():
    close = torch.tensor([[1.0, 1.0], [0.0, 0.01]], dtype=torch.float64)
    close = close / close.norm(dim=0)
    signed = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    assert make_cp(torch.ones(2).double(), [close, signed]).degeneracy > 1e4


def test_a_zero_decomposition_is_not_degenerate():
    cp = make_cp(torch.zeros(2), [torch.zeros(3, 2), torch.zeros(4, 2)])
    assert (cp.degeneracy, cp.sensitivity) == (1.0, 0.0)


@pytest.mark.parametrize("shape", [(4, 3), (5, 4, 3), (4, 1, 3, 2)])
def test_sensitivity_is_the_expected_squared_error_of_noisy_factors(shape):
    factors = [draw(n, 3, seed=i) for i, n in enumerate(shape)]
    ones, deviation, trials = torch.ones(3).double(), 1e-4, 4000
    clean = cp_to_tensor(ones, factors)
    generator = torch.Generator().manual_seed(1)
    errors = []
    for _ in range(trials):
        noise = [torch.randn(f.shape, generator=generator).double() * deviation for f in factors]
        noisy = cp_to_tensor(ones, [f + e for f, e in zip(factors, noise, strict=True)])
        errors.append(float((noisy - clean).square().sum()) / deviation**2)
    mean = sum(errors) / trials
    standard_error = math.sqrt(sum((e - mean) ** 2 for e in errors)) / trials
    assert abs(mean - cp_sensitivity(factors)) < 5 * standard_error


def test_the_sensitivity_of_a_decomposition_follows_from_its_weights():
    cp = make_cp(torch.tensor([3.0, 1.0]).double(), [orthonormal(n, 2, n) for n in (4, 5, 6)])
    assert cp.sensitivity == pytest.approx((4 + 5 + 6) * (3 ** (4 / 3) + 1))


@pytest.mark.parametrize(
    ("shape", "rank"), [((4, 3), 3), ((64, 32, 3, 3), 288), ((20, 1, 5, 5), 25), ((1, 1), 1)]
)
def test_the_largest_rank_is_one_term_a_fibre_of_the_longest_mode(shape, rank):
    assert max_cp_rank(shape) == rank
