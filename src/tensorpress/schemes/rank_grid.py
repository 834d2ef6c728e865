"""The ranks worth considering for a layer, and what truncating a spectrum at them discards."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from math import ceil

from torch import Tensor

from tensorpress.schemes.layer_spec import Sizes

FINE = tuple((k / 100) ** 2 for k in range(1, 101))
"""Parts of the largest useful rank where errors come from a spectrum: 2 % apart at most."""

GRID = tuple((k / 24) ** 2 for k in range(1, 25))
"""The same for one of two ranks, of which all pairs are looked at."""

COARSE = tuple(64 ** (k / 7 - 1) for k in range(8))
"""The same where every error takes a decomposition: nearly doubled from one to the next."""


def thin_grid(
    ranks_up_to: Callable[[int], Sizes],
    fits: Callable[[Sizes], bool],
    largest: int,
    parts: Iterable[float],
) -> list[Sizes]:
    """Return ranks at parts of the largest number at which they fit, ascending.

    Parameters
    ----------
    ranks_up_to : callable
        From one number, at most ``largest``, to ranks that do not fall as it grows.
    fits : callable
        Whether ranks are small enough; none above ranks that are not.
    largest : int
        The largest number.
    parts : iterable of float
        In (0, 1], ascending.

    Examples
    --------
    >>> thin_grid(lambda n: (n, 2 * n), lambda ranks: sum(ranks) < 100, 50, (0.1, 0.5, 1.0))
    [(4, 8), (17, 34), (33, 66)]
    """
    numbers = range(1, largest + 1)
    most = bisect_left(numbers, True, key=lambda number: not fits(ranks_up_to(number)))
    if not most:
        return []
    return list(dict.fromkeys(ranks_up_to(ceil(part * most)) for part in parts))


def discarded_energy(values: Tensor, ranks: Sequence[int]) -> list[float]:
    """Return the part of the energy beyond some ranks, of a stack of matrices together.

    It is the squared relative error of the best approximations of these ranks: Σ_{i>r} σ_i² / Σ σ².

    Parameters
    ----------
    values : Tensor
        Singular values of shape (*batch, L), descending.
    ranks : sequence of int
        From 0 to L.

    Examples
    --------
    >>> import torch
    >>> discarded_energy(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), [0, 1, 2])
    [1.0, 0.2, 0.0]
    """
    squares = values.detach().cpu().double().square().flatten(0, -2).sum(0)
    tails: list[float] = [*squares.flip(0).cumsum(0).flip(0).tolist(), 0.0]
    return [tails[rank] / tails[0] if tails[0] else 0.0 for rank in ranks]
