"""Fits the kernels and the bias of one layer to responses of the dense layer."""

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
"""Returns kernels to start from, for a target kernel, second moments, output scale, retargeting."""

HELD_OUT = 8
"""With a ReLU, one row in this many is held out to decide whether the fit through it is better."""


@dataclass(frozen=True)
class LayerData:
    """The rows to which a layer is fitted.

    Attributes
    ----------
    inputs : Tensor
        Vectors that the kernel is multiplied with, (rows, groups, columns).
    responses : Tensor
        Outputs of the dense layer in the dense model, (rows, groups, out).
    scale, shift : Tensor
        Scale and shift of a norm that follows, (groups, out); 1 and 0 without one.
    relu : bool
        Whether responses are to match after a ReLU.
    biased : bool
        Whether there is a bias to fit, or a norm that can take one.
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
    """Fit the kernels and the bias of a layer to responses, through a ReLU where one follows.

    Parameters
    ----------
    kernels : sequence of Tensor
        Canonical kernels to start from.
    dense : Tensor
        The dense kernel, (groups, out, in, *kernel), which is kept in directions without data.
    data : LayerData
        Inputs and responses.
    composition : Composition, optional
        How the kernels are composed; a chain by default.
    places : sequence of int, optional
        Fit only the kernels at these places, and not through the ReLU.
    choose : callable, optional
        Chooses the layer's input channels, and returns kernels to start from.

    Returns
    -------
    ActivatedFit
        The kernels, and the layer's bias before any norm.

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
    # W*, the best kernel of any rank, to which the kernels are fitted: tr (W* - W̃) Σ (W* - W̃)ᵀ.
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
    # The fit is of scale · (W̃ x + b) + shift; solve for b.
    return ActivatedFit(fit.kernels, (fit.bias - data.shift.double()) / scale)


def _away_from_zero(scale: Tensor) -> Tensor:
    """Return scales that can be divided by; a channel with scale zero does not matter."""
    least = 1e-3 * scale.abs().max().clamp_min(1e-30)
    return torch.where(scale.abs() < least, least, scale)
