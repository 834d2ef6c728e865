"""Stacks of tensors with their axes laid out so that Tucker sweeps need no copy of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError


@dataclass(frozen=True)
class Arranged:
    """A stack of tensors and the modes to truncate, in the order in which they are cheapest.

    The first two of these modes are the outermost axes, where unfolding and contracting the whole
    tensor are products on the memory as it lies; all others only ever see projected tensors.

    Attributes
    ----------
    tensor : Tensor
        Shape (stack, …), in working precision.
    order : tuple of int
        Its axes' places in the stack as it was given.
    positions : tuple of int
        The caller's place of each mode.
    axes, ranks : tuple of int
        Of each mode: the axis of ``tensor``, and the rank.
    """

    tensor: Tensor
    order: tuple[int, ...]
    positions: tuple[int, ...]
    axes: tuple[int, ...]
    ranks: tuple[int, ...]

    def project(self, factors: Sequence[Tensor], *, skip: int | None = None) -> Tensor:
        """Contract the tensor with every factor transposed, but for one to skip."""
        result = self.tensor
        for i, (factor, axis) in enumerate(zip(factors, self.axes, strict=True)):
            if i != skip:
                result = contract(result, factor, axis)
        return result

    def restore(self, core: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return a core with the axes, and the factors, in the caller's order."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        by_position = sorted(zip(self.positions, factors, strict=True), key=lambda pair: pair[0])
        return core.permute(inverse).contiguous(), tuple(factor for _, factor in by_position)


def arrange(stack: Tensor, ranks: tuple[int, ...], modes: tuple[int, ...]) -> Arranged:
    """Check ranks and modes, and lay out a stack of tensors (stack, n_1, …, n_d) for them.

    Raises
    ------
    InvalidArgumentError
        For ranks or modes out of range, or NaN or infinite values.
    """
    sizes = tuple(stack.shape[1:])
    _check(sizes, ranks, modes)
    positions = sorted(range(len(modes)), key=lambda i: _cost(sizes[modes[i]], ranks[i]))
    first, *rest = (modes[i] + 1 for i in positions)
    last = rest[:1]
    middle = [axis for axis in range(1, stack.ndim) if axis not in (first, *last)]
    order = (0, first, *middle, *last)
    return Arranged(
        to_working_precision(stack.permute(order).contiguous()),
        order,
        tuple(positions),
        tuple(map(order.index, (first, *rest))),
        tuple(ranks[i] for i in positions),
    )


def _check(sizes: tuple[int, ...], ranks: tuple[int, ...], modes: tuple[int, ...]) -> None:
    if not modes or len(set(modes)) < len(modes) or not set(modes) <= set(range(len(sizes))):
        raise InvalidArgumentError(
            f"modes {modes} do not fit a tensor of shape {sizes}: "
            f"different ones from 0 to {len(sizes) - 1} are needed"
        )
    if len(ranks) != len(modes) or not all(
        1 <= k <= sizes[mode] for k, mode in zip(ranks, modes, strict=True)
    ):
        raise InvalidArgumentError(
            f"ranks {ranks} do not fit a tensor of shape {sizes}: "
            f"modes {modes} need one rank each, from 1 to the size of the mode"
        )


def _cost(size: int, rank: int) -> float:
    """Sort key that makes a sequence of truncations cheapest.

    A truncation takes size + rank multiplications an entry, for Gram matrix and contraction, and
    leaves rank / size of the entries; a before b is cheaper than b before a exactly where this
    quotient is smaller for a.
    """
    return (size + rank) / (1 - rank / size) if rank < size else float("inf")


def unfold_stack(stack: Tensor, axis: int) -> Tensor:
    """Return the unfoldings (stack, n_axis, others) along an axis, without a copy where possible.

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
    """Multiply each tensor of a stack by its matrix (stack, n, k) transposed: n_axis becomes k.

    Examples
    --------
    >>> import torch
    >>> contract(torch.ones(7, 2, 3, 4), torch.ones(7, 3, 5), 2).shape
    torch.Size([7, 2, 5, 4])
    """
    if axis == stack.ndim - 1:
        product = stack.reshape(len(stack), -1, stack.shape[-1]) @ factor
        return product.reshape(*stack.shape[:-1], -1)
    moved = stack.movedim(axis, 1)
    product = factor.mT @ moved.reshape(len(stack), moved.shape[1], -1)
    return product.reshape(len(stack), -1, *moved.shape[2:]).movedim(1, axis)


def expand(core: Tensor, factors: Sequence[Tensor], axes: Sequence[int]) -> Tensor:
    """Multiply each core of a stack by its matrices (stack, n_i, k_i), least growth first.

    Examples
    --------
    >>> import torch
    >>> expand(torch.ones(7, 2, 3), [torch.ones(7, 5, 3)], [2]).shape
    torch.Size([7, 2, 5])
    """
    growth = sorted(zip(factors, axes, strict=True), key=lambda pair: _growth(pair[0]))
    for factor, axis in growth:
        core = contract(core, factor.mT, axis)
    return core


def _growth(factor: Tensor) -> float:
    return factor.shape[1] / factor.shape[2]
