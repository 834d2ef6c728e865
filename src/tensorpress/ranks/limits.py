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
