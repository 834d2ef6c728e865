"""Grids of ranks worth considering for a layer, and the energy that a truncation discards."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from math import ceil

from torch import Tensor

from tensorpress.schemes.layer_spec import Sizes

FINE = tuple((k / 100) ** 2 for k in range(1, 101))
"""Fractions of the largest useful rank if errors come from a spectrum: at most 2 % apart."""

GRID = tuple((k / 24) ** 2 for k in range(1, 25))
"""Fractions of each of two ranks, of which all pairs are considered."""

COARSE = tuple(64 ** (k / 7 - 1) for k in range(8))
"""Fractions if every error takes a decomposition: each is nearly twice the one before."""


def thin_grid(
    ranks_up_to: Callable[[int], Sizes],
    fits: Callable[[Sizes], bool],
    largest: int,
    parts: Iterable[float],
) -> list[Sizes]:
    """Return ranks at fractions of the largest number at which they fit, ascending.

    Parameters
    ----------
    ranks_up_to : callable
        Maps a number to ranks, which must not fall as the number grows.
    fits : callable
        Whether ranks are small enough; false for all ranks above ones for which it is false.
    largest : int
        The largest number.
    parts : iterable of float
        Fractions in (0, 1], ascending.

    Examples
    --------
    >>> thin_grid(lambda n: (n, 2 * n), lambda ranks: sum(ranks) < 100, 50, (0.1, 0.5, 1.0))
    [(4, 8), (17, 34), (33, 66)]
    """
    numbers = range(1, largest + 1)
    limit = bisect_left(numbers, True, key=lambda number: not fits(ranks_up_to(number)))
    if not limit:
        return []
    return list(dict.fromkeys(ranks_up_to(ceil(part * limit)) for part in parts))


def discarded_energy(values: Tensor, ranks: Sequence[int]) -> list[float]:
    """Return the share of the energy of a stack of matrices beyond each rank.

    It is the squared relative error of the best approximation of rank r: Σ_{i>r} σ_i² / Σ σ².

    Parameters
    ----------
    values : Tensor
        Singular values of shape (*batch, L), descending.
    ranks : sequence of int
        Ranks from 0 to L.

    Examples
    --------
    >>> import torch
    >>> discarded_energy(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), [0, 1, 2])
    [1.0, 0.2, 0.0]
    """
    squares = values.detach().cpu().double().square().flatten(0, -2).sum(0)
    tails: list[float] = [*squares.flip(0).cumsum(0).flip(0).tolist(), 0.0]
    return [tails[rank] / tails[0] if tails[0] else 0.0 for rank in ranks]
