"""Checks of the arguments and results of rank rules: singular values and ranks."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tensorpress.errors import InvalidArgumentError

SingularValues: TypeAlias = Tensor | NDArray[np.floating] | Sequence[float]

LARGEST_VALUE = 1e150
"""Largest singular value whose square is finite."""


def sort_singular_values(singular_values: SingularValues) -> NDArray[np.float64]:
    """Return the singular values of one matrix as a descending float64 array.

    Parameters
    ----------
    singular_values : Tensor, array or sequence of float
        Values of shape (L,) with L ≥ 1, in any order, on any device.

    Raises
    ------
    InvalidArgumentError
        If the shape is another one, or a value is negative, NaN, or above 1e150.

    Examples
    --------
    >>> sort_singular_values([1.0, 3.0, 2.0]).tolist()
    [3.0, 2.0, 1.0]
    """
    if isinstance(singular_values, Tensor):
        singular_values = singular_values.detach().cpu().double().numpy()
    values = np.asarray(singular_values, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise InvalidArgumentError(
            f"expected the singular values of one matrix, got an array of shape {values.shape}"
        )
    if not ((values >= 0) & (values <= LARGEST_VALUE)).all():
        raise InvalidArgumentError(
            f"singular values must lie between 0 and {LARGEST_VALUE:.0e}, "
            f"got values from {values.min()} to {values.max()}"
        )
    return np.sort(values)[::-1]


def check_ranks(ranks: Sequence[int], largest: Sequence[int]) -> None:
    """Check that there is one rank at each position, from 1 to the largest rank there.

    Parameters
    ----------
    ranks : sequence of int
        The ranks, in the order of the scheme.
    largest : sequence of int
        The largest rank at each position.

    Raises
    ------
    InvalidArgumentError
        If the number of ranks differs, or a rank is out of range.

    Examples
    --------
    >>> check_ranks((4, 9), (8, 8))
    Traceback (most recent call last):
    tensorpress.errors.InvalidArgumentError: rank 2 of (4, 9) must be from 1 to 8, got 9
    """
    if len(ranks) != len(largest):
        raise InvalidArgumentError(
            f"expected {len(largest)} ranks, at most {tuple(largest)}, got {len(ranks)}: "
            f"{tuple(ranks)}"
        )
    for position, (rank, most) in enumerate(zip(ranks, largest, strict=True), start=1):
        if not 1 <= rank <= most:
            raise InvalidArgumentError(
                f"rank {position} of {tuple(ranks)} must be from 1 to {most}, got {rank}"
            )


def round_ranks(ranks: Sequence[int], largest: Sequence[int], multiple: int) -> tuple[int, ...]:
    """Round ranks to the nearest multiple of a number, or to the largest rank.

    Ties round up. Kernels of hardware run best at such sizes.

    Parameters
    ----------
    ranks : sequence of int
        The ranks, in the order of the scheme.
    largest : sequence of int
        The largest rank at each position.
    multiple : int
        The number, at least 1. Where it exceeds the largest rank, the result is the largest rank.

    Raises
    ------
    InvalidArgumentError
        If the multiple is below 1, or `check_ranks` raises.

    Examples
    --------
    >>> round_ranks((3, 21, 62, 5), (64, 64, 64, 5), 8)
    (8, 24, 64, 5)
    """
    if multiple < 1:
        raise InvalidArgumentError(f"ranks can be multiples of 1 or more, not of {multiple}")
    check_ranks(ranks, largest)
    pairs = zip(ranks, largest, strict=True)
    return tuple(_round_rank(rank, most, multiple) for rank, most in pairs)


def _round_rank(rank: int, largest: int, multiple: int) -> int:
    lower = rank // multiple * multiple
    candidates = [n for n in (lower, lower + multiple, largest) if 0 < n <= largest]
    return min(candidates, key=lambda n: (abs(n - rank), -n))
