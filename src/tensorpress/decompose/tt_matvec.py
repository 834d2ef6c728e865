"""Products of a matrix in TT-cores with vectors, their cost, and the cheapest order for them."""

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
"""A stack of products with fewer columns than this is slower than one product of a copy."""

WRITTEN = 16
"""Multiplications that take as long as writing one number between two steps."""


@dataclass(frozen=True)
class TTOrder:
    """How to multiply by a TT-matrix: which neighbours to merge first, and from which end to start.

    Attributes
    ----------
    groups : tuple of int
        How many neighbouring cores are merged to one, from left to right; they add up to d.
    from_left : bool
        Whether the first core is contracted first.
    macs : int
        Multiply–accumulates of it all, merging included.
    """

    groups: tuple[int, ...]
    from_left: bool
    macs: int


def tt_multiply(cores: Sequence[Tensor], x: Tensor, *, from_left: bool) -> Tensor:
    """Multiply vectors by a matrix in TT-cores, never building the matrix; differentiable.

    The state always has the contracted rank beside the next column mode, with the finished row
    modes before them (from the left) or behind them (from the right): every step is a stack of
    matrix products on the memory as it lies. The vectors are the last axis, so that the products
    are wide.

    Parameters
    ----------
    cores : sequence of Tensor
        Shapes (r_{k-1}, m_k, n_k, r_k), r_0 = r_d = 1.
    x : Tensor
        Shape (*, n_1…n_d), of the cores' dtype.
    from_left : bool
        Whether to contract the first core first, or the last; `tt_macs` tells which is cheaper.

    Returns
    -------
    Tensor
        Shape (*, m_1…m_d).

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
    done, ahead = 1, columns
    for core in cores if from_left else reversed(cores):
        left, m, n, right = core.shape
        ahead //= n
        if from_left:
            matrix = core.permute(1, 3, 0, 2).reshape(m * right, left * n)
            stack = state.reshape(done, left * n, ahead * count)
        else:
            matrix = core.reshape(left * m, n * right)
            stack = state.reshape(ahead, n * right, done * count)
        state = _multiply_stack(matrix, stack, one_vector=count == 1)
        done *= m
    return state.reshape(done, count).mT.reshape(*x.shape[:-1], done)


def tt_macs(
    row_modes: Sequence[int], column_modes: Sequence[int], ranks: Sequence[int], from_left: bool
) -> int:
    """Return the multiply–accumulates of `tt_multiply` for one vector.

    Examples
    --------
    >>> modes = (4, 4, 4, 4, 4, 4), (2, 7, 8, 8, 7, 4)
    >>> [tt_macs(*modes, (4, 4, 4, 4, 4), from_left) for from_left in (True, False)]
    [6889472, 3645440]
    """
    train = _Train.of(row_modes, column_modes, ranks)
    return sum(train.step_macs(k, k + 1, from_left) for k in range(len(row_modes)))


def tt_merge(cores: Sequence[Tensor], groups: Sequence[int]) -> tuple[Tensor, ...]:
    """Contract neighbouring TT-cores of a matrix to fewer, larger ones; differentiable.

    Parameters
    ----------
    cores : sequence of Tensor
        Shapes (r_{k-1}, m_k, n_k, r_k).
    groups : sequence of int
        How many neighbours make one, from left to right; they add up to the number of cores.

    Returns
    -------
    tuple of Tensor
        The TT-cores of the same matrix over the merged modes.

    Raises
    ------
    InvalidArgumentError
        If the groups do not add up to the number of cores.

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
    following = iter(cores)
    return tuple(reduce(tt_join, [next(following) for _ in range(size)]) for size in groups)


def tt_join(left: Tensor, right: Tensor) -> Tensor:
    """Contract neighbours (r, m, n, s) and (s, p, q, t) to one core (r, m·p, n·q, t)."""
    product = left.flatten(0, 2) @ right.flatten(1)
    apart = product.reshape(*left.shape[:3], *right.shape[1:])
    return apart.transpose(2, 3).flatten(1, 2).flatten(2, 3)


