"""A kernel as a part on few input channels and a part of low rank, by ADMM."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.relu_fit import Retarget

ITERATIONS = 500
TOLERANCE = 1e-5
CHOOSING = 100
"""Iterations that choose channels; docs/reconstruction.md shows the residuals that are left."""

RETARGETED = 10
"""Every so many iterations the target moves: it costs a pass over all rows, and moves slowly."""

_BALANCE, _ADAPTED = 10.0, 100
"""By which one residual may exceed the other before the penalty is changed, and until when."""

Threshold = Callable[[Tensor], float]
"""What to take off sizes, which are norms of groups of columns or singular values."""

_Rule = Callable[[float, Tensor], float]  # the same, of the penalty and the sizes


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
        Σ times λ then says how strongly M is drawn to W.

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
    >>> split = low_rank_sparse(
    ...     column + row, torch.eye(6), sparse_weight=1.0, rank_weight=1.0
    ... )
    >>> split.sparse.norm(dim=0).nonzero().flatten().tolist()
    [2]
    >>> int(torch.linalg.matrix_rank(split.low_rank, atol=1e-6))
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
    rules = _by_weight(sparse_weight), _by_weight(rank_weight)
    w = kernel.double()
    return _alternated(w, second, rules, width, start, retarget, iterations)


def _by_weight(weight: float) -> _Rule:
    return lambda penalty, _: weight / penalty


def _by_number(number: int) -> _Rule:
    """Leave so many sizes above zero; where this ends, it was for one weight all the time."""

    def next_size(_: float, sizes: Tensor) -> float:
        return float(sizes.sort(descending=True).values[number]) if number < len(sizes) else 0.0

    return next_size


def _alternated(
    w: Tensor,
    second: Tensor,
    rules: tuple[_Rule, _Rule | None],
    width: int,
    start: LowRankSparse | None,
    retarget: Retarget | None,
    iterations: int,
) -> LowRankSparse:
    values, vectors = torch.linalg.eigh(second.double())
    values = values.clamp_min(0)
    penalty = 2 * float(values.mean()) or 1.0
    zeros = torch.zeros_like(w)
    a, b = (start.sparse.to(w), start.low_rank.to(w)) if start else (zeros, zeros)
    # All but A stays in the basis of the eigenvectors, in which the M-step is a division and the
    # nuclear norm is what it was.
    aim, b, turned = 2 * (w @ vectors) * values, b @ vectors, _turned(a, vectors)
    middle, multiplier = turned + b, zeros
    primal, dual = [], []
    size = max(float(w.norm()), 1e-30)
    for iteration in range(iterations):
        # The A-step: a group soft threshold of M - Y / ρ - B, with ρ the penalty.
        rest = middle - multiplier / penalty
        a = shrink_groups((rest - b) @ vectors.T, partial(rules[0], penalty), width)
        turned = _turned(a, vectors)
        if rules[1] is not None:  # the B-step: singular values of M - Y / ρ - A
            b = shrink_singular_values(rest - turned, partial(rules[1], penalty))
        aims = retarget is None or iteration % RETARGETED == 0
        if retarget is not None and aims:
            aim = 2 * (retarget(middle @ vectors.T).to(w) @ vectors) * values
        # The M-step: (2 W Σ + ρ (A + B) + Y) (2 Σ + ρ I)⁻¹, and Y moves by ρ (A + B - M).
        whole = turned + b
        before, middle = middle, (aim + penalty * whole + multiplier) / (2 * values + penalty)
        multiplier = multiplier + penalty * (whole - middle)
        primal.append(float((whole - middle).norm()) / size)
        dual.append(float((middle - before).norm()) / size)
        if aims and max(primal[-1], dual[-1]) < TOLERANCE:
            break
        if iteration >= _ADAPTED:  # a penalty that changes for ever may not converge
            continue
        if primal[-1] > _BALANCE * dual[-1]:
            penalty *= 2
        elif dual[-1] > _BALANCE * primal[-1]:
            penalty /= 2
    return LowRankSparse(a, b @ vectors.T, primal, dual)


def _turned(sparse: Tensor, vectors: Tensor) -> Tensor:
    """Return a matrix, most columns of which are zero, in the basis of the eigenvectors."""
    used = sparse.any(dim=0)
    return sparse[:, used] @ vectors[used]


def split_ranks(
    kernel: Tensor,
    second: Tensor,
    channels: int,
    rank: int,
    *,
    width: int = 1,
    retarget: Retarget | None = None,
) -> tuple[Tensor, LowRankSparse]:
    """Split a matrix so that A has so many groups of columns and B such a rank.

    Every step takes off what leaves these numbers. So λ₁ and λ₂ change with every step; where it
    ends they are those for which `low_rank_sparse` has these numbers.

    Parameters
    ----------
    kernel, second, width, retarget
        As for `low_rank_sparse`.
    channels, rank : int
        Groups of columns of A that are not zero, and the rank of B, 0 for none.

    Returns
    -------
    chosen : Tensor
        The groups of A, ascending.
    split : LowRankSparse
        With the residuals.

    Examples
    --------
    >>> column, row = torch.zeros(4, 6), torch.ones(4, 6)
    >>> column[:, 2] = torch.tensor([5.0, -5.0, 5.0, -5.0])
    >>> chosen, _ = split_ranks(column + row, torch.eye(6), channels=1, rank=1)
    >>> chosen.tolist()
    [2]
    """
    w = kernel.double()
    rules = _by_number(channels), _by_number(rank) if rank else None
    nothing = torch.zeros_like(w)
    start = LowRankSparse(nothing, w, [], []) if rank else LowRankSparse(w, nothing, [], [])
    split = _alternated(w, second, rules, width, start, retarget, CHOOSING)
    left = _group_norms(w - split.low_rank, width)
    order = _group_norms(split.sparse, width) + 1e-9 * left  # should some be equal, or zero
    return order.topk(channels).indices.sort().values, split


def _group_norms(matrix: Tensor, width: int) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrix.reshape(len(matrix), -1, width), dim=(0, 2))
    return norms


def shrink_groups(matrix: Tensor, by: Threshold, width: int) -> Tensor:
    """Return a matrix with the norms of its groups of columns smaller, those below zero.

    Examples
    --------
    >>> shrink_groups(torch.tensor([[3.0, 0.5], [4.0, 0.5]]), lambda norms: 1.0, 1)
    tensor([[2.4000, 0.0000],
            [3.2000, 0.0000]])
    """
    groups, norms = matrix.reshape(len(matrix), -1, width), _group_norms(matrix, width)
    left = (1 - by(norms) / norms.clamp_min(1e-300)).clamp_min(0)
    shrunk: Tensor = groups * left[:, None]
    return shrunk.flatten(1)


def shrink_singular_values(matrix: Tensor, by: Threshold) -> Tensor:
    """Return a matrix with its singular values smaller, those below zero.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([3.0, 0.5]))
    >>> round(float(shrink_singular_values(matrix, lambda values: 1.0).norm()), 5)
    2.0
    """
    if matrix.shape[0] > matrix.shape[1]:
        flat: Tensor = shrink_singular_values(matrix.mT, by)
        return flat.mT
    # By the smaller Gram matrix: much faster than an SVD, and small values become zero anyway.
    squares, u = torch.linalg.eigh(matrix @ matrix.mT)
    s = squares.clamp_min(0).sqrt()
    least = by(s)
    left = torch.where(s > least, 1 - least / s.clamp_min(1e-300), 0)
    result: Tensor = (u * left) @ (u.mT @ matrix)
    return result
