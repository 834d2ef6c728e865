"""Which ranks a decomposition can have."""

from collections.abc import Sequence

from tensorpress.errors import InvalidArgumentError


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
