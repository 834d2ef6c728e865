"""The empirical entropy of symbols."""

import torch
from torch import Tensor


def entropy_bits(symbols: Tensor) -> float:
    """Return the empirical entropy of the values of a tensor, in bits a value.

    Parameters
    ----------
    symbols : Tensor
        Integers, any shape; level numbers for instance.

    Examples
    --------
    >>> entropy_bits(torch.tensor([0, 1, 2, 2]))
    1.5
    """
    counts = torch.unique(symbols, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float((shares * (1 / shares).log2()).sum())
