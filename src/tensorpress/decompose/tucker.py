"""Tucker decomposition: sequentially truncated HOSVD and higher-order orthogonal iteration."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tensorpress.decompose.precision import projection_error
from tensorpress.decompose.spectrum import Spectrum, check_spectrum, leading_directions
from tensorpress.decompose.tucker_layout import (
    TuckerLayout,
    arrange_axes,
    contract,
    expand,
    unfold_stack,
)
from tensorpress.errors import InvalidArgumentError


@dataclass(frozen=True)
class Tucker:
    """A Tucker decomposition of a tensor along some of its modes, or of a stack of tensors.

    Attributes
    ----------
    core : Tensor
        The core, of the shape of the tensor with k_i in place of n_i for every decomposed mode. A
        stack has one more axis in front.
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
    layout = _make_layout(tensor, ranks, modes, stacked)
    factors, partial, _ = _truncate_in_turn(layout)
    # C = W ×₁ M₁ᵀ … ×_d M_dᵀ, of which only the last product is left.
    core = contract(partial, factors[-1], layout.axes[-1])
    return _make_result(layout, factors, core, tensor.dtype, stacked)


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
    """Decompose a tensor by higher-order orthogonal iteration, starting from `st_hosvd`.

    Every update of a mode is the best basis for the present bases of the others, so that the error
    never grows. Modes of full rank are not updated.

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
    start : sequence of Spectrum, optional
        The spectra of the unfoldings of these modes, where they are known. The iteration then
        starts from their bases.
    max_iter : int
        Largest number of sweeps over the modes after the start.
    tol : float
        The updates end once the error is expected to fall by no more than this fraction of itself,
        assuming that the gains go on to shrink as the last ones did.

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
    rank-(R1, R2, …, RN) approximation of higher-order tensors", Alg. 4.2.

    Examples
    --------
    >>> tensor = torch.arange(24.0).reshape(2, 3, 4)
    >>> hooi(tensor, (2, 3, 4)).relative_error < 1e-7
    True
    """
    layout = _make_layout(tensor, ranks, modes, stacked)
    last, gains = len(layout.axes) - 1, list[float]()
    if start is None:
        factors, partial, energy = _truncate_in_turn(layout)
    else:
        factors = _leading_bases(layout, start, stacked)
        partial = layout.project(factors, skip=last)
        previous = _energy(contract(partial, factors[last], layout.axes[last]))
        factors[last], energy = _best_basis(partial, layout, last)
        gains.append(energy - previous)
    truncated = [i for i, factor in enumerate(factors) if factor.shape[1] > factor.shape[2]]
    # A single truncated mode is optimal from the start.
    window = len(truncated) - 1
    iterations, converged = 0, window < 1
    norm2 = _energy(layout.tensor)
    while not converged and iterations < max_iter:
        iterations += 1
        for last in truncated:
            # The best basis M_i of (W ×_{j≠i} M_jᵀ)₍ᵢ₎ captures the energy ‖C‖² of the new core C,
            # and ‖W − Ŵ‖² = ‖W‖² − ‖C‖².
            previous = energy
            partial = layout.project(factors, skip=last)
            factors[last], energy = _best_basis(partial, layout, last)
            gains.append(energy - previous)
            if converged := _has_settled(gains, window, norm2, norm2 - energy, tol):
                break
    core = contract(partial, factors[last], layout.axes[last])
    return _make_result(layout, factors, core, tensor.dtype, stacked, iterations, converged)


def _make_layout(
    tensor: Tensor, ranks: Sequence[int], modes: Sequence[int] | None, stacked: bool
) -> TuckerLayout:
    stack = tensor.detach() if stacked else tensor.detach()[None]
    return arrange_axes(
        stack, tuple(ranks), tuple(range(stack.ndim - 1) if modes is None else modes)
    )


def _best_basis(partial: Tensor, layout: TuckerLayout, i: int) -> tuple[Tensor, float]:
    """Return the best basis of the i-th mode for a projected tensor, and the energy it captures."""
    basis, energies = leading_directions(unfold_stack(partial, layout.axes[i]), layout.ranks[i])
    return basis, float(energies.sum())


def _truncate_in_turn(layout: TuckerLayout) -> tuple[list[Tensor], Tensor, float]:
    """Truncate one mode after the other, each on the tensor that the former ones leave.

    Returns
    -------
    list of Tensor, Tensor, float
        The bases of all modes, the tensor contracted with all but the last of them, and the energy
        that they capture.
    """
    partial = layout.tensor
    basis, energy = _best_basis(partial, layout, 0)
    factors = [basis]
    for i in range(1, len(layout.axes)):
        partial = contract(partial, basis, layout.axes[i - 1])
        basis, energy = _best_basis(partial, layout, i)
        factors.append(basis)
    return factors, partial, energy


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
            vectors = spectrum.vectors.to(layout.tensor).reshape(stack, size, size)
            factors.append(vectors[..., : layout.ranks[i]])
        else:  # The spectrum has the right singular vectors, but the basis is of left ones.
            factors.append(_best_basis(layout.tensor, layout, i)[0])
    return factors


def _has_settled(
    gains: list[float], window: int, norm2: float, discarded: float, tol: float
) -> bool:
    """Whether the gains still to come are negligible, if they shrink geometrically.

    Parameters
    ----------
    gains : list of float
        The energies gained by all updates so far.
    window : int
        The number of truncated modes less one. If that many updates gain nothing, the mode that is
        left cannot gain either.
    norm2 : float
        The energy ‖W‖² of the tensor.
    discarded : float
        The present squared error ‖W − Ŵ‖².
    tol : float
        The tolerance of `hooi`.
    """
    recent, before = sum(gains[-window:]), sum(gains[-2 * window : -window])
    if len(gains) >= window and recent <= 1e-14 * norm2:
        return True
    if len(gains) < 2 * window or recent >= before:
        return False
    # The first gains shrink faster than the last ones will, the more so the more modes there are.
    shrinkage = max(recent / before, 1 - 0.7 / window)
    # All gains to come, as a geometric series: g (q + q² + …) = g q / (1 − q).
    expected = recent * shrinkage / (1 - shrinkage)
    # The error is the square root of this energy, and changes by half of its relative change.
    return expected <= 2 * tol * discarded


def _energy(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor)) ** 2


def _make_result(
    layout: TuckerLayout,
    factors: list[Tensor],
    core: Tensor,
    dtype: torch.dtype,
    stacked: bool,
    iterations: int = 0,
    converged: bool = True,
) -> Tucker:
    error = projection_error(
        layout.tensor, _energy(core), lambda: expand(core, factors, layout.axes)
    )
    core, modes, matrices = layout.restore(core, factors)
    if not stacked:
        core, matrices = core[0], tuple(matrix[0] for matrix in matrices)
    return Tucker(
        core.to(dtype),
        tuple(matrix.to(dtype) for matrix in matrices),
        modes,
        error,
        iterations,
        converged,
    )
