"""Error-preserving correction of a CP decomposition whose terms cancel."""

from collections.abc import Sequence
from math import exp, log

import torch
from torch import Tensor

from tensorpress.decompose.cp_mttkrp import Halves, hadamard
from tensorpress.decompose.cp_normal_equations import balance_factors, normalize_columns
from tensorpress.decompose.cp_tensor import CP, cp_sensitivity
from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError

WIDTH, SECTIONS, ROUNDS = 40.0, 64, 6
"""The multiplier's logarithm is sought so far around that of the largest eigenvalue, by cutting the
interval into so many sections, so many times: bisection, with fewer and larger operations."""

ROUNDINGS = 100 * torch.finfo(torch.float64).eps
"""How far below the bound a solution aims, in squared norms of the terms."""

MARGIN = 1e-9
"""How far, relatively, the measured error may lie above the bound."""


def cp_correct(
    cp: CP,
    tensor: Tensor,
    *,
    max_error: float | None = None,
    max_iter: int = 500,
    tol: float = 1e-4,
) -> CP:
    """Lower the sensitivity of a decomposition and keep its error within a bound.

    Large terms that cancel (``CP.degeneracy``) make a decomposition that fits and cannot be trained
    or quantized. Factor by factor, the least sensitive one within the bound is
    A = T₍ᵢ₎Z(ZᵀZ + ν diag(w))⁻¹ with Z the Khatri–Rao product of the others and ν the largest
    multiplier that the bound allows.

    Parameters
    ----------
    cp : CP
        A decomposition of ``tensor``.
    tensor : Tensor
        Shape (n_1, …, n_d).
    max_error : float, optional
        Bound on ‖T − T̂‖ / ‖T‖, below 1; by default the decomposition's own error. A decomposition
        at a minimum of the error has no freedom within that: allow it a little more.
    max_iter : int
        Most sweeps over the factors.
    tol : float
        Stop once a sweep lowers the sensitivity by no more than this part of it.

    Returns
    -------
    CP
        With no larger a sensitivity, in the dtype of ``tensor``.

    Raises
    ------
    InvalidArgumentError
        If the decomposition does not fit the tensor, or its error is above the bound already.

    References
    ----------
    The error preserving correction of Phan et al. (2020), "Stable low-rank tensor decomposition
    for compression of convolutional neural network", here for any number of modes.

    Examples
    --------
    >>> from tensorpress.decompose.cp_als import cp_als
    >>> tensor = torch.arange(24.0).reshape(2, 3, 4).sin()
    >>> cp = cp_als(tensor, 2)
    >>> corrected = cp_correct(cp, tensor, max_error=1.1 * cp.relative_error)
    >>> corrected.sensitivity < cp.sensitivity
    True
    """
    sizes = [tuple(factor.shape) for factor in cp.factors]
    if sizes != [(n, cp.weights.numel()) for n in tensor.shape] or tensor.ndim < 2:
        raise InvalidArgumentError(
            f"factors of shapes {sizes} are no decomposition of a tensor of shape "
            f"{tuple(tensor.shape)}"
        )
    exact = to_working_precision(tensor)
    norm = float(exact.norm())
    halves = Halves(exact / (norm or 1.0))
    weights = to_working_precision(cp.weights).to(exact) / (norm or 1.0)
    first, *others = [to_working_precision(factor).to(exact) for factor in cp.factors]
    factors = _least_sensitive([first * weights, *others])
    own = _error(halves, factors)
    bound = own if max_error is None else max_error
    if not own <= (1 + MARGIN) * bound or bound >= 1:
        raise InvalidArgumentError(
            f"the error can be bounded from the decomposition's own, {own:.6g}, to below 1, "
            f"got max_error={max_error}"
        )
    sensitivity, iterations, converged = cp_sensitivity(factors), 0, False
    while iterations < max_iter and not converged:
        found = _least_sensitive(_sweep(halves, factors, bound))
        iterations += 1
        lower = cp_sensitivity(found)
        # Rounding may carry a sweep over the bound or upwards: then the last one is the answer.
        kept = lower <= sensitivity and _error(halves, found) <= (1 + MARGIN) * bound
        converged = not kept or sensitivity - lower <= tol * sensitivity
        if kept:
            factors, sensitivity = found, lower
    weights, columns = normalize_columns(factors, norm, tensor.dtype)
    return CP(weights, columns, _error(halves, factors), iterations, converged)


def _error(halves: Halves, factors: Sequence[Tensor]) -> float:
    return float(halves.residual2(factors).sqrt())


def _least_sensitive(factors: Sequence[Tensor]) -> list[Tensor]:
    """Spread the norm of every term so that its sensitivity is least: |a_rⁱ|² ∝ n_i."""
    roots = [len(factor) ** 0.5 for factor in factors]
    evened = balance_factors([factor / root for factor, root in zip(factors, roots, strict=True)])
    return [factor * root for factor, root in zip(evened, roots, strict=True)]


def _sweep(halves: Halves, factors: Sequence[Tensor], bound: float) -> list[Tensor]:
    """Replace every factor in turn by the least sensitive one within the bound."""
    factors = list(factors)
    grams = [factor.mT @ factor for factor in factors]
    for half, modes in enumerate(halves.modes):
        contracted = halves.contracted(factors, half)
        for mode in modes:
            image = halves.image(contracted, factors, mode)
            weights = _sensitivity_weights(grams, halves.shape, mode)
            # Where large terms cancel, the error is known to a rounding of those terms.
            rounding = ROUNDINGS * float(hadamard(grams).trace())
            room = bound**2 - halves.norm2 - rounding
            factors[mode] = _bounded(image, hadamard(grams, mode), weights, room)
            grams[mode] = factors[mode].mT @ factors[mode]
    return factors


def _sensitivity_weights(grams: Sequence[Tensor], shape: Sequence[int], mode: int) -> Tensor:
    """Return w with sensitivity = Σ_r w_r |a_r|² + constant as a function of one factor."""
    norms2 = [gram.diagonal() for gram in grams]
    others = [j for j in range(len(grams)) if j != mode]
    return torch.stack([shape[j] * hadamard(norms2, mode, j) for j in others]).sum(0)


def _bounded(image: Tensor, gram: Tensor, weights: Tensor, room: float) -> Tensor:
    """Minimise Σ w_r |a_r|² subject to |A Zᵀ|² − 2⟨A, image⟩ ≤ room.

    In the eigenvectors of the weighted Gram matrix the error at a multiplier is a sum of scalars.
    """
    roots = weights.clamp_min(torch.finfo(weights.dtype).tiny ** 0.5).sqrt()
    values, vectors = torch.linalg.eigh(gram / roots[:, None] / roots)
    values = values.clamp_min(0)
    images = (image / roots) @ vectors
    energies = images.square().sum(0)
    largest = float(values[-1]) or 1.0
    low, high = log(largest) - WIDTH, log(largest) + WIDTH
    for _ in range(ROUNDS):
        spacing = (high - low) / SECTIONS
        logs = torch.linspace(low, high, SECTIONS + 1, dtype=values.dtype, device=values.device)
        shifts = logs.exp()[:, None]
        gained = energies * (values + 2 * shifts) / (values + shifts).square()
        # The error grows with the multiplier: so many of them are within the bound.
        within = int((-gained.sum(1) <= room).sum())
        low += max(within - 1, 0) * spacing
        high = low + spacing
    multiplier = exp(low)
    factor: Tensor = (images / (values + multiplier)) @ vectors.mT / roots
    return factor
