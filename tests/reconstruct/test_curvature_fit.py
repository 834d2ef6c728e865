"""Factors by the curvature of the loss: the best in its norm, in a whole model."""

import logging

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.calibrate.loss_curvature import LossCurvature
from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.weighted_svd import (
    GRADIENT_DAMPING,
    INPUT_DAMPING,
    WeightedSVD,
    decompose_layer,
)


def moment(size: int, seed: int) -> Tensor:
    rows = torch.randn(3 * size, size, generator=torch.Generator().manual_seed(seed)).double()
    return rows.T @ rows / len(rows)


def damped(second: Tensor, damping: float) -> Tensor:
    return second + damping * second.diagonal().mean() * torch.eye(len(second)).double()


@pytest.mark.parametrize(("outputs", "inputs"), [(7, 12), (12, 7), (9, 9)])
def test_what_is_lost_is_the_trace_in_both_norms(outputs: int, inputs: int) -> None:
    weight = torch.randn(outputs, inputs).double()
    a, b = moment(inputs, 0), moment(outputs, 1)
    svd = WeightedSVD.of(weight, a, b)
    for rank in (1, 4, 7):
        first, last = svd.factors(rank)
        gap = weight - last @ first
        norms = damped(b, GRADIENT_DAMPING) @ gap @ damped(a, INPUT_DAMPING) @ gap.T
        torch.testing.assert_close(norms.trace(), svd.lost()[rank], atol=1e-9, rtol=1e-9)


def test_no_other_factors_lose_less() -> None:
    weight, a, b = torch.randn(6, 8).double(), moment(8, 0), moment(6, 1)
    svd = WeightedSVD.of(weight, a, b)
    first, last = (factor.requires_grad_() for factor in svd.factors(3))
    gap = weight - last @ first
    lost = (damped(b, GRADIENT_DAMPING) @ gap @ damped(a, INPUT_DAMPING) @ gap.T).trace()
    for gradient in torch.autograd.grad(lost, [first, last]):
        assert float(gradient.abs().max()) < 1e-8


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 5)
    )


@pytest.fixture
def data() -> list[Tensor]:
    # inputs of few directions, and far from zero
    random = torch.Generator().manual_seed(1)
    rows = torch.randn(400, 6, generator=random) @ torch.randn(6, 20, generator=random)
    return list((rows + 3).split(100))


@pytest.mark.parametrize("scheme", ["pivoted_svd", "channel_svd"])
def test_outputs_are_nearer_than_by_weights(
    net: nn.Module, data: list[Tensor], scheme: str
) -> None:
    plan = tp.plan(net, scheme=scheme, ranks=0.3)
    fitted = tp.press(net, plan, calibration=LossCurvature.collect(net, data))
    errors = [tp.fidelity(net, x, data).error for x in (fitted, tp.press(net, plan))]
    assert errors[0] < 0.7 * errors[1]


def test_the_bias_takes_the_mean_of_what_is_lost(data: list[Tensor]) -> None:
    layer = nn.Sequential(nn.Linear(20, 10))
    curvature = LossCurvature.collect(layer, data)
    pressed = tp.press(layer, tp.plan(layer, scheme="pivoted_svd", ranks=2), calibration=curvature)
    gap = (pressed(torch.cat(data)) - layer(torch.cat(data))).mean(0)
    assert float(gap.detach().abs().max()) < 1e-4


def test_a_layer_without_curvature_starts_from_its_weight(
    net: nn.Module, data: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    plan = tp.plan(net, scheme="pivoted_svd", ranks=3)
    curvature = LossCurvature.collect(net, data, names=["0", "2"])
    with caplog.at_level(logging.WARNING):
        pressed = tp.press(net, plan, calibration=curvature)
    assert "layer 4: decomposed by its weight alone" in caplog.text
    assert pressed[4].unfitted is not None
    assert pressed[0].unfitted is None


def test_a_kind_of_reconstruction_is_refused(net: nn.Module, data: list[Tensor]) -> None:
    plan = tp.plan(net, scheme="pivoted_svd", ranks=3)
    with pytest.raises(InvalidArgumentError, match="LossCurvature"):
        tp.press(net, plan, calibration=LossCurvature.collect(net, data), reconstruct="linear")


def test_gpt2_layers_are_decomposed_as_they_multiply(data: list[Tensor]) -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    net = nn.Sequential(Conv1D(10, 20))
    curvature = LossCurvature.collect(net, data)
    kernel = net[0].weight.T.double()
    svd = decompose_layer(curvature, "0", kernel, centred=True)
    plan = tp.plan(net, scheme="pivoted_svd", ranks=4)
    pressed = tp.press(net, plan, calibration=curvature)
    first, last = svd.factors(4)
    torch.testing.assert_close(pressed[0].weight.T, (last @ first).float(), atol=1e-4, rtol=1e-4)
