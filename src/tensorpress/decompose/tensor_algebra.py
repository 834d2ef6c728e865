"""Unfoldings, mode products and contraction of trains, in the notation of Kolda & Bader (2009)."""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate, pairwise
from math import prod
from operator import mul

from torch import Tensor

from tensorpress.errors import InvalidArgumentError


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """Return the mode-``mode`` unfolding, of shape (n_mode, product of the other sizes).

    The columns run over the other modes in their own order, the last one fastest.

    Examples
    --------
    >>> import torch
    >>> unfold(torch.arange(6).reshape(1, 2, 3), 2).tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


def fold(matrix: Tensor, mode: int, shape: Sequence[int]) -> Tensor:
    """Return the tensor of the given shape whose mode-``mode`` unfolding is ``matrix``.

    Examples
    --------
    >>> import torch
    >>> tensor = torch.arange(24).reshape(2, 3, 4)
    >>> bool((fold(unfold(tensor, 1), 1, (2, 3, 4)) == tensor).all())
    True
    """
    others = [size for i, size in enumerate(shape) if i != mode]
    return matrix.reshape(shape[mode], *others).movedim(0, mode)


def mode_product(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Return ``tensor`` times ``matrix`` (m, n_mode) along a mode, whose size becomes m.

    Examples
    --------
    >>> import torch
    >>> mode_product(torch.ones(2, 3), torch.ones(5, 3), 1).shape
    torch.Size([2, 5])
    """
    before, after = tensor.shape[:mode], tensor.shape[mode + 1 :]
    if not after:
        return tensor @ matrix.mT
    # A batch of matrix products on the memory as it lies, where tensordot would permute it.
    product = matrix @ tensor.reshape(prod(before), tensor.shape[mode], -1)
    return product.reshape(*before, -1, *after)


def project(tensor: Tensor, factors: Sequence[Tensor], *, skip: int | None = None) -> Tensor:
    """Contract every mode with its matrix transposed: W ×₁ M₁ᵀ ×₂ M₂ᵀ … ×_d M_dᵀ.

    The mode that shrinks most goes first, so that all others work on a small tensor.

    Parameters
    ----------
    tensor : Tensor
        Shape (n_1, …, n_d).
    factors : sequence of Tensor
        d matrices of shapes (n_i, k_i).
    skip : int, optional
        A mode to leave as it is.

    Returns
    -------
    Tensor
        Shape (k_1, …, k_d), with n_skip in place of k_skip.

    Examples
    --------
    >>> import torch
    >>> project(torch.ones(4, 3), [torch.ones(4, 2), torch.ones(3, 2)], skip=1).tolist()
    [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    """
    modes = [mode for mode in range(len(factors)) if mode != skip]
    for mode in sorted(modes, key=lambda i: factors[i].shape[1] / factors[i].shape[0]):
        tensor = mode_product(tensor, factors[mode].mT, mode)
    return tensor


def tucker_to_tensor(core: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Multiply a core by one matrix along every mode: C ×₁ M₁ ×₂ M₂ … ×_d M_d.

    Every product moves the mode it has just expanded to the other end of the
    tensor, so that a full round is d matrix products on contiguous memory,
    without a permuting copy, and ends with the modes in their own order. The
    round may go either way; the cheaper one is taken.

    Parameters
    ----------
    core : Tensor
        Shape (k_1, …, k_d).
    factors : sequence of Tensor
        d matrices of shapes (n_i, k_i).

    Returns
    -------
    Tensor
        Shape (n_1, …, n_d).

    Raises
    ------
    InvalidArgumentError
        If the matrices do not fit the core.

    Examples
    --------
    >>> import torch
    >>> tucker_to_tensor(torch.ones(1, 1), [torch.ones(3, 1), torch.ones(4, 1)]).shape
    torch.Size([3, 4])
    """
    sizes = [tuple(factor.shape) for factor in factors]
    if [columns for _, columns in sizes] != list(core.shape):
        raise InvalidArgumentError(
            f"a core of shape {tuple(core.shape)} needs one matrix with that many columns "
            f"a mode, got shapes {sizes}"
        )
    modes = [rows for rows, _ in sizes]
    result = core
    if cheaper_forwards(modes, core.shape):
        for factor in factors:
            result = result.reshape(factor.shape[1], -1).mT @ factor.mT
    else:
        for factor in reversed(factors):
            result = factor @ result.reshape(-1, factor.shape[1]).mT
    return result.reshape(modes)


def cheaper_forwards(modes: Sequence[int], ranks: Sequence[int]) -> bool:
    """Whether expanding the modes first to last takes no more multiplications than last to first.

    Examples
    --------
    >>> cheaper_forwards([2, 100], [2, 2]), cheaper_forwards([100, 2], [2, 2])
    (True, False)
    """
    return _expansion_macs(modes, ranks) <= _expansion_macs(modes[::-1], ranks[::-1])


def _expansion_macs(modes: Sequence[int], ranks: Sequence[int]) -> int:
    """Multiplications of expanding mode 1, then 2, …: Σ_i (n_1 … n_i)(k_i … k_d)."""
    expanded = accumulate(modes, mul)
    return sum(done * prod(ranks[i:]) for i, done in enumerate(expanded))


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
