"""An order of a tensor's axes in which Tucker sweeps need not copy the tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError


@dataclass(frozen=True)
class TuckerLayout:
    """A stack of tensors whose modes are truncated in the cheapest order.

    The first two of the truncated modes are the first and the last axis, where unfolding and
    contracting the whole tensor need no copy. All other modes are truncated on projected tensors.

    Attributes
    ----------
    tensor : Tensor
        Tensor of shape (stack, …), in working precision.
    order : tuple of int
        For each axis of ``tensor``, its index in the caller's stack.
    positions : tuple of int
        For each truncated mode, its place in the caller's order.
    axes : tuple of int
        For each truncated mode, its axis of ``tensor``.
    ranks : tuple of int
        For each truncated mode, its rank.
    """

    tensor: Tensor
    order: tuple[int, ...]
    positions: tuple[int, ...]
    axes: tuple[int, ...]
    ranks: tuple[int, ...]

    def project(self, factors: Sequence[Tensor], *, skip: int | None = None) -> Tensor:
        """Contract the tensor with every matrix transposed: W ×ᵢ Mᵢᵀ for all i but ``skip``."""
        result = self.tensor
        for i, (factor, axis) in enumerate(zip(factors, self.axes, strict=True)):
            if i != skip:
                result = contract(result, factor, axis)
        return result

    @property
    def truncated(self) -> list[int]:
        """The modes, by their index here, whose rank is below their size."""
        sizes = [self.tensor.shape[axis] for axis in self.axes]
        return [i for i, (n, k) in enumerate(zip(sizes, self.ranks, strict=True)) if k < n]

    def original_modes(self) -> tuple[tuple[int, ...], list[int]]:
        """Return the modes in the caller's order, and the index of each here."""
        places = sorted(range(len(self.positions)), key=self.positions.__getitem__)
        return tuple(self.order[self.axes[place]] - 1 for place in places), places


def arrange_axes(
    stack: Tensor,
    ranks: tuple[int, ...],
    modes: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> TuckerLayout:
    """Check ranks and modes, and arrange the axes of a stack of tensors for them.

    Parameters
    ----------
    stack : Tensor
        Tensor of shape (stack, n_1, …, n_d), in working precision.
    ranks : tuple of int
        One rank for each mode.
    modes : tuple of int
        The modes to truncate, from 0, not counting the axis of the stack.
    dtype : torch.dtype, optional
        If it is another dtype than that of ``stack``, the tensors are scaled to a common norm of 1
        and converted.

    Raises
    ------
    InvalidArgumentError
        If the ranks or modes are out of range.
    """
    sizes = tuple(stack.shape[1:])
    _check_modes(sizes, ranks, modes)
    positions = sorted(range(len(modes)), key=lambda i: _sort_key(sizes[modes[i]], ranks[i]))
    # The first mode becomes the axis after the stack, the second mode the last axis.
    first, *rest = (modes[i] + 1 for i in positions)
    last = rest[:1]
    middle = [axis for axis in range(1, stack.ndim) if axis not in (first, *last)]
    order = (0, first, *middle, *last)
    return TuckerLayout(
        _arranged(stack.permute(order), dtype or stack.dtype),
        order,
        tuple(positions),
        tuple(map(order.index, (first, *rest))),
        tuple(ranks[i] for i in positions),
    )


def _arranged(view: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a contiguous copy of a view, scaled to norm 1 if it changes the dtype."""
    if view.dtype == dtype:
        return view.contiguous()
    norm = float(torch.linalg.vector_norm(view))
    result = torch.empty(view.shape, dtype=dtype, device=view.device)
    return torch.mul(view, 1 / norm if norm else 1.0, out=result)


def _check_modes(sizes: tuple[int, ...], ranks: tuple[int, ...], modes: tuple[int, ...]) -> None:
    if not modes or len(set(modes)) < len(modes) or not set(modes) <= set(range(len(sizes))):
        raise InvalidArgumentError(
            f"modes {modes} do not fit a tensor of shape {sizes}: "
            f"expected distinct modes from 0 to {len(sizes) - 1}"
        )
    if len(ranks) != len(modes) or not all(
        1 <= k <= sizes[mode] for k, mode in zip(ranks, modes, strict=True)
    ):
        raise InvalidArgumentError(
            f"ranks {ranks} do not fit a tensor of shape {sizes}: "
            f"modes {modes} need one rank each, from 1 to the size of the mode"
        )


def _sort_key(size: int, rank: int) -> float:
    """Return the key by which modes are sorted so that truncating them in turn is cheapest.

    A truncation takes n + k multiplications per entry, for Gram matrix and contraction, and leaves
    k/n of the entries. Two modes a before b cost (n_a + k_a) + (k_a/n_a)(n_b + k_b) per entry,
    which is less than b before a exactly where (n + k) / (1 − k/n) is smaller for a.
    """
    return (size + rank) / (1 - rank / size) if rank < size else float("inf")


def unfold_stack(stack: Tensor, axis: int) -> Tensor:
    """Return the unfoldings of a stack along an axis, of shape (stack, n_axis, others).

    The first axis after the stack and the last axis need no copy.

    Examples
    --------
    >>> import torch
    >>> unfold_stack(torch.ones(7, 2, 3, 4), 3).shape
    torch.Size([7, 4, 6])
    """
    if axis == stack.ndim - 1:
        return stack.reshape(len(stack), -1, stack.shape[-1]).mT
    return stack.movedim(axis, 1).reshape(len(stack), stack.shape[axis], -1)


def contract(stack: Tensor, factor: Tensor, axis: int) -> Tensor:
    """Multiply each tensor of a stack along an axis by its transposed matrix.

    Parameters
    ----------
    stack : Tensor
        Tensor of shape (stack, …, n, …).
    factor : Tensor
        Matrices of shape (stack, n, k).
    axis : int
        The axis of size n, which becomes k.

    Examples
    --------
    >>> import torch
    >>> contract(torch.ones(7, 2, 3, 4), torch.ones(7, 3, 5), 2).shape
    torch.Size([7, 2, 5, 4])
    """
    if axis == stack.ndim - 1:
        # The last axis: X₍ᵢ₎ᵀM for every tensor X of the stack, without a copy.
        product = stack.reshape(len(stack), -1, stack.shape[-1]) @ factor
        return product.reshape(*stack.shape[:-1], -1)
    # Any other axis: MᵀX₍ᵢ₎.
    moved = stack.movedim(axis, 1)
    product = factor.mT @ moved.reshape(len(stack), moved.shape[1], -1)
    return product.reshape(len(stack), -1, *moved.shape[2:]).movedim(1, axis)


def expand(core: Tensor, factors: Sequence[Tensor], axes: Sequence[int]) -> Tensor:
    """Multiply each core of a stack by its matrices, starting with the modes that grow least.

    Parameters
    ----------
    core : Tensor
        Tensor of shape (stack, …), with size k_i on axis i.
    factors : sequence of Tensor
        Matrices of shapes (stack, n_i, k_i).
    axes : sequence of int
        The axis of each matrix.

    Examples
    --------
    >>> import torch
    >>> expand(torch.ones(7, 2, 3), [torch.ones(7, 5, 3)], [2]).shape
    torch.Size([7, 2, 5])
    """
    pairs = zip(factors, axes, strict=True)
    for factor, axis in sorted(pairs, key=lambda pair: pair[0].shape[1] / pair[0].shape[2]):
        core = contract(core, factor.mT, axis)
    return core
