"""A kernel as a part on few input channels and a part of low rank, by ADMM."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.errors import InvalidArgumentError

ITERATIONS = 500
TOLERANCE = 1e-5
_BALANCE = 10.0  # by which one residual may exceed the other before the penalty is changed


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
        λ₁ and λ₂, positive.
    width : int
        Columns of a group, k·k for the input channels of a convolution.
    iterations : int
        At most.
    start : LowRankSparse, optional
        Where to start, such as the solution for other weights.

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
    w, sigma = kernel.double(), second.double()
    values, vectors = torch.linalg.eigh(sigma)  # one for all penalties
    values = values.clamp_min(0)
    aim = 2 * (w @ vectors) * values
    penalty = 2 * float(values.mean()) or 1.0
    a, b = (start.sparse, start.low_rank) if start else (torch.zeros_like(w), torch.zeros_like(w))
    middle, multiplier = a + b, torch.zeros_like(w)
    primal, dual = [], []
    size = max(float(w.norm()), 1e-30)
    for _ in range(iterations):
        a = shrink_groups(middle - b - multiplier / penalty, sparse_weight / penalty, width)
        b = shrink_singular_values(middle - a - multiplier / penalty, rank_weight / penalty)
        right = aim + (penalty * (a + b) + multiplier) @ vectors
        before, middle = middle, (right / (2 * values + penalty)) @ vectors.T
        multiplier = multiplier + penalty * (a + b - middle)
        primal.append(float((a + b - middle).norm()) / size)
        dual.append(float((middle - before).norm()) / size)
        if max(primal[-1], dual[-1]) < TOLERANCE:
            break
        if primal[-1] > _BALANCE * dual[-1]:
            penalty *= 2
        elif dual[-1] > _BALANCE * primal[-1]:
            penalty /= 2
    return LowRankSparse(a, b, primal, dual)


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
    >>> shrink_singular_values(torch.diag(torch.tensor([3.0, 0.5])), 1.0)
    tensor([[2., 0.],
            [0., 0.]])
    """
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found: Tensor = (u * (s - by).clamp_min(0)) @ v
    return found
