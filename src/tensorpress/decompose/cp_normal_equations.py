"""What every CP algorithm begins and ends with: a checked unit tensor, and a measured result."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.decompose.cp_mttkrp import Halves
from tensorpress.decompose.cp_tensor import CP, check_cp_rank
from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError


@dataclass(frozen=True)
class CPProblem:
    """A tensor as CP algorithms work on it: float64, of norm 1, without modes of size 1.

    Factors here are matrices with the weights absorbed, one for each of the ``modes`` kept.
    """

    unit: Tensor
    halves: Halves
    rank: int
    norm: float
    modes: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def factors_of(self, start: CP) -> list[Tensor]:
        """Return the factors of a given decomposition of the whole tensor."""
        sizes = [tuple(factor.shape) for factor in start.factors]
        if sizes != [(n, self.rank) for n in self.shape] or start.weights.shape != (self.rank,):
            raise InvalidArgumentError(
                f"a start for {self.rank} terms of a tensor of shape {self.shape} needs as many "
                f"weights and a factor (size, {self.rank}) for each mode, got factors of shapes "
                f"{sizes} and {start.weights.numel()} weights"
            )
        factors = [to_working_precision(factor).to(self.unit) for factor in start.factors]
        weights = to_working_precision(start.weights).to(self.unit)
        scale = weights / self.norm if self.norm else torch.zeros_like(weights)
        for mode, factor in enumerate(factors):
            if mode not in self.modes:
                scale = scale * factor[0]
        kept = [factors[mode] for mode in self.modes]
        return balance_factors([kept[0] * scale, *kept[1:]])

    def result(self, factors: Sequence[Tensor], iterations: int, converged: bool) -> CP:
        """Return the decomposition of the whole tensor that these factors are."""
        error = float(self.halves.residual2(factors).sqrt())
        every = [self.unit.new_ones(n, self.rank) for n in self.shape]
        for mode, factor in zip(self.modes, factors, strict=True):
            every[mode] = factor
        return CP(*normalize_columns(every, self.norm, self.dtype), error, iterations, converged)


def make_cp_problem(tensor: Tensor, rank: int, *, max_iter: int, tol: float) -> CPProblem:
    """Check what the user asks for and prepare the tensor."""
    check_cp_rank(tensor.shape, rank)
    if max_iter < 1 or not tol >= 0:
        raise InvalidArgumentError(
            f"max_iter must be at least 1 and tol not negative, got {max_iter} and {tol}"
        )
    exact = to_working_precision(tensor)
    modes = [mode for mode, size in enumerate(tensor.shape) if size > 1]
    ones = [mode for mode, size in enumerate(tensor.shape) if size == 1]
    modes = sorted(modes + ones[: max(0, 2 - len(modes))])
    norm = float(exact.norm())
    unit = exact.reshape([tensor.shape[mode] for mode in modes]) / (norm or 1.0)
    return CPProblem(
        unit, Halves(unit), rank, norm, tuple(modes), tuple(tensor.shape), tensor.dtype
    )


def balance_factors(factors: Sequence[Tensor]) -> list[Tensor]:
    """Return factors of the same terms, whose columns have equal norms in all modes.

    Examples
    --------
    >>> [f.tolist() for f in balance_factors([torch.tensor([[8.0]]), torch.tensor([[2.0]])])]
    [[[4.0]], [[4.0]]]
    """
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    logs = norms.clamp_min(torch.finfo(norms.dtype).tiny).log()
    scales = (logs.mean(0) - logs).exp()
    return [factor * scale for factor, scale in zip(factors, scales, strict=True)]


def normalize_columns(
    factors: Sequence[Tensor], norm: float, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return a decomposition of a unit tensor as one of the tensor: weights, and unit columns.

    Parameters
    ----------
    factors : sequence of Tensor
        d matrices (n_i, r).
    norm : float
        Of the tensor.
    dtype : torch.dtype
        Of the result.

    Returns
    -------
    tuple of Tensor and tuple of Tensor
        The weights (r,) and the factors, with columns of norm 1, or 0 where the term is zero.

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
