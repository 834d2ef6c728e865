"""CP decomposition by alternating least squares, accelerated, from several starts at once."""

from collections.abc import Sequence
from math import prod, sqrt

import torch
from torch import Tensor

from tensorpress.decompose.cp_mttkrp import Halves, hadamard, identity
from tensorpress.decompose.cp_normal_equations import balance_factors, make_cp_problem
from tensorpress.decompose.cp_tensor import CP
from tensorpress.decompose.spectrum import leading_basis
from tensorpress.decompose.tensor_algebra import mode_product, unfold


def cp_starts(tensor: Tensor, rank: int) -> list[list[Tensor]]:
    """Return factors to start from, always the same ones; no single kind is best on all kernels.

    Parameters
    ----------
    tensor : Tensor
        Shape (n_1, …, n_d), d ≥ 2, float64.
    rank : int
        At most ``max_cp_rank``.

    Returns
    -------
    list of list of Tensor
        For a matrix its singular value decomposition alone; otherwise the slices' singular triplets
        as they are and after rotating the small modes, the leading vectors of all unfoldings, and
        random values.
    """
    if tensor.ndim == 2:
        return [slice_start(tensor, rank)]
    generator = torch.Generator().manual_seed(0)
    random = [
        torch.randn(n, rank, generator=generator, device="cpu").to(tensor) for n in tensor.shape
    ]
    bases = [leading_basis(unfold(tensor, mode), size) for mode, size in enumerate(tensor.shape)]
    leading = [
        torch.cat([b, f[:, b.shape[1] :]], dim=1)[:, :rank]
        for b, f in zip(bases, random, strict=True)
    ]
    return [
        slice_start(tensor, rank),
        slice_start(tensor, rank, bases),
        balance_factors([factor / factor.norm(dim=0) for factor in leading]),
        balance_factors([factor / factor.norm(dim=0) for factor in random]),
    ]


