"""Random factors for a weight with the standard deviation of an initializer."""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn

from tensorpress.schemes.pressed_layer import layer_factors

_MAX_STEPS = 100
_TOLERANCE = 1e-9
"""Draws are scaled to this relative tolerance of their deviation, in at most `_MAX_STEPS` steps."""


def initial_std(weight: Tensor, init: str) -> float:
    """Return the standard deviation that Glorot's or Kaiming's initializer gives a dense weight.

    Parameters
    ----------
    weight : Tensor
        Weight of shape (out, in, *kernel) or (out, in).
    init : {"glorot", "kaiming"}
        Glorot & Bengio (2010): √(2/(fan_in+fan_out)); He et al. (2015): √(2/fan_in).

    Examples
    --------
    >>> initial_std(torch.empty(30, 50), "kaiming")
    0.2
    """
    fan_out, fan_in = (weight.shape[axis] * weight[0, 0].numel() for axis in (0, 1))
    return sqrt(2 / (fan_in + fan_out)) if init == "glorot" else sqrt(2 / fan_in)


@torch.no_grad()
def draw_factors(
    pressed: nn.Module, compose: Callable[[], Tensor], std: float, generator: torch.Generator
) -> None:
    """Draw the factors of a pressed layer; scale them to a root mean square of its weight.

    Parameters
    ----------
    pressed : nn.Module
        The pressed layer, on the CPU.
    compose : callable
        Function that returns the dense weight of the layer.
    std : float
        The root mean square of that weight.
    generator : torch.Generator
        Generator of the draw, on the CPU.
    """
    factors = layer_factors(pressed)
    for factor in factors:
        factor.copy_(torch.randn(factor.shape, generator=generator, device="cpu"))
    for part in pressed.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.weight[part.padding_idx].zero_()
    for _ in range(_MAX_STEPS):
        rms = float(compose().square().mean().sqrt())
        if rms == 0 or abs(rms / std - 1) < _TOLERANCE:
            return
        # Exact for a product of all factors; a sum of products converges.
        for factor in factors:
            factor.mul_((std / rms) ** (1 / len(factors)))
