"""Checks of what every rank rule takes: singular values in, possible ranks out."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tensorpress.errors import InvalidArgumentError

SingularValues: TypeAlias = Tensor | NDArray[np.floating] | Sequence[float]

LARGEST_VALUE = 1e150
"""Above it, squares are no longer finite."""


def sort_singular_values(singular_values: SingularValues) -> NDArray[np.float64]:
    """Return the singular values of one matrix as a descending float64 array.

    Parameters
    ----------
    singular_values : Tensor, array or sequence of float
        Shape (L,) with L ≥ 1, in any order, on any device.

    Raises
    ------
    InvalidArgumentError
        For another shape, or values that are negative, NaN, or above 1e150.

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
    """Raise unless there is one rank for each of the largest ones, from 1 to it.

    Parameters
    ----------
    ranks : sequence of int
        In the order of the scheme.
    largest : sequence of int
        The largest rank at each position.

    Raises
    ------
    InvalidArgumentError
        For another number of ranks, or a rank out of range.

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
    """Return the nearest ranks that are multiples of a number, or the largest rank.

    Of two that are as near, the larger one. Kernels of hardware run best at such sizes.

    Parameters
    ----------
    ranks, largest : sequence of int
        As for `check_ranks`.
    multiple : int
        At least 1; where it exceeds a largest rank, only that is left.

    Raises
    ------
    InvalidArgumentError
        For a multiple below 1, and as `check_ranks`.

    Examples
    --------
    >>> round_ranks((3, 21, 62, 5), (64, 64, 64, 5), 8)
    (8, 24, 64, 5)
    """
    if multiple < 1:
        raise InvalidArgumentError(f"ranks can be multiples of 1 or more, not of {multiple}")
    check_ranks(ranks, largest)
    pairs = zip(ranks, largest, strict=True)
    return tuple(_nearest(rank, most, multiple) for rank, most in pairs)


def _nearest(rank: int, largest: int, multiple: int) -> int:
    below = rank // multiple * multiple
    possible = [n for n in (below, below + multiple, largest) if 0 < n <= largest]
    return min(possible, key=lambda n: (abs(n - rank), -n))
