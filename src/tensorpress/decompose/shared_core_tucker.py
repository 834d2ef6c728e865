"""Tucker decompositions of several tensors that share one core, by alternating least squares."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from tensorpress.decompose.precision import to_working_precision
from tensorpress.decompose.tensor_algebra import mode_product, project, unfold
from tensorpress.decompose.tucker import hooi
from tensorpress.errors import InvalidArgumentError

CG_STEPS = 10
"""Conjugate gradient steps on the core a sweep; each starts where the last sweep ended."""


@dataclass(frozen=True)
class SharedTucker:
    """One core with a set of d matrices for each of several tensors (eq. 8 of ADA-Tucker).

    ``relative_errors`` are ‖W_l − Ŵ_l‖ / ‖W_l‖ (0 for a zero tensor), to about 1e-8, and
    ``converged`` says whether the tolerance was met within the iterations allowed.
    """

    core: Tensor
    factors: tuple[tuple[Tensor, ...], ...]
    relative_errors: tuple[float, ...]
    iterations: int
    converged: bool


def shared_tucker(
    tensors: Sequence[Tensor], ranks: Sequence[int], *, max_iter: int = 100, tol: float = 1e-6
) -> SharedTucker:
    """Fit several tensors of the same order by one core, by alternating least squares.

    Minimises Σ_l ‖W_l − C ×₁ M₁⁽ˡ⁾ … ×_d M_d⁽ˡ⁾‖² / ‖W_l‖² over the core and all
    matrices: each matrix is a linear solve, and so is the core, whose normal
    equations Σ_l ⊗_i (M_i⁽ˡ⁾ᵀM_i⁽ˡ⁾) are only ever applied, never built. A mode may
    be smaller than its rank (a lower-order tensor has modes of size 1).

    Parameters
    ----------
    tensors : sequence of Tensor
        Shapes (n_1⁽ˡ⁾, …, n_d⁽ˡ⁾), all of order d.
    ranks : sequence of int
        The core's shape (k_1, …, k_d).
    max_iter : int
        Most sweeps over core and matrices.
    tol : float
        Stop once a sweep lowers the mean squared relative error by no more than this.

    Raises
    ------
    InvalidArgumentError
        For orders that differ, ranks below 1, NaN or infinite values.

    References
    ----------
    The model is eq. 8 of Zhong, Wei, Lin, Zhang (2019), "ADA-Tucker", which trains it from random
    values; this fit is our start from trained weights.

    Examples
    --------
    >>> fit = shared_tucker([torch.ones(4, 3), 2 * torch.ones(5, 1)], (2, 2))
    >>> max(fit.relative_errors) < 1e-6
    True
    """
    order = len(ranks)
    if not tensors or any(t.ndim != order for t in tensors) or min(ranks, default=0) < 1:
        raise InvalidArgumentError(
            f"a core of shape {tuple(ranks)} needs tensors of order {order}, "
            f"got shapes {[tuple(t.shape) for t in tensors]}"
        )
    exact = [to_working_precision(tensor) for tensor in tensors]
    norms = [float(tensor.norm()) for tensor in exact]
    scaled = [tensor / (norm or 1.0) for tensor, norm in zip(exact, norms, strict=True)]
    starts = [_padded_hooi(tensor, ranks) for tensor in scaled]
    core = max(starts, key=lambda start: (start[1], float(start[0].norm())))[0]
    factors = [start[2] for start in starts]
    loss, iterations, converged = float("inf"), 0, False
    while not converged and iterations < max_iter:
        projected = torch.stack(
            [_solve_factors(t, core, matrices) for t, matrices in zip(scaled, factors, strict=True)]
        )
        grams = [torch.stack([m.mT @ m for m in side]) for side in zip(*factors, strict=True)]
        core = _solve_core(projected.sum(0), grams, core)
        # ‖W − Ŵ‖² = ‖W‖² − 2⟨W, Ŵ⟩ + ‖Ŵ‖², each product taken on the side of the core.
        products = (core * (_weighted(core, grams) - 2 * projected)).flatten(1).sum(1).tolist()
        errors2 = [
            max(product + 1.0, 0.0) if norm else 0.0
            for product, norm in zip(products, norms, strict=True)
        ]
        previous, loss = loss, sum(errors2) / len(errors2)
        iterations += 1
        converged = previous - loss <= tol
    return SharedTucker(
        core.to(tensors[0].dtype),
        tuple(
            tuple((m * norm ** (1 / order)).to(tensor.dtype) for m in matrices)
            for tensor, matrices, norm in zip(tensors, factors, norms, strict=True)
        ),
        tuple(map(sqrt, errors2)),
        iterations,
        converged,
    )


def _padded_hooi(tensor: Tensor, ranks: Sequence[int]) -> tuple[Tensor, int, list[Tensor]]:
    """HOOI at the feasible ranks, zero-padded to the given ones; also the size of its own core."""
    feasible = [min(k, n) for k, n in zip(ranks, tensor.shape, strict=True)]
    found = hooi(tensor, feasible, max_iter=5)
    core = tensor.new_zeros(*ranks)
    core[tuple(slice(k) for k in feasible)] = found.core
    generator = torch.Generator().manual_seed(0)
    factors = []
    for factor, rank in zip(found.factors, ranks, strict=True):
        # Columns beyond the mode's size must not vanish, or their core slices would never be used.
        matrix = (
            torch.randn(factor.shape[0], rank, generator=generator, device="cpu").to(factor) / rank
        )
        matrix[:, : factor.shape[1]] = factor
        factors.append(matrix)
    return core, prod(feasible), factors


def _solve_factors(tensor: Tensor, core: Tensor, factors: list[Tensor]) -> Tensor:
    """Replace each matrix in turn by the best one; return W ×₁ M₁ᵀ … ×_d M_dᵀ for them."""
    grams = [m.mT @ m for m in factors]
    projected = tensor
    for mode in range(core.ndim):
        projected = project(tensor, factors, skip=mode)
        images = unfold(projected, mode) @ unfold(core, mode).mT
        weighted = core
        for other in (i for i in range(core.ndim) if i != mode):
            weighted = mode_product(weighted, grams[other], other)
        normal = unfold(weighted, mode) @ unfold(core, mode).mT
        solved: Tensor = torch.linalg.solve(_damped(normal), images.mT)
        factors[mode] = solved.mT.contiguous()
        grams[mode] = solved @ solved.mT
    return mode_product(projected, factors[-1].mT, core.ndim - 1)


def _solve_core(target: Tensor, grams: Sequence[Tensor], start: Tensor) -> Tensor:
    """Improve the shared core by conjugate gradients on its normal equations."""
    core, residual = start, target - _weighted(start, grams).sum(0)
    direction, energy = residual, residual.square().sum()
    floor = 1e-20 * target.square().sum()
    for _ in range(CG_STEPS):
        if energy <= floor:
            break
        image = _weighted(direction, grams).sum(0)
        step = energy / (direction * image).sum().clamp_min(1e-300)
        core, residual = core + step * direction, residual - step * image
        previous, energy = energy, residual.square().sum()
        direction = residual + (energy / previous) * direction
    return core


def _weighted(core: Tensor, grams: Sequence[Tensor]) -> Tensor:
    """Return C ×₁ G₁ … ×_d G_d for every layer, from Gram matrices (layers, k_i, k_i) a mode."""
    layers = grams[0].shape[0]
    result = core.expand(layers, *core.shape)
    for gram in grams:
        result = result.reshape(layers, gram.shape[1], -1).mT @ gram
    return result.reshape(layers, *core.shape)


def _damped(gram: Tensor) -> Tensor:
    """Lift a Gram matrix off singularity by a relative 1e-12 of its mean eigenvalue."""
    size = gram.shape[0]
    lift = 1e-12 * gram.diagonal().mean().clamp_min(1e-30)
    return gram + lift * torch.eye(size, dtype=gram.dtype, device=gram.device)
