"""A Linear whose weight is held as (inputs, outputs): the Conv1D of transformers."""

import pytest
import torch
from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes import chain_builder
from tensorpress.schemes.canonical_kernel import kernel_to_weight, layer_kernel
from tensorpress.schemes.layer_spec import describe_layer, refuse_layer
from tensorpress.schemes.press_layer import press_layer, unpress_layer
from tensorpress.schemes.registry import rank_schemes, scheme

Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
INPUTS, OUTPUTS = 12, 30


def both():
    """The layer, and the Linear that computes the same."""
    torch.manual_seed(0)
    layer, linear = Conv1D(OUTPUTS, INPUTS), nn.Linear(INPUTS, OUTPUTS)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(INPUTS, OUTPUTS))
        layer.bias.copy_(linear.bias)
        linear.weight.copy_(layer.weight.T)
    return layer, linear


def takers():
    spec = describe_layer(Conv1D(OUTPUTS, INPUTS))
    return [name for name in rank_schemes() if scheme(name).refusal(spec) is None]


def test_it_is_described_as_the_linear_it_is_but_for_how_its_weight_lies():
    layer, linear = both()
    spec, same = describe_layer(layer), describe_layer(linear)
    assert spec.inputs_first
    assert not same.inputs_first
    assert (spec.kind, spec.kernel_shape, spec.params) == ("Linear", same.kernel_shape, same.params)
    assert spec.weight_shape == (INPUTS, OUTPUTS)
    kernel = layer_kernel(layer, spec)
    assert torch.equal(kernel, layer_kernel(linear, same))
    assert torch.equal(kernel_to_weight(kernel, spec), layer.weight)


def test_it_is_taken_by_the_schemes_that_take_a_linear():
    assert takers() == [
        name for name in rank_schemes() if scheme(name).refusal(describe_layer(both()[1])) is None
    ]


@pytest.mark.parametrize("name", takers())
def test_it_is_pressed_as_the_linear_is_and_back(name):
    layer, linear = both()
    x = torch.randn(2, 5, INPUTS)
    pressed = press_layer(layer, name, 0.5)
    if name != "tt_weight":  # which reshapes the weight as it is held
        same = press_layer(linear, name, 0.5)
        torch.testing.assert_close(pressed(x), same(x), atol=1e-5, rtol=1e-5)
    full = press_layer(layer, name, 1.0)
    torch.testing.assert_close(full(x), layer(x), atol=1e-4, rtol=1e-4)
    dense = unpress_layer(pressed)
    assert type(dense) is Conv1D
    assert dense.weight.shape == layer.weight.shape
    torch.testing.assert_close(dense(x), pressed(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", takers())
def test_its_skeleton_takes_the_state_of_the_pressed_layer(name):
    layer, _ = both()
    pressed = press_layer(layer, name, 2)
    state = torch.get_rng_state()
    ranks = scheme(name).choose_ranks(layer, 2)
    empty = scheme(name).skeleton(
        describe_layer(layer), ranks, like=layer.weight.detach().to("meta")
    )
    assert torch.equal(torch.get_rng_state(), state)
    empty.load_state_dict(pressed.state_dict(), assign=True)
    x = torch.randn(3, INPUTS)
    assert torch.equal(empty(x), pressed(x))


def test_one_with_a_forward_pass_of_its_own_is_refused():
    class Doubled(Conv1D):
        def forward(self, x):
            return 2 * super().forward(x)

    assert "it is a Conv1D with an overridden forward pass" in refuse_layer(Doubled(4, 3))


def test_a_class_of_that_name_that_is_another_is_refused():
    class Conv1D(nn.Module):
        pass

    assert refuse_layer(Conv1D()).startswith("only layers of these classes")


def test_without_transformers_there_is_no_way_back(monkeypatch):
    pressed = press_layer(both()[0], "channel_svd", 2)
    monkeypatch.setattr(chain_builder, "INPUTS_FIRST", ("not_there", "Conv1D"))
    with pytest.raises(InvalidArgumentError, match="needs the package transformers"):
        unpress_layer(pressed)
