"""Rate-distortion rounding: to the symbol that is worth its bits, and what symbols cost."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

_REACH = 1 << 15  # a larger symbol costs as much as this one
_PASSES = 2  # how often costs are fitted to the symbols chosen with the costs before
_OFFSETS = torch.tensor([0.0, 1.0, 2.0, inf], dtype=torch.float64)  # of candidates, towards zero


@dataclass(frozen=True)
class SymbolCosts:
    """The bits that an entropy coder would spend if it knew how often each symbol occurs.

    Attributes
    ----------
    bits : Tensor
        Bits of a symbol of magnitude 0, 1, … r, float64, shape (r + 1,).
    """

    bits: Tensor

    @staticmethod
    def from_symbols(symbols: Tensor) -> "SymbolCosts":
        """Return the costs by the histogram of symbols; both signs are taken to be equally likely.

        Parameters
        ----------
        symbols : Tensor
            Integers, any shape, at least one.

        Examples
        --------
        >>> costs = SymbolCosts.from_symbols(torch.tensor([0, 0, 0, 0, 0, 0, 1, -1]))
        >>> bool(costs(torch.tensor(0)) < costs(torch.tensor(1)))
        True
        """
        magnitudes = symbols.abs().flatten().clamp(max=_REACH).long()
        counts = torch.bincount(magnitudes, minlength=int(magnitudes.max()) + 3).double()
        # m_s: the count of symbol s, with that of a magnitude split between the signs, plus 0.1.
        masses = counts / 2
        masses[0] = counts[0]
        masses += 0.1
        # bits_s = -log2(m_s / (m_0 + 2 sum_{s > 0} m_s))
        return SymbolCosts(-(masses / (2 * masses.sum() - masses[0])).log2())

    def __call__(self, symbols: Tensor) -> Tensor:
        """Return the bits of each symbol."""
        return self.bits[symbols.abs().clamp(max=len(self.bits) - 1).long()]


def coded_bits(symbols: Tensor) -> float:
    """Return an estimate of the bits that an adaptive coder spends on symbols.

    It is their entropy, except for symbols that occur once. A coder cannot know those in advance:
    they are counted as coded by their number of binary digits, and then digit by digit. Otherwise
    the finest steps, where all values differ, would cost no more than fine ones.

    Examples
    --------
    >>> coded_bits(torch.tensor([0, 0, 2, 2]))
    4.0
    >>> coded_bits(torch.tensor([4, -5, 6, 7])), coded_bits(torch.tensor([40, -50, 60, 34]))
    (12.0, 24.0)
    """
    values, counts = torch.unique(symbols, return_counts=True)
    # Classes: each symbol that occurs more often, and the numbers of digits of the others.
    once = counts == 1
    digits = values[once].abs().double().frexp().exponent
    masses = torch.cat([counts[~once], torch.bincount(digits.long())]).double()
    masses = masses[masses > 0]
    # sum_c m_c log2(n / m_c) + digits; a first digit is always 1, and the sign takes its place.
    return float((masses * (symbols.numel() / masses).log2()).sum() + digits.sum())


def choose_symbols(
    values: Tensor, weight: float | Tensor, price: float, costs: SymbolCosts
) -> Tensor:
    """Return the symbol that minimizes weight · (value - symbol)² + price · bits, for each value.

    Parameters
    ----------
    values : Tensor
        Values in steps, float64, any shape.
    weight : float or Tensor
        The weight of a squared error of one step, of all values or of the shape of theirs.
    price : float
        The price of a bit, in squared steps.
    costs : SymbolCosts
        The bits of each symbol.

    Returns
    -------
    Tensor
        Whole numbers in float64, the shape of `values`: the nearest symbol, one of the next two
        towards zero, or zero.

    Examples
    --------
    >>> costs = SymbolCosts.from_symbols(torch.tensor([0, 0, 0, 1, -1]))
    >>> choose_symbols(torch.tensor([0.6, 0.9]).double(), 1.0, 0.2, costs).tolist()
    [0.0, 1.0]
    """
    magnitudes = values.abs()
    # Candidates along a new first axis: |q| = round(|w|) - 0, 1, 2, and 0.
    offsets = _OFFSETS.view(-1, *(1,) * magnitudes.dim())
    candidates = (magnitudes.round() - offsets).clamp(min=0)
    # weight (|w| - |q|)² + price bits(q)
    objective = (magnitudes - candidates).square_().mul_(weight)
    objective.add_(costs(candidates), alpha=price)
    best = objective.min(0, keepdim=True).indices
    return candidates.gather(0, best).squeeze(0).copysign(values)


def round_values(values: Tensor, price: float = 0.0) -> Tensor:
    """Return symbols for values in steps: the nearest, or with a price those worth their bits.

    Parameters
    ----------
    values : Tensor
        Values in steps, floating point, any shape.
    price : float
        The price of a bit, in squared steps; at high rates a bit is worth ln 2 / 6 ≈ 0.116.

    Returns
    -------
    Tensor
        int32 symbols, the shape of `values`.

    Examples
    --------
    >>> round_values(torch.tensor([0.4, -1.6])).tolist()
    [0, -2]
    """
    values = values.double()
    symbols = values.round()
    nonzero = symbols != 0  # a value that is nearest to zero becomes zero at any price
    for _ in range(_PASSES if price and nonzero.any() else 0):
        costs = SymbolCosts.from_symbols(symbols)
        symbols[nonzero] = choose_symbols(values[nonzero], 1.0, price, costs)
    return symbols.to(torch.int32)
