"""CP decomposition by alternating least squares, accelerated, from several starts at once."""

from collections.abc import Sequence
from math import prod, sqrt

import torch
from torch import Tensor

from tensorpress.decompose.cp_mttkrp import HalvedTensor, hadamard, identity
from tensorpress.decompose.cp_problem import balance_factors, make_cp_problem
from tensorpress.decompose.cp_tensor import CP
from tensorpress.decompose.spectrum import leading_basis
from tensorpress.decompose.tensor_algebra import mode_product, unfold

SURVIVORS = {20: 2, 60: 1}
"""How many runs, those with the smallest errors, continue after a number of sweeps."""

MOMENTUM, GROWTH, SHRINKAGE = 0.5, 1.1, 0.5
"""The first step of the extrapolation, and its factors after a good and after a bad sweep."""

WINDOW = 10
"""Number of sweeps over which progress is judged."""


def cp_als(
    tensor: Tensor,
    rank: int,
    *,
    max_iter: int = 300,
    tol: float = 1e-6,
    start: CP | None = None,
) -> CP:
    """Decompose a tensor into ``rank`` rank-one terms by alternating least squares.

    Every sweep begins at a point extrapolated from the last two and is accepted only if the error
    falls; otherwise the next sweep begins at the point of the lowest error. Several starts run side
    by side, and the worse ones are dropped. Matrices, and tensors at their largest rank, are
    decomposed directly.

    Parameters
    ----------
    tensor : Tensor
        Tensor of shape (n_1, …, n_d), any floating dtype; computed in float64.
    rank : int
        Number of terms, from 1 to ``max_cp_rank(tensor.shape)``.
    max_iter : int
        Largest number of sweeps over the modes.
    tol : float
        The sweeps end once each of the last ten lowered the error by at most this fraction of it,
        on average.
    start : CP, optional
        The only starting point, instead of those of `initialize_cp`.

    Returns
    -------
    CP
        Terms in the dtype of ``tensor``. A larger ``max_iter`` never gives a larger error.

    Raises
    ------
    InvalidArgumentError
        If the rank or a limit is out of range, or the tensor has fewer than two modes, NaN or
        infinite values, or the start does not fit.

    References
    ----------
    Kolda, Bader (2009), "Tensor decompositions and applications", fig. 3.3. The extrapolation
    follows Ang, Cohen, Gillis, Hien (2021), "Accelerating block coordinate descent for nonnegative
    tensor factorization"; the proximal solves follow Navasca, De Lathauwer, Kindermann (2008),
    "Swamp reducing technique for tensor decomposition".

    Examples
    --------
    >>> cp_als(torch.ones(3, 4, 5), 1).relative_error < 1e-12
    True
    """
    problem = make_cp_problem(tensor, rank, max_iter=max_iter, tol=tol)
    starts = [problem.scale_start(start)] if start else initialize_cp(problem.unit, rank)
    # The first start is exact at the largest rank, and optimal for a matrix.
    if start is None and (len(starts) == 1 or _is_exact(problem.halves, starts[0])):
        return problem.make_result(starts[0], 0, True)
    factors, iterations, converged = _alternate(problem.halves, starts, max_iter, tol)
    return problem.make_result(factors, iterations, converged)


def initialize_cp(tensor: Tensor, rank: int) -> list[list[Tensor]]:
    """Return several sets of factors to start from, since none is best for all kernels.

    Parameters
    ----------
    tensor : Tensor
        Tensor of shape (n_1, …, n_d), d ≥ 2, float64.
    rank : int
        Number of terms, from 1 to ``max_cp_rank(tensor.shape)``.

    Returns
    -------
    list of list of Tensor
        For a matrix, only its singular value decomposition. Otherwise the singular triplets of the
        slices, those after a rotation of the small modes, the leading vectors of all unfoldings,
        and random values; the same at every call.
    """
    if tensor.ndim == 2:
        return [decompose_slices(tensor, rank)]
    generator = torch.Generator().manual_seed(0)
    random = [
        torch.randn(n, rank, generator=generator, device="cpu").to(tensor) for n in tensor.shape
    ]
    bases = [leading_basis(unfold(tensor, mode), size) for mode, size in enumerate(tensor.shape)]
    # Random columns complete the bases of modes that are smaller than the rank.
    leading = [
        torch.cat([basis, matrix[:, basis.shape[1] :]], dim=1)[:, :rank]
        for basis, matrix in zip(bases, random, strict=True)
    ]
    return [
        decompose_slices(tensor, rank),
        decompose_slices(tensor, rank, bases),
        balance_factors([factor / factor.norm(dim=0) for factor in leading]),
        balance_factors([factor / factor.norm(dim=0) for factor in random]),
    ]


