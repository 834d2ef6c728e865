"""Tucker decomposition: sequentially truncated HOSVD and higher-order orthogonal iteration."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from operator import itemgetter

import torch
from torch import Tensor

from tensorpress.decompose.precision import energy, projection_error, to_working_precision
from tensorpress.decompose.spectrum import Spectrum, check_spectrum, leading_directions
from tensorpress.decompose.tucker_layout import (
    TuckerLayout,
    arrange_axes,
    contract,
    expand,
    unfold_stack,
)
from tensorpress.errors import InvalidArgumentError

STEPS = 2
"""Steps of subspace iteration that one update of `hooi` takes on the same projected tensor."""

FIRST_SHRINKAGE, LATER_SHRINKAGE = 0.3, 0.6
"""Assumed ratio of successive gains after the first sweep, and its minimum after later ones."""

NOISE = {torch.float32: 1e-6, torch.float64: 1e-14}
"""Share of a tensor's energy below which a gain is a rounding error, by dtype of the search."""

FINE = 1e-5
"""Tolerance of `hooi` below which the whole search runs in working precision."""

SMALL_ERROR = 0.05
"""Relative error below which float32 is too inaccurate to find the best bases."""


@dataclass(frozen=True)
class Tucker:
    """A Tucker decomposition of a tensor along some of its modes, or of a stack of tensors.

    Attributes
    ----------
    core : Tensor
        The core: its shape is that of the tensor, with k_i instead of n_i for every decomposed
        mode. A stack has one more axis in front.
    factors : tuple of Tensor
        One matrix with orthonormal columns for each decomposed mode, of shape (n_i, k_i), or
        (stack, n_i, k_i).
    modes : tuple of int
        The mode of each matrix, not counting the axis of a stack.
    relative_error : float
        ‖W − Ŵ‖ / ‖W‖ of the whole stack, before rounding to the dtype of W; 0 for a zero tensor.
    iterations : int
        Number of sweeps over the modes after the start, including an unfinished last one.
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
        """Return the tensor Ŵ, or the stack of tensors."""
        axes = [mode + 1 for mode in self.modes]
        if self.factors[0].ndim == 3:
            return expand(self.core, self.factors, axes)
        return expand(self.core[None], [factor[None] for factor in self.factors], axes)[0]

    @property
    def num_params(self) -> int:
        """Number of stored values of core and matrices."""
        return self.core.numel() + sum(factor.numel() for factor in self.factors)


def tucker_params(modes: Sequence[int], ranks: Sequence[int]) -> int:
    """Return the number of values that a Tucker decomposition stores: Πk_i + Σ n_i·k_i.

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
    """Decompose a tensor by the sequentially truncated higher-order SVD, cheapest mode first.

    The squared error is at most the sum of the energies that truncating each unfolding alone
    discards, and therefore at most d times the smallest possible squared error.

    Parameters
    ----------
    tensor : Tensor
        Tensor of shape (n_1, …, n_d), any floating dtype; computed in float64.
    ranks : sequence of int
        One rank 1 ≤ k_i ≤ n_i for every mode to decompose.
    modes : sequence of int, optional
        The modes to decompose, in the order of ``ranks``; by default all of them.
    stacked : bool
        Whether axis 0 is a stack of tensors that are decomposed separately. ``modes`` do not count
        that axis.

    Returns
    -------
    Tucker
        Matrices with orthonormal columns in the dtype of ``tensor``, after 0 iterations.

    Raises
    ------
    InvalidArgumentError
        If the ranks or modes are out of range, or the tensor has NaN or infinite values.

    References
    ----------
    Vannieuwenhoven, Vandebril, Meerbergen (2012), "A new truncation strategy for the higher-order
    singular value decomposition", Alg. 3.1.

    Examples
    --------
    >>> result = st_hosvd(torch.arange(24.0).reshape(2, 3, 4), (2, 2), modes=(0, 2))
    >>> tuple(result.core.shape), result.relative_error < 1e-6
    ((2, 3, 2), True)
    """
    stack = _as_stack(tensor, stacked)
    layout = arrange_axes(stack, tuple(ranks), _all_modes(stack, modes))
    return _make_result(tensor, stack, layout, _truncate_in_turn(layout), 0, True)


