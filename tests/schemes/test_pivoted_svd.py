"""The SVD without the identity in its second factor: what holds beside what holds for all."""

import pytest
import torch
from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure import count_macs
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.pivoted_svd import PivotedLayer
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.registry import scheme


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 20), (20, 12), (16, 16)])
def test_it_computes_the_svd_in_fewer_numbers(inputs: int, outputs: int) -> None:
    layer, x = nn.Linear(inputs, outputs).double(), torch.randn(5, inputs).double()
    pivoted, svd = press_layer(layer, "pivoted_svd", 7), press_layer(layer, "channel_svd", 7)
    torch.testing.assert_close(pivoted(x), svd(x))
    assert pivoted.relative_error == pytest.approx(svd.relative_error)
    saved = sum(p.numel() for p in svd.parameters()) - sum(p.numel() for p in pivoted.parameters())
    assert saved == 7**2
    assert count_macs(svd, x) - count_macs(pivoted, x) == 7**2  # of one example


def test_every_rank_is_smaller_than_the_dense_layer() -> None:
    spec = describe_layer(nn.Linear(30, 20))
    assert scheme("pivoted_svd").candidates(spec)[-1] == (19,)
    assert scheme("channel_svd").candidates(spec)[-1] == (11,)


def test_pivots_are_outputs_of_their_own() -> None:
    layer, x = nn.Linear(10, 8), torch.randn(3, 10)
    pressed = press_layer(layer, "pivoted_svd", 3)
    assert isinstance(pressed, PivotedLayer)
    places = pressed.outputs.order.argsort()[:3]
    expected = pressed.pivots(x) + layer.bias[places]
    torch.testing.assert_close(pressed(x)[:, places], expected)


def test_pivots_are_far_from_dependent() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 60, bias=False)
    layer.weight.data[:30] = layer.weight.data[:1] + 1e-4 * layer.weight.data[:30]
    pressed = press_layer(layer, "pivoted_svd", 20)
    assert isinstance(pressed, PivotedLayer)
    assert float(pressed.others.weight.detach().abs().max()) < 20


def test_a_weight_of_zeros_stays_zero() -> None:
    layer = nn.Linear(6, 5, bias=False)
    nn.init.zeros_(layer.weight)
    assert not press_layer(layer, "pivoted_svd", 2)(torch.randn(2, 6)).any()


def test_an_order_from_a_file_that_is_none_is_named() -> None:
    pressed = press_layer(nn.Linear(6, 4), "pivoted_svd", 2)
    assert isinstance(pressed, PivotedLayer)
    assert pressed.mistake() is None
    pressed.outputs.order.fill_(1)
    assert "not a permutation" in (pressed.mistake() or "")


def test_convolutions_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="only a Linear can be pressed"):
        press_layer(nn.Conv2d(4, 4, 3), "pivoted_svd", 2)