def decompose_slices(
    tensor: Tensor, rank: int, bases: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Return the largest singular triplets of all slices over the two longest modes.

    A slice fixes a position in all other modes, where its terms have columns of the identity. The
    terms are orthogonal, so the squared error is the energy of the omitted triplets, and all
    ``max_cp_rank`` triplets together are the tensor itself.

    Parameters
    ----------
    tensor : Tensor
        Tensor of shape (n_1, …, n_d), d ≥ 2.
    rank : int
        Number of terms, from 1 to ``max_cp_rank(tensor.shape)``.
    bases : sequence of Tensor, optional
        Orthogonal matrices, one for each mode, which rotate the small modes first. Singular vectors
        gather the energy in few slices.

    Returns
    -------
    list of Tensor
        Balanced factors of shapes (n_i, rank).

    Examples
    --------
    >>> tensor = torch.ones(3, 4, 2) * torch.tensor([2.0, 1.0])
    >>> factors = decompose_slices(tensor, 2)
    >>> [tuple(factor.shape) for factor in factors], factors[2].sign().tolist()
    ([(3, 2), (4, 2), (2, 2)], [[1.0, 0.0], [0.0, 1.0]])
    """
    by_size = sorted(range(tensor.ndim), key=lambda mode: -tensor.shape[mode])
    large, small = sorted(by_size[:2]), sorted(by_size[2:])
    rotated = tensor
    if bases is None:
        bases = [identity(size, tensor) for size in tensor.shape]
    else:
        for mode in small:
            rotated = mode_product(rotated, bases[mode].mT, mode)
    slices = rotated.permute(*small, *large).flatten(0, tensor.ndim - 3) if small else tensor[None]
    left, right, energies = _singular_triplets(slices)
    # The `rank` triplets of the largest energy, whichever slices they are from.
    top = energies.flatten().topk(rank).indices
    position, index = top // energies.shape[1], top % energies.shape[1]
    factors = {large[0]: left[position, :, index].mT, large[1]: right[position, :, index].mT}
    sizes = [tensor.shape[mode] for mode in small]
    for k, mode in enumerate(small):
        # The position in one mode, from the position in all small modes, the last one fastest.
        factors[mode] = bases[mode][:, position // prod(sizes[k + 1 :]) % sizes[k]]
    return balance_factors([factors[mode] for mode in range(tensor.ndim)])


def _singular_triplets(slices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose matrices S into Σ_k l_k r_kᵀ with one side orthonormal.

    With V from the Gram matrix, S = (SV)Vᵀ holds to rounding however small a singular value is.

    Parameters
    ----------
    slices : Tensor
        Tensor of shape (slices, rows, columns).

    Returns
    -------
    Tensor, Tensor, Tensor
        The vectors l of shape (slices, rows, L) and r of shape (slices, columns, L), and the
        energies |l_k|²|r_k|² of shape (slices, L), with L = min(rows, columns).
    """
    if slices.shape[1] < slices.shape[2]:
        right, left, energies = _singular_triplets(slices.mT)
        return left, right, energies
    vectors = torch.linalg.eigh(slices.mT @ slices).eigenvectors
    images = slices @ vectors
    return images, vectors, images.square().sum(1)


def _is_exact(halves: HalvedTensor, factors: Sequence[Tensor]) -> bool:
    return bool(halves.squared_residual(factors) <= _squared_rounding(halves))


def _squared_rounding(halves: HalvedTensor) -> float:
    """Return the squared error below which there are only rounding errors."""
    eps: float = torch.finfo(halves.matrix.dtype).eps
    return (10 * eps) ** 2 * halves.norm2


@torch.inference_mode()
def _alternate(
    halves: HalvedTensor, starts: Sequence[Sequence[Tensor]], max_iter: int, tol: float
) -> tuple[list[Tensor], int, bool]:
    """Sweep from all starts and return the factors of the best run, sweeps, and convergence.

    All runs are one stack of shape (Σ n_i, runs, r).
    """
    stack = torch.cat([torch.stack(matrices, dim=1) for matrices in zip(*starts, strict=True)])
    # The tensor has norm 1, so an absolute proximal weight is a relative one.
    proximal = torch.finfo(stack.dtype).eps ** 0.75 * identity(stack.shape[-1], stack)
    best, errors2 = _sweep(halves, stack, proximal)
    point, momentum = best, torch.full_like(errors2, MOMENTUM)
    history, iterations, converged = [errors2.tolist()], 1, False
    while iterations < max_iter and not converged:
        factors, new_errors2 = _sweep(halves, point, proximal)
        # A run whose error rises goes back to its best point, without extrapolation.
        improved = new_errors2 < errors2
        step = torch.where(improved[:, None], factors - best, 0.0)
        best = best + step
        errors2 = torch.where(improved, new_errors2, errors2)
        # x ← x_best + β (x_best − x_previous), with β larger after a good sweep.
        momentum = momentum * torch.where(improved, GROWTH, SHRINKAGE)
        point = torch.addcmul(best, momentum[:, None], step)
        iterations += 1
        history = [*history[-WINDOW:], errors2.tolist()]
        converged = _has_settled(history, tol) or min(history[-1]) <= _squared_rounding(halves)
        if iterations in SURVIVORS:
            runs = errors2.argsort()[: SURVIVORS[iterations]]
            best, point, errors2, momentum = (
                best[:, runs],
                point[:, runs],
                errors2[runs],
                momentum[runs],
            )
            history = [[past[run] for run in runs.tolist()] for past in history]
    return list(torch.split(best[:, errors2.argmin()], halves.shape)), iterations, converged


def _has_settled(history: Sequence[Sequence[float]], tol: float) -> bool:
    """Return whether all runs lowered their error by at most a fraction ``tol`` per sweep."""
    return len(history) > WINDOW and all(
        sqrt(before) - sqrt(now) <= WINDOW * tol * sqrt(before)
        for before, now in zip(history[0], history[-1], strict=True)
    )


def _sweep(halves: HalvedTensor, point: Tensor, proximal: Tensor) -> tuple[Tensor, Tensor]:
    """Solve for one factor after another, and return balanced factors and squared errors.

    A tiny proximal weight pulls each factor towards its last value, not towards zero: the systems
    are positive definite, and the fixed points are those of least squares. If rounding makes a
    system indefinite, the weight grows.

    Parameters
    ----------
    halves : HalvedTensor
        The tensor.
    point : Tensor
        Factors of all runs, of shape (Σ n_i, runs, r).
    proximal : Tensor
        The proximal weight times an identity of shape (r, r).

    Returns
    -------
    Tensor, Tensor
        The new factors, of the same shape, and squared errors of shape (runs,).
    """
    factors = list(torch.split(point, halves.shape))
    grams = [_gram(factor) for factor in factors]
    failures = []
    for half, modes in enumerate(halves.modes):
        contracted = halves.contract_half(factors, half)
        for mode in modes:
            # The normal equations of mode m: A Γ = T₍ₘ₎Z, Γ = ZᵀZ the product of the other Grams.
            mttkrp, system = halves.mttkrp(contracted, factors, mode), hadamard(grams, mode)
            lower, failed = torch.linalg.cholesky_ex(system + proximal)
            failures.append(failed)
            # The proximal step A ← A + (T₍ₘ₎Z − A Γ)(Γ + εI)⁻¹.
            rows = factors[mode].transpose(0, 1)
            residual = torch.baddbmm(mttkrp.transpose(0, 1), rows, system, alpha=-1)
            updated = rows + torch.cholesky_solve(residual.mT, lower).mT
            factors[mode], grams[mode] = updated.transpose(0, 1), torch.bmm(updated.mT, updated)
    if bool(torch.cat(failures).any()):
        return _sweep(halves, point, 100 * proximal)
    # Balance the columns of each term as `balance_factors` does, from the norms in the Grams.
    norms2 = torch.stack([gram.diagonal(dim1=-2, dim2=-1) for gram in grams])
    logs = norms2.clamp_min(torch.finfo(norms2.dtype).tiny).log()
    scales = (0.5 * (logs.mean(0) - logs)).exp().unbind()
    scaled = [factor * scale for factor, scale in zip(factors, scales, strict=True)]
    return torch.cat(scaled), halves.squared_error(factors, system * grams[mode], mttkrp)


def _gram(factor: Tensor) -> Tensor:
    """Return the Gram matrices (runs, r, r) of a stack (n, runs, r)."""
    return torch.bmm(factor.permute(1, 2, 0), factor.transpose(0, 1))
