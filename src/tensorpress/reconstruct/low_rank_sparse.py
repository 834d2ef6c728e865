"""A kernel as a part on few input channels and a part of low rank, by ADMM."""

from dataclasses import dataclass
from math import exp, inf, isinf

import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.relu import Retarget

ITERATIONS = 500
TOLERANCE = 1e-5
_SEARCHED = 30  # iterations at each pair of weights
_FIRST_STEP, _SLOWER, _STEPS = 1.5, 0.8, 16  # of the logarithms of the weights
_BALANCE, _ADAPTED = 10.0, 100
"""By which one residual may exceed the other before the penalty is changed, and until when."""


@dataclass(frozen=True)
class LowRankSparse:
    """A + B near a matrix.

    Attributes
    ----------
    sparse : Tensor
        A, (out, columns), whole groups of columns of which are zero.
    low_rank : Tensor
        B, (out, columns).
    primal, dual : list of float
        Residuals after every iteration, relative: of A + B = M, and how far A + B moved.
    """

    sparse: Tensor
    low_rank: Tensor
    primal: list[float]
    dual: list[float]


def low_rank_sparse(
    kernel: Tensor,
    second: Tensor,
    *,
    sparse_weight: float,
    rank_weight: float,
    width: int = 1,
    iterations: int = ITERATIONS,
    start: LowRankSparse | None = None,
    retarget: Retarget | None = None,
) -> LowRankSparse:
    r"""Split a matrix into a column-sparse one and one of low rank, in the norm of its inputs.

    .. math::
        \min_{A, B} \operatorname{tr} (W - A - B) \Sigma (W - A - B)^T
        + \lambda_1 \|A\|_{2,1} + \lambda_2 \|B\|_*

    by ADMM on a copy M of A + B. All three steps have closed forms: a group soft threshold, a
    threshold of singular values, a linear system.

    Parameters
    ----------
    kernel : Tensor
        W, (out, columns): a dense kernel, or the one that fits responses best.
    second : Tensor
        Σ, (columns, columns).
    sparse_weight, rank_weight : float
        λ₁ and λ₂, positive. Infinite, a part is zero.
    width : int
        Columns of a group, k·k for the input channels of a convolution.
    iterations : int
        At most.
    start : LowRankSparse, optional
        Where to start, such as the solution for other weights.
    retarget : callable, optional
        Moves W with M, as a nonlinearity after the layer does: responses are then right behind it.
        Σ times λ then says how strongly M is held to W.

    Raises
    ------
    InvalidArgumentError
        For weights that are not positive, or a width that does not divide the columns.

    References
    ----------
    Yu, Liu, Wang, Tao, "On compressing deep models by low rank and sparse decomposition", CVPR
    2017; the l2,1 step: Liu et al. (2013), the nuclear norm: Cai, Candès, Shen (2010); the penalty
    adapts as in Boyd et al. (2011), section 3.4.1.

    Examples
    --------
    >>> column, row = torch.zeros(4, 6).double(), torch.ones(4, 6).double()
    >>> column[:, 2] = torch.tensor([5.0, -5.0, 5.0, -5.0])
    >>> found = low_rank_sparse(
    ...     column + row, torch.eye(6), sparse_weight=1.0, rank_weight=1.0
    ... )
    >>> found.sparse.norm(dim=0).nonzero().flatten().tolist()
    [2]
    >>> int(torch.linalg.matrix_rank(found.low_rank, atol=1e-6))
    1
    """
    if not (sparse_weight > 0 and rank_weight > 0):
        raise InvalidArgumentError(
            f"the weights must be positive, not {sparse_weight} and {rank_weight}"
        )
    if width < 1 or kernel.shape[1] % width:
        raise InvalidArgumentError(
            f"{kernel.shape[1]} columns do not divide into groups of {width}"
        )
    weights = sparse_weight, rank_weight
    return _alternated(kernel, _eigen(second), weights, width, iterations, start, retarget)


