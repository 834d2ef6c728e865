"""Fits of layers to moments of their inputs in a dense and in a pressed model."""

import pytest
import torch
from torch import Tensor, nn

from tensorpress.calibrate.paired_moments import PairedMoments
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning import plan
from tensorpress.reconstruct.layer_fit import LayerData, fit_layer
from tensorpress.reconstruct.paired_fit import fit_to_pairs
from tensorpress.schemes.initialization import build_pressed
from tensorpress.schemes.stages import compose


def paired_inputs(columns: int) -> tuple[Tensor, Tensor]:
    """Inputs of some energy in every direction, and what a pressed model leaves of them."""
    random = torch.Generator().manual_seed(0)
    dense = torch.randn(400, columns, generator=random) * torch.linspace(0.2, 2, columns) + 1
    return dense, 0.6 * dense + 0.3 * torch.randn(400, columns, generator=random)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_it_is_the_fit_to_rows(shape: tuple[int, int], biased: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(*shape, bias=biased)
    dense, pressed = paired_inputs(shape[0])
    moments = PairedMoments.zeros(shape[0])
    for parts in zip(dense.split(150), pressed.split(150), strict=True):
        moments.add(*parts)
    [chosen] = plan(nn.Sequential(layer), scheme="channel_svd", ranks=6).layers
    values = fit_to_pairs(chosen, layer.weight, layer.bias, moments)
    result = build_pressed(chosen, layer, values)(pressed)

    one, zero = torch.ones(1, shape[1]), torch.zeros(1, shape[1])
    data = LayerData(pressed[:, None], layer(dense)[:, None].detach(), one, zero, False, biased)
    start = [torch.zeros(1, 6, shape[0]), torch.zeros(1, shape[1], 6)]
    fit = fit_layer(start, layer.weight[None].detach(), data)
    expected = pressed.double() @ compose(fit.kernels, 1)[0].mT + fit.bias
    assert torch.allclose(result.double(), expected, atol=2e-3)
    naive = build_pressed(chosen, layer, fit_to_itself(chosen, layer, dense))(pressed)
    target = layer(dense)
    assert (result - target).norm() < 0.95 * (naive - target).norm()


def fit_to_itself(chosen, layer: nn.Linear, dense: Tensor):
    """The fit by the dense model's inputs alone."""
    moments = PairedMoments.zeros(layer.in_features)
    moments.add(dense, dense)
    return fit_to_pairs(chosen, layer.weight, layer.bias, moments)


def test_inputs_that_are_not_finite_are_refused_with_the_layer() -> None:
    layer = nn.Linear(20, 30)
    [chosen] = plan(nn.Sequential(layer), scheme="channel_svd", ranks=6).layers
    moments = PairedMoments.zeros(20)
    moments.add(torch.full((5, 20), 1e30), torch.full((5, 20), 1e30))
    with pytest.raises(
        InvalidArgumentError, match="layer '0': the moments of its inputs are not finite"
    ):
        fit_to_pairs(chosen, layer.weight, layer.bias, moments)
