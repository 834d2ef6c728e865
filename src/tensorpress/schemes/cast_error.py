"""Measures the error of a pressed layer in the dtype in which its factors are stored."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.pressed_layer import layer_factors, pressed_form

WORST = 1.0
"""The relative error of a zero weight; factors with a larger error are refused."""


def measure_cast_error(
    pressed: nn.Module, weight: Tensor, compose: Callable[[nn.Module], Tensor]
) -> None:
    """Record ‖W − Ŵ‖ / ‖W‖ after rounding, for factors in 16 bits or fewer.

    Factors of a degenerate fit cancel, so rounding them to bfloat16 can change the weight a lot.

    Parameters
    ----------
    pressed : nn.Module
        The pressed layer.
    weight : Tensor
        The dense weight, as torch stores it, in the working precision.
    compose : callable
        Returns the weight of a pressed layer.

    Raises
    ------
    InvalidArgumentError
        If a factor is infinite in its dtype, or the error exceeds `WORST`.
    """
    factors = layer_factors(pressed)
    dtype = factors[0].dtype if factors else weight.dtype
    if not all(bool(torch.isfinite(factor).all()) for factor in factors):
        raise InvalidArgumentError(f"a factor of its weight overflows {dtype}: scale it down")
    form = pressed_form(pressed)
    if form is None or form.relative_error is None or dtype.itemsize > 2:
        return
    rebuilt = compose(deepcopy(pressed).to(weight.dtype))
    form.relative_error = float((weight - rebuilt).norm() / weight.norm().clamp(min=1e-38))
    if form.relative_error > WORST:
        raise InvalidArgumentError(
            f"the factors cancel: rounded to {dtype}, their weight has a relative error of "
            f"{form.relative_error:.2g}. Press it in float32, or by cp_corrected instead of "
            "cp or cp_nls"
        )