def _eigen(second: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and -vectors, which are enough for all penalties and weights."""
    values, vectors = torch.linalg.eigh(second.double())
    return values.clamp_min(0), vectors


def _alternated(
    kernel: Tensor,
    eigen: tuple[Tensor, Tensor],
    weights: tuple[float, float],
    width: int,
    iterations: int,
    start: LowRankSparse | None,
    retarget: Retarget | None = None,
) -> LowRankSparse:
    w, (values, vectors), (sparse_weight, rank_weight) = kernel.double(), eigen, weights
    aim = 2 * (w @ vectors) * values  # in the basis of the eigenvectors
    penalty = 2 * float(values.mean()) or 1.0
    a, b = (start.sparse, start.low_rank) if start else (torch.zeros_like(w), torch.zeros_like(w))
    middle, multiplier = a + b, torch.zeros_like(w)
    primal, dual = [], []
    size = max(float(w.norm()), 1e-30)
    for iteration in range(iterations):
        a = shrink_groups(middle - b - multiplier / penalty, sparse_weight / penalty, width)
        b = shrink_singular_values(middle - a - multiplier / penalty, rank_weight / penalty)
        if retarget is not None:
            aim = 2 * (retarget(middle).double() @ vectors) * values
        right = aim + (penalty * (a + b) + multiplier) @ vectors
        before, middle = middle, (right / (2 * values + penalty)) @ vectors.T
        multiplier = multiplier + penalty * (a + b - middle)
        primal.append(float((a + b - middle).norm()) / size)
        dual.append(float((middle - before).norm()) / size)
        if max(primal[-1], dual[-1]) < TOLERANCE:
            break
        if iteration >= _ADAPTED:
            continue
        if primal[-1] > _BALANCE * dual[-1]:
            penalty *= 2
        elif dual[-1] > _BALANCE * primal[-1]:
            penalty /= 2
    return LowRankSparse(a, b, primal, dual)


def split_for(
    kernel: Tensor,
    second: Tensor,
    channels: int,
    rank: int,
    *,
    width: int = 1,
    retarget: Retarget | None = None,
) -> tuple[Tensor, LowRankSparse]:
    """Split a matrix so that A has so many groups of columns and B about such a rank.

    λ₁ and λ₂ are moved until the numbers are met, as nearly as one pair of weights meets both.

    Parameters
    ----------
    kernel, second, width, retarget
        As for `low_rank_sparse`.
    channels, rank : int
        Groups of columns of A that are not zero, and the rank of B, 0 for none.

    Returns
    -------
    kept : Tensor
        The groups of A, ascending: those that are largest where more or fewer are not zero.
    split : LowRankSparse
        With the residuals at the last weights.

    Examples
    --------
    >>> column, row = torch.zeros(4, 6), torch.ones(4, 6)
    >>> column[:, 2] = torch.tensor([5.0, -5.0, 5.0, -5.0])
    >>> kept, _ = split_for(column + row, torch.eye(6), channels=1, rank=1)
    >>> kept.tolist()
    [2]
    """
    slope = 2 * kernel.double() @ second.double()
    norms = torch.linalg.vector_norm(slope.reshape(len(slope), -1, width), dim=(0, 2))
    largest = float(torch.linalg.matrix_norm(slope, 2)) or 1.0
    sparse_weight, rank_weight = (float(norms.median()) or 1.0) / 4, largest / 8 if rank else inf
    eigen = _eigen(second)
    step, found = _FIRST_STEP, None
    for _ in range(_STEPS):
        weights = sparse_weight, rank_weight
        found = _alternated(kernel, eigen, weights, width, _SEARCHED, found)
        more = int((_group_norms(found.sparse, width) > 0).sum()) - channels
        higher = int(torch.linalg.matrix_rank(found.low_rank)) - rank if rank else 0
        sparse_weight *= exp(step * ((more > 0) - (more < 0)))
        rank_weight *= exp(step * ((higher > 0) - (higher < 0)))
        step *= _SLOWER
    weights = sparse_weight, rank_weight
    found = _alternated(kernel, eigen, weights, width, ITERATIONS, found, retarget)
    wanted = kernel if retarget is None else retarget(found.sparse + found.low_rank)
    left = _group_norms(wanted.double() - found.low_rank, width)
    order = _group_norms(found.sparse, width) + 1e-9 * left  # of those that are zero the best
    return order.topk(channels).indices.sort().values, found


def _group_norms(matrix: Tensor, width: int) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrix.reshape(len(matrix), -1, width), dim=(0, 2))
    return norms


def shrink_groups(matrix: Tensor, by: float, width: int) -> Tensor:
    """Return a matrix with the norms of its groups of columns smaller, those below zero.

    Examples
    --------
    >>> shrink_groups(torch.tensor([[3.0, 0.5], [4.0, 0.5]]), 1.0, 1)
    tensor([[2.4000, 0.0000],
            [3.2000, 0.0000]])
    """
    groups = matrix.reshape(len(matrix), -1, width)
    norms = torch.linalg.vector_norm(groups, dim=(0, 2), keepdim=True)
    kept: Tensor = groups * (1 - by / norms.clamp_min(1e-300)).clamp_min(0)
    return kept.flatten(1)


def shrink_singular_values(matrix: Tensor, by: float) -> Tensor:
    """Return a matrix with its singular values smaller, those below zero.

    Examples
    --------
    >>> round(float(shrink_singular_values(torch.diag(torch.tensor([3.0, 0.5])), 1.0).norm()), 5)
    2.0
    """
    if isinf(by):
        return torch.zeros_like(matrix)
    if matrix.shape[0] > matrix.shape[1]:
        flat: Tensor = shrink_singular_values(matrix.mT, by)
        return flat.mT
    # By the smaller Gram matrix: much faster than an SVD, and small values become zero anyway.
    squares, u = torch.linalg.eigh(matrix @ matrix.mT)
    s = squares.clamp_min(0).sqrt()
    left = torch.where(s > by, 1 - by / s.clamp_min(1e-300), 0)
    found: Tensor = (u * left) @ (u.mT @ matrix)
    return found
