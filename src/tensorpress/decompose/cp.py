"""Canonical polyadic (CP) decomposition by alternating least squares."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from tensorpress.decompose.algebra import unfold
from tensorpress.decompose.tucker import finite_double, leading_basis
from tensorpress.errors import InvalidArgumentError


@dataclass(frozen=True)
class CP:
    """A CP decomposition: r weights and d matrices (n_i, r) of unit columns.

    ``relative_error`` is ‖W − Ŵ‖ / ‖W‖; ``converged`` says whether the tolerance was met.
    """

    weights: Tensor
    factors: tuple[Tensor, ...]
    relative_error: float
    iterations: int
    converged: bool

    def to_tensor(self) -> Tensor:
        """Return the tensor these factors stand for, of shape (n_1, …, n_d)."""
        return cp_to_tensor(self.weights, self.factors)

    @property
    def num_params(self) -> int:
        """Number of stored values, weights and matrices."""
        return self.weights.numel() + sum(factor.numel() for factor in self.factors)


def cp_to_tensor(weights: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Return Σ_i λ_i m_i¹ ∘ … ∘ m_iᵈ, as one product of two Khatri–Rao halves.

    Parameters
    ----------
    weights : Tensor
        Shape (r,).
    factors : sequence of Tensor
        Matrices of shapes (n_i, r).

    Examples
    --------
    >>> cp_to_tensor(torch.tensor([2.0]), [torch.ones(2, 1), torch.ones(3, 1)]).tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """
    half = (len(factors) + 1) // 2
    left = _khatri_rao([factors[0] * weights, *factors[1:half]])
    right = _khatri_rao(factors[half:]) if factors[half:] else torch.ones_like(weights)[None]
    return (left @ right.mT).reshape([factor.shape[0] for factor in factors])


def cp_als(tensor: Tensor, rank: int, *, max_iter: int = 200, tol: float = 1e-6) -> CP:
    """Decompose into ``rank`` rank-one terms by alternating least squares.

    Each matrix starts from the leading singular vectors of its unfolding; where the rank exceeds
    the mode's size, the other columns start at random, always the same.

    Parameters
    ----------
    tensor : Tensor
        Shape (n_1, …, n_d), any floating dtype; computed in float64.
    rank : int
        Number of terms, at least 1.
    max_iter : int
        Most sweeps over the modes.
    tol : float
        Stop once a sweep changes the relative error by no more than this.

    Raises
    ------
    InvalidArgumentError
        For a rank below 1, fewer than two modes, or NaN or infinite values.

    References
    ----------
    Kolda, Bader (2009), "Tensor decompositions and applications", fig. 3.3.

    Examples
    --------
    >>> cp_als(torch.ones(3, 4, 5), 1).relative_error < 1e-6
    True
    """
    if rank < 1:
        raise InvalidArgumentError(f"a CP rank must be at least 1, got {rank}")
    if tensor.ndim < 2:
        raise InvalidArgumentError(
            f"a CP decomposition needs at least two modes, got shape {tuple(tensor.shape)}"
        )
    exact = finite_double(tensor)
    norm = float(exact.norm())
    generator = torch.Generator().manual_seed(0)
    factors = []
    for mode, size in enumerate(exact.shape):
        factor = torch.randn(size, rank, generator=generator).to(exact)
        known = min(rank, size)
        factor[:, :known] = leading_basis(unfold(exact, mode), known)
        factors.append(factor)
    grams = [f.mT @ f for f in factors]
    weights = exact.new_ones(rank)
    error, iterations, converged = float("inf"), 0, False
    while not converged and iterations < max_iter:
        for mode in range(exact.ndim):
            others = [i for i in range(exact.ndim) if i != mode]
            gram = reduce(torch.mul, (grams[i] for i in others), exact.new_ones(rank, rank))
            image = unfold(exact, mode) @ _khatri_rao([factors[i] for i in others])
            solved = image @ torch.linalg.pinv(gram, hermitian=True)
            weights = solved.norm(dim=0)
            factors[mode] = solved / weights.clamp_min(1e-300)
            grams[mode] = factors[mode].mT @ factors[mode]
        residual = float((exact - cp_to_tensor(weights, factors)).norm())
        previous, error = error, residual / norm if norm else 0.0
        iterations += 1
        converged = abs(previous - error) <= tol
    dtype = tensor.dtype
    return CP(weights.to(dtype), tuple(f.to(dtype) for f in factors), error, iterations, converged)


def _khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Column-wise Kronecker product: (n_1 … n_d, r), the last factor's rows fastest."""
    return reduce(lambda a, b: (a[:, None] * b).reshape(-1, a.shape[1]), factors)
