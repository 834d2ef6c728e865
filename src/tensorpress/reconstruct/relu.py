"""Fitting a chain so that its responses are right after a ReLU, not before."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.reconstruct.chain_fit import fit_chain
from tensorpress.reconstruct.regression import Regression
from tensorpress.schemes.stages import compose

PENALTIES = ((0.01, 10), (1.0, 10))
"""λ and how often both steps are done with it; the paper has 25 each."""


@dataclass(frozen=True)
class ActivatedFit:
    """Kernels of a chain and its bias, (groups, out)."""

    kernels: list[Tensor]
    bias: Tensor


def auxiliary(responses: Tensor, found: Tensor, penalty: float) -> Tensor:
    r"""Return what a linear layer should aim at for responses to be right after a ReLU.

    The elementwise minimum over z of

    .. math:: (\max(0, y) - \max(0, z))^2 + λ (z - y')^2

    Parameters
    ----------
    responses : Tensor
        y, of the dense layer.
    found : Tensor
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

    >>> auxiliary(torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 2.0]), 1.0)
    tensor([-3.,  2.])
    """
    active = responses.clamp_min(0)
    low = found.clamp_max(0)
    high = ((penalty * found + active) / (penalty + 1)).clamp_min(0)
    cost_low = active.square() + penalty * (low - found).square()
    cost_high = (active - high).square() + penalty * (high - found).square()
    return torch.where(cost_low < cost_high, low, high)


def fit_through_relu(
    kernels: Sequence[Tensor],
    bias: Tensor,
    inputs: Tensor,
    responses: Tensor,
    regression: Regression,
    prior: Tensor,
) -> ActivatedFit:
    """Minimize the squared error after a ReLU over the kernels of a chain and its bias.

    Zhang et al.'s splitting for any chain: targets elementwise, and linear least squares to them.

    Parameters
    ----------
    kernels : sequence of Tensor
        Canonical kernels, where the search starts: best the fit without the ReLU.
    bias : Tensor
        (groups, out).
    inputs, responses : Tensor
        Rows of inputs (rows, groups, columns) and of what the dense layer makes of its own,
        (rows, groups, out), before the ReLU.
    regression : Regression
        Of the inputs.
    prior : Tensor
        The dense kernel, (groups, out, in, *kernel).

    References
    ----------
    Zhang et al. (2016): the nonlinear case and asymmetric reconstruction.
    """
    kernels, groups, shape = list(kernels), prior.shape[0], prior.shape
    for penalty, times in PENALTIES:
        for _ in range(times):
            kernel = compose(kernels, groups).flatten(2)
            found = respond(inputs, kernel, bias)
            wanted = auxiliary(responses, found, penalty)
            best = regression.kernel(wanted, prior=kernel)
            kernels = fit_chain(kernels, best.reshape(shape), regression.second, sweeps=1).kernels
            bias = regression.bias(wanted, compose(kernels, groups).flatten(2))
    return ActivatedFit(kernels, bias)


def respond(inputs: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Return the responses (rows, groups, out) of a kernel (groups, out, columns) and a bias."""
    found = torch.einsum("rgn,gon->rgo", inputs, kernel.to(inputs.dtype))
    return found + bias.to(inputs.dtype)
