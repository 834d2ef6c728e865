"""Tucker decomposition: sequentially truncated HOSVD and higher-order orthogonal iteration."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tensorpress.decompose.precision import projection_error
from tensorpress.decompose.spectrum import Spectrum, check_spectrum, leading_directions
from tensorpress.decompose.tucker_layout import Arranged, arrange, contract, expand, unfold_stack
from tensorpress.errors import InvalidArgumentError


@dataclass(frozen=True)
class Tucker:
    """A Tucker decomposition of a tensor along some of its modes, or of a stack of tensors.

    Attributes
    ----------
    core : Tensor
        The tensor's shape with k_i in place of n_i for every decomposed mode; a stack has one more
        axis in front.
    factors : tuple of Tensor
        Matrices of orthonormal columns (n_i, k_i), or (stack, n_i, k_i), one a decomposed mode.
    modes : tuple of int
        The mode of each factor, not counting the axis of a stack.
    relative_error : float
        ‖W − Ŵ‖ / ‖W‖, of the whole stack, before rounding to the dtype of W; 0 for a zero tensor.
    iterations : int
        Sweeps over the modes after the start, the last one maybe not finished.
    converged : bool
        Whether the tolerance was met within the iterations allowed.
    """

    core: Tensor
    factors: tuple[Tensor, ...]
    modes: tuple[int, ...]
    relative_error: float
    iterations: int
    converged: bool

    def to_tensor(self) -> Tensor:
        """Return the tensor these factors stand for, or the stack of tensors."""
        stacked = self.factors[0].ndim == 3
        factors = self.factors if stacked else [factor[None] for factor in self.factors]
        axes = [mode + 1 for mode in self.modes]
        rebuilt = expand(self.core if stacked else self.core[None], factors, axes)
        return rebuilt if stacked else rebuilt[0]

    @property
    def num_params(self) -> int:
        """Number of stored values, core and matrices."""
        return self.core.numel() + sum(factor.numel() for factor in self.factors)


def tucker_params(modes: Sequence[int], ranks: Sequence[int]) -> int:
    """Return the number of values a Tucker decomposition stores: Πk_i + Σ n_i·k_i.

    Examples
    --------
    >>> tucker_params((40, 25, 20, 20), (5, 5, 5, 5))
    1150
    """
    return prod(ranks) + sum(n * k for n, k in zip(modes, ranks, strict=True))


def st_hosvd(
    tensor: Tensor,
    ranks: Sequence[int],
    *,
    modes: Sequence[int] | None = None,
    stacked: bool = False,
) -> Tucker:
    """Decompose by the sequentially truncated higher-order SVD, cheapest mode first.

    Its squared error is at most the sum over the modes of the energy each mode's unfolding
    discards, so at most √d times the least possible error.

    Parameters
    ----------
    tensor, ranks, modes, stacked
        As in :func:`hooi`.

    Returns
    -------
    Tucker
        With 0 iterations.

    Raises
    ------
    InvalidArgumentError
        For ranks or modes out of range, or NaN or infinite values.

    References
    ----------
    Vannieuwenhoven, Vandebril, Meerbergen (2012), "A new truncation strategy for the higher-order
    singular value decomposition", Alg. 3.1.

    Examples
    --------
    >>> found = st_hosvd(torch.arange(24.0).reshape(2, 3, 4), (2, 2), modes=(0, 2))
    >>> tuple(found.core.shape), found.relative_error < 1e-6
    ((2, 3, 2), True)
    """
    named = _named(tensor, modes, stacked)
    problem = arrange(_stack(tensor, stacked), tuple(ranks), named)
    factors, partial, _ = _truncate_in_turn(problem)
    core = contract(partial, factors[-1], problem.axes[-1])
    return _result(tensor, problem, named, factors, core)


def hooi(
    tensor: Tensor,
    ranks: Sequence[int],
    *,
    modes: Sequence[int] | None = None,
    stacked: bool = False,
    start: Sequence[Spectrum] | None = None,
    max_iter: int = 50,
    tol: float = 3e-5,
) -> Tucker:
    """Decompose by higher-order orthogonal iteration, started from the st-HOSVD.

    Modes are updated in turn: each update is the best basis given the others', so that the error
    never grows. Modes of full rank are left as they are.

    Parameters
    ----------
    tensor : Tensor
        Shape (n_1, …, n_d), any floating dtype; computed in float64.
    ranks : sequence of int
        1 ≤ k_i ≤ n_i for every mode to decompose.
    modes : sequence of int, optional
        The modes to decompose, in the order of ``ranks``; all of them unless given.
    stacked : bool
        Axis 0 is a stack of tensors, each decomposed by itself, all at once; ``modes`` do not
        count it.
    start : sequence of Spectrum, optional
        Of the unfoldings of these modes, where they are known, to start from their bases instead.
    max_iter : int
        Most sweeps over the modes after the start.
    tol : float
        Stop once the error is expected to fall by no more than this fraction of itself, if the
        gains of the updates go on to shrink as the last ones did.

    Returns
    -------
    Tucker
        Matrices with orthonormal columns, in the dtype of ``tensor``.

    Raises
    ------
    InvalidArgumentError
        For ranks, modes or spectra that do not fit, or NaN or infinite values.

    References
    ----------
    De Lathauwer, De Moor, Vandewalle (2000), "On the best rank-1 and
    rank-(R1, R2, …, RN) approximation of higher-order tensors", Alg. 4.2.

    Examples
    --------
    >>> tensor = torch.arange(24.0).reshape(2, 3, 4)
    >>> hooi(tensor, (2, 3, 4)).relative_error < 1e-7
    True
    """
    named = _named(tensor, modes, stacked)
    problem = arrange(_stack(tensor, stacked), tuple(ranks), named)
    last, gains = len(named) - 1, list[float]()
    if start is None:
        factors, partial, kept = _truncate_in_turn(problem)
    else:
        factors = _given_bases(problem, start, stacked)
        partial = problem.project(factors, skip=last)
        given = _energy(contract(partial, factors[last], problem.axes[last]))
        factors[last], kept = _best_basis(partial, problem, last)
        gains.append(kept - given)
    truncated = [i for i, factor in enumerate(factors) if factor.shape[1] > factor.shape[2]]
    # A single truncated mode is optimal from the start.
    window = len(truncated) - 1
    iterations, converged = 0, window < 1
    norm2 = _energy(problem.tensor)
    while not converged and iterations < max_iter:
        iterations += 1
        for last in truncated:
            previous = kept
            partial = problem.project(factors, skip=last)
            factors[last], kept = _best_basis(partial, problem, last)
            gains.append(kept - previous)
            if converged := _settled(gains, window, norm2, norm2 - kept, tol):
                break
    core = contract(partial, factors[last], problem.axes[last])
    return _result(tensor, problem, named, factors, core, iterations, converged)


def _stack(tensor: Tensor, stacked: bool) -> Tensor:
    return tensor.detach() if stacked else tensor.detach()[None]


def _named(tensor: Tensor, modes: Sequence[int] | None, stacked: bool) -> tuple[int, ...]:
    return tuple(range(tensor.ndim - stacked) if modes is None else modes)


def _best_basis(partial: Tensor, problem: Arranged, i: int) -> tuple[Tensor, float]:
    """Return the i-th mode's best basis for a tensor, and the energy that it keeps."""
    basis, energies = leading_directions(unfold_stack(partial, problem.axes[i]), problem.ranks[i])
    return basis, float(energies.sum())


