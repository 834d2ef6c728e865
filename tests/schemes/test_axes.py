from itertools import permutations
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensorpress.decompose import unfold
from tensorpress.schemes.reshape_modes import align_modes, choose_axes
from tensorpress.schemes.tucker_weight import TuckerWeight


@st.composite
def shape_and_modes(draw):
    """Any shape, and any modes of the same product: its prime factors dealt out anew."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 6]), min_size=2, max_size=4)))
    size, primes = prod(shape), []
    for prime in (2, 3, 5):
        while size % prime == 0:
            primes.append(prime)
            size //= prime
    modes = [1] * draw(st.integers(1, 5))
    for prime in primes:
        modes[draw(st.integers(0, len(modes) - 1))] *= prime
    return shape, tuple(modes)


def test_a_kernel_keeps_its_axes_whole():
    assert choose_axes((50, 20, 5, 5), (50, 25, 20)) == (0, 2, 3, 1)
    weight = torch.randn(50, 20, 5, 5)
    tensor = TuckerWeight(weight.shape, (50, 25, 20), (1, 1, 1)).reshape(weight)
    assert torch.equal(tensor, weight.flatten(2).transpose(1, 2))


def test_a_linear_is_cut_along_its_axes():
    tensor = torch.arange(400_000).reshape(500, 800)
    tucker = TuckerWeight((500, 800), (20, 25, 40, 20), (1,) * 4)
    assert torch.equal(tucker.reshape(tensor), tensor.reshape(20, 25, 40, 20))


@pytest.mark.parametrize(
    ("shape", "modes"),
    [
        ((20, 1, 5, 5), (25, 20)),
        ((96, 3, 11, 11), (96, 363)),
        ((64, 32, 3, 3), (9, 32, 64)),
        ((16, 16, 3, 3), (9, 256)),
        ((8, 4, 2, 3, 5), (32, 30)),
    ],
)
def test_a_mode_that_can_be_a_set_of_axes_is_one(shape, modes):
    """Every row of the unfolding along such a mode is the slice at one index of its axes."""
    weight = torch.arange(prod(shape)).reshape(shape)
    tucker = TuckerWeight(shape, modes, (1,) * len(modes))
    for mode in range(len(modes)):
        rows = {frozenset(row.tolist()) for row in unfold(tucker.reshape(weight), mode)}
        slices = [
            weight.permute(*order).reshape(modes[mode], -1)
            for order in permutations(range(len(shape)))
        ]
        assert any(rows == {frozenset(row.tolist()) for row in each} for each in slices)


@given(shape_and_modes())
def test_the_weights_own_order_comes_first_and_the_result_is_an_order(case):
    shape, modes = case
    axes = choose_axes(shape, modes)
    assert sorted(axes) == list(range(len(shape)))
    assert choose_axes.__wrapped__(shape, modes) == axes
    assert choose_axes(shape, shape) == tuple(range(len(shape)))


@given(shape_and_modes())
def test_aligned_modes_keep_their_ranks(case):
    shape, modes = case
    ranks = tuple(range(1, len(modes) + 1))
    new_modes, new_ranks = align_modes(shape, modes, ranks)
    assert sorted(zip(new_modes, new_ranks, strict=True)) == sorted(zip(modes, ranks, strict=True))
    assert align_modes(shape, new_modes, new_ranks) == (new_modes, new_ranks)
    assert align_modes(shape, modes, ranks, keep_ranks=True) == (modes, ranks)


def test_aligned_moves_only_modes_of_equal_rank_under_a_shared_core():
    modes, ranks = align_modes((500, 800), (40, 25, 20, 20), (5, 5, 4, 4), keep_ranks=True)
    assert ranks == (5, 5, 4, 4)
    assert sorted(modes[:2]) == [25, 40]


def test_very_many_modes_are_left_as_given():
    assert align_modes((4, 1024), (2,) * 12, (1,) * 12) == ((2,) * 12, (1,) * 12)


@given(shape_and_modes())
def test_reshaping_loses_nothing(case):
    """With a core of full ranks and identity matrices, forward undoes `reshaped`."""
    shape, modes = case
    weight = torch.arange(prod(shape), dtype=torch.float64).reshape(shape)
    tucker = TuckerWeight(shape, modes, modes)
    tensor = tucker.reshape(weight)
    assert tensor.shape == modes
    assert torch.equal(tucker(tensor, *(torch.eye(n, dtype=torch.float64) for n in modes)), weight)


@pytest.mark.parametrize(
    ("shape", "modes"),
    [
        ((10, 500), (8, 5, 5, 5, 5)),
        ((50, 20, 5, 5), (50, 25, 20)),
        ((32, 3, 5, 5), (96, 25)),
        ((16, 9), (3, 8, 6)),
        ((12, 6, 3), (1, 216)),
        ((6, 4), (24, 1, 1)),
    ],
)
def test_full_ranks_reproduce_the_weight(shape, modes):
    weight = torch.randn(shape, dtype=torch.float64)
    tucker = TuckerWeight(shape, modes, modes)
    torch.testing.assert_close(tucker(*tucker.right_inverse(weight)), weight)
