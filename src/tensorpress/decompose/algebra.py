"""Unfoldings and mode products, in the notation of Kolda & Bader (2009)."""

from collections.abc import Sequence
from itertools import accumulate
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
