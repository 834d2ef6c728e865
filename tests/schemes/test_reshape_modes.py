from itertools import combinations_with_replacement
from math import prod
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensorpress.decompose import tucker_params
from tensorpress.errors import InvalidArgumentError
from tensorpress.models import zoo
from tensorpress.schemes.reshape_modes import (
    balanced_modes,
    choose_modes,
    largest_core,
    smallest_params,
)

MODES = st.lists(st.integers(1, 30), min_size=2, max_size=5)


def weights_of(name):
    return [tuple(p.shape) for p in zoo.build(name).parameters() if p.ndim > 1]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 7, 36, 60, 64, 97, 120, 144])
def test_balanced_modes_have_the_smallest_sum(size, order):
    modes = balanced_modes(size, order)
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    every = [c for c in combinations_with_replacement(divisors, order) if prod(c) == size]
    assert prod(modes) == size
    assert len(modes) == order
    assert sum(modes) == min(map(sum, every))
    assert list(modes) == sorted(modes, reverse=True)


@given(MODES, st.integers(1, 3000))
def test_the_core_is_near_cubic_and_cannot_grow(modes, params):
    ranks = largest_core(modes, params)
    if ranks is None:
        assert tucker_params(modes, [1] * len(modes)) > params
        return
    assert tucker_params(modes, ranks) <= params
    side = max(ranks)
    assert all(1 <= k <= n for k, n in zip(ranks, modes, strict=True))
    assert all(k >= side - 1 or k == n for k, n in zip(ranks, modes, strict=True))
    cube = [min(n, side if side > min(ranks) else side + 1) for n in modes]
    if cube != list(ranks):
        assert tucker_params(modes, cube) > params


@given(MODES, st.integers(1, 3000))
def test_no_single_mode_below_the_side_can_grow(modes, params):
    ranks = largest_core(modes, params)
    for mode in range(len(modes)) if ranks else ():
        grown = [k + (i == mode) for i, k in enumerate(ranks)]
        if ranks[mode] < min(max(ranks), modes[mode]):
            assert tucker_params(modes, grown) > params


@given(st.lists(st.integers(1, 40), min_size=2, max_size=4), st.integers(1, 20_000))
@settings(max_examples=60)
def test_a_choice_keeps_its_budget(shape, params):
    if params < smallest_params(shape):
        with pytest.raises(
            InvalidArgumentError, match=f"smallest .* has {smallest_params(shape)}$"
        ):
            choose_modes(shape, params)
        return
    modes, ranks = choose_modes(shape, params)
    assert prod(modes) == prod(shape)
    assert tucker_params(modes, ranks) <= params
    assert all(1 <= k <= n for k, n in zip(ranks, modes, strict=True))
    assert choose_modes(shape, params) == (modes, ranks)


@given(st.lists(st.integers(2, 40), min_size=2, max_size=4))
@settings(max_examples=40)
def test_the_smallest_budget_is_met_exactly(shape):
    assert tucker_params(*choose_modes(shape, smallest_params(shape))) == smallest_params(shape)


@pytest.mark.parametrize("name", ["lenet5", "lenet300100", "resnet20", "wrn28-10"])
@pytest.mark.parametrize("ratio", [4, 100])
def test_every_weight_of_the_published_networks(name, ratio):
    for shape in set(weights_of(name)):
        params = max(smallest_params(shape), prod(shape) // ratio)
        modes, ranks = choose_modes(shape, params)
        assert prod(modes) == prod(shape)
        assert tucker_params(modes, ranks) <= params
        assert len(modes) == 2 or 1 not in modes


def test_a_large_linear_is_chosen_fast():
    shape = nn.Linear(25088, 4096, device="meta").weight.shape
    start = perf_counter()
    for params in (smallest_params(shape), 10_000, 1_000_000, 100_000_000):
        assert tucker_params(*choose_modes(shape, params)) <= params
    assert perf_counter() - start < 1


def test_the_lowest_order_whose_core_holds_half_is_taken():
    modes, ranks = choose_modes((500, 800), 1150)
    assert prod(ranks) >= 1150 / 2
    lower = balanced_modes(400_000, len(modes) - 1)
    assert prod(largest_core(lower, 1150)) < 1150 / 2
