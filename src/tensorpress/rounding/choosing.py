"""Rounding to the symbol that is worth its bits."""

from math import inf

import torch
from torch import Tensor

from tensorpress.rounding.entropy import SymbolCosts

PASSES = 2
"""How often costs are fitted to the symbols chosen with the costs before."""

_CLOSER = torch.tensor([0.0, 1.0, 2.0, inf], dtype=torch.float64)  # to zero than the nearest symbol


def choose(values: Tensor, weight: float, price: float, costs: SymbolCosts) -> Tensor:
    """Return the symbol that minimizes weight · (value - symbol)² + price · bits, for each value.

    Parameters
    ----------
    values : Tensor
        In steps, float64.
    weight : float
        What a squared step of error counts.
    price : float
        Of a bit, in squared steps.
    costs : SymbolCosts
        The bits.

    Returns
    -------
    Tensor
        float64, whole numbers: the nearest symbol, one of the two before it on the way to zero,
        or zero.

    Examples
    --------
    >>> costs = SymbolCosts.of(torch.tensor([0, 0, 0, 1, -1]))
    >>> choose(torch.tensor([0.6, 0.9]).double(), 1.0, 0.2, costs).tolist()
    [0.0, 1.0]
    """
    size = values.abs()
    tried = (size.round() - _CLOSER.view(-1, *(1,) * size.dim())).clamp(min=0)
    cost = (size - tried).square_().mul_(weight).add_(costs(tried), alpha=price)
    return tried.gather(0, cost.min(0, keepdim=True).indices).squeeze(0).copysign(values)


def round_values(values: Tensor, price: float = 0.0) -> Tensor:
    """Return symbols for values in steps: the nearest, or with a price those worth their bits.

    Parameters
    ----------
    values : Tensor
        In steps, floating point, any shape.
    price : float
        Of a bit, in squared steps; at high rates a bit is worth ln 2 / 6 ≈ 0.116.

    Returns
    -------
    Tensor
        int32.

    Examples
    --------
    >>> round_values(torch.tensor([0.4, -1.6])).tolist()
    [0, -2]
    """
    values = values.double()
    found = values.round()
    chosen = found != 0  # what is nearest to zero becomes zero at any price
    for _ in range(PASSES if price and chosen.any() else 0):
        found[chosen] = choose(values[chosen], 1.0, price, SymbolCosts.of(found))
    return found.to(torch.int32)
