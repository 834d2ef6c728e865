"""The error of a pressed layer in the precision that its factors have, not that of the fit."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.pressed_layer import layer_factors, pressed_form

WORST = 1.0
"""The relative error of a weight of zeros; factors that stand for less are refused."""


def measure_cast_error(
    pressed: nn.Module, weight: Tensor, compose: Callable[[nn.Module], Tensor]
) -> None:
    """Record ‖W − Ŵ‖ / ‖W‖ of the factors as they are stored, if they are in low precision.

    Factors of a degenerate fit cancel: rounded to bfloat16, they stand for another weight.

    Parameters
    ----------
    pressed : nn.Module
        The pressed layer.
    weight : Tensor
        The dense weight, as torch stores it, in the working precision.
    compose : callable
        The weight that a pressed layer stands for.

    Raises
    ------
    InvalidArgumentError
        If a factor is infinite in its precision, or the factors are worse than none.
    """
    factors = layer_factors(pressed)
    dtype = factors[0].dtype if factors else weight.dtype
    if not all(bool(torch.isfinite(factor).all()) for factor in factors):
        raise InvalidArgumentError(f"a factor of its weight is infinite in {dtype}: scale it down")
    form = pressed_form(pressed)
    if form is None or form.relative_error is None or dtype.itemsize > 2:
        return
    rebuilt = compose(deepcopy(pressed).to(weight.dtype))
    form.relative_error = float((weight - rebuilt).norm() / weight.norm().clamp(min=1e-38))
    if form.relative_error > WORST:
        raise InvalidArgumentError(
            f"the factors cancel, and rounded to {dtype} they stand for a weight whose error is "
            f"{form.relative_error:.2g} of it: press it in float32, or by cp_corrected instead of "
            "cp or cp_nls"
        )
