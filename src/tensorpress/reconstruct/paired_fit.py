"""Fits one layer to moments of its inputs in the dense and in the pressed model."""

import torch
from torch import Tensor

from tensorpress.calibrate.paired_moments import PairedMoments
from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.alternating_fit import fit_kernels
from tensorpress.reconstruct.channel_selection import choose_channels
from tensorpress.reconstruct.kernel_model import Composition
from tensorpress.reconstruct.layerwise import decompose_start, start_values
from tensorpress.reconstruct.regression import DAMPING, damped_cholesky, white_energy
from tensorpress.schemes.canonical_kernel import weight_to_kernel
from tensorpress.schemes.initialization import StartValues
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.pressed_layer import Composed


def fit_to_pairs(
    layer: LayerPlan, weight: Tensor, bias: Tensor | None, moments: PairedMoments
) -> StartValues:
    r"""Return the factors whose responses in the pressed model match the dense layer's.

    .. math:: \min_{\tilde W, \tilde b} \sum_t \| W x_t + b - \tilde W \tilde x_t - \tilde b \|^2

    With :math:`S = E \tilde x \tilde x^T` and :math:`C = E x \tilde x^T`, both about the means if
    there is a bias, the best kernel of any rank is :math:`W^* = W + W (C - S) S^{-1}`. The factors
    are the nearest ones in the norm of S. White rows are added to S, as in `Regression`.

    Parameters
    ----------
    layer : LayerPlan
        The plan of the layer, a Linear.
    weight : Tensor
        Its weight, as torch stores it.
    bias : Tensor or None
        Its bias.
    moments : PairedMoments
        The moments of its inputs.

    Raises
    ------
    InvalidArgumentError
        If the moments are not finite.

    References
    ----------
    Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for classification
    and detection", section 3.3 (the asymmetric problem), by moments instead of rows.
    """
    dense = to_working_precision(weight_to_kernel(weight, layer.spec))
    second, cross = moments.means(centred=bias is not None)
    if not bool(torch.isfinite(second).all() and torch.isfinite(cross).all()):
        raise InvalidArgumentError(
            f"layer {layer.name!r}: the moments of its inputs are not finite"
        )
    trace = second.diagonal().sum()
    white = white_energy(trace, moments.rows)
    damping = (DAMPING * trace / len(second)).clamp_min(1e-30)
    # W* = W + W (C - S) (S + damping)⁻¹
    gap = dense @ cross.sub_(second)
    del cross  # as large as S
    factor = damped_cholesky(second[None], (white + damping)[None])
    best = dense + torch.cholesky_solve(gap.mT, factor).mT
    del factor, gap
    second.diagonal().add_(white)
    pressed, kernels = _fitted(layer, weight, best, second[None])
    new_bias = None
    if bias is not None:
        # b̃ = b + W E[x] - W̃ E[x̃]
        fitted = Composition.of(pressed)(kernels).flatten(2)[0]
        shift = dense[0] @ moments.dense_sum - fitted @ moments.pressed_sum
        new_bias = (bias.double() + shift / moments.rows).to(weight)
    return start_values(pressed, kernels, weight, new_bias)


def _fitted(
    layer: LayerPlan, weight: Tensor, best: Tensor, second: Tensor
) -> tuple[Composed, list[Tensor]]:
    """Return the pressed layer, and the kernels nearest to the best kernel."""
    pressed = layer.method.build(layer.spec, layer.ranks, like=weight.detach())
    assert isinstance(pressed, Composed)
    if pressed.selection() is None:
        # The factors of a matrix have a closed form, which needs only the shapes of the kernels.
        closest = Composition.of(pressed).closest(pressed.kernels(), best, second)
        if closest is not None:
            return pressed, closest
    pressed, _ = decompose_start(layer, weight)
    kernels = pressed.kernels()
    if pressed.selection() is not None:
        kernels = choose_channels(pressed, layer.name, best, second)
    return pressed, fit_kernels(kernels, best, second, Composition.of(pressed)).kernels