def slice_start(tensor: Tensor, rank: int, bases: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Return the largest singular triplets of all slices over the two longest modes.

    A slice is one position in the other modes, whose columns mark it. The terms are orthogonal, so
    the squared error is the discarded energy, and all triplets together, ``max_cp_rank`` many, are
    the tensor itself.

    Parameters
    ----------
    tensor : Tensor
        Shape (n_1, …, n_d), d ≥ 2.
    rank : int
        Number of terms, at most ``max_cp_rank``.
    bases : sequence of Tensor, optional
        An orthogonal matrix a mode to turn the small modes to first: their singular vectors gather
        the energy in few slices.

    Examples
    --------
    >>> factors = slice_start(torch.ones(3, 4, 2) * torch.tensor([2.0, 1.0]), 2)
    >>> [tuple(factor.shape) for factor in factors], factors[2].sign().tolist()
    ([(3, 2), (4, 2), (2, 2)], [[1.0, 0.0], [0.0, 1.0]])
    """
    by_size = sorted(range(tensor.ndim), key=lambda mode: -tensor.shape[mode])
    large, small = sorted(by_size[:2]), sorted(by_size[2:])
    rest = tensor
    if bases is None:
        bases = [identity(size, tensor) for size in tensor.shape]
    else:
        for mode in small:
            rest = mode_product(rest, bases[mode].mT, mode)
    slices = rest.permute(*small, *large).flatten(0, tensor.ndim - 3) if small else tensor[None]
    left, right, energies = _triplets(slices)
    top = energies.flatten().topk(rank).indices
    position, index = top // energies.shape[1], top % energies.shape[1]
    factors = {large[0]: left[position, :, index].mT, large[1]: right[position, :, index].mT}
    places = _unravelled(position, [tensor.shape[mode] for mode in small])
    for mode, place in zip(small, places, strict=True):
        factors[mode] = bases[mode][:, place]
    return balance_factors([factors[mode] for mode in range(tensor.ndim)])


def _triplets(slices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose matrices S into Σ_k l_k r_kᵀ: one side orthonormal, with the energies |l_k|²|r_k|².

    With V from the Gram matrix, S = (SV)Vᵀ holds to rounding however small a singular value is.
    """
    if slices.shape[1] < slices.shape[2]:
        right, left, energies = _triplets(slices.mT)
        return left, right, energies
    vectors = torch.linalg.eigh(slices.mT @ slices).eigenvectors
    images = slices @ vectors
    return images, vectors, images.square().sum(1)


def _unravelled(position: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Split positions in a tensor of the given sizes into positions in its modes."""
    return [position // prod(sizes[i + 1 :]) % size for i, size in enumerate(sizes)]


SURVIVORS = {20: 2, 60: 1}
"""After so many sweeps only the so many best runs go on."""

MOMENTUM, FASTER, SLOWER = 0.5, 1.1, 0.5
"""How far to extrapolate at first, and by what it grows when that went well and shrinks if not."""

WINDOW = 10
"""Sweeps over which progress is judged."""


def cp_als(
    tensor: Tensor,
    rank: int,
    *,
    max_iter: int = 300,
    tol: float = 1e-6,
    start: CP | None = None,
) -> CP:
    """Decompose into ``rank`` rank-one terms by alternating least squares.

    Every sweep begins at a point extrapolated from the last two and counts only if the error falls;
    otherwise the next one begins where the error was lowest. Several starts run side by side and
    the worse are given up. The largest rank, and matrices, are decomposed directly.

    Parameters
    ----------
    tensor : Tensor
        Shape (n_1, …, n_d), any floating dtype; computed in float64.
    rank : int
        Number of terms, from 1 to ``max_cp_rank(tensor.shape)``.
    max_iter : int
        Most sweeps over the modes.
    tol : float
        Stop once ten sweeps lower the error by no more than this part of it a sweep.
    start : CP, optional
        Begin here, and only here, instead of at the starts of our own.

    Returns
    -------
    CP
        In the dtype of ``tensor``; the error never rises with ``max_iter``.

    Raises
    ------
    InvalidArgumentError
        For a rank out of range, fewer than two modes, NaN or infinite values, a start that does
        not fit, or a limit out of range.

    References
    ----------
    Kolda, Bader (2009), "Tensor decompositions and applications", fig. 3.3. The extrapolation
    follows Ang, Cohen, Gillis, Hien (2021), "Accelerating block coordinate descent for nonnegative
    tensor factorization", the solves are proximal as in Navasca, De Lathauwer, Kindermann (2008),
    "Swamp reducing technique for tensor decomposition".

    Examples
    --------
    >>> cp_als(torch.ones(3, 4, 5), 1).relative_error < 1e-12
    True
    """
    problem = make_cp_problem(tensor, rank, max_iter=max_iter, tol=tol)
    starts = [problem.factors_of(start)] if start else cp_starts(problem.unit, rank)
    # The first start is exact at the largest rank, and the best there is for a matrix.
    if start is None and (len(starts) == 1 or _exact(problem.halves, starts[0])):
        return problem.result(starts[0], 0, True)
    factors, iterations, converged = _alternate(problem.halves, starts, max_iter, tol)
    return problem.result(factors, iterations, converged)


def _exact(halves: Halves, factors: Sequence[Tensor]) -> bool:
    return bool(halves.residual2(factors) <= _rounding2(halves))


def _rounding2(halves: Halves) -> float:
    """Squared errors below this are rounding."""
    eps: float = torch.finfo(halves.matrix.dtype).eps
    return (10 * eps) ** 2 * halves.norm2


@torch.inference_mode()
def _alternate(
    halves: Halves, starts: Sequence[Sequence[Tensor]], max_iter: int, tol: float
) -> tuple[list[Tensor], int, bool]:
    """Sweep from all starts, as one stack (Σ n_i, runs, r), and return the best run's factors."""
    stacked = torch.cat([torch.stack(matrices, dim=1) for matrices in zip(*starts, strict=True)])
    # The tensor has norm 1, so an absolute weight is a relative one.
    hold = torch.finfo(stacked.dtype).eps ** 0.75 * identity(stacked.shape[-1], stacked)
    best, errors2 = _sweep(halves, stacked, hold)
    point, momentum = best, torch.full_like(errors2, MOMENTUM)
    history, iterations, converged = [errors2.tolist()], 1, False
    while iterations < max_iter and not converged:
        found, found2 = _sweep(halves, point, hold)
        better = found2 < errors2
        step = torch.where(better[:, None], found - best, 0.0)
        best = best + step
        errors2 = torch.where(better, found2, errors2)
        momentum = momentum * torch.where(better, FASTER, SLOWER)
        point = torch.addcmul(best, momentum[:, None], step)
        iterations += 1
        history = [*history[-WINDOW:], errors2.tolist()]
        converged = _settled(history, tol) or min(history[-1]) <= _rounding2(halves)
        if iterations in SURVIVORS:
            kept = errors2.argsort()[: SURVIVORS[iterations]]
            best, point, errors2, momentum = (
                best[:, kept],
                point[:, kept],
                errors2[kept],
                momentum[kept],
            )
            history = [[past[run] for run in kept.tolist()] for past in history]
    return list(torch.split(best[:, errors2.argmin()], halves.shape)), iterations, converged


def _settled(history: Sequence[Sequence[float]], tol: float) -> bool:
    """Whether all runs lowered their error by no more than ``tol`` of it a sweep."""
    return len(history) > WINDOW and all(
        sqrt(before) - sqrt(now) <= WINDOW * tol * sqrt(before)
        for before, now in zip(history[0], history[-1], strict=True)
    )


def _sweep(halves: Halves, point: Tensor, hold: Tensor) -> tuple[Tensor, Tensor]:
    """Solve for one factor after another; return them all, balanced, and the squared errors.

    A factor is held to where it is by a tiny weight, not shrunk: the fixed points are those of
    least squares, and the systems positive definite. Where rounding says otherwise it grows.
    """
    factors = list(torch.split(point, halves.shape))
    grams = [_gram(factor) for factor in factors]
    failures = []
    for half, modes in enumerate(halves.modes):
        contracted = halves.contracted(factors, half)
        for mode in modes:
            image, system = halves.image(contracted, factors, mode), hadamard(grams, mode)
            lower, failed = torch.linalg.cholesky_ex(system + hold)
            failures.append(failed)
            rows = factors[mode].transpose(0, 1)
            residual = torch.baddbmm(image.transpose(0, 1), rows, system, alpha=-1)
            moved = rows + torch.cholesky_solve(residual.mT, lower).mT
            factors[mode], grams[mode] = moved.transpose(0, 1), torch.bmm(moved.mT, moved)
    if bool(torch.cat(failures).any()):
        return _sweep(halves, point, 100 * hold)
    norms2 = torch.stack([gram.diagonal(dim1=-2, dim2=-1) for gram in grams])
    logs = norms2.clamp_min(torch.finfo(norms2.dtype).tiny).log()
    scales = (0.5 * (logs.mean(0) - logs)).exp().unbind()
    scaled = [factor * scale for factor, scale in zip(factors, scales, strict=True)]
    return torch.cat(scaled), halves.error2(factors, system * grams[mode], image)


def _gram(factor: Tensor) -> Tensor:
    """Gram matrices (runs, r, r) of a stack (n, runs, r)."""
    return torch.bmm(factor.permute(1, 2, 0), factor.transpose(0, 1))
