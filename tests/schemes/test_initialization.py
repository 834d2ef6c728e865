from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensorpress.decompose import tucker_to_tensor
from tensorpress.schemes.random_init import initial_std
from tensorpress.schemes.tucker_weight import TuckerWeight, balance_tucker


def rms(tensor):
    return float(tensor.double().square().mean().sqrt())


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("std", [1e-3, 0.05, 2.0])
def test_draws_give_the_weight_exactly_the_deviation_asked_for(std, diagonal):
    tucker = TuckerWeight((50, 20, 5, 5), (50, 25, 20), (5, 5, 5), diagonal=diagonal)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        drawn = tucker.draw_core(0.3, generator)
        core, *matrices = tucker.draw(std, drawn, torch.empty(0), generator)
        assert torch.equal(core, drawn)
        assert rms(tucker(core, *matrices)) == pytest.approx(std, rel=1e-4)
        assert core.shape == ((5,) if diagonal else (5, 5, 5))
        assert rms(core) == pytest.approx(0.3, rel=0.6 if diagonal else 0.2)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_balanced_deviation_gives_the_weights_variance(diagonal):
    """Over many draws of all factors at that deviation, not over the entries of one."""
    tucker = TuckerWeight((6, 6, 6), (6, 6, 6), (3, 3, 3), diagonal=diagonal)
    side = tucker.balanced_std(0.2)
    generator = torch.Generator().manual_seed(0)
    core_shape = (3,) if diagonal else (3, 3, 3)
    squares = [
        tucker(*(side * torch.randn(s, generator=generator) for s in (core_shape, *[(6, 3)] * 3)))
        .square()
        .mean()
        for _ in range(2000)
    ]
    assert float(torch.stack(squares).mean() ** 0.5) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(30, 50),
        nn.Conv1d(4, 6, 5),
        nn.Conv2d(20, 50, 5),
        nn.Conv2d(8, 16, 3, groups=4),
        nn.Conv3d(3, 4, 3),
        nn.ConvTranspose2d(6, 4, 3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_initializers_are_torchs(layer):
    weight = torch.empty_like(layer.weight)
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    assert initial_std(weight, "glorot") == pytest.approx((2 / (fan_in + fan_out)) ** 0.5)
    assert initial_std(weight, "kaiming") == pytest.approx((2 / fan_in) ** 0.5)


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4),
    st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3),
)
@settings(max_examples=40)
def test_balancing_keeps_every_weight_and_equalises_sizes(first, second):
    generator = torch.Generator().manual_seed(0)
    core = first[0] * torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    layers = [
        tuple(
            scale * torch.randn(n, k, generator=generator, dtype=torch.float64)
            for scale, n, k in zip(scales, (4, 5, 3), (2, 3, 2), strict=True)
        )
        for scales in (first[1:], second)
    ]
    new_core, new_layers = balance_tucker(core, layers)
    for old, new in zip(layers, new_layers, strict=True):
        torch.testing.assert_close(tucker_to_tensor(new_core, new), tucker_to_tensor(core, old))
        sizes = [rms(m) for m in new]
        assert sizes == pytest.approx([sizes[0]] * 3)
    alone, [matrices] = balance_tucker(core, layers[:1])
    assert [rms(m) for m in matrices] == pytest.approx([rms(alone)] * 3)


def test_a_shared_core_gets_the_mean_of_what_the_layers_would_give_it():
    core, matrices = torch.ones(2, 2), [(torch.ones(3, 2), torch.ones(4, 2))]
    other = [(64 * torch.ones(3, 2), torch.ones(5, 2))]
    alone = [rms(balance_tucker(core, layer)[0]) for layer in (matrices, other)]
    assert rms(balance_tucker(core, matrices + other)[0]) == pytest.approx(prod(alone) ** 0.5)


def test_zero_factors_are_left_alone():
    core, [matrices] = balance_tucker(torch.zeros(2, 2), [(torch.ones(3, 2), torch.ones(4, 2))])
    assert float(core.abs().max()) == 0
    assert all(torch.equal(m, torch.ones_like(m)) for m in matrices)
