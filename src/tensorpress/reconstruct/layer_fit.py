"""Fitting one pressed layer to the responses of the dense one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.reconstruct.chain_fit import fit_chain
from tensorpress.reconstruct.regression import Regression
from tensorpress.reconstruct.relu import ActivatedFit, fit_through_relu, respond
from tensorpress.schemes.stages import compose

HELD_OUT = 8
"""One row of so many is not fitted, but decides whether the fit through the ReLU is better."""


@dataclass(frozen=True)
class LayerData:
    """What a layer is fitted by.

    Attributes
    ----------
    inputs : Tensor
        Vectors that its kernel will be multiplied with, (rows, groups, columns).
    responses : Tensor
        What the dense layer makes of its own inputs there, (rows, groups, out).
    scale, shift : Tensor
        Of a norm that follows, (groups, out); 1 and 0 where there is none.
    relu : bool
        Whether a ReLU follows, through which the responses are to be right.
    biased : bool
        Whether there is a bias to fit, or a norm that takes one.
    """

    inputs: Tensor
    responses: Tensor
    scale: Tensor
    shift: Tensor
    relu: bool
    biased: bool = True


def fit_layer(
    kernels: Sequence[Tensor], dense: Tensor, data: LayerData, *, last_only: bool = False
) -> ActivatedFit:
    """Fit the kernels of a chain and a bias to responses, through the ReLU where there is one.

    Parameters
    ----------
    kernels : sequence of Tensor
        Canonical kernels of the chain, where the search starts; the last one has all outputs.
    dense : Tensor
        The dense kernel, (groups, out, in, *kernel), to which directions without data are held.
    data : LayerData
        The rows.
    last_only : bool
        Change no kernel but the last one.

    Returns
    -------
    ActivatedFit
        The kernels and the bias of the layer itself, before any norm.

    Examples
    --------
    >>> x = torch.randn(200, 1, 4)
    >>> dense = torch.randn(1, 3, 4)
    >>> one, zero = torch.ones(1, 3), torch.zeros(1, 3)
    >>> data = LayerData(x, respond(x, dense, zero), one, zero, relu=False)
    >>> fit = fit_layer([torch.randn(1, 3, 4), torch.randn(1, 3, 3)], dense, data)
    >>> bool((compose(fit.kernels, 1) - dense).abs().max() < 1e-2)
    True
    """
    groups, shape = dense.shape[0], dense.shape
    scale = _kept_from_zero(data.scale.double())
    seen = data.responses * scale.float() + data.shift.float()
    prior = dense.double().flatten(2) * scale[..., None]
    kernels = [*kernels[:-1], _scaled(kernels[-1], scale)]
    held = torch.arange(len(seen)) % HELD_OUT == HELD_OUT - 1
    x, y = data.inputs[~held], seen[~held]
    regression = Regression(x, biased=data.biased)
    best = regression.kernel(y, prior)
    kernels = fit_chain(
        kernels, best.reshape(shape), regression.second, last_only=last_only
    ).kernels
    fit = ActivatedFit(kernels, regression.bias(y, compose(kernels, groups).flatten(2)))
    if data.relu:
        through = fit_through_relu(kernels, fit.bias, x, y, regression, prior.reshape(shape))

        def loss(of: ActivatedFit) -> float:
            found = respond(data.inputs[held], compose(of.kernels, groups).flatten(2), of.bias)
            return float((found.clamp_min(0) - seen[held].clamp_min(0)).square().sum())

        fit = min(fit, through, key=loss)
    return ActivatedFit(
        [*fit.kernels[:-1], _scaled(fit.kernels[-1], 1 / scale)],
        (fit.bias - data.shift.double()) / scale,
    )


def _scaled(kernel: Tensor, scale: Tensor) -> Tensor:
    """Return a kernel (groups, out, …) with its outputs scaled."""
    return kernel * scale.reshape(*scale.shape, *(1,) * (kernel.ndim - 2)).to(kernel)


def _kept_from_zero(scale: Tensor) -> Tensor:
    """Return scales that can be divided by: of a channel that a norm cuts off nothing matters."""
    least = 1e-3 * scale.abs().max().clamp_min(1e-30)
    return torch.where(scale.abs() < least, least, scale)
