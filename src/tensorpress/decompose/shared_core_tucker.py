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
"""Conjugate gradient steps per sweep, starting from the core of the last sweep."""


@dataclass(frozen=True)
class SharedTucker:
    """Tucker decompositions Ŵ_l = C ×₁ M₁⁽ˡ⁾ … ×_d M_d⁽ˡ⁾ of several tensors with one core.

    Attributes
    ----------
    core : Tensor
        The core C, of shape (k_1, …, k_d).
    factors : tuple of tuple of Tensor
        For each tensor, d matrices of shapes (n_i⁽ˡ⁾, k_i).
    relative_errors : tuple of float
        ‖W_l − Ŵ_l‖ / ‖W_l‖ for each tensor, accurate to about 1e-8; 0 for a zero tensor.
    iterations : int
        Number of sweeps over core and matrices.
    converged : bool
        Whether the tolerance was met within the iterations allowed.
    """

    core: Tensor
    factors: tuple[tuple[Tensor, ...], ...]
    relative_errors: tuple[float, ...]
    iterations: int
    converged: bool


def shared_tucker(
    tensors: Sequence[Tensor], ranks: Sequence[int], *, max_iter: int = 100, tol: float = 1e-6
) -> SharedTucker:
    """Fit several tensors of the same order with one core, by alternating least squares.

    The fit minimizes Σ_l ‖W_l − C ×₁ M₁⁽ˡ⁾ … ×_d M_d⁽ˡ⁾‖² / ‖W_l‖² over the core and all matrices.
    Each matrix is the solution of a linear system, and so is the core, whose normal equations
    Σ_l ⊗_i (M_i⁽ˡ⁾ᵀM_i⁽ˡ⁾) are only applied, never built. A mode may be smaller than its rank: a
    tensor of lower order has modes of size 1.

    Parameters
    ----------
    tensors : sequence of Tensor
        Tensors of shapes (n_1⁽ˡ⁾, …, n_d⁽ˡ⁾), all of order d, any floating dtype; computed in
        float64.
    ranks : sequence of int
        The shape (k_1, …, k_d) of the core.
    max_iter : int
        Largest number of sweeps over core and matrices.
    tol : float
        The sweeps end once one lowers the mean squared relative error by no more than this.

    Returns
    -------
    SharedTucker
        The core in the dtype of the first tensor, matrices in the dtype of their tensor.

    Raises
    ------
    InvalidArgumentError
        If the orders differ from the number of ranks, a rank is below 1, or a tensor has NaN or
        infinite values.

    References
    ----------
    The model is eq. 8 of Zhong, Wei, Lin, Zhang (2019), "ADA-Tucker", where it is trained from
    random values. Here it is fitted to trained weights.

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
    # Start from the HOOI of every tensor, with the core that has the most nonzero entries.
    starts = [_start_from_hooi(tensor, ranks) for tensor in scaled]
    core = max(starts, key=lambda start: (start[1], float(start[0].norm())))[0]
    factors = [start[2] for start in starts]
    loss, iterations, converged = float("inf"), 0, False
    while not converged and iterations < max_iter:
        # All matrices given the core, then the core given all matrices.
        projected = torch.stack(
            [_solve_factors(t, core, matrices) for t, matrices in zip(scaled, factors, strict=True)]
        )
        grams = [torch.stack([m.mT @ m for m in side]) for side in zip(*factors, strict=True)]
        core = _solve_core(projected.sum(0), grams, core)
        # ‖W − Ŵ‖² = ‖W‖² − 2⟨W, Ŵ⟩ + ‖Ŵ‖², where ‖W‖ = 1, ⟨W, Ŵ⟩ = ⟨C, W ×₁ M₁ᵀ … ×_d M_dᵀ⟩ and
        # ‖Ŵ‖² = ⟨C, C ×₁ G₁ … ×_d G_d⟩ with G_i = M_iᵀM_i.
        changes = (core * (_multiply_grams(core, grams) - 2 * projected)).flatten(1).sum(1)
        errors2 = [
            max(change + 1.0, 0.0) if norm else 0.0
            for change, norm in zip(changes.tolist(), norms, strict=True)
        ]
        previous, loss = loss, sum(errors2) / len(errors2)
        iterations += 1
        converged = previous - loss <= tol
    return SharedTucker(
        core.to(tensors[0].dtype),
        # Each of the d matrices takes an equal part of the norm.
        tuple(
            tuple((m * norm ** (1 / order)).to(tensor.dtype) for m in matrices)
            for tensor, matrices, norm in zip(tensors, factors, norms, strict=True)
        ),
        tuple(map(sqrt, errors2)),
        iterations,
        converged,
    )


def _start_from_hooi(tensor: Tensor, ranks: Sequence[int]) -> tuple[Tensor, int, list[Tensor]]:
    """Return the HOOI core padded with zeros to the ranks, its size before, and the matrices."""
    feasible = [min(k, n) for k, n in zip(ranks, tensor.shape, strict=True)]
    result = hooi(tensor, feasible, max_iter=5)
    core = tensor.new_zeros(*ranks)
    core[tuple(slice(k) for k in feasible)] = result.core
    generator = torch.Generator().manual_seed(0)
    factors = []
    for factor, rank in zip(result.factors, ranks, strict=True):
        # Columns beyond the size of the mode must not vanish, or their core slices stay unused.
        matrix = (
            torch.randn(factor.shape[0], rank, generator=generator, device="cpu").to(factor) / rank
        )
        matrix[:, : factor.shape[1]] = factor
        factors.append(matrix)
    return core, prod(feasible), factors


def _solve_factors(tensor: Tensor, core: Tensor, factors: list[Tensor]) -> Tensor:
    """Replace each matrix in turn by the best one; return W ×₁ M₁ᵀ … ×_d M_dᵀ for the new ones.

    Parameters
    ----------
    tensor : Tensor
        The tensor W, of shape (n_1, …, n_d).
    core : Tensor
        The core C, of shape (k_1, …, k_d).
    factors : list of Tensor
        Matrices of shapes (n_i, k_i), replaced in place.
    """
    grams = [m.mT @ m for m in factors]
    projected = tensor
    for mode in range(core.ndim):
        # With B = (C ×_{i≠m} M_i)₍ₘ₎, the best M_m solves M_m (B Bᵀ) = W₍ₘ₎Bᵀ.
        projected = project(tensor, factors, skip=mode)
        target = unfold(projected, mode) @ unfold(core, mode).mT
        # B Bᵀ = (C ×_{i≠m} M_iᵀM_i)₍ₘ₎ C₍ₘ₎ᵀ
        weighted = core
        for other in (i for i in range(core.ndim) if i != mode):
            weighted = mode_product(weighted, grams[other], other)
        normal = unfold(weighted, mode) @ unfold(core, mode).mT
        solution: Tensor = torch.linalg.solve(_regularize(normal), target.mT)
        factors[mode] = solution.mT.contiguous()
        grams[mode] = solution @ solution.mT
    return mode_product(projected, factors[-1].mT, core.ndim - 1)


def _solve_core(target: Tensor, grams: Sequence[Tensor], start: Tensor) -> Tensor:
    """Improve the core by conjugate gradients on Σ_l C ×₁ G₁⁽ˡ⁾ … ×_d G_d⁽ˡ⁾ = target.

    Parameters
    ----------
    target : Tensor
        Σ_l W_l ×₁ M₁⁽ˡ⁾ᵀ … ×_d M_d⁽ˡ⁾ᵀ, of the shape of the core.
    grams : sequence of Tensor
        Gram matrices of shape (tensors, k_i, k_i), one tensor for each mode.
    start : Tensor
        The core to start from.
    """
    core, residual = start, target - _multiply_grams(start, grams).sum(0)
    direction, energy = residual, residual.square().sum()
    floor = 1e-20 * target.square().sum()
    for _ in range(CG_STEPS):
        if energy <= floor:
            break
        # The exact line search along the direction, then the next conjugate direction.
        product = _multiply_grams(direction, grams).sum(0)
        step = energy / (direction * product).sum().clamp_min(1e-300)
        core, residual = core + step * direction, residual - step * product
        previous, energy = energy, residual.square().sum()
        direction = residual + (energy / previous) * direction
    return core


def _multiply_grams(core: Tensor, grams: Sequence[Tensor]) -> Tensor:
    """Return C ×₁ G₁⁽ˡ⁾ … ×_d G_d⁽ˡ⁾ for every tensor l, of shape (tensors, k_1, …, k_d)."""
    count = grams[0].shape[0]
    result = core.expand(count, *core.shape)
    for gram in grams:
        # The multiplied mode moves to the end, so that d products end with the modes in order.
        result = result.reshape(count, gram.shape[1], -1).mT @ gram
    return result.reshape(count, *core.shape)


def _regularize(gram: Tensor) -> Tensor:
    """Return a Gram matrix G + λI, with λ a relative 1e-12 of the mean eigenvalue."""
    size = gram.shape[0]
    shift = 1e-12 * gram.diagonal().mean().clamp_min(1e-30)
    return gram + shift * torch.eye(size, dtype=gram.dtype, device=gram.device)