def cheapest_tt_order(
    row_modes: Sequence[int], column_modes: Sequence[int], ranks: Sequence[int], *, vectors: int
) -> TTOrder:
    """Find the merging of neighbours and the direction that cost the least time.

    Every number that a step writes counts as 16 multiplications. A merged core makes one wide
    product of several narrow ones. It pays where ranks are large for the modes they join, and the
    more vectors share the cost of merging, the more often. Never are all merged: that would be the
    matrix.

    Parameters
    ----------
    row_modes, column_modes : sequence of int
        (m_1, …, m_d) and (n_1, …, n_d).
    ranks : sequence of int
        The d − 1 inner ranks.
    vectors : int
        How many vectors are multiplied at once.

    Returns
    -------
    TTOrder
        For `tt_merge` and `tt_multiply`.

    Examples
    --------
    >>> cheapest_tt_order((4, 4, 4), (4, 4, 4), (4, 4), vectors=100)
    TTOrder(groups=(2, 1), from_left=True, macs=516096)
    """
    return _cheapest_order(_Train.of(row_modes, column_modes, ranks), vectors)


@dataclass(frozen=True)
class _Train:
    """The sizes of a TT-matrix, and what its contractions cost."""

    row_modes: tuple[int, ...]
    column_modes: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(
        cls, row_modes: Sequence[int], column_modes: Sequence[int], ranks: Sequence[int]
    ) -> "_Train":
        if len(row_modes) != len(column_modes) or len(ranks) != len(row_modes) - 1:
            raise InvalidArgumentError(
                "a TT-matrix has as many row modes as column modes and one rank fewer, got "
                f"{tuple(row_modes)}, {tuple(column_modes)} and {tuple(ranks)}"
            )
        return cls(tuple(row_modes), tuple(column_modes), (1, *ranks, 1))

    def step_macs(self, start: int, stop: int, from_left: bool) -> int:
        """Multiplications of contracting cores start…stop, merged to one, with one vector."""
        m, n = self.row_modes, self.column_modes
        core = self.ends[start] * prod(m[start:stop]) * prod(n[start:stop]) * self.ends[stop]
        if from_left:
            return prod(m[:start]) * core * prod(n[stop:])
        return prod(n[:start]) * core * prod(m[stop:])

    def merge_macs(self, start: int, stop: int) -> int:
        """Multiplications of `tt_merge` for one group."""
        sizes = [m * n for m, n in zip(self.row_modes, self.column_modes, strict=True)]
        return sum(
            self.ends[start] * prod(sizes[start : k + 1]) * self.ends[k] * self.ends[k + 1]
            for k in range(start + 1, stop)
        )

    def step_writes(self, start: int, stop: int, from_left: bool) -> int:
        """Numbers that the same contraction writes."""
        m, n = self.row_modes, self.column_modes
        if from_left:
            return prod(m[:stop]) * self.ends[stop] * prod(n[stop:])
        return prod(n[:start]) * self.ends[start] * prod(m[start:])

    def best_order(self, from_left: bool, vectors: int) -> tuple[int, TTOrder]:
        """Find the cheapest groups: costs of groups add up, so the best of each beginning do."""
        count = len(self.row_modes)
        best = [(0, TTOrder((), from_left, 0))]
        for stop in range(1, count + 1):
            endings = []
            for start in reversed(range(stop)):
                if stop - start == count > 1:
                    continue
                cost, before = best[start]
                macs = vectors * self.step_macs(start, stop, from_left)
                macs += self.merge_macs(start, stop)
                written = vectors * self.step_writes(start, stop, from_left)
                groups = (*before.groups, stop - start)
                order = TTOrder(groups, from_left, before.macs + macs)
                endings.append((cost + macs + WRITTEN * written, order))
            best.append(min(endings, key=itemgetter(0)))
        return best[-1]


@lru_cache
def _cheapest_order(train: _Train, vectors: int) -> TTOrder:
    found = [train.best_order(from_left, vectors) for from_left in (True, False)]
    return min(found, key=itemgetter(0))[1]


def _multiply_stack(matrix: Tensor, stack: Tensor, *, one_vector: bool) -> Tensor:
    """Return matrix (a, b) times every matrix of a stack (c, b, columns).

    Only for one vector may the number of columns decide how: an exported graph knows a number of
    vectors either as 1 or not at all.
    """
    count, inner, columns = stack.shape
    if one_vector and columns < FEW_COLUMNS and count > 1:
        product = stack.mT.reshape(count * columns, inner) @ matrix.mT
        return product.reshape(count, columns, -1).mT
    return torch.bmm(matrix.expand(count, -1, -1), stack)
