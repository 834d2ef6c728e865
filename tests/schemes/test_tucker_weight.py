from copy import deepcopy
from math import prod

import pytest
import torch
from torch import nn

from tensorpress.decompose import tucker_params
from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.parametrization import stored_factors
from tensorpress.schemes.reshape_modes import balanced_modes
from tensorpress.schemes.tucker_weight import TuckerWeight, tucker_weight

KINDS = {
    "linear": (nn.Linear(12, 10), torch.randn(3, 12)),
    "conv1d": (nn.Conv1d(6, 8, 3, padding=1), torch.randn(2, 6, 9)),
    "conv2d": (nn.Conv2d(6, 8, 3, stride=2, padding_mode="circular", padding=1), (2, 6, 7, 7)),
    "conv3d": (nn.Conv3d(4, 6, 3, dilation=2), (1, 4, 6, 6, 6)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1), (2, 6, 5, 5)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), (2, 6, 7, 7)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6, bias=False), (2, 6, 7, 7)),
    "embedding": (nn.Embedding(20, 6, padding_idx=0), torch.tensor([[1, 5], [19, 0]])),
    "bilinear": (nn.Bilinear(4, 4, 3), None),
}


def attached(layer, modes, ranks, **options):
    layer = deepcopy(layer)
    TuckerWeight(layer.weight.shape, modes, ranks, **options).attach(layer)
    return layer


def inputs_of(kind):
    inputs = KINDS[kind][1]
    if inputs is None:
        return torch.randn(2, 4), torch.randn(2, 4)
    return (torch.randn(inputs) if isinstance(inputs, tuple) else inputs,)


@pytest.fixture
def pressed():
    return attached(nn.Linear(12, 10), (10, 4, 3), (3, 2, 2))


