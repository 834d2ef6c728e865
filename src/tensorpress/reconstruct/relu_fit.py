"""Fitting kernels so that responses are right after a ReLU, not before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.reconstruct.alternating_fit import fit_kernels
from tensorpress.reconstruct.kernel_model import Composition
from tensorpress.reconstruct.regression import Regression

PENALTIES = ((0.01, 10), (1.0, 10))
"""λ and how often both steps are done with it; the paper has 25 each."""

COUPLING = 3.0
"""λ where targets and another method take turns: the larger, the nearer to the true problem, and
the slower."""

Retarget = Callable[[Tensor], Tensor]
"""Gives for the kernel that a layer has, (groups, out, columns), the one to aim at."""


@dataclass(frozen=True)
class ActivatedFit:
    """The kernels of a layer, and its bias, (groups, out)."""

    kernels: list[Tensor]
    bias: Tensor


def relu_targets(responses: Tensor, outputs: Tensor, penalty: float) -> Tensor:
    r"""Return what a linear layer should aim at for responses to be right after a ReLU.

    The elementwise minimum over z of

    .. math:: (\max(0, y) - \max(0, z))^2 + λ (z - y')^2

    Parameters
    ----------
    responses : Tensor
        y, of the dense layer.
    outputs : Tensor
        y', of the pressed one, same shape.
    penalty : float
        λ, positive: how far z may be from what the layer does now.

    References
    ----------
    Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for classification
    and detection" (the nonlinear case).

    Examples
    --------
    Of a response that the ReLU cuts off any negative number is as good:

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

    Zhang et al.'s splitting for any composition: targets elementwise, and linear least squares to
    them.

    Parameters
    ----------
    kernels : sequence of Tensor
        Canonical kernels, where the search starts: best the fit without the ReLU.
    composed : Composition
        What they stand for.
    bias : Tensor
        (groups, out).
    inputs, responses : Tensor
        Rows of inputs (rows, groups, columns) and of what the dense layer makes of its inputs,
        (rows, groups, out), before the ReLU.
    regression : Regression
        Of the inputs.

    References
    ----------
    Zhang et al. (2016): the nonlinear case and asymmetric reconstruction.
    """
    kernels = list(kernels)
    moment = regression.second if composed.chosen else regression.moment
    for penalty, times in PENALTIES:
        for _ in range(times):
            kernel = composed(kernels)
            # z, the elementwise targets for the present outputs
            targets = relu_targets(responses, respond(inputs, kernel.flatten(2), bias), penalty)
            # W*, the best kernel for z, the kernels nearest to it, and b = mean(z) - W̃ mean(x)
            best = regression.kernel(targets, prior=kernel.flatten(2)).reshape(kernel.shape)
            kernels = fit_kernels(kernels, best, moment, composed, sweeps=1).kernels
            bias = regression.bias(targets, composed(kernels).flatten(2))
    return ActivatedFit(kernels, bias)


def relu_retarget(inputs: Tensor, responses: Tensor, regression: Regression) -> Retarget:
    """Return a function from a kernel (groups, out, columns) to the best one for its targets.

    The step of the targets at λ = `COUPLING`. The bias is the best one for the targets before.
    """
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
