"""What CP algorithms share: a tensor scaled to norm 1, and a result with a measured error."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.decompose.cp_mttkrp import HalvedTensor
from tensorpress.decompose.cp_tensor import CP, check_cp_rank
from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError


@dataclass(frozen=True)
class CPProblem:
    """A tensor as CP algorithms work on it: float64, of norm 1, without modes of size 1.

    The factors of the algorithms are matrices that include the weights, one for each mode in
    ``modes``.

    Attributes
    ----------
    unit : Tensor
        The tensor divided by its norm, without the modes of size 1.
    halves : HalvedTensor
        The same tensor, prepared for products with Khatri–Rao products.
    rank : int
        Number of terms.
    norm : float
        Norm of the original tensor.
    modes : tuple of int
        The modes of the original tensor that ``unit`` has.
    shape : tuple of int
        Shape of the original tensor.
    dtype : torch.dtype
        Dtype of the original tensor.
    """

    unit: Tensor
    halves: HalvedTensor
    rank: int
    norm: float
    modes: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def scale_start(self, start: CP) -> list[Tensor]:
        """Return a decomposition of the original tensor as balanced factors of the unit tensor.

        Raises
        ------
        InvalidArgumentError
            If the decomposition has another rank, or factors for another shape.
        """
        sizes = [tuple(factor.shape) for factor in start.factors]
        if sizes != [(n, self.rank) for n in self.shape] or start.weights.shape != (self.rank,):
            raise InvalidArgumentError(
                f"a start for {self.rank} terms of a tensor of shape {self.shape} needs as many "
                f"weights and a factor (size, {self.rank}) for each mode, got factors of shapes "
                f"{sizes} and {start.weights.numel()} weights"
            )
        factors = [to_working_precision(factor).to(self.unit) for factor in start.factors]
        weights = to_working_precision(start.weights).to(self.unit)
        # Weights, the norm and the one row of each mode of size 1 all go into the first factor.
        scale = weights / self.norm if self.norm else torch.zeros_like(weights)
        for mode, factor in enumerate(factors):
            if mode not in self.modes:
                scale = scale * factor[0]
        first, *others = [factors[mode] for mode in self.modes]
        return balance_factors([first * scale, *others])

    def make_result(self, factors: Sequence[Tensor], iterations: int, converged: bool) -> CP:
        """Return factors of the unit tensor as a decomposition of the original tensor."""
        error = float(self.halves.squared_residual(factors).sqrt())
        all_factors = [self.unit.new_ones(n, self.rank) for n in self.shape]
        for mode, factor in zip(self.modes, factors, strict=True):
            all_factors[mode] = factor
        weights, columns = normalize_columns(all_factors, self.norm, self.dtype)
        return CP(weights, columns, error, iterations, converged)


def make_cp_problem(tensor: Tensor, rank: int, *, max_iter: int, tol: float) -> CPProblem:
    """Check the arguments of a CP algorithm and prepare its tensor.

    Parameters
    ----------
    tensor : Tensor
        Tensor of shape (n_1, …, n_d), any floating dtype.
    rank : int
        Number of terms, from 1 to ``max_cp_rank(tensor.shape)``.
    max_iter : int
        Largest number of iterations, at least 1.
    tol : float
        Tolerance, at least 0.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range, or the tensor has fewer than two modes, NaN or infinite
        values.
    """
    check_cp_rank(tensor.shape, rank)
    if max_iter < 1 or not tol >= 0:
        raise InvalidArgumentError(
            f"max_iter must be at least 1 and tol not negative, got {max_iter} and {tol}"
        )
    exact = to_working_precision(tensor)
    # Modes of size 1 only scale the terms. They are needed if fewer than two others are left.
    modes = [mode for mode, size in enumerate(tensor.shape) if size > 1]
    ones = [mode for mode, size in enumerate(tensor.shape) if size == 1]
    modes = sorted(modes + ones[: max(0, 2 - len(modes))])
    norm = float(exact.norm())
    unit = exact.reshape([tensor.shape[mode] for mode in modes]) / (norm or 1.0)
    return CPProblem(
        unit, HalvedTensor(unit), rank, norm, tuple(modes), tuple(tensor.shape), tensor.dtype
    )


def balance_factors(factors: Sequence[Tensor]) -> list[Tensor]:
    """Return factors of the same terms, with columns of equal norm in all modes.

    Examples
    --------
    >>> [f.tolist() for f in balance_factors([torch.tensor([[8.0]]), torch.tensor([[2.0]])])]
    [[[4.0]], [[4.0]]]
    """
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    # A column of norm ‖aⁱ‖ is scaled by (Π_j ‖aʲ‖)^(1/d) / ‖aⁱ‖, computed in logarithms.
    logs = norms.clamp_min(torch.finfo(norms.dtype).tiny).log()
    scales = (logs.mean(0) - logs).exp()
    return [factor * scale for factor, scale in zip(factors, scales, strict=True)]


def normalize_columns(
    factors: Sequence[Tensor], norm: float, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return a decomposition of a unit tensor as weights and unit columns of the original tensor.

    Parameters
    ----------
    factors : sequence of Tensor
        d tensors of shapes (n_i, r).
    norm : float
        Norm of the original tensor.
    dtype : torch.dtype
        Dtype of the result.

    Returns
    -------
    tuple of Tensor and tuple of Tensor
        The weights of shape (r,), and the factors with columns of norm 1, or 0 where the term is
        zero.

    Raises
    ------
    InvalidArgumentError
        If a weight is too large for the dtype.

    Examples
    --------
    >>> matrices = [torch.tensor([[3.0], [4.0]]), torch.tensor([[2.0]])]
    >>> weights, factors = normalize_columns(matrices, 10.0, torch.float64)
    >>> weights.tolist(), factors[1].tolist()
    ([100.0], [[1.0]])
    """
    # λ_r = ‖T‖ Π_i ‖a_rⁱ‖
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    unscaled = norms.prod(0)
    scales = torch.where(unscaled > 0, 1 / norms, 0.0)
    weights = (unscaled * norm).to(dtype)
    if not bool(weights.isfinite().all()):
        raise InvalidArgumentError(
            f"a term of norm {float(unscaled.max()) * norm:.1e} does not fit {dtype}: "
            "decompose the tensor in a wider type"
        )
    columns = [factor * scale for factor, scale in zip(factors, scales, strict=True)]
    return weights, tuple(column.to(dtype) for column in columns)
