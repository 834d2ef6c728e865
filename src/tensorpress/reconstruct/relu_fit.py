"""Fits kernels so that responses match after a ReLU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.reconstruct.alternating_fit import fit_kernels
from tensorpress.reconstruct.kernel_model import Composition
from tensorpress.reconstruct.regression import Regression

PENALTIES = ((0.01, 10), (1.0, 10))
"""λ and the number of iterations with it; the paper has 25 each."""

COUPLING = 3.0
"""λ for retargeting within another iteration: a larger value is closer to the true problem, and
slower."""

Retarget = Callable[[Tensor], Tensor]
"""Maps a layer's present kernel, (groups, out, columns), to the kernel to aim at."""


@dataclass(frozen=True)
class ActivatedFit:
    """The kernels of a layer, and its bias, (groups, out)."""

    kernels: list[Tensor]
    bias: Tensor


def relu_targets(responses: Tensor, outputs: Tensor, penalty: float) -> Tensor:
    r"""Return the outputs that a linear layer should aim at to match responses after a ReLU.

    The elementwise minimum over z of

    .. math:: (\max(0, y) - \max(0, z))^2 + λ (z - y')^2

    Parameters
    ----------
    responses : Tensor
        y, the responses of the dense layer.
    outputs : Tensor
        y', the outputs of the pressed layer, of the same shape.
    penalty : float
        λ, positive: how strongly z is drawn to the present outputs.

    References
    ----------
    Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for classification
    and detection" (the nonlinear case).

    Examples
    --------
    Where the ReLU cuts a response off, any negative number is as good:

    >>> relu_targets(torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 2.0]), 1.0)
    tensor([-3.,  2.])
    """
    active = responses.clamp_min(0)
    # The minimum over z ≤ 0, min(0, y'), and over z ≥ 0, max(0, (λ y' + max(0, y)) / (λ + 1)).
    low = outputs.clamp_max(0)
    high = ((penalty * outputs + active) / (penalty + 1)).clamp_min(0)
    cost_low = active.square() + penalty * (low - outputs).square()
    cost_high = (active - high).square() + penalty * (high - outputs).square()
    return torch.where(cost_low < cost_high, low, high)


def fit_through_relu(
    kernels: Sequence[Tensor],
    composed: Composition,
    bias: Tensor,
    inputs: Tensor,
    responses: Tensor,
    regression: Regression,
) -> ActivatedFit:
    """Minimize the squared error after a ReLU over the kernels of a layer and its bias.

    This is the splitting of Zhang et al. for any composition: elementwise targets and linear least
    squares alternate.

    Parameters
    ----------
    kernels : sequence of Tensor
        Canonical kernels to start from, best the fit without the ReLU.
    composed : Composition
        How they are composed.
    bias : Tensor
        The bias to start from, (groups, out).
    inputs, responses : Tensor
        Inputs (rows, groups, columns), and responses of the dense layer before the ReLU,
        (rows, groups, out).
    regression : Regression
        The regression on these inputs.

    References
    ----------
    Zhang et al. (2016): the nonlinear case and asymmetric reconstruction.
    """
    kernels = list(kernels)
    moment = regression.second if composed.chosen else regression.moment
    for penalty, times in PENALTIES:
        for _ in range(times):
            kernel = composed(kernels)
            # z: elementwise targets for the present outputs
            targets = relu_targets(responses, respond(inputs, kernel.flatten(2), bias), penalty)
            # W*: the best kernel for z. Fit the kernels to it, then b = mean(z) - W̃ mean(x)
            best = regression.kernel(targets, prior=kernel.flatten(2)).reshape(kernel.shape)
            kernels = fit_kernels(kernels, best, moment, composed, sweeps=1).kernels
            bias = regression.bias(targets, composed(kernels).flatten(2))
    return ActivatedFit(kernels, bias)


def relu_retarget(inputs: Tensor, responses: Tensor, regression: Regression) -> Retarget:
    """Return the `Retarget` that matches responses after a ReLU, with λ = `COUPLING`."""
    targets = responses

    def retarget(kernel: Tensor) -> Tensor:
        nonlocal targets
        outputs = respond(inputs, kernel, regression.bias(targets, kernel))
        targets = relu_targets(responses, outputs, COUPLING)
        return regression.kernel(targets, prior=kernel)

    return retarget


def respond(inputs: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Return the responses (rows, groups, out) of a kernel (groups, out, columns) and a bias."""
    outputs = torch.einsum("rgn,gon->rgo", inputs, kernel.to(inputs.dtype))
    return outputs + bias.to(inputs.dtype)
