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
    """A CP decomposition T̂ = Σ_r λ_r a_r¹ ∘ … ∘ a_rᵈ.

    Attributes
    ----------
    weights : Tensor
        λ of shape (r,), not negative.
    factors : tuple of Tensor
        d matrices (n_i, r) with columns of norm 1 (or 0, in a term of weight 0).
    relative_error : float
        ‖T − T̂‖ / ‖T‖ as measured on the float64 result; 0 for a zero tensor.
    iterations : int
        Sweeps or steps that led here.
    converged : bool
        Whether the tolerance was met within the iterations allowed.
    """

    weights: Tensor
    factors: tuple[Tensor, ...]
    relative_error: float
    iterations: int
    converged: bool

    def to_tensor(self) -> Tensor:
        """Return the tensor these factors stand for, of shape (n_1, …, n_d)."""
        return cp_to_tensor(self.weights, self.factors)

    def spread(self) -> list[Tensor]:
        """Return the factors with the weights spread evenly: a term's columns have equal norms."""
        root = self.weights ** (1 / len(self.factors))
        return [factor * root for factor in self.factors]

    @property
    def num_params(self) -> int:
        """Number of stored values, weights and matrices."""
        return self.weights.numel() + sum(factor.numel() for factor in self.factors)

    @property
    def degeneracy(self) -> float:
        """Σ_r λ_r² / ‖T̂‖², the energy of the terms over the energy of their sum.

        1 for orthogonal terms and for none, at least 1/r, and far above 1 where large terms cancel:
        then small errors of the factors are large errors of the tensor.
        """
        energy = float(self.to_tensor().double().square().sum())
        return float(self.weights.double().square().sum()) / energy if energy else 1.0

    @property
    def sensitivity(self) -> float:
        """What noise in the factors costs, with the weights spread evenly: see cp_sensitivity.

        It is (Σ n_i) Σ_r λ_r^{2−2/d}.
        """
        return cp_sensitivity([factor.double() for factor in self.spread()])


def cp_to_tensor(weights: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Return Σ_r λ_r a_r¹ ∘ … ∘ a_rᵈ, as one product of two Khatri–Rao halves.

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
    left = khatri_rao([factors[0] * weights, *factors[1:half]])
    right = khatri_rao(factors[half:]) if factors[half:] else torch.ones_like(weights)[None]
    return (left @ right.mT).reshape([factor.shape[0] for factor in factors])


def max_cp_rank(shape: Sequence[int]) -> int:
    """Return the number of terms that is enough for every tensor of a shape.

    One term a fibre of the longest mode: the product of all other sizes. Many tensors need fewer.

    Parameters
    ----------
    shape : sequence of int
        Sizes of the modes.

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

    The limit of E‖T̂(A + E) − T̂(A)‖² / σ² for independent entries of E of variance σ² → 0, which
    is Σ_i n_i Σ_r Π_{j≠i} ‖a_rʲ‖². It depends on how the norm of a term is spread over its columns.

    Parameters
    ----------
    factors : sequence of Tensor
        d ≥ 2 matrices (n_i, r), the weights absorbed.

    References
    ----------
    Phan, Sobolev, Sozykin, Ermilov, Gusak, Tichavský, Glukhov, Oseledets, Cichocki (2020), "Stable
    low-rank tensor decomposition for compression of convolutional neural network", the sensitivity
    of three modes; here for any number.

    Examples
    --------
    >>> cp_sensitivity([torch.ones(2, 1), torch.ones(3, 1)])
    12.0
    """
    norms2 = [factor.square().sum(0) for factor in factors]
    return float(sum(len(f) * hadamard(norms2, mode).sum() for mode, f in enumerate(factors)))


def check_cp_rank(shape: Sequence[int], rank: int) -> None:
    """Raise unless a tensor of this shape can be decomposed into ``rank`` terms."""
    if len(shape) < 2:
        raise InvalidArgumentError(
            f"a CP decomposition needs at least two modes, got shape {tuple(shape)}"
        )
    if not 1 <= rank <= max_cp_rank(shape):
        raise InvalidArgumentError(
            f"a CP rank must be at least 1 and, for a tensor of shape {tuple(shape)}, at most "
            f"{max_cp_rank(shape)}, got {rank}"
        )
