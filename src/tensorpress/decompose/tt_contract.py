"""Contraction of tensor trains to what they stand for, in the cheapest order."""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from math import prod

from torch import Tensor

from tensorpress.errors import InvalidArgumentError


def tt_to_tensor(cores: Sequence[Tensor]) -> Tensor:
    """Contract TT-cores to the tensor they stand for; differentiable.

    Parameters
    ----------
    cores : sequence of Tensor
        Shapes (r_{k-1}, n_k, r_k), r_0 = r_d = 1.

    Returns
    -------
    Tensor
        Shape (n_1, …, n_d).

    Raises
    ------
    InvalidArgumentError
        If the cores do not make a train.

    Examples
    --------
    >>> import torch
    >>> tt_to_tensor([torch.ones(1, 2, 3), torch.ones(3, 2, 1)]).tolist()
    [[3.0, 3.0], [3.0, 3.0]]
    """
    check_cores(cores, modes=1)
    shape = [core.shape[1] for core in cores]
    return join_train(cores, shape).reshape(shape)


def join(left: Tensor, right: Tensor) -> Tensor:
    """Contract neighbours (*, r, n, s) and (*, s, p, t) of a train to one core (*, r, n·p, t)."""
    product = left.flatten(-3, -2) @ right.flatten(-2, -1)
    return product.reshape(*left.shape[:-2], left.shape[-2] * right.shape[-2], right.shape[-1])


def join_train(
    cores: Sequence[Tensor],
    sizes: Sequence[int],
    joined: Callable[[Tensor, Tensor], Tensor] = join,
) -> Tensor:
    """Contract a whole train: both halves from their ends, then one half with the other.

    They meet where that takes the fewest multiplications (`joining_macs`): the last product is as
    large as the result, times the rank in its middle.

    Parameters
    ----------
    cores : sequence of Tensor
        The neighbours, of any number of modes.
    sizes : sequence of int
        Product of the modes of each.
    joined : callable
        Contracts two neighbours to one core.
    """
    if len(cores) == 1:
        return cores[0]
    split, _ = _cheapest_split(sizes, [core.shape[-1] for core in cores[:-1]])
    left = reduce(joined, cores[:split])
    right = reduce(lambda done, core: joined(core, done), reversed(cores[split:]))
    return joined(left, right)


def joining_macs(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """Return the multiply–accumulates of `tt_to_tensor`.

    Examples
    --------
    >>> joining_macs((2, 3, 4), (1, 5))
    84
    """
    return _cheapest_split(sizes, ranks)[1] if ranks else 0


def check_cores(cores: Sequence[Tensor], *, modes: int) -> None:
    """Raise unless cores of so many modes each make a train: equal ranks between, 1 at the ends."""
    shapes = [tuple(core.shape) for core in cores]
    if not shapes or any(len(shape) != modes + 2 for shape in shapes):
        raise InvalidArgumentError(
            f"a train needs cores of {modes + 2} axes (rank, {modes} mode(s), rank), got {shapes}"
        )
    if shapes[0][0] != 1 or shapes[-1][-1] != 1 or any(a[-1] != b[0] for a, b in pairwise(shapes)):
        raise InvalidArgumentError(
            f"neighbouring TT-cores must share their rank, and the outer ranks be 1, got {shapes}"
        )


def _cheapest_split(sizes: Sequence[int], ranks: Sequence[int]) -> tuple[int, int]:
    """Return how many cores the left half of `join_train` has, and the cost of the whole."""
    ends = [1, *ranks, 1]
    left = [prod(sizes[: k + 1]) * ends[k] * ends[k + 1] for k in range(len(sizes))]
    right = [prod(sizes[k:]) * ends[k] * ends[k + 1] for k in range(len(sizes))]
    costs = [
        sum(left[1:split]) + sum(right[split:-1]) + prod(sizes) * ends[split]
        for split in range(1, len(sizes))
    ]
    cheapest = min(costs)  # with a key, torch.compile could not trace it
    return costs.index(cheapest) + 1, cheapest
