"""Unfoldings, mode products and contractions, in the notation of Kolda & Bader (2009)."""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate, pairwise
from math import prod
from operator import mul

from torch import Tensor

from tensorpress.errors import InvalidArgumentError


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """Return the mode-``mode`` unfolding, of shape (n_mode, product of the other sizes).

    The columns run over the other modes in their order, the last one fastest.

    Parameters
    ----------
    tensor : Tensor
        Tensor of shape (n_1, …, n_d).
    mode : int
        The mode of the rows, from 0.

    References
    ----------
    Kolda, Bader (2009), "Tensor decompositions and applications", section 2.4, whose columns run
    with the first mode fastest.

    Examples
    --------
    >>> import torch
    >>> unfold(torch.arange(6).reshape(1, 2, 3), 2).tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


def fold(matrix: Tensor, mode: int, shape: Sequence[int]) -> Tensor:
    """Return the tensor of a shape whose mode-``mode`` unfolding is a matrix, as `unfold` makes it.

    Parameters
    ----------
    matrix : Tensor
        Tensor of shape (n_mode, product of the other sizes).
    mode : int
        The mode of the rows, from 0.
    shape : sequence of int
        The shape (n_1, …, n_d) of the result.

    Examples
    --------
    >>> import torch
    >>> tensor = torch.arange(24).reshape(2, 3, 4)
    >>> bool((fold(unfold(tensor, 1), 1, (2, 3, 4)) == tensor).all())
    True
    """
    # Undo the reshape to a matrix, then move the mode from the front to its place.
    others = [size for i, size in enumerate(shape) if i != mode]
    return matrix.reshape(shape[mode], *others).movedim(0, mode)


def mode_product(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Return the product T ×ₖ M of a tensor and a matrix along a mode k, whose size becomes m.

    Parameters
    ----------
    tensor : Tensor
        Tensor of shape (n_1, …, n_d).
    matrix : Tensor
        Tensor of shape (m, n_mode).
    mode : int
        The mode, from 0.

    References
    ----------
    Kolda, Bader (2009), "Tensor decompositions and applications", section 2.5.

    Examples
    --------
    >>> import torch
    >>> mode_product(torch.ones(2, 3), torch.ones(5, 3), 1).shape
    torch.Size([2, 5])
    """
    before, after = tensor.shape[:mode], tensor.shape[mode + 1 :]
    if not after:  # T₍d₎ᵀMᵀ
        return tensor @ matrix.mT
    # A batch of matrix products without a copy of the tensor, which tensordot would permute.
    product = matrix @ tensor.reshape(prod(before), tensor.shape[mode], -1)
    return product.reshape(*before, -1, *after)


def project(tensor: Tensor, factors: Sequence[Tensor], *, skip: int | None = None) -> Tensor:
    """Return W ×₁ M₁ᵀ ×₂ M₂ᵀ … ×_d M_dᵀ, of shape (k_1, …, k_d) but for n_skip.

    The mode that shrinks most comes first, so that all others work on a small tensor.

    Parameters
    ----------
    tensor : Tensor
        Tensor of shape (n_1, …, n_d).
    factors : sequence of Tensor
        d tensors of shapes (n_i, k_i).
    skip : int, optional
        A mode that is not contracted.

    Examples
    --------
    >>> import torch
    >>> project(torch.ones(4, 3), [torch.ones(4, 2), torch.ones(3, 2)], skip=1).tolist()
    [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    """
    # Products along different modes commute, so that their order is free.
    modes = [mode for mode in range(len(factors)) if mode != skip]
    for mode in sorted(modes, key=lambda i: factors[i].shape[1] / factors[i].shape[0]):
        tensor = mode_product(tensor, factors[mode].mT, mode)
    return tensor


