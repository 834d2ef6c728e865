"""Products of a TT-matrix with vectors, their cost, and the cheapest order of contraction."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from math import prod
from operator import itemgetter

import torch
from torch import Tensor

from tensorpress.decompose.tensor_algebra import check_cores
from tensorpress.errors import InvalidArgumentError

FEW_COLUMNS = 32
"""Below this number of columns, a stack of products is slower than one product of a copy."""

MACS_PER_WRITE = 16
"""Number of multiplications that take as long as writing one number between two steps."""


@dataclass(frozen=True)
class TTOrder:
    """An order for the product of a TT-matrix with vectors.

    Attributes
    ----------
    groups : tuple of int
        Numbers of neighbouring cores that are merged first, from left to right; they sum to d.
    from_left : bool
        Whether the contraction starts with the first core, or with the last.
    macs : int
        Multiply–accumulates of merging and contracting.
    """

    groups: tuple[int, ...]
    from_left: bool
    macs: int


def tt_multiply(cores: Sequence[Tensor], x: Tensor, *, from_left: bool) -> Tensor:
    """Multiply vectors by a TT-matrix without building the matrix; differentiable.

    The state keeps the contracted rank next to the next column mode, and the finished row modes in
    front of them (from the left) or behind them (from the right), so that every step is a stack of
    matrix products without a copy. The vectors are the last axis, which makes the products wide.

    Parameters
    ----------
    cores : sequence of Tensor
        d tensors of shapes (r_{k-1}, m_k, n_k, r_k), with r_0 = r_d = 1.
    x : Tensor
        Vectors of shape (*, n_1⋯n_d), in the dtype of the cores.
    from_left : bool
        Whether to start with the first core, or with the last; `tt_macs` gives the cost of both.

    Returns
    -------
    Tensor
        Tensor of shape (*, m_1⋯m_d).

    Raises
    ------
    InvalidArgumentError
        If the cores do not make a train, or do not fit the vectors.

    References
    ----------
    Novikov, Podoprikhin, Osokin, Vetrov (2015), "Tensorizing neural networks", sec. 4.

    Examples
    --------
    >>> cores = [torch.eye(2).reshape(1, 2, 2, 1), 3 * torch.eye(2).reshape(1, 2, 2, 1)]
    >>> tt_multiply(cores, torch.tensor([1.0, 2.0, 3.0, 4.0]), from_left=True).tolist()
    [3.0, 6.0, 9.0, 12.0]
    """
    check_cores(cores, modes=2)
    columns = prod([core.shape[2] for core in cores])  # torch.compile traces no generator here
    if x.ndim == 0 or x.shape[-1] != columns:
        raise InvalidArgumentError(
            f"a TT-matrix of {columns} columns needs vectors (*, {columns}), "
            f"got shape {tuple(x.shape)}"
        )
    count = prod(x.shape[:-1])
    state = x.reshape(count, columns).mT
    finished, remaining = 1, columns  # products of the row modes so far and the column modes left
    for core in cores if from_left else reversed(cores):
        left, m, n, right = core.shape
        remaining //= n
        if from_left:
            # (m_1⋯m_{k-1}, r_{k-1}·n_k, n_{k+1}⋯n_d·count) → (m_1⋯m_{k-1}, m_k·r_k, …)
            matrix = core.permute(1, 3, 0, 2).reshape(m * right, left * n)
            stack = state.reshape(finished, left * n, remaining * count)
        else:
            # (n_1⋯n_{k-1}, n_k·r_k, m_{k+1}⋯m_d·count) → (n_1⋯n_{k-1}, r_{k-1}·m_k, …)
            matrix = core.reshape(left * m, n * right)
            stack = state.reshape(remaining, n * right, finished * count)
        state = _multiply_stack(matrix, stack, one_vector=count == 1)
        finished *= m
    return state.reshape(finished, count).mT.reshape(*x.shape[:-1], finished)


def tt_macs(
    row_modes: Sequence[int], column_modes: Sequence[int], ranks: Sequence[int], from_left: bool
) -> int:
    """Return the multiply–accumulates of `tt_multiply` for one vector.

    Parameters
    ----------
    row_modes, column_modes : sequence of int
        The modes (m_1, …, m_d) and (n_1, …, n_d).
    ranks : sequence of int
        The d − 1 inner ranks.
    from_left : bool
        Whether the contraction starts with the first core, or with the last.

    Raises
    ------
    InvalidArgumentError
        If the numbers of modes differ, or the number of ranks is not one less.

    Examples
    --------
    >>> modes = (4, 4, 4, 4, 4, 4), (2, 7, 8, 8, 7, 4)
    >>> [tt_macs(*modes, (4, 4, 4, 4, 4), from_left) for from_left in (True, False)]
    [6889472, 3645440]
    """
    train = _TTSizes.from_ranks(row_modes, column_modes, ranks)
    return sum(train.step_macs(k, k + 1, from_left) for k in range(len(row_modes)))


def tt_merge(cores: Sequence[Tensor], groups: Sequence[int]) -> tuple[Tensor, ...]:
    """Contract neighbouring cores of a TT-matrix to fewer, larger ones; differentiable.

    Parameters
    ----------
    cores : sequence of Tensor
        Tensors of shapes (r_{k-1}, m_k, n_k, r_k).
    groups : sequence of int
        Numbers of neighbours to merge, from left to right, which sum to the number of cores.

    Returns
    -------
    tuple of Tensor
        The cores of the same matrix over the merged modes.

    Raises
    ------
    InvalidArgumentError
        If the groups do not sum to the number of cores.

    Examples
    --------
    >>> cores = [torch.ones(1, 2, 3, 4), torch.ones(4, 5, 2, 3), torch.ones(3, 2, 2, 1)]
    >>> [tuple(core.shape) for core in tt_merge(cores, (2, 1))]
    [(1, 10, 6, 3), (3, 2, 2, 1)]
    """
    if sum(groups) != len(cores) or min(groups) < 1:
        raise InvalidArgumentError(
            f"groups of neighbours must add up to {len(cores)} TT-cores, got {tuple(groups)}"
        )
    iterator = iter(cores)
    return tuple(reduce(tt_join, [next(iterator) for _ in range(size)]) for size in groups)


def tt_join(left: Tensor, right: Tensor) -> Tensor:
    """Contract neighbouring cores (r, m, n, s) and (s, p, q, t) to one core (r, m·p, n·q, t)."""
    # Σ_s L[r, m, n, s] R[s, p, q, t], then (r, m, n, p, q, t) → (r, m, p, n, q, t).
    product = left.flatten(0, 2) @ right.flatten(1)
    product = product.reshape(*left.shape[:3], *right.shape[1:])
    return product.transpose(2, 3).flatten(1, 2).flatten(2, 3)


def cheapest_tt_order(
    row_modes: Sequence[int], column_modes: Sequence[int], ranks: Sequence[int], *, vectors: int
) -> TTOrder:
    """Return the groups of neighbours to merge and the direction that take the least time.

    Every number that a step writes counts as 16 multiplications. Merging replaces several narrow
    products by a wide one. It pays off if ranks are large compared with the modes that they join,
    and if many vectors share its cost. All cores are never merged into one, which would be the
    matrix.

    Parameters
    ----------
    row_modes, column_modes : sequence of int
        The modes (m_1, …, m_d) and (n_1, …, n_d).
    ranks : sequence of int
        The d − 1 inner ranks.
    vectors : int
        Number of vectors that are multiplied at once.

    Returns
    -------
    TTOrder
        The order for `tt_merge` and `tt_multiply`.

    Raises
    ------
    InvalidArgumentError
        If the numbers of modes differ, or the number of ranks is not one less.

    Examples
    --------
    >>> cheapest_tt_order((4, 4, 4), (4, 4, 4), (4, 4), vectors=100)
    TTOrder(groups=(2, 1), from_left=True, macs=516096)
    """
    return _cheapest_order(_TTSizes.from_ranks(row_modes, column_modes, ranks), vectors)


@dataclass(frozen=True)
class _TTSizes:
    """The sizes of a TT-matrix, and the costs of its contractions.

    Attributes
    ----------
    row_modes, column_modes : tuple of int
        The modes (m_1, …, m_d) and (n_1, …, n_d).
    ends : tuple of int
        All ranks (r_0, …, r_d), with r_0 = r_d = 1.
    """

    row_modes: tuple[int, ...]
    column_modes: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def from_ranks(
        cls, row_modes: Sequence[int], column_modes: Sequence[int], ranks: Sequence[int]
    ) -> "_TTSizes":
        if len(row_modes) != len(column_modes) or len(ranks) != len(row_modes) - 1:
            raise InvalidArgumentError(
                "a TT-matrix has as many row modes as column modes and one rank fewer, got "
                f"{tuple(row_modes)}, {tuple(column_modes)} and {tuple(ranks)}"
            )
        return cls(tuple(row_modes), tuple(column_modes), (1, *ranks, 1))

    def step_macs(self, start: int, stop: int, from_left: bool) -> int:
        """Return the multiplications of contracting the merged cores [start, stop) with a vector.

        The merged cores a…b multiply r_{a-1}·(m_a⋯m_b)·(n_a⋯n_b)·r_b numbers, from the left for
        each of the m_1⋯m_{a-1} finished rows and n_{b+1}⋯n_d remaining columns. From the right, m
        and n change places.
        """
        m, n = self.row_modes, self.column_modes
        core = self.ends[start] * prod(m[start:stop]) * prod(n[start:stop]) * self.ends[stop]
        if from_left:
            return prod(m[:start]) * core * prod(n[stop:])
        return prod(n[:start]) * core * prod(m[stop:])

    def merge_macs(self, start: int, stop: int) -> int:
        """Return the multiplications of `tt_merge` for one group [start, stop)."""
        # Joining a core (r, m·n, s) to the merged ones before it, (q, p, r), takes q·(p·m·n)·r·s.
        sizes = [m * n for m, n in zip(self.row_modes, self.column_modes, strict=True)]
        return sum(
            self.ends[start] * prod(sizes[start : k + 1]) * self.ends[k] * self.ends[k + 1]
            for k in range(start + 1, stop)
        )

    def step_writes(self, start: int, stop: int, from_left: bool) -> int:
        """Return the size of the result of the same contraction."""
        m, n = self.row_modes, self.column_modes
        if from_left:
            return prod(m[:stop]) * self.ends[stop] * prod(n[stop:])
        return prod(n[:start]) * self.ends[start] * prod(m[start:])

    def best_order(self, from_left: bool, vectors: int) -> tuple[int, TTOrder]:
        """Return the cost and the order of the cheapest groups, by dynamic programming.

        The costs of groups are independent, so that the best groups of the cores up to ``stop`` are
        a last group [start, stop) after the best groups of the cores up to ``start``.
        """
        count = len(self.row_modes)
        best = [(0, TTOrder((), from_left, 0))]
        for stop in range(1, count + 1):
            orders = []
            for start in reversed(range(stop)):
                if stop - start == count > 1:  # all cores merged: the matrix
                    continue
                cost, previous = best[start]
                macs = vectors * self.step_macs(start, stop, from_left)
                macs += self.merge_macs(start, stop)
                writes = vectors * self.step_writes(start, stop, from_left)
                groups = (*previous.groups, stop - start)
                order = TTOrder(groups, from_left, previous.macs + macs)
                orders.append((cost + macs + MACS_PER_WRITE * writes, order))
            best.append(min(orders, key=itemgetter(0)))
        return best[-1]


@lru_cache
def _cheapest_order(sizes: _TTSizes, vectors: int) -> TTOrder:
    orders = [sizes.best_order(from_left, vectors) for from_left in (True, False)]
    return min(orders, key=itemgetter(0))[1]


def _multiply_stack(matrix: Tensor, stack: Tensor, *, one_vector: bool) -> Tensor:
    """Return the products of a matrix (a, b) with every matrix of a stack (c, b, columns).

    The form depends on the number of columns only for a single vector: in an exported graph, any
    larger number of vectors is unknown.
    """
    count, inner, columns = stack.shape
    if one_vector and columns < FEW_COLUMNS and count > 1:
        product = stack.mT.reshape(count * columns, inner) @ matrix.mT
        return product.reshape(count, columns, -1).mT
    return torch.bmm(matrix.expand(count, -1, -1), stack)
