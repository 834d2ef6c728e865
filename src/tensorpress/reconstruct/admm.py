"""Splits a kernel into a column-sparse part and a low-rank part by ADMM."""

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
"""Iterations for choosing channels; docs/reconstruction.md shows the remaining residuals."""

RETARGETED = 10
"""The target is updated every this many iterations, because each update costs a pass over all
rows."""

_BALANCE, _ADAPTED = 10.0, 100
"""Residual ratio beyond which the penalty is adapted, and the last iteration at which it is."""

Threshold = Callable[[Tensor], float]
"""Maps group norms or singular values to the threshold that is subtracted from them."""

_Rule = Callable[[float, Tensor], float]  # a threshold, from the penalty and the sizes


@dataclass(frozen=True)
class LowRankSparse:
    """An approximation A + B of a matrix.

    Attributes
    ----------
    sparse : Tensor
        A, (out, columns), with whole groups of columns equal to zero.
    low_rank : Tensor
        B, (out, columns).
    primal, dual : list of float
        Relative residuals after every iteration: ‖A + B − M‖, and the change of M.
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
    r"""Split a matrix into a column-sparse and a low-rank part, in the norm of its inputs.

    .. math::
        \min_{A, B} \operatorname{tr} (W - A - B) \Sigma (W - A - B)^T
        + \lambda_1 \|A\|_{2,1} + \lambda_2 \|B\|_*

    The problem is solved by ADMM with M as a copy of A + B. All three steps have closed forms: a
    group soft threshold, a singular value threshold and a linear system.

    Parameters
    ----------
    kernel : Tensor
        W, (out, columns): the dense kernel, or the kernel that fits the responses best.
    second : Tensor
        Σ, (columns, columns).
    sparse_weight, rank_weight : float
        λ₁ and λ₂, positive. With an infinite weight the part is zero.
    width : int
        Columns in a group: k·k for the input channels of a convolution.
    iterations : int
        The largest number of iterations.
    start : LowRankSparse, optional
        Where to start, for example the solution for other weights.
    retarget : callable, optional
        Updates W from M, so that responses are matched after a nonlinearity that follows the layer.
        The scale of Σ then sets how strongly M is drawn to W.

    Raises
    ------
    InvalidArgumentError
        If a weight is not positive, or the width does not divide the columns.

    References
    ----------
    Yu, Liu, Wang, Tao, "On compressing deep models by low rank and sparse decomposition", CVPR
    2017. The l2,1 step: Liu et al. (2013). The nuclear norm: Cai, Candès, Shen (2010). The penalty
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
    """Return the rule that leaves ``number`` sizes above zero."""

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
    # All but A is in the basis of the eigenvectors of Σ: there the M-step is a division, and the
    # nuclear norm is unchanged.
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
        if iteration >= _ADAPTED:  # ADMM may not converge while the penalty changes
            continue
        if primal[-1] > _BALANCE * dual[-1]:
            penalty *= 2
        elif dual[-1] > _BALANCE * primal[-1]:
            penalty /= 2
    return LowRankSparse(a, b @ vectors.T, primal, dual)


def _turned(sparse: Tensor, vectors: Tensor) -> Tensor:
    """Rotate a column-sparse matrix into the basis of the eigenvectors."""
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
    """Split a matrix into A with ``channels`` groups of columns and B of rank ``rank``.

    Every step chooses the thresholds that leave these numbers, so λ₁ and λ₂ change between steps.
    At convergence they are the weights for which `low_rank_sparse` gives these numbers.

    Parameters
    ----------
    kernel, second, width, retarget
        As for `low_rank_sparse`.
    channels, rank : int
        Nonzero groups of columns of A, and the rank of B (0 for no low-rank part).

    Returns
    -------
    chosen : Tensor
        The groups of A, ascending.
    split : LowRankSparse
        The two parts with the residuals.

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
    order = _group_norms(split.sparse, width) + 1e-9 * left  # breaks ties
    return order.topk(channels).indices.sort().values, split


def _group_norms(matrix: Tensor, width: int) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrix.reshape(len(matrix), -1, width), dim=(0, 2))
    return norms


def shrink_groups(matrix: Tensor, by: Threshold, width: int) -> Tensor:
    """Soft-threshold the norms of a matrix's groups of columns.

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
    """Soft-threshold the singular values of a matrix.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([3.0, 0.5]))
    >>> round(float(shrink_singular_values(matrix, lambda values: 1.0).norm()), 5)
    2.0
    """
    if matrix.shape[0] > matrix.shape[1]:
        flat: Tensor = shrink_singular_values(matrix.mT, by)
        return flat.mT
    # The smaller Gram matrix is much faster than an SVD; its errors hit small values, which are
    # cut.
    squares, u = torch.linalg.eigh(matrix @ matrix.mT)
    s = squares.clamp_min(0).sqrt()
    least = by(s)
    left = torch.where(s > least, 1 - least / s.clamp_min(1e-300), 0)
    result: Tensor = (u * left) @ (u.mT @ matrix)
    return result