def tucker_to_tensor(core: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Return the tensor C ×₁ M₁ ×₂ M₂ … ×_d M_d, of shape (n_1, …, n_d); differentiable.

    Every product moves the mode that it expands to the other end of the tensor. A full round is
    therefore d matrix products on contiguous memory, without a permuting copy, and ends with the
    modes in their order. The round takes the cheaper direction.

    Parameters
    ----------
    core : Tensor
        Tensor of shape (k_1, …, k_d).
    factors : sequence of Tensor
        d tensors of shapes (n_i, k_i).

    Raises
    ------
    InvalidArgumentError
        If the matrices do not fit the core.

    References
    ----------
    Kolda, Bader (2009), "Tensor decompositions and applications", section 4.

    Examples
    --------
    >>> import torch
    >>> tucker_to_tensor(torch.ones(1, 1), [torch.ones(3, 1), torch.ones(4, 1)]).shape
    torch.Size([3, 4])
    """
    sizes = [tuple(factor.shape) for factor in factors]
    if [columns for _, columns in sizes] != list(core.shape):
        raise InvalidArgumentError(
            f"a core of shape {tuple(core.shape)} needs one matrix per mode, with that many "
            f"columns, got shapes {sizes}"
        )
    modes = [rows for rows, _ in sizes]
    result = core
    if is_cheaper_forwards(modes, core.shape):
        # C₍₁₎ᵀM₁ᵀ has the new mode behind the others: (k_2 ⋯ k_d, n_1).
        for factor in factors:
            result = result.reshape(factor.shape[1], -1).mT @ factor.mT
    else:
        # M_d C₍d₎ has the new mode in front of the others: (n_d, k_1 ⋯ k_{d-1}).
        for factor in reversed(factors):
            result = factor @ result.reshape(-1, factor.shape[1]).mT
    return result.reshape(modes)


def is_cheaper_forwards(modes: Sequence[int], ranks: Sequence[int]) -> bool:
    """Return whether expanding modes from first to last is no more expensive than the reverse.

    Examples
    --------
    >>> is_cheaper_forwards([2, 100], [2, 2]), is_cheaper_forwards([100, 2], [2, 2])
    (True, False)
    """
    return _expansion_macs(modes, ranks) <= _expansion_macs(modes[::-1], ranks[::-1])


def _expansion_macs(modes: Sequence[int], ranks: Sequence[int]) -> int:
    """Return the multiplications of expanding mode 1, then 2, …: Σ_i (n_1 ⋯ n_i)(k_i ⋯ k_d)."""
    expanded = accumulate(modes, mul)
    return sum(size * prod(ranks[i:]) for i, size in enumerate(expanded))


def tt_to_tensor(cores: Sequence[Tensor]) -> Tensor:
    """Return the tensor (n_1, …, n_d) of a train of cores (r_{k-1}, n_k, r_k); differentiable.

    Raises
    ------
    InvalidArgumentError
        If the cores do not make a train with r_0 = r_d = 1.

    References
    ----------
    Oseledets (2011), "Tensor-train decomposition", section 1.

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
    """Contract neighbouring cores (*, r, n, s) and (*, s, p, t) to one core (*, r, n·p, t)."""
    # Σ_s L[…, n, s] R[s, p, …]
    product = left.flatten(-3, -2) @ right.flatten(-2, -1)
    return product.reshape(*left.shape[:-2], left.shape[-2] * right.shape[-2], right.shape[-1])


def join_train(
    cores: Sequence[Tensor],
    sizes: Sequence[int],
    join_pair: Callable[[Tensor, Tensor], Tensor] = join,
) -> Tensor:
    """Contract a whole train: both halves from their ends, then the two halves.

    The halves meet where this takes the fewest multiplications (`joining_macs`). The last product
    takes the size of the result times the rank at which they meet.

    Parameters
    ----------
    cores : sequence of Tensor
        The neighbouring cores, of any number of modes.
    sizes : sequence of int
        The product of the modes of each core.
    join_pair : callable
        Function that contracts two neighbouring cores to one.
    """
    if len(cores) == 1:
        return cores[0]
    split, _ = _cheapest_split(sizes, [core.shape[-1] for core in cores[:-1]])
    left = reduce(join_pair, cores[:split])
    right = reduce(lambda result, core: join_pair(core, result), reversed(cores[split:]))
    return join_pair(left, right)


def joining_macs(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """Return the multiply–accumulates of `tt_to_tensor` for mode sizes n_k and inner ranks r_k.

    Examples
    --------
    >>> joining_macs((2, 3, 4), (1, 5))
    84
    """
    return _cheapest_split(sizes, ranks)[1] if ranks else 0


def check_cores(cores: Sequence[Tensor], *, modes: int) -> None:
    """Check that cores make a train: equal ranks between neighbours, and 1 at both ends.

    Parameters
    ----------
    cores : sequence of Tensor
        The cores, whose first and last axes are ranks.
    modes : int
        Number of modes of each core.

    Raises
    ------
    InvalidArgumentError
        If a core has another number of modes, or a rank does not fit.
    """
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
    """Return the number of cores in the left half of `join_train`, and the total cost."""
    # Joining the cores 1…k from the left takes (n_1 ⋯ n_k) r_{k-1} r_k for its last product, and
    # the last product of the halves (n_1 ⋯ n_d) r_split.
    ends = [1, *ranks, 1]
    left = [prod(sizes[: k + 1]) * ends[k] * ends[k + 1] for k in range(len(sizes))]
    right = [prod(sizes[k:]) * ends[k] * ends[k + 1] for k in range(len(sizes))]
    costs = [
        sum(left[1:split]) + sum(right[split:-1]) + prod(sizes) * ends[split]
        for split in range(1, len(sizes))
    ]
    cheapest = min(costs)  # with a key, torch.compile could not trace it
    return costs.index(cheapest) + 1, cheapest
