"""Khatri–Rao products, and the products of the unfoldings of a tensor with them (MTTKRP)."""

from collections.abc import Sequence
from functools import reduce
from math import prod

import torch
from torch import Tensor

CANCELLATION = 1e-6
"""Squared errors below this fraction of ‖T‖² have lost digits to cancellation."""


def identity(size: int, like: Tensor) -> Tensor:
    """Return an identity matrix in the dtype and on the device of another tensor."""
    return torch.eye(size, dtype=like.dtype, device=like.device)


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Return the column-wise Kronecker product A₁ ⊙ A₂ ⊙ … ⊙ A_d of matrices.

    Parameters
    ----------
    factors : sequence of Tensor
        Tensors of shapes (n_i, *columns) with the same columns; columns may span several axes.

    Returns
    -------
    Tensor
        Tensor of shape (n_1 ⋯ n_d, *columns), the rows of the last factor varying fastest.

    References
    ----------
    Kolda, Bader (2009), "Tensor decompositions and applications", section 2.6.

    Examples
    --------
    >>> khatri_rao([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])]).flatten().tolist()
    [3.0, 4.0, 6.0, 8.0]
    """
    # Row (i, j) of A ⊙ B is the elementwise product of row i of A and row j of B.
    return reduce(lambda a, b: (a[:, None] * b).flatten(0, 1), factors)


class HalvedTensor:
    """A tensor stored as one matrix: one half of its modes as rows, the other half as columns.

    CP algorithms consist of the products of every unfolding with the Khatri–Rao product of all
    other factors (MTTKRP). This class computes all of them with two products of the whole tensor,
    one for each half. What remains is small: the other modes of the half are summed out of a tensor
    of the size of the half times the rank. The modes are split so that both halves are small.

    Factors have shape (n_i, *columns): a matrix (n_i, r), or a stack of matrices (n_i, runs, r)
    that share the products.

    References
    ----------
    Phan, Tichavský, Cichocki (2013), "Fast alternating LS algorithms for high order CANDECOMP/
    PARAFAC tensor factorizations".

    Examples
    --------
    >>> halves = HalvedTensor(torch.ones(2, 3, 4))
    >>> factors = [torch.ones(n, 1) for n in (2, 3, 4)]
    >>> sorted(mode for half in halves.modes for mode in half)
    [0, 1, 2]
    >>> [product.flatten().tolist() for product in halves.compute_mttkrps(factors)]
    [[12.0, 12.0], [8.0, 8.0, 8.0], [6.0, 6.0, 6.0, 6.0]]
    """

    def __init__(self, tensor: Tensor) -> None:
        """Store a tensor of at least two modes as a matrix."""
        self.shape = list(tensor.shape)
        self.modes = _balanced_halves(self.shape)
        first, second = self.modes
        # X[(i_m, m in the first half), (i_m, m in the second half)] = T[i_1, …, i_d]
        rows = prod(self.shape[mode] for mode in first)
        self.matrix = tensor.permute(*first, *second).reshape(rows, -1).contiguous()
        self.norm2 = float(self.matrix.square().sum())

    def contract_half(self, factors: Sequence[Tensor], half: int) -> Tensor:
        """Return the tensor times the Khatri–Rao product of the other half's factors.

        Parameters
        ----------
        factors : sequence of Tensor
            One factor for each mode.
        half : int
            The half that is not contracted, 0 or 1.

        Returns
        -------
        Tensor
            Tensor of shape (*sizes of the half, *columns).
        """
        # X (⊙ A_i) over the second half, or Xᵀ (⊙ A_i) over the first.
        other = khatri_rao([factors[mode] for mode in self.modes[1 - half]])
        matrix = self.matrix if half == 0 else self.matrix.mT
        sizes = [self.shape[mode] for mode in self.modes[half]]
        return (matrix @ other.flatten(1)).reshape(*sizes, *other.shape[1:])

    def mttkrp(self, contracted: Tensor, factors: Sequence[Tensor], mode: int) -> Tensor:
        """Return the product T₍ₘ₎ (⊙_{i≠m} A_i) of one mode m.

        Parameters
        ----------
        contracted : Tensor
            The result of `contract_half` for the half of the mode.
        factors : sequence of Tensor
            One factor for each mode.
        mode : int
            The mode m.

        Returns
        -------
        Tensor
            Tensor of shape (n_m, *columns).
        """
        half = next(modes for modes in self.modes if mode in modes)
        for axis in reversed(range(len(half))):
            if half[axis] != mode:
                # Σ_j X[…, j, …, r] A[j, r] removes one of the other modes of the half.
                factor = factors[half[axis]]
                broadcast = factor.reshape(
                    len(factor), *[1] * (len(half) - 1 - axis), *factor.shape[1:]
                )
                contracted = (contracted * broadcast).sum(axis)
                half = half[:axis] + half[axis + 1 :]
        return contracted

    def compute_mttkrps(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Return the products of all modes, each of the shape of its factor."""
        contracted = [self.contract_half(factors, half) for half in (0, 1)]
        return [
            self.mttkrp(contracted[mode in self.modes[1]], factors, mode)
            for mode in range(len(self.shape))
        ]

    def squared_error(self, factors: Sequence[Tensor], products: Tensor, mttkrp: Tensor) -> Tensor:
        """Return ‖T − T̂‖² = ‖T‖² − 2⟨T, T̂⟩ + ‖T̂‖², or rebuild T̂ where these nearly cancel.

        Parameters
        ----------
        factors : sequence of Tensor
            One factor for each mode.
        products : Tensor
            Inner products of the terms with each other, of shape (*columns[:-1], r, r).
        mttkrp : Tensor
            The product of the last mode of half 1.

        Returns
        -------
        Tensor
            Tensor of shape columns[:-1].
        """
        # ⟨T, T̂⟩ = ⟨T₍ₘ₎(⊙_{i≠m} A_i), A_m⟩, and ‖T̂‖² is the sum of all products of two terms.
        overlap = (mttkrp * factors[self.modes[1][-1]]).sum((0, -1))
        error2 = self.norm2 - 2 * overlap + products.sum((-2, -1))
        if float(error2.min()) < CANCELLATION * self.norm2:
            return self.squared_residual(factors)
        return error2

    def squared_residual(self, factors: Sequence[Tensor]) -> Tensor:
        """Return ‖T − T̂‖² of shape columns[:-1] from the rebuilt tensor.

        This is accurate even where the norms of T and T̂ cancel, at the cost of rebuilding T̂.
        """
        # The same matrix of T̂ is (⊙ A_i over the first half)(⊙ A_i over the second half)ᵀ.
        left, right = (khatri_rao([factors[m] for m in half]).movedim(0, -2) for half in self.modes)
        return (self.matrix - left @ right.mT).square().sum((-2, -1))


def _balanced_halves(shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split the modes into two halves whose sizes have the smallest sum."""
    order = len(shape)
    # Every set bit of the mask puts a mode into the first half; the last mode is in the second.
    splits = [
        tuple(tuple(m for m in range(order) if (mask >> m & 1) == side) for side in (1, 0))
        for mask in range(1, 2 ** (order - 1))
    ]
    first, second = min(splits, key=lambda halves: sum(prod(shape[m] for m in h) for h in halves))
    return first, second


def hadamard(grams: Sequence[Tensor], *skip: int) -> Tensor:
    """Return the elementwise product of the Gram matrices of all modes but the skipped ones.

    Parameters
    ----------
    grams : sequence of Tensor
        d tensors of shape (*batch, r, r).
    *skip : int
        Modes to leave out; the product of no matrices is all ones.

    Examples
    --------
    >>> hadamard([torch.eye(2), 2 * torch.ones(2, 2), 3 * torch.ones(2, 2)], 0).tolist()
    [[6.0, 6.0], [6.0, 6.0]]
    """
    matrices = [gram for mode, gram in enumerate(grams) if mode not in skip]
    return reduce(torch.mul, matrices) if matrices else torch.ones_like(grams[0])
