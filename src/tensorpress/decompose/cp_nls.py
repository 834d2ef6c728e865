"""CP decomposition by non-linear least squares on all factors jointly."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from tensorpress.decompose.cp_als import cp_als
from tensorpress.decompose.cp_mttkrp import HalvedTensor, hadamard, identity
from tensorpress.decompose.cp_problem import balance_factors, make_cp_problem
from tensorpress.decompose.cp_tensor import CP
from tensorpress.decompose.precision import to_working_precision

CG_STEPS = 30
"""Largest number of conjugate gradient steps on one linear system."""

CG_TOLERANCE = 0.1
"""Fraction of the first preconditioned residual at which a solution is good enough."""

DAMPING = 1e-2
"""The first damping μ, relative to the mean curvature along one entry of a factor."""

WINDOW = 5
"""Number of steps over which progress is judged."""


def cp_nls(
    tensor: Tensor,
    rank: int,
    *,
    max_iter: int = 100,
    tol: float = 1e-6,
    start: CP | None = None,
) -> CP:
    """Decompose a tensor into ``rank`` rank-one terms by damped Gauss–Newton steps.

    This is the Levenberg–Marquardt method on all factors jointly. A step costs more than a sweep of
    ``cp_als``, but makes progress in the swamps where alternating least squares is slow. Each step
    solves (JᵀJ + μI) p = −Jᵀr by conjugate gradients. J is never built: its products are Gram
    matrices of size r. The damping μ follows the ratio of the actual to the predicted decrease of
    the error.

    Parameters
    ----------
    tensor : Tensor
        Tensor of shape (n_1, …, n_d), any floating dtype; computed in float64.
    rank : int
        Number of terms, from 1 to ``max_cp_rank(tensor.shape)``.
    max_iter : int
        Largest number of steps, including rejected ones.
    tol : float
        The steps end once the last five lowered the error by at most this fraction of it each, on
        average.
    start : CP, optional
        The starting point; by default the result of ``cp_als``.

    Returns
    -------
    CP
        Terms in the dtype of ``tensor``, with an error no larger than that of the start.

    Raises
    ------
    InvalidArgumentError
        If the rank or a limit is out of range, or the tensor has fewer than two modes, NaN or
        infinite values, or the start does not fit.

    References
    ----------
    Sorber, Van Barel, De Lathauwer (2013), "Optimization-based algorithms for tensor
    decompositions in rank-(L_r, L_r, 1) terms, low multilinear rank approximations, …", for the
    Gramian JᵀJ. Nielsen (1999), "Damping parameter in Marquardt's method", for the damping.

    Examples
    --------
    >>> cp_nls(torch.ones(3, 4, 5), 1).relative_error < 1e-12
    True
    """
    problem = make_cp_problem(tensor, rank, max_iter=max_iter, tol=tol)
    start = start or cp_als(to_working_precision(tensor), rank)
    point = _evaluate(problem.halves, problem.scale_start(start))
    damping, growth = DAMPING, 2.0
    history, iterations, converged = [point.error2], 0, False
    while iterations < max_iter and not converged:
        equations = _NormalEquations(point, damping)
        step = equations.solve()
        candidate = _evaluate(problem.halves, balance_factors(equations.add_step(step)))
        decrease = point.error2 - candidate.error2
        if decrease > 0:
            # μ ← μ max(1/3, 1 − (2ρ − 1)³), where ρ is the actual over the predicted decrease.
            ratio = decrease / max(equations.predict_decrease(step), torch.finfo(step.dtype).tiny)
            damping, growth = damping * max(1 / 3, 1 - (2 * min(ratio, 1.0) - 1) ** 3), 2.0
            point = candidate
        else:
            # A rejected step: μ ← 2μ, then 4μ, 8μ, … until one is accepted.
            damping, growth = damping * growth, 2 * growth
        iterations += 1
        history = [*history[-WINDOW:], point.error2]
        before = sqrt(history[0])
        converged = len(history) > WINDOW and before - sqrt(history[-1]) <= WINDOW * tol * before
    return problem.make_result(point.factors, iterations, converged)


@dataclass(frozen=True)
class _Point:
    """Factors, with the derivatives that a step needs.

    Attributes
    ----------
    factors : list of Tensor
        Matrices A_i of shapes (n_i, r).
    grams : list of Tensor
        Gram matrices A_iᵀA_i of shape (r, r).
    gradient : Tensor
        Jᵀr, of shape (Σ n_i, r), for the residual r = T̂ − T.
    error2 : float
        ‖T − T̂‖².
    """

    factors: list[Tensor]
    grams: list[Tensor]
    gradient: Tensor
    error2: float


def _evaluate(halves: HalvedTensor, factors: list[Tensor]) -> _Point:
    grams = [factor.mT @ factor for factor in factors]
    mttkrps = halves.compute_mttkrps(factors)
    # The rows of mode i: (T̂ − T)₍ᵢ₎Z_i = A_i Γ_i − T₍ᵢ₎Z_i, with Γ_i = Z_iᵀZ_i.
    gradient = [
        factor @ hadamard(grams, mode) - mttkrp
        for mode, (factor, mttkrp) in enumerate(zip(factors, mttkrps, strict=True))
    ]
    last = mttkrps[halves.modes[1][-1]]
    error2 = float(halves.squared_error(factors, hadamard(grams), last).clamp_min(0))
    return _Point(factors, grams, torch.cat(gradient), error2)


class _NormalEquations:
    """The damped normal equations (JᵀJ + μI) p = −Jᵀr at a point, for p of shape (Σ n_i, r).

    Block (i, i) of JᵀJ maps P_i to P_i Γ_i, where Γ_i is the Hadamard product of all Gram matrices
    but the i-th. Block (i, j) maps P_j to A_i (Γ_ij ∘ P_jᵀA_j), where Γ_ij is the product of all
    Gram matrices but those two.
    """

    def __init__(self, point: _Point, damping: float) -> None:
        self.point = point
        self.sizes = [len(factor) for factor in point.factors]
        order, zero = len(self.sizes), torch.zeros_like(point.grams[0])
        blocks = torch.stack([hadamard(point.grams, mode) for mode in range(order)])
        # μ in units of the mean of the diagonal of JᵀJ; any μ > 0 serves where that is zero.
        self.damping = damping * float(blocks.diagonal(dim1=1, dim2=2).mean()) or damping
        self.blocks = blocks + self.damping * identity(len(zero), zero)
        self.cross = torch.stack(
            [
                torch.stack([zero if i == j else hadamard(point.grams, i, j) for j in range(order)])
                for i in range(order)
            ]
        )
        self.lower = torch.linalg.cholesky(self.blocks)

    def multiply(self, step: Tensor) -> Tensor:
        """Return (JᵀJ + μI) p, of the shape of p."""
        parts = torch.split(step, self.sizes)
        # P_jᵀA_j for every mode j, then Σ_j Γ_ij ∘ P_jᵀA_j for every mode i.
        inner = torch.stack(
            [part.mT @ factor for part, factor in zip(parts, self.point.factors, strict=True)]
        )
        coupling = (self.cross * inner).sum(1)
        return torch.cat(
            [
                part @ self.blocks[mode] + self.point.factors[mode] @ coupling[mode]
                for mode, part in enumerate(parts)
            ]
        )

    def precondition(self, residual: Tensor) -> Tensor:
        """Solve the equations of the diagonal blocks alone: P_i = R_i (Γ_i + μI)⁻¹."""
        parts = zip(torch.split(residual, self.sizes), self.lower, strict=True)
        return torch.cat([torch.cholesky_solve(part.mT, lower).mT for part, lower in parts])

    def solve(self) -> Tensor:
        """Return the step p, by preconditioned conjugate gradients from zero."""
        residual = -self.point.gradient
        step, direction = torch.zeros_like(residual), self.precondition(residual)
        # ⟨r, M⁻¹r⟩, the squared norm of the preconditioned residual.
        norm2 = first = float((residual * direction).sum())
        for _ in range(CG_STEPS):
            if norm2 <= CG_TOLERANCE**2 * first or norm2 == 0:
                break
            # The exact line search along d: α = ⟨r, M⁻¹r⟩ / ⟨d, (JᵀJ + μI) d⟩.
            product = self.multiply(direction)
            length = norm2 / float((direction * product).sum())
            step, residual = step + length * direction, residual - length * product
            # The next conjugate direction: d ← M⁻¹r + β d.
            conditioned = self.precondition(residual)
            previous, norm2 = norm2, float((residual * conditioned).sum())
            direction = conditioned + (norm2 / previous) * direction
        return step

    def add_step(self, step: Tensor) -> list[Tensor]:
        """Return the factors A_i + P_i after a step."""
        return [
            factor + part
            for factor, part in zip(self.point.factors, torch.split(step, self.sizes), strict=True)
        ]

    def predict_decrease(self, step: Tensor) -> float:
        """Return ‖r‖² − ‖r + Jp‖² = −pᵀ(2Jᵀr + JᵀJp), the decrease of the linear model."""
        curvature = self.multiply(step) - self.damping * step
        return -float((step * (2 * self.point.gradient + curvature)).sum())
