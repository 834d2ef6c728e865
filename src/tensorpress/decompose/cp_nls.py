"""CP decomposition by non-linear least squares on all factors jointly."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from tensorpress.decompose.cp_als import cp_als
from tensorpress.decompose.cp_mttkrp import Halves, hadamard, identity
from tensorpress.decompose.cp_normal_equations import balance_factors, make_cp_problem
from tensorpress.decompose.cp_tensor import CP
from tensorpress.decompose.precision import to_working_precision

CG_STEPS = 30
"""Most conjugate gradient steps on one linear system."""

CG_DROP = 0.1
"""The part of the preconditioned residual at which its solution is good enough."""

DAMPING = 1e-2
"""The first damping, relative to the mean curvature along one value."""

WINDOW = 5
"""Steps over which progress is judged."""


def cp_nls(
    tensor: Tensor,
    rank: int,
    *,
    max_iter: int = 100,
    tol: float = 1e-6,
    start: CP | None = None,
) -> CP:
    """Decompose into ``rank`` rank-one terms by damped Gauss–Newton (Levenberg–Marquardt).

    Slower than ``cp_als`` a step, and able to leave the swamps where alternating creeps. Each step
    solves (JᵀJ + μI) p = −Jᵀr by conjugate gradients; J is never built, its products are Gram
    matrices of size r. μ follows the ratio of the decrease found to the decrease foreseen.

    Parameters
    ----------
    tensor : Tensor
        Shape (n_1, …, n_d), any floating dtype; computed in float64.
    rank : int
        Number of terms, from 1 to ``max_cp_rank(tensor.shape)``.
    max_iter : int
        Most steps, those that were not taken included.
    tol : float
        Stop once five steps lower the error by no more than this part of it a step.
    start : CP, optional
        Begin here instead of at the result of ``cp_als``.

    Returns
    -------
    CP
        In the dtype of ``tensor``, with no larger an error than where it began.

    Raises
    ------
    InvalidArgumentError
        For a rank out of range, fewer than two modes, NaN or infinite values, a start that does
        not fit, or a limit out of range.

    References
    ----------
    Sorber, Van Barel, De Lathauwer (2013), "Optimization-based algorithms for tensor
    decompositions in rank-(L_r, L_r, 1) terms, low multilinear rank approximations, …": the
    Gramians of the CPD; the damping is that of Nielsen (1999), "Damping parameter in Marquardt's
    method".

    Examples
    --------
    >>> cp_nls(torch.ones(3, 4, 5), 1).relative_error < 1e-12
    True
    """
    problem = make_cp_problem(tensor, rank, max_iter=max_iter, tol=tol)
    begun = start or cp_als(to_working_precision(tensor), rank)
    point = _point(problem.halves, problem.factors_of(begun))
    damping, growth = DAMPING, 2.0
    history, iterations, converged = [point.error2], 0, False
    while iterations < max_iter and not converged:
        system = _System(point, damping)
        step = system.solve()
        found = _point(problem.halves, balance_factors(system.moved(step)))
        gained = point.error2 - found.error2
        if gained > 0:
            ratio = gained / max(system.foreseen(step), torch.finfo(step.dtype).tiny)
            damping, growth = damping * max(1 / 3, 1 - (2 * min(ratio, 1.0) - 1) ** 3), 2.0
            point = found
        else:
            damping, growth = damping * growth, 2 * growth
        iterations += 1
        history = [*history[-WINDOW:], point.error2]
        before = sqrt(history[0])
        converged = len(history) > WINDOW and before - sqrt(history[-1]) <= WINDOW * tol * before
    return problem.result(point.factors, iterations, converged)


@dataclass(frozen=True)
class _Point:
    """Factors with their Gram matrices, the gradient Jᵀr (Σ n_i, r), and the squared error."""

    factors: list[Tensor]
    grams: list[Tensor]
    gradient: Tensor
    error2: float


def _point(halves: Halves, factors: list[Tensor]) -> _Point:
    grams = [factor.mT @ factor for factor in factors]
    images = halves.images(factors)
    gradient = [
        factor @ hadamard(grams, mode) - image
        for mode, (factor, image) in enumerate(zip(factors, images, strict=True))
    ]
    error2 = float(
        halves.error2(factors, hadamard(grams), images[halves.modes[1][-1]]).clamp_min(0)
    )
    return _Point(factors, grams, torch.cat(gradient), error2)


class _System:
    """The damped normal equations (JᵀJ + μI) p = −Jᵀr at a point; p has shape (Σ n_i, r).

    Block (i, i) of JᵀJ is the Hadamard product of all Gram matrices but the i-th, times an
    identity. Block (i, j) takes P_j to A_i (Γ_ij ∘ P_jᵀA_j), with Γ_ij of all Gram matrices but
    those two.
    """

    def __init__(self, point: _Point, damping: float) -> None:
        self.point = point
        self.sizes = [len(factor) for factor in point.factors]
        order, zero = len(self.sizes), torch.zeros_like(point.grams[0])
        blocks = torch.stack([hadamard(point.grams, mode) for mode in range(order)])
        self.damping = damping * float(blocks.diagonal(dim1=1, dim2=2).mean())
        # Where all factors are zero any positive damping will do.
        self.damping = self.damping or damping
        self.blocks = blocks + self.damping * identity(len(zero), zero)
        self.cross = torch.stack(
            [
                torch.stack([zero if i == j else hadamard(point.grams, i, j) for j in range(order)])
                for i in range(order)
            ]
        )
        self.lower = torch.linalg.cholesky(self.blocks)

    def times(self, step: Tensor) -> Tensor:
        """Return (JᵀJ + μI) p."""
        parts = torch.split(step, self.sizes)
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

    def preconditioned(self, residual: Tensor) -> Tensor:
        """Solve with the diagonal blocks alone."""
        parts = zip(torch.split(residual, self.sizes), self.lower, strict=True)
        return torch.cat([torch.cholesky_solve(part.mT, lower).mT for part, lower in parts])

    def solve(self) -> Tensor:
        """Return the step p, by conjugate gradients from zero."""
        residual = -self.point.gradient
        step, direction = torch.zeros_like(residual), self.preconditioned(residual)
        size = first = float((residual * direction).sum())
        for _ in range(CG_STEPS):
            if size <= CG_DROP**2 * first or size == 0:
                break
            image = self.times(direction)
            length = size / float((direction * image).sum())
            step, residual = step + length * direction, residual - length * image
            conditioned = self.preconditioned(residual)
            previous, size = size, float((residual * conditioned).sum())
            direction = conditioned + (size / previous) * direction
        return step

    def moved(self, step: Tensor) -> list[Tensor]:
        """Return the factors after a step."""
        return [
            factor + part
            for factor, part in zip(self.point.factors, torch.split(step, self.sizes), strict=True)
        ]

    def foreseen(self, step: Tensor) -> float:
        """Return by how much the squared error falls where the model, without μ, is right."""
        curved = self.times(step) - self.damping * step
        return -float((step * (2 * self.point.gradient + curved)).sum())