@pytest.mark.parametrize("order", ["original", 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_full_ranks_keep_the_outputs_of_any_layer(kind, order):
    layer, inputs = KINDS[kind][0], inputs_of(kind)
    shape = tuple(layer.weight.shape)
    modes = shape if order == "original" else balanced_modes(prod(shape), order)
    pressed = attached(layer, modes, modes)
    torch.testing.assert_close(pressed(*inputs), layer(*inputs), atol=1e-4, rtol=1e-4)
    assert pressed.weight.shape == shape


def test_a_diagonal_core_keeps_a_weight_of_few_terms():
    layer = nn.Linear(12, 10)
    layer.weight.data = torch.randn(10, 3) @ torch.randn(3, 12)
    pressed = attached(layer, (10, 12), (3, 3), diagonal=True)
    torch.testing.assert_close(pressed.weight, layer.weight, atol=1e-3, rtol=1e-3)
    assert tucker_weight(pressed).num_params == 3 * (1 + 10 + 12)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_counted_parameters_are_those_stored(diagonal):
    layer = attached(nn.Linear(12, 10, bias=False), (10, 4, 3), (2, 2, 2), diagonal=diagonal)
    assert tucker_weight(layer).num_params == sum(p.numel() for p in layer.parameters())
    if not diagonal:
        assert tucker_weight(layer).num_params == tucker_params((10, 4, 3), (2, 2, 2))


def test_assigning_the_weight_decomposes_it(pressed):
    first, second = torch.randn(10, 2), torch.randn(2, 12)
    weight = first @ second
    full = attached(nn.Linear(12, 10), (10, 12), (2, 2))
    full.weight = weight
    torch.testing.assert_close(full.weight.detach(), weight, atol=1e-5, rtol=1e-4)
    before = pressed.weight.detach().clone()
    pressed.weight = pressed.weight.detach()
    torch.testing.assert_close(pressed.weight.detach(), before, atol=1e-5, rtol=1e-4)


def test_a_weight_with_a_shared_core_cannot_be_assigned():
    layer = nn.Linear(4, 3)
    tucker = TuckerWeight((3, 4), (3, 4), (2, 2), shared=True)
    tucker.attach(layer, (torch.ones(2, 2), torch.ones(3, 2), torch.ones(4, 2)))
    with pytest.raises(InvalidArgumentError, match="materialize it before"):
        layer.weight = torch.zeros(3, 4)
    assert float(layer.weight.detach().min()) == 4


def test_given_factors_are_taken_as_they_are():
    layer = nn.Linear(4, 3)
    factors = (torch.randn(2, 2), torch.randn(3, 2), torch.randn(4, 2))
    TuckerWeight((3, 4), (3, 4), (2, 2)).attach(layer, factors)
    held = stored_factors(layer)
    for i, factor in enumerate(factors):
        assert torch.equal(getattr(held, f"original{i}"), factor)
    torch.testing.assert_close(layer.weight, factors[1] @ factors[0] @ factors[2].mT)


def test_a_deep_copy_is_independent(pressed):
    copy = deepcopy(pressed)
    before = pressed.weight.detach().clone()
    stored_factors(copy).original0.data.zero_()
    assert float(copy.weight.detach().abs().max()) == 0
    assert torch.equal(pressed.weight, before)


def test_a_state_dict_restores_the_weight(pressed):
    other = attached(nn.Linear(12, 10), (10, 4, 3), (3, 2, 2))
    assert not torch.equal(other.weight, pressed.weight)
    other.load_state_dict(pressed.state_dict())
    assert torch.equal(other.weight, pressed.weight)
    assert "weight" not in pressed.state_dict()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_follows_the_module(pressed, dtype):
    before = pressed.weight.detach().to(dtype)
    pressed.to(dtype)
    assert pressed.weight.dtype == dtype
    torch.testing.assert_close(pressed.weight, before, atol=0.05, rtol=0.05)
    assert pressed(torch.randn(1, 12, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_layers_are_decomposed(dtype):
    layer = nn.Linear(12, 10).to(dtype)
    pressed = attached(layer, (10, 12), (10, 10))
    assert pressed.weight.dtype == dtype
    torch.testing.assert_close(pressed.weight, layer.weight, atol=0.02, rtol=0.02)


def test_training_and_evaluation_rebuild_the_same_weight(pressed):
    assert torch.equal(pressed.train().weight, pressed.eval().weight)


def test_a_training_step_changes_the_weight(pressed):
    optimizer = torch.optim.SGD(pressed.parameters(), lr=0.1)
    x = torch.randn(8, 12)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = pressed(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


def test_frozen_weights_stay_frozen():
    layer = nn.Linear(4, 3).requires_grad_(False)
    assert not any(p.requires_grad for p in attached(layer, (3, 4), (2, 2)).parameters())


def test_it_prints_its_shapes(pressed):
    assert "TuckerWeight(10×4×3, core 3×2×2)" in repr(pressed)
    diagonal = TuckerWeight((4, 3), (4, 3), (2, 2), diagonal=True)
    assert repr(diagonal) == "TuckerWeight(4×3, diagonal core 2×2)"


def test_layers_without_one_have_none():
    layer = nn.Linear(3, 2)
    assert tucker_weight(layer) is None
    nn.utils.parametrizations.weight_norm(layer)
    assert tucker_weight(layer) is None


@pytest.mark.parametrize(
    ("modes", "ranks", "diagonal", "message"),
    [
        ((10, 11), (2, 2), False, "110 entries, but the weight 10×12 has 120"),
        ((-10, -12), (2, 2), False, "the weight 10×12"),
        ((10, 12), (2,), False, "need 2 ranks"),
        ((10, 12), (2, 0), False, "at least 1"),
        ((10, 12), (2, 3), True, "equal ranks, got 2×3"),
        ((), (), False, "the weight 10×12"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(modes, ranks, diagonal, message):
    with pytest.raises(InvalidArgumentError, match=message):
        TuckerWeight((10, 12), modes, ranks, diagonal=diagonal)


def test_weights_that_are_not_finite_are_refused():
    layer = nn.Linear(4, 3)
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(InvalidArgumentError, match="NaN"):
        attached(layer, (3, 4), (2, 2))