def _truncate_in_turn(problem: Arranged) -> tuple[list[Tensor], Tensor, float]:
    """Return the bases, the tensor contracted with all but the last, and the energy they keep."""
    partial = problem.tensor
    basis, kept = _best_basis(partial, problem, 0)
    factors = [basis]
    for i in range(1, len(problem.axes)):
        partial = contract(partial, basis, problem.axes[i - 1])
        basis, kept = _best_basis(partial, problem, i)
        factors.append(basis)
    return factors, partial, kept


def _given_bases(problem: Arranged, start: Sequence[Spectrum], stacked: bool) -> list[Tensor]:
    """Return the leading bases of the unfoldings whose spectra are given."""
    if len(start) != len(problem.positions):
        raise InvalidArgumentError(
            f"{len(problem.positions)} modes need one spectrum each to start from, got {len(start)}"
        )
    stack, *sizes = problem.tensor.shape
    factors = []
    for i, (position, axis) in enumerate(zip(problem.positions, problem.axes, strict=True)):
        spectrum, size = start[position], sizes[axis - 1]
        shape = (size, prod(sizes) // size)
        check_spectrum(spectrum, (stack, *shape) if stacked else shape)
        if spectrum.rows <= spectrum.columns:
            vectors = spectrum.vectors.to(problem.tensor).reshape(stack, size, size)
            factors.append(vectors[..., : problem.ranks[i]])
        else:  # Right vectors only stand for a basis of the left ones.
            factors.append(_best_basis(problem.tensor, problem, i)[0])
    return factors


def _settled(gains: list[float], window: int, norm2: float, discarded: float, tol: float) -> bool:
    """Whether the gains still to come are negligible, if they shrink geometrically.

    In ``window`` updates all modes but one have had their turn: if they gained nothing, that one
    cannot gain either.
    """
    recent, before = sum(gains[-window:]), sum(gains[-2 * window : -window])
    if len(gains) >= window and recent <= 1e-14 * norm2:
        return True
    if len(gains) < 2 * window or recent >= before:
        return False
    # The first gains shrink faster than the last ones will, the more so the more modes there are.
    shrinkage = max(recent / before, 1 - 0.7 / window)
    expected = recent * shrinkage / (1 - shrinkage)
    # The error is the root of this energy: it changes by half as much of itself.
    return expected <= 2 * tol * discarded


def _energy(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor)) ** 2


def _result(
    tensor: Tensor,
    problem: Arranged,
    modes: tuple[int, ...],
    factors: list[Tensor],
    core: Tensor,
    iterations: int = 0,
    converged: bool = True,
) -> Tucker:
    error = projection_error(
        problem.tensor, _energy(core), lambda: expand(core, factors, problem.axes)
    )
    restored, matrices = problem.restore(core, factors)
    if restored.ndim > tensor.ndim:
        restored, matrices = restored[0], tuple(matrix[0] for matrix in matrices)
    dtype = tensor.dtype
    return Tucker(
        restored.to(dtype),
        tuple(matrix.to(dtype) for matrix in matrices),
        modes,
        error,
        iterations,
        converged,
    )
