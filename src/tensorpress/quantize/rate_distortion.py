"""Rounding to the symbol that is worth its bits, and estimates of what symbols cost."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from tensorpress.codec.static_tables import entropy_bits

_REACH = 1 << 15
"""Symbols further out than that are taken to cost what the last in the table does."""


@dataclass(frozen=True)
class SymbolCosts:
    """Bits that an entropy coder which knows how often each symbol occurs would spend.

    Attributes
    ----------
    bits : Tensor
        float64, of the sizes 0 … r of symbols.
    """

    bits: Tensor

    @staticmethod
    def of(symbols: Tensor) -> "SymbolCosts":
        """Return the costs by the histogram of some symbols; signs are taken to be alike.

        Parameters
        ----------
        symbols : Tensor
            Integers, any shape, at least one.

        Examples
        --------
        >>> costs = SymbolCosts.of(torch.tensor([0, 0, 0, 0, 0, 0, 1, -1]))
        >>> bool(costs(torch.tensor(0)) < costs(torch.tensor(1)))
        True
        """
        size = symbols.abs().flatten().clamp(max=_REACH).long()
        counts = torch.bincount(size, minlength=int(size.max()) + 3).double()
        either = counts / 2
        either[0] = counts[0]
        masses = either + 0.1
        return SymbolCosts(-(masses / (2 * masses.sum() - masses[0])).log2())

    def __call__(self, symbols: Tensor) -> Tensor:
        """Return the bits of each symbol."""
        return self.bits[symbols.abs().clamp(max=len(self.bits) - 1).long()]


def ideal_bits(symbols: Tensor) -> float:
    """Return the number of symbols times their empirical entropy, in bits.

    Examples
    --------
    >>> ideal_bits(torch.tensor([0, 1, 2, 2]))
    6.0
    """
    return symbols.numel() * entropy_bits(symbols)


def coded_bits(symbols: Tensor) -> float:
    """Return about how many bits an adaptive coder spends on symbols.

    Their entropy, but for those that occur once: nothing is known of them in advance, so they are
    taken to be coded by how many binary digits they have, and then digit by digit. Without that the
    finest steps, where all values differ, would cost nothing more than fine ones.

    Examples
    --------
    >>> coded_bits(torch.tensor([0, 0, 2, 2]))
    4.0
    >>> coded_bits(torch.tensor([4, -5, 6, 7])), coded_bits(torch.tensor([40, -50, 60, 34]))
    (12.0, 24.0)
    """
    values, counts = torch.unique(symbols, return_counts=True)
    once = counts == 1
    digits = values[once].abs().double().frexp().exponent
    masses = torch.cat([counts[~once], torch.bincount(digits.long())]).double()
    masses = masses[masses > 0]
    # A symbol's first digit is 1; its sign takes the place of it.
    return float((masses * (symbols.numel() / masses).log2()).sum() + digits.sum())


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
    >>> choose_modes(torch.tensor([0.6, 0.9]).double(), 1.0, 0.2, costs).tolist()
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
