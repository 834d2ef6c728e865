"""Khatri–Rao products, and a tensor's products with them by two halves of its modes."""

from collections.abc import Sequence
from functools import reduce
from math import prod

import torch
from torch import Tensor

CANCELLED = 1e-6
"""Squared errors below this part of ‖T‖² have lost digits: more the larger the terms are."""


def identity(size: int, like: Tensor) -> Tensor:
    """Return an identity matrix in the dtype and on the device of a tensor."""
    return torch.eye(size, dtype=like.dtype, device=like.device)


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Return the column-wise Kronecker product of matrices.

    Parameters
    ----------
    factors : sequence of Tensor
        Shapes (n_i, *columns), with the same columns in all; columns may have several axes.

    Returns
    -------
    Tensor
        Shape (n_1 ⋯ n_d, *columns), the last factor's rows fastest.

    Examples
    --------
    >>> khatri_rao([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])]).flatten().tolist()
    [3.0, 4.0, 6.0, 8.0]
    """
    return reduce(lambda a, b: (a[:, None] * b).flatten(0, 1), factors)


class Halves:
    """A tensor as one matrix, rows over one half of its modes and columns over the other.

    The products of every unfolding with the Khatri–Rao product of all other factors (MTTKRP),
    which CP algorithms consist of, then take two products with the whole tensor, one a half, and
    what is left is small: the other modes of the half are summed out of a tensor of the half's size
    times the rank. The modes are split so that both halves are small. Factors have shape
    (n_i, *columns): a matrix, or a stack of matrices (n_i, runs, r) that share the products.

    References
    ----------
    Phan, Tichavský, Cichocki (2013), "Fast alternating LS algorithms for high order CANDECOMP/
    PARAFAC tensor factorizations".

    Examples
    --------
    >>> halves = Halves(torch.ones(2, 3, 4))
    >>> factors = [torch.ones(n, 1) for n in (2, 3, 4)]
    >>> sorted(mode for half in halves.modes for mode in half)
    [0, 1, 2]
    >>> [image.flatten().tolist() for image in halves.images(factors)]
    [[12.0, 12.0], [8.0, 8.0, 8.0], [6.0, 6.0, 6.0, 6.0]]
    """

    def __init__(self, tensor: Tensor) -> None:
        """Lay the tensor, of at least two modes, out as a matrix."""
        self.shape = list(tensor.shape)
        self.modes = _balanced_halves(self.shape)
        first, second = self.modes
        rows = prod(self.shape[mode] for mode in first)
        self.matrix = tensor.permute(*first, *second).reshape(rows, -1).contiguous()
        self.norm2 = float(self.matrix.square().sum())

    def contracted(self, factors: Sequence[Tensor], half: int) -> Tensor:
        """Return the tensor times the factors of the other half: (*sizes of this half, columns).

        Parameters
        ----------
        factors : sequence of Tensor
            One a mode.
        half : int
            0 or 1, the half that is kept.
        """
        other = khatri_rao([factors[mode] for mode in self.modes[1 - half]])
        matrix = self.matrix if half == 0 else self.matrix.mT
        sizes = [self.shape[mode] for mode in self.modes[half]]
        return (matrix @ other.flatten(1)).reshape(*sizes, *other.shape[1:])

    def image(self, contracted: Tensor, factors: Sequence[Tensor], mode: int) -> Tensor:
        """Return the product for one mode, (n_mode, *columns), from its half's ``contracted``."""
        half = next(modes for modes in self.modes if mode in modes)
        for axis in reversed(range(len(half))):
            if half[axis] != mode:
                factor = factors[half[axis]]
                spread = factor.reshape(
                    len(factor), *[1] * (len(half) - 1 - axis), *factor.shape[1:]
                )
                contracted = (contracted * spread).sum(axis)
                half = half[:axis] + half[axis + 1 :]
        return contracted

    def images(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Return the products for all modes, each of the shape of its factor."""
        parts = [self.contracted(factors, half) for half in (0, 1)]
        return [
            self.image(parts[mode in self.modes[1]], factors, mode)
            for mode in range(len(self.shape))
        ]

    def error2(self, factors: Sequence[Tensor], products: Tensor, image: Tensor) -> Tensor:
        """Return ‖T − T̂‖² = ‖T‖² − 2⟨T, T̂⟩ + ‖T̂‖², measured where these nearly cancel.

        Parameters
        ----------
        factors : sequence of Tensor
            One a mode.
        products : Tensor
            The products of the terms with each other, (*columns[:-1], r, r).
        image : Tensor
            Of the last mode of half 1.
        """
        overlap = (image * factors[self.modes[1][-1]]).sum((0, -1))
        error2 = self.norm2 - 2 * overlap + products.sum((-2, -1))
        if float(error2.min()) < CANCELLED * self.norm2:
            return self.residual2(factors)
        return error2

    def residual2(self, factors: Sequence[Tensor]) -> Tensor:
        """Return ‖T − T̂‖², of shape columns[:-1], from the difference itself.

        Exact also where the norms of T and T̂ cancel, for the price of rebuilding.
        """
        left, right = (khatri_rao([factors[m] for m in half]).movedim(0, -2) for half in self.modes)
        return (self.matrix - left @ right.mT).square().sum((-2, -1))


def _balanced_halves(shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split the modes in two so that the sum of both halves' sizes is least."""
    order = len(shape)
    splits = [
        tuple(tuple(m for m in range(order) if (mask >> m & 1) == side) for side in (1, 0))
        for mask in range(1, 2 ** (order - 1))
    ]
    first, second = min(splits, key=lambda halves: sum(prod(shape[m] for m in h) for h in halves))
    return first, second


def hadamard(grams: Sequence[Tensor], *skipped: int) -> Tensor:
    """Return the elementwise product of all Gram matrices but the skipped modes'.

    Parameters
    ----------
    grams : sequence of Tensor
        d matrices (*batch, r, r).
    *skipped : int
        Modes left out; with none left the product is all ones.

    Examples
    --------
    >>> hadamard([torch.eye(2), 2 * torch.ones(2, 2), 3 * torch.ones(2, 2)], 0).tolist()
    [[6.0, 6.0], [6.0, 6.0]]
    """
    kept = [gram for mode, gram in enumerate(grams) if mode not in skipped]
    return reduce(torch.mul, kept) if kept else torch.ones_like(grams[0])
