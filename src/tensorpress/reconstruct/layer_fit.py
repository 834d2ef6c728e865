"""Fitting the kernels of one layer to responses of the dense one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.reconstruct.alternating_fit import fit_kernels
from tensorpress.reconstruct.kernel_model import Composition
from tensorpress.reconstruct.regression import Regression
from tensorpress.reconstruct.relu_fit import (
    ActivatedFit,
    Retarget,
    fit_through_relu,
    relu_retarget,
    respond,
)

Choose = Callable[[Tensor, Tensor, Tensor, Retarget | None], list[Tensor]]
"""Given the kernel to aim at, the second moments, the scale of the outputs and how to aim anew."""

HELD_OUT = 8
"""One row of so many is not fitted where there is a ReLU, but decides whether the fit through it
is better."""


@dataclass(frozen=True)
class LayerData:
    """What a layer is fitted by.

    Attributes
    ----------
    inputs : Tensor
        Vectors that its kernel will be multiplied with, (rows, groups, columns).
    responses : Tensor
        What the dense layer makes of the dense model's inputs there, (rows, groups, out).
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
    kernels: Sequence[Tensor],
    dense: Tensor,
    data: LayerData,
    composition: Composition | None = None,
    *,
    places: Sequence[int] | None = None,
    choose: Choose | None = None,
) -> ActivatedFit:
    """Fit the kernels of a layer and a bias to responses, through the ReLU where there is one.

    Parameters
    ----------
    kernels : sequence of Tensor
        Canonical kernels, where the search starts.
    dense : Tensor
        The dense kernel, (groups, out, in, *kernel), which decides in directions without data.
    data : LayerData
        The rows.
    composition : Composition, optional
        What the kernels stand for; a chain by default.
    places : sequence of int, optional
        Change the kernels at these places only, and not through the ReLU.
    choose : callable, optional
        Chooses what else the layer has beside its kernels, and gives kernels to start from.

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
    >>> bool((Composition(1)(fit.kernels) - dense).abs().max() < 1e-2)
    True
    """
    scale = _away_from_zero(data.scale.double())
    seen_by_norm = (composition or Composition(len(dense))).scaled(scale)
    seen = data.responses * scale.float() + data.shift.float()
    through_relu = data.relu and places is None
    test = torch.arange(len(seen)) % HELD_OUT == HELD_OUT - 1
    x, y = (data.inputs[~test], seen[~test]) if through_relu else (data.inputs, seen)
    # W*, the best kernel of any rank; all kernels are then fitted to it: tr (W* - W̃) Σ (W* - W̃)ᵀ.
    regression = Regression(x, biased=data.biased, shrink=True)
    prior = dense.double().flatten(2) * scale[..., None]
    best = regression.kernel(y, prior).reshape(dense.shape)
    if choose is not None:
        retarget = relu_retarget(x, y, regression) if data.relu else None
        kernels = choose(best, regression.second, scale, retarget)
    moment = regression.second if seen_by_norm.chosen else regression.moment
    kernels = fit_kernels(kernels, best, moment, seen_by_norm, places=places).kernels
    fit = ActivatedFit(kernels, regression.bias(y, seen_by_norm(kernels).flatten(2)))
    if through_relu:
        through = fit_through_relu(kernels, seen_by_norm, fit.bias, x, y, regression)

        def loss(of: ActivatedFit) -> float:
            outputs = respond(data.inputs[test], seen_by_norm(of.kernels).flatten(2), of.bias)
            return float((outputs.clamp_min(0) - seen[test].clamp_min(0)).square().sum())

        fit = min(fit, through, key=loss)
    # scale · (W̃ x + b) + shift is what was fitted, so b is solved for.
    return ActivatedFit(fit.kernels, (fit.bias - data.shift.double()) / scale)


def _away_from_zero(scale: Tensor) -> Tensor:
    """Return scales that can be divided by: of a channel that a norm cuts off nothing matters."""
    least = 1e-3 * scale.abs().max().clamp_min(1e-30)
    return torch.where(scale.abs() < least, least, scale)
