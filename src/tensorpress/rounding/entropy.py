"""What symbols cost, estimated from how often each occurs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.codec.entropy import entropy_bits

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
