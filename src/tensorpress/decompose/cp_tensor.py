"""The canonical polyadic (CP) form: a sum of rank-one terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tensorpress.decompose.cp_mttkrp import hadamard, khatri_rao
from tensorpress.errors import InvalidArgumentError


@dataclass(frozen=True)
class CP:
    """A CP decomposition T̂ = Σ_r λ_r a_r¹ ∘ … ∘ a_rᵈ of a tensor T.

    Attributes
    ----------
    weights : Tensor
        The weights λ ≥ 0, of shape (r,).
    factors : tuple of Tensor
        d tensors of shapes (n_i, r) with columns of norm 1, or 0 in a term of weight 0.
    relative_error : float
        ‖T − T̂‖ / ‖T‖, measured on the float64 result; 0 for a zero tensor.
    iterations : int
        Number of sweeps or steps of the algorithm.
    converged : bool
        Whether the algorithm met its tolerance within the iterations allowed.

    Examples
    --------
    >>> cp = CP(torch.tensor([2.0]), (torch.ones(2, 1), torch.ones(3, 1)), 0.0, 0, True)
    >>> cp.to_tensor().tolist(), cp.num_params
    ([[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]], 6)
    """

    weights: Tensor
    factors: tuple[Tensor, ...]
    relative_error: float
    iterations: int
    converged: bool

    def to_tensor(self) -> Tensor:
        """Return the tensor T̂ of shape (n_1, …, n_d)."""
        return cp_to_tensor(self.weights, self.factors)

    def absorb_weights(self) -> list[Tensor]:
        """Return factors that include the weights: all columns of a term have the same norm."""
        # Each of the d columns takes the factor λ_r^{1/d}.
        root = self.weights ** (1 / len(self.factors))
        return [factor * root for factor in self.factors]

    @property
    def num_params(self) -> int:
        """Number of stored values of weights and factors: r·(1 + Σ n_i)."""
        return self.weights.numel() + sum(factor.numel() for factor in self.factors)

    @property
    def degeneracy(self) -> float:
        """The energy of the terms over the energy of their sum, Σ_r λ_r² / ‖T̂‖².

        It is 1 for orthogonal terms and for a zero tensor, and at least 1/r. Far above 1, large
        terms cancel: then small errors of the factors are large errors of the tensor.
        """
        energy = float(self.to_tensor().double().square().sum())
        return float(self.weights.double().square().sum()) / energy if energy else 1.0

    @property
    def sensitivity(self) -> float:
        """The `cp_sensitivity` of the factors of `absorb_weights`: (Σ n_i) Σ_r λ_r^{2−2/d}."""
        return cp_sensitivity([factor.double() for factor in self.absorb_weights()])


def cp_to_tensor(weights: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Return the tensor Σ_r λ_r a_r¹ ∘ … ∘ a_rᵈ; differentiable.

    Parameters
    ----------
    weights : Tensor
        The weights λ, of shape (r,).
    factors : sequence of Tensor
        d tensors of shapes (n_i, r).

    Returns
    -------
    Tensor
        Tensor of shape (n_1, …, n_d).

    References
    ----------
    Kolda, Bader (2009), "Tensor decompositions and applications", section 3.

    Examples
    --------
    >>> cp_to_tensor(torch.tensor([2.0]), [torch.ones(2, 1), torch.ones(3, 1)]).tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """
    # One matrix product over the terms: T̂ = (A₁diag(λ) ⊙ … ⊙ A_h)(A_{h+1} ⊙ … ⊙ A_d)ᵀ.
    half = (len(factors) + 1) // 2
    left = khatri_rao([factors[0] * weights, *factors[1:half]])
    right = khatri_rao(factors[half:]) if factors[half:] else torch.ones_like(weights)[None]
    return (left @ right.mT).reshape([factor.shape[0] for factor in factors])


def max_cp_rank(shape: Sequence[int]) -> int:
    """Return the number of terms that suffices for every tensor of a shape.

    That is one term for each fibre of the longest mode, the product of all other sizes. Many
    tensors need fewer.

    References
    ----------
    Kolda, Bader (2009), "Tensor decompositions and applications", section 3.1.

    Examples
    --------
    >>> max_cp_rank((64, 32, 3, 3))
    288
    """
    return prod(shape) // max(shape)


def cp_sensitivity(factors: Sequence[Tensor]) -> float:
    """Return the expected squared error of the tensor per unit variance of noise in the factors.

    It is the limit of E‖T̂(A + E) − T̂(A)‖² / σ² for independent entries of E of variance σ² → 0,
    Σ_i n_i Σ_r Π_{j≠i} ‖a_rʲ‖², and depends on how the norm of a term is distributed over its
    columns.

    Parameters
    ----------
    factors : sequence of Tensor
        d ≥ 2 tensors of shapes (n_i, r) that include the weights.

    References
    ----------
    Phan, Sobolev, Sozykin, Ermilov, Gusak, Tichavský, Glukhov, Oseledets, Cichocki (2020), "Stable
    low-rank tensor decomposition for compression of convolutional neural network", whose
    sensitivity of three modes is generalized to any number.

    Examples
    --------
    >>> cp_sensitivity([torch.ones(2, 1), torch.ones(3, 1)])
    12.0
    """
    # For every mode i: n_i Σ_r Π_{j≠i} ‖a_rʲ‖².
    norms2 = [factor.square().sum(0) for factor in factors]
    return float(sum(len(f) * hadamard(norms2, mode).sum() for mode, f in enumerate(factors)))


def check_cp_rank(shape: Sequence[int], rank: int) -> None:
    """Check that a tensor of a shape can be decomposed into ``rank`` terms.

    Raises
    ------
    InvalidArgumentError
        If the shape has fewer than two modes, or the rank is not from 1 to `max_cp_rank`.
    """
    if len(shape) < 2:
        raise InvalidArgumentError(
            f"a CP decomposition needs at least two modes, got shape {tuple(shape)}"
        )
    if not 1 <= rank <= max_cp_rank(shape):
        raise InvalidArgumentError(
            f"a CP rank must be at least 1 and, for a tensor of shape {tuple(shape)}, at most "
            f"{max_cp_rank(shape)}, got {rank}"
        )
