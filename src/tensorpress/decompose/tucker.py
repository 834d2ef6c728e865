"""Tucker decomposition by higher-order orthogonal iteration."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from tensorpress.decompose.algebra import mode_product, project, tucker_to_tensor, unfold
from tensorpress.errors import InvalidArgumentError


@dataclass(frozen=True)
class Tucker:
    """A Tucker decomposition: a core (k_1, …, k_d) and d matrices (n_i, k_i).

    ``relative_error`` is ‖W − Ŵ‖ / ‖W‖ (0 for a zero tensor) and ``converged`` says
    whether the tolerance was met within the iterations allowed.
    """

    core: Tensor
    factors: tuple[Tensor, ...]
    relative_error: float
    iterations: int
    converged: bool

    def to_tensor(self) -> Tensor:
        """Return the tensor these factors stand for, of shape (n_1, …, n_d)."""
        return tucker_to_tensor(self.core, self.factors)

    @property
    def num_params(self) -> int:
        """Number of stored values, core and matrices."""
        return self.core.numel() + sum(factor.numel() for factor in self.factors)


def tucker_params(modes: Sequence[int], ranks: Sequence[int]) -> int:
    """Return the number of values a Tucker decomposition stores: Πk_i + Σ n_i·k_i.

    Examples
    --------
    >>> tucker_params((40, 25, 20, 20), (5, 5, 5, 5))
    1150
    """
    return prod(ranks) + sum(n * k for n, k in zip(modes, ranks, strict=True))


def hooi(tensor: Tensor, ranks: Sequence[int], *, max_iter: int = 50, tol: float = 1e-7) -> Tucker:
    """Decompose by higher-order orthogonal iteration, started from the HOSVD.

    Parameters
    ----------
    tensor : Tensor
        Shape (n_1, …, n_d), any floating dtype; computed in float64.
    ranks : sequence of int
        1 ≤ k_i ≤ n_i for every mode.
    max_iter : int
        Most sweeps over the modes after the start.
    tol : float
        Stop once a sweep changes the relative error by no more than this.

    Returns
    -------
    Tucker
        Matrices with orthonormal columns, in the dtype of ``tensor``.

    Raises
    ------
    InvalidArgumentError
        For ranks out of range, or NaN or infinite values.

    References
    ----------
    De Lathauwer, De Moor, Vandewalle (2000), "On the best rank-1 and
    rank-(R1, R2, …, RN) approximation of higher-order tensors", Alg. 4.2.

    Examples
    --------
    >>> tensor = torch.arange(24.0).reshape(2, 3, 4)
    >>> hooi(tensor, (2, 3, 4)).relative_error < 1e-7
    True
    """
    _check_ranks(tensor.shape, ranks)
    exact = finite_double(tensor)
    norm2 = float(exact.square().sum())
    factors = [leading_basis(unfold(exact, mode), rank) for mode, rank in enumerate(ranks)]
    core = project(exact, factors)
    error = _discarded(norm2, core)
    iterations, converged = 0, False
    while not converged and iterations < max_iter:
        for mode, rank in enumerate(ranks):
            projected = project(exact, factors, skip=mode)
            factors[mode] = leading_basis(unfold(projected, mode), rank)
            core = mode_product(projected, factors[mode].mT, mode)
        previous, error = error, _discarded(norm2, core)
        iterations += 1
        converged = previous - error <= tol
    dtype = tensor.dtype
    return Tucker(core.to(dtype), tuple(f.to(dtype) for f in factors), error, iterations, converged)


def finite_double(tensor: Tensor) -> Tensor:
    """Return a tensor's values in float64; NaN or infinity is an error."""
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidArgumentError(
            f"cannot decompose a tensor of shape {tuple(tensor.shape)} with NaN or infinite values"
        )
    return tensor.detach().double()


def _check_ranks(shape: Sequence[int], ranks: Sequence[int]) -> None:
    if len(ranks) != len(shape) or not all(1 <= k <= n for k, n in zip(ranks, shape, strict=False)):
        raise InvalidArgumentError(
            f"ranks {tuple(ranks)} do not fit a tensor of shape {tuple(shape)}: "
            "one rank a mode is needed, from 1 to the size of the mode"
        )


def leading_basis(matrix: Tensor, rank: int) -> Tensor:
    """Return the ``rank`` leading left singular vectors, from the Gram matrix of the small side."""
    rows, columns = matrix.shape
    if rows <= columns:
        return _top_eigenvectors(matrix @ matrix.mT, rank)
    right = _top_eigenvectors(matrix.mT @ matrix, min(rank, columns))
    # QR completes the basis where the matrix has fewer than `rank` directions.
    padded = matrix.new_zeros(rows, rank)
    padded[:, : right.shape[1]] = matrix @ right
    basis: Tensor = torch.linalg.qr(padded).Q
    return basis


def _top_eigenvectors(gram: Tensor, count: int) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors[:, -count:].flip(1)


def _discarded(norm2: float, core: Tensor) -> float:
    """Relative error of an orthogonal projection, from the energy it leaves in the core."""
    return sqrt(max(norm2 - float(core.square().sum()), 0.0) / norm2) if norm2 else 0.0