def hooi(
    tensor: Tensor,
    ranks: Sequence[int],
    *,
    modes: Sequence[int] | None = None,
    stacked: bool = False,
    start: Sequence[Spectrum] | None = None,
    max_iter: int = 50,
    tol: float = 5e-4,
) -> Tucker:
    """Decompose a tensor by higher-order orthogonal iteration, starting from `st_hosvd`.

    Every update moves the basis of one mode towards the best basis given those of the other modes,
    so that the error never grows. Modes of full rank are not updated.

    Parameters
    ----------
    tensor : Tensor
        Tensor of shape (n_1, …, n_d), any floating dtype. The bases are searched in float32 as
        long as ``tol`` is at least 1e-5 and the error above 5 %, else in float64; core and error
        are computed in float64.
    ranks : sequence of int
        One rank 1 ≤ k_i ≤ n_i for every mode to decompose.
    modes : sequence of int, optional
        The modes to decompose, in the order of ``ranks``; by default all of them.
    stacked : bool
        Whether axis 0 is a stack of tensors that are decomposed separately. ``modes`` do not count
        that axis.
    start : sequence of Spectrum, optional
        The spectra of the unfoldings of these modes, if they are known. The iteration then starts
        from their bases.
    max_iter : int
        Largest number of sweeps over the modes after the start.
    tol : float
        The sweeps end once the error is expected to fall by no more than this fraction of itself,
        assuming that the gains keep shrinking at the present rate.

    Returns
    -------
    Tucker
        Matrices with orthonormal columns in the dtype of ``tensor``.

    Raises
    ------
    InvalidArgumentError
        If the ranks, modes or spectra do not fit, or the tensor has NaN or infinite values.

    References
    ----------
    De Lathauwer, De Moor, Vandewalle (2000), "On the best rank-1 and
    rank-(R1, R2, …, RN) approximation of higher-order tensors", Alg. 4.2. Its SVD of each update
    is replaced by subspace iteration from the basis so far.

    Examples
    --------
    >>> tensor = torch.arange(24.0).reshape(2, 3, 4)
    >>> hooi(tensor, (2, 3, 4)).relative_error < 1e-7
    True
    """
    stack, ranks = _as_stack(tensor, stacked), tuple(ranks)
    modes = _all_modes(stack, modes)
    layout = arrange_axes(stack, ranks, modes, torch.float32 if tol >= FINE else stack.dtype)
    if len(layout.truncated) < 2:  # the start is optimal
        layout, max_iter = arrange_axes(stack, ranks, modes), 0
    factors = _leading_bases(layout, start, stacked) if start else _truncate_in_turn(layout)
    iterations, converged = _iterate(layout, factors, max_iter, tol)
    result = _make_result(tensor, stack, layout, factors, iterations, converged)
    if layout.tensor.dtype == stack.dtype or result.relative_error > SMALL_ERROR:
        return result
    layout = arrange_axes(stack, ranks, modes)
    more, converged = _iterate(layout, factors, max_iter - iterations, tol)
    return _make_result(tensor, stack, layout, factors, iterations + more, converged)


def _iterate(
    layout: TuckerLayout, factors: list[Tensor], max_iter: int, tol: float
) -> tuple[int, bool]:
    """Improve the bases of the truncated modes in place, in the precision of the layout.

    Returns
    -------
    int, bool
        The number of sweeps, and whether the tolerance was met.
    """
    if len(layout.truncated) < 2:
        return 0, True
    factors[:] = [factor.to(layout.tensor) for factor in factors]
    total, energies = energy(layout.tensor), list[float]()
    for sweep in range(max_iter):
        for i in layout.truncated:
            factors[i], before, after = _improve_basis(layout, factors, i)
            energies = energies or [before]
        energies.append(after)
        if _has_settled(energies, total, NOISE[layout.tensor.dtype], tol):
            return sweep + 1, True
    return max_iter, False


def _improve_basis(
    layout: TuckerLayout, factors: list[Tensor], i: int
) -> tuple[Tensor, float, float]:
    """Return a better basis of the i-th mode, and the energies captured without and with it.

    The best basis spans the leading left singular directions of X = (W ×_{j≠i} M_jᵀ)₍ᵢ₎. Subspace
    iteration M ← orth(X Xᵀ M) captures more of its energy with every step.
    """
    projected = unfold_stack(layout.project(factors, skip=i), layout.axes[i])
    # XᵀM is the core C of the present bases, and ‖W − Ŵ‖² = ‖W‖² − ‖C‖².
    basis, core = factors[i], projected.mT @ factors[i]
    before = energy(core)
    for _ in range(STEPS):
        basis = torch.linalg.qr(projected @ core).Q
        core = projected.mT @ basis
    return basis, before, energy(core)


