"""Error-preserving correction of a CP decomposition whose terms cancel."""

from collections.abc import Sequence
from math import exp, log

import torch
from torch import Tensor

from tensorpress.decompose.cp_mttkrp import HalvedTensor, hadamard
from tensorpress.decompose.cp_problem import balance_factors, normalize_columns
from tensorpress.decompose.cp_tensor import CP, cp_sensitivity
from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError

SEARCH_WIDTH, SECTIONS, ROUNDS = 40.0, 64, 6
"""The search for the multiplier, on a log scale: its range on both sides of the largest eigenvalue,
the sections per round and the rounds. This is bisection in fewer, larger operations."""

ROUNDING = 100 * torch.finfo(torch.float64).eps
"""How far below the bound a solution aims, in units of the summed squared norms of the terms."""

MARGIN = 1e-9
"""How far the measured error may lie above the bound, relative to it."""


def cp_correct(
    cp: CP,
    tensor: Tensor,
    *,
    max_error: float | None = None,
    max_iter: int = 500,
    tol: float = 1e-4,
) -> CP:
    """Lower the sensitivity of a decomposition while its error stays within a bound.

    Large terms that cancel (``CP.degeneracy``) make a decomposition that fits but cannot be trained
    or quantized. One factor after another is replaced by the least sensitive one within the bound,
    A = T₍ᵢ₎Z(ZᵀZ + ν diag(w))⁻¹, where Z is the Khatri–Rao product of the other factors, w the
    weights of the sensitivity and ν the largest multiplier that the bound allows.

    Parameters
    ----------
    cp : CP
        A decomposition of ``tensor``.
    tensor : Tensor
        Tensor of shape (n_1, …, n_d).
    max_error : float, optional
        Bound on ‖T − T̂‖ / ‖T‖, below 1; by default the error of ``cp``. A decomposition at a
        minimum of the error has no freedom within its own error and needs a slightly larger bound.
    max_iter : int
        Largest number of sweeps over the factors.
    tol : float
        The sweeps end once one lowers the sensitivity by no more than this fraction of it.

    Returns
    -------
    CP
        A decomposition in the dtype of ``tensor`` whose sensitivity is no larger.

    Raises
    ------
    InvalidArgumentError
        If the decomposition does not fit the tensor, or its error is already above the bound.

    References
    ----------
    The error-preserving correction of Phan et al. (2020), "Stable low-rank tensor decomposition
    for compression of convolutional neural network", generalized to any number of modes.

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
            f"factors of shapes {sizes} do not fit a tensor of shape {tuple(tensor.shape)}: each "
            "mode needs a matrix (size of the mode, number of terms)"
        )
    exact = to_working_precision(tensor)
    norm = float(exact.norm())
    halves = HalvedTensor(exact / (norm or 1.0))
    weights = to_working_precision(cp.weights).to(exact) / (norm or 1.0)
    first, *others = [to_working_precision(factor).to(exact) for factor in cp.factors]
    factors = _distribute_norms([first * weights, *others])
    error = _measure_error(halves, factors)
    bound = error if max_error is None else max_error
    if not error <= (1 + MARGIN) * bound or bound >= 1:
        raise InvalidArgumentError(
            f"max_error must be at least the decomposition's error, {error:.6g}, and below 1, got "
            f"{max_error}"
        )
    sensitivity, iterations, converged = cp_sensitivity(factors), 0, False
    while iterations < max_iter and not converged:
        new_factors = _distribute_norms(_sweep(halves, factors, bound))
        iterations += 1
        new_sensitivity = cp_sensitivity(new_factors)
        # If rounding takes a sweep beyond the bound or raises the sensitivity, the last sweep
        # counts.
        accepted = (
            new_sensitivity <= sensitivity
            and _measure_error(halves, new_factors) <= (1 + MARGIN) * bound
        )
        converged = not accepted or sensitivity - new_sensitivity <= tol * sensitivity
        if accepted:
            factors, sensitivity = new_factors, new_sensitivity
    weights, columns = normalize_columns(factors, norm, tensor.dtype)
    return CP(weights, columns, _measure_error(halves, factors), iterations, converged)


def _measure_error(halves: HalvedTensor, factors: Sequence[Tensor]) -> float:
    return float(halves.squared_residual(factors).sqrt())


def _distribute_norms(factors: Sequence[Tensor]) -> list[Tensor]:
    """Distribute the norm of every term so that its sensitivity is least: ‖a_rⁱ‖² ∝ n_i."""
    roots = [len(factor) ** 0.5 for factor in factors]
    balanced = balance_factors([factor / root for factor, root in zip(factors, roots, strict=True)])
    return [factor * root for factor, root in zip(balanced, roots, strict=True)]


def _sweep(halves: HalvedTensor, factors: Sequence[Tensor], bound: float) -> list[Tensor]:
    """Replace every factor in turn by the least sensitive one within the bound."""
    factors = list(factors)
    grams = [factor.mT @ factor for factor in factors]
    for half, modes in enumerate(halves.modes):
        contracted = halves.contract_half(factors, half)
        for mode in modes:
            mttkrp = halves.mttkrp(contracted, factors, mode)
            weights = _sensitivity_weights(grams, halves.shape, mode)
            # ‖T − T̂‖² ≤ δ² means ‖T̂‖² − 2⟨T, T̂⟩ ≤ δ² − ‖T‖². Where large terms cancel, the left
            # side is only known to a rounding of those terms.
            rounding = ROUNDING * float(hadamard(grams).trace())
            limit = bound**2 - halves.norm2 - rounding
            factors[mode] = _minimize_sensitivity(mttkrp, hadamard(grams, mode), weights, limit)
            grams[mode] = factors[mode].mT @ factors[mode]
    return factors


def _sensitivity_weights(grams: Sequence[Tensor], shape: Sequence[int], mode: int) -> Tensor:
    """Return w, of shape (r,), with sensitivity = Σ_r w_r ‖a_r‖² + constant for one factor.

    This factor is in all terms of the sum in `cp_sensitivity` except its own: w_r = Σ_{j≠i} n_j
    Π_{k≠i,j} ‖a_rᵏ‖².
    """
    norms2 = [gram.diagonal() for gram in grams]
    others = [j for j in range(len(grams)) if j != mode]
    return torch.stack([shape[j] * hadamard(norms2, mode, j) for j in others]).sum(0)


def _minimize_sensitivity(mttkrp: Tensor, gram: Tensor, weights: Tensor, limit: float) -> Tensor:
    """Return the factor A of least Σ_r w_r ‖a_r‖² with ‖A Zᵀ‖² − 2⟨A, T₍ᵢ₎Z⟩ ≤ limit.

    Parameters
    ----------
    mttkrp : Tensor
        T₍ᵢ₎Z, of shape (n_i, r).
    gram : Tensor
        ZᵀZ, of shape (r, r).
    weights : Tensor
        w, of shape (r,).
    limit : float
        Bound on the error, less the constant ‖T‖².
    """
    # With D = diag(w)^½ and B = A D, minimize ‖B‖² under the same bound for T₍ᵢ₎ZD⁻¹ and
    # G = D⁻¹ZᵀZD⁻¹ = VΛVᵀ: in the columns of BV everything is a sum of scalars.
    roots = weights.clamp_min(torch.finfo(weights.dtype).tiny ** 0.5).sqrt()
    values, vectors = torch.linalg.eigh(gram / roots[:, None] / roots)
    values = values.clamp_min(0)
    projected = (mttkrp / roots) @ vectors
    energies = projected.square().sum(0)
    largest = float(values[-1]) or 1.0
    low, high = log(largest) - SEARCH_WIDTH, log(largest) + SEARCH_WIDTH
    for _ in range(ROUNDS):
        spacing = (high - low) / SECTIONS
        logs = torch.linspace(low, high, SECTIONS + 1, dtype=values.dtype, device=values.device)
        multipliers = logs.exp()[:, None]
        # At b_k = p_k / (λ_k + ν) the left side is −Σ_k ‖p_k‖² (λ_k + 2ν) / (λ_k + ν)².
        decreases = energies * (values + 2 * multipliers) / (values + multipliers).square()
        # It grows with ν, so the multipliers within the bound are the first ones.
        feasible = int((-decreases.sum(1) <= limit).sum())
        low += max(feasible - 1, 0) * spacing
        high = low + spacing
    # A = B D⁻¹ = T₍ᵢ₎Z (ZᵀZ + ν D²)⁻¹
    multiplier = exp(low)
    factor: Tensor = (projected / (values + multiplier)) @ vectors.mT / roots
    return factor
