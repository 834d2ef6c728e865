"""The possible ranks of a tensor train, and the number of values that it stores."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul

from tensorpress.errors import InvalidArgumentError


def tt_params(shape: Sequence[int], ranks: Sequence[int]) -> int:
    """Return the number of values that a tensor train stores: Σ r_{k-1}·n_k·r_k.

    For a TT-matrix, the k-th size is the product m_k·n_k of its row and column mode.

    Parameters
    ----------
    shape : sequence of int
        The sizes (n_1, …, n_d) of the modes.
    ranks : sequence of int
        The d − 1 inner ranks.

    Examples
    --------
    >>> tt_params((8, 28, 32, 32, 28, 16), (4, 4, 4, 4, 4))
    2016
    """
    ends = pairwise([1, *ranks, 1])
    return sum(left * n * right for n, (left, right) in zip(shape, ends, strict=True))


def largest_tt_ranks(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the ranks at which every tensor of a shape is exact: min(n_1…n_k, n_{k+1}…n_d).

    Examples
    --------
    >>> largest_tt_ranks((2, 3, 4, 5))
    (2, 6, 5)
    """
    # The rank of an unfolding is at most the smaller of its sides.
    left = accumulate(shape, mul)
    right = list(accumulate(reversed(shape), mul))[::-1][1:]
    return tuple(min(pair) for pair in zip(left, right, strict=False))


def attainable_tt_ranks(shape: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """Lower ranks that their neighbours make impossible in a train.

    These are r_k ≤ r_{k-1}·n_k and r_k ≤ n_{k+1}·r_{k+1}. A rank rule that looks at each unfolding
    alone may choose larger ranks, which would add nothing.

    Parameters
    ----------
    shape : sequence of int
        The sizes (n_1, …, n_d) of the modes.
    ranks : sequence of int
        The d − 1 inner ranks, each from 1 to its value in `largest_tt_ranks`.

    Returns
    -------
    tuple of int
        The ranks of the train that `tt_svd` makes for ``ranks``.

    Raises
    ------
    InvalidArgumentError
        If the number of ranks is wrong, or a rank is out of range.

    Examples
    --------
    >>> attainable_tt_ranks((2, 3, 4, 5), (1, 6, 5))
    (1, 3, 5)
    """
    largest = largest_tt_ranks(shape)
    if len(ranks) != len(largest):
        raise InvalidArgumentError(
            f"a tensor train of shape {tuple(shape)} has {len(largest)} inner ranks, "
            f"got {len(ranks)}: {tuple(ranks)}"
        )
    for k, (rank, most) in enumerate(zip(ranks, largest, strict=True), start=1):
        if not 1 <= rank <= most:
            raise InvalidArgumentError(
                f"TT-rank {k} of a tensor of shape {tuple(shape)} must be from 1 to {most}, "
                f"got {rank}"
            )
    # From the left r_k ← min(r_k, r_{k-1}·n_k), from the right r_k ← min(r_k, n_{k+1}·r_{k+1}).
    steps = zip(shape[:-1], ranks, strict=True)
    forwards = list(accumulate(steps, lambda left, s: min(s[1], left * s[0]), initial=1))[1:]
    steps = zip(reversed(shape[1:]), reversed(forwards), strict=True)
    backwards = accumulate(steps, lambda right, s: min(s[1], right * s[0]), initial=1)
    return tuple(backwards)[:0:-1]