def _as_stack(tensor: Tensor, stacked: bool) -> Tensor:
    """Return a stack of tensors in working precision."""
    return to_working_precision(tensor if stacked else tensor[None])


def _all_modes(stack: Tensor, modes: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(range(stack.ndim - 1) if modes is None else modes)


def _best_basis(partial: Tensor, layout: TuckerLayout, i: int) -> Tensor:
    """Return the best basis of the i-th mode for a projected tensor."""
    return leading_directions(unfold_stack(partial, layout.axes[i]), layout.ranks[i])[0]


def _truncate_in_turn(layout: TuckerLayout) -> list[Tensor]:
    """Return the bases of one mode after another, truncating the tensor by each."""
    partial, factors = layout.tensor, list[Tensor]()
    for i, axis in enumerate(layout.axes):
        factors.append(_best_basis(partial, layout, i))
        if i + 1 < len(layout.axes):
            partial = contract(partial, factors[i], axis)
    return factors


def _leading_bases(layout: TuckerLayout, start: Sequence[Spectrum], stacked: bool) -> list[Tensor]:
    """Return the leading bases of the unfoldings, from their spectra."""
    if len(start) != len(layout.positions):
        raise InvalidArgumentError(
            f"{len(layout.positions)} modes need one spectrum each to start from, got {len(start)}"
        )
    stack, *sizes = layout.tensor.shape
    factors = []
    for i, (position, axis) in enumerate(zip(layout.positions, layout.axes, strict=True)):
        spectrum, size = start[position], sizes[axis - 1]
        shape = (size, prod(sizes) // size)
        check_spectrum(spectrum, (stack, *shape) if stacked else shape)
        if spectrum.rows <= spectrum.columns:
            vectors = spectrum.vectors.reshape(stack, size, size)
            factors.append(vectors[..., : layout.ranks[i]].to(layout.tensor))
        else:  # The spectrum has right singular vectors, but the basis needs left ones.
            factors.append(_best_basis(layout.tensor, layout, i))
    return factors


def _has_settled(energies: list[float], total: float, noise: float, tol: float) -> bool:
    """Return whether all further gains are negligible, if gains shrink geometrically.

    Parameters
    ----------
    energies : list of float
        The energies captured at the start and after every sweep so far.
    total : float
        The energy ‖W‖² of the tensor.
    noise : float
        The share of ``total`` that is rounding error.
    tol : float
        The tolerance of `hooi`.
    """
    recent = energies[-1] - energies[-2]
    if recent <= noise * total:
        return True
    shrinkage = FIRST_SHRINKAGE
    if len(energies) > 2:
        # The first gains shrink faster than the later ones will.
        shrinkage = max(recent / (energies[-2] - energies[-3]), LATER_SHRINKAGE)
    # All gains to come, as a geometric series: g (q + q² + …) = g q / (1 − q).
    expected = recent * shrinkage / (1 - shrinkage) if shrinkage < 1 else inf
    # The error is the square root of this energy, and changes by half of its relative change.
    return expected <= 2 * tol * (total - energies[-1])


def _make_result(
    tensor: Tensor,
    stack: Tensor,
    layout: TuckerLayout,
    factors: Sequence[Tensor],
    iterations: int,
    converged: bool,
) -> Tucker:
    """Return the decomposition for the final bases, in the caller's order of modes."""
    modes, places = layout.original_modes()
    matrices = [factors[place].to(stack) for place in places]
    if layout.tensor.dtype != stack.dtype:
        # Orthonormal in the working precision, as Pythagoras needs it for the error.
        matrices = [torch.linalg.qr(matrix).Q for matrix in matrices]
    axes = [mode + 1 for mode in modes]
    # C = W ×₁ M₁ᵀ … ×_d M_dᵀ; the axis after the stack first, which needs no copy of W.
    core = stack
    for axis, matrix in sorted(zip(axes, matrices, strict=True), key=itemgetter(0)):
        core = contract(core, matrix, axis)
    error = projection_error(stack, energy(core), lambda: expand(core, matrices, axes))
    if tensor.ndim < stack.ndim:
        core, matrices = core[0], [matrix[0] for matrix in matrices]
    dtype = tensor.dtype
    factors = tuple(matrix.to(dtype) for matrix in matrices)
    return Tucker(core.to(dtype).contiguous(), factors, modes, error, iterations, converged)
