"""Fitting the kernels of a chain, or of a sum, to a kernel in the norm that inputs give it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.kernel_model import Composition
from tensorpress.reconstruct.second_moment import RowMoment, SecondMoment

SWEEPS = 20
ITERATIONS, ENOUGH = 30, 1e-2
"""Of conjugate gradients a factor and sweep, and the residual, relative to that before, at which
they end: the next sweep goes on from there."""

WIDE_WORK = 5 * 10**11
"""About how many multiplications the fit of a layer takes whose moment is known by rows: twenty
seconds on a core, and as many products with the moment as that allows."""


@dataclass(frozen=True)
class KernelFit:
    """The kernels, and what the objective was at the start and after every sweep."""

    kernels: list[Tensor]
    losses: list[float]


def fit_kernels(
    kernels: Sequence[Tensor],
    target: Tensor,
    second: SecondMoment,
    composition: Composition | None = None,
    *,
    places: Sequence[int] | None = None,
    sweeps: int = SWEEPS,
    tolerance: float = 1e-4,
) -> KernelFit:
    r"""Minimize the error of responses over the kernels of a layer, one after the other.

    .. math:: \sum_g \operatorname{tr} (W_g - \tilde W_g) \Sigma_g (W_g - \tilde W_g)^T

    with :math:`\tilde W` the kernel that they stand for and :math:`\Sigma` the second moment
    of the vectors a kernel is multiplied with. That is linear least squares in each kernel while
    the others stay, solved by conjugate gradients from where the kernel is, so that the objective
    never rises. The factors of a matrix, a kernel on chosen channels, and their sum, are known in
    closed form.

    Parameters
    ----------
    kernels : sequence of Tensor
        Canonical kernels, where the search starts.
    target : Tensor
        W, shape (groups, out, in, *kernel).
    second : SecondMoment
        Σ, shape (groups, n, n) with n = in·kernel…, symmetric, positive semidefinite; singular is
        fine.
    composition : Composition, optional
        What the kernels stand for; a chain by default.
    places : sequence of int, optional
        Change the kernels at these places only.
    sweeps : int
        At most so many times over all kernels.
    tolerance : float
        Stop when a sweep lowers the objective by less, relatively.

    Raises
    ------
    InvalidArgumentError
        For shapes that do not fit.

    References
    ----------
    The data-informed norm: Kalle, Rudkiewicz et al., arXiv 2511.04494; the fit is our own.

    Examples
    --------
    A matrix of rank 2 in a norm that looks at one of its columns only:

    >>> start = [torch.ones(1, 1, 2), torch.ones(1, 2, 1)]
    >>> seen = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    >>> fit = fit_kernels(start, torch.tensor([[[3.0, 0.0], [4.0, 5.0]]]), seen)
    >>> abs(fit.losses[-1]) < 1e-9
    True
    """
    groups, n = target.shape[0], target[0, 0].numel()
    if second.shape != (groups, n, n):
        raise InvalidArgumentError(
            f"second moments of a kernel {tuple(target.shape)} have shape {(groups, n, n)}, not "
            f"{tuple(second.shape)}"
        )
    kernels = [to_working_precision(kernel) for kernel in kernels]
    composed = composition or Composition(groups)
    composite = composed(kernels)
    if composite.shape != target.shape:
        raise InvalidArgumentError(
            f"the kernels stand for {tuple(composite.shape)}, not {tuple(target.shape)}"
        )
    target = to_working_precision(target)
    second = to_working_precision(second) if isinstance(second, Tensor) else second
    losses = [response_error(composite, target, second)]
    closest = composed.closest(kernels, target, second) if places is None else None
    if closest is not None:
        return KernelFit(closest, [*losses, response_error(composed(closest), target, second)])
    order = [*reversed(range(len(kernels)))] if places is None else places
    sweeps, iterations = _affordable(sweeps, len(order), target, second)
    for _ in range(sweeps):
        for place in order:
            kernels[place] = _best_kernel(
                kernels, place, composed, target.flatten(2), second, iterations
            )
        losses.append(response_error(composed(kernels), target, second))
        if losses[-2] - losses[-1] <= tolerance * losses[-2]:
            break
    return KernelFit(kernels, losses)


def response_error(kernel: Tensor, target: Tensor, second: SecondMoment) -> float:
    """Return the summed squared error of responses, of kernels (groups, out, in, *kernel)."""
    error = (target - kernel).flatten(2)  # tr (W - W̃) Σ (W - W̃)ᵀ
    return float(((error @ second) * error).sum().clamp_min(0))


def _affordable(sweeps: int, factors: int, target: Tensor, second: SecondMoment) -> tuple[int, int]:
    """Return how many sweeps, and iterations a factor, `WIDE_WORK` allows."""
    if not isinstance(second, RowMoment):
        return sweeps, ITERATIONS
    # (K Xᵀ) X takes 2 out · rows · columns multiplications a group.
    products = WIDE_WORK // (2 * target.shape[:2].numel() * second.rows[0].numel())
    iterations = max(1, min(ITERATIONS, products // factors))
    return max(1, min(sweeps, products // (factors * iterations))), iterations


def _best_kernel(
    kernels: Sequence[Tensor],
    place: int,
    composed: Composition,
    target: Tensor,
    second: SecondMoment,
    iterations: int,
) -> Tensor:
    """Return the kernel at one place that is best while the others stay."""

    def with_kernel(kernel: Tensor) -> Tensor:
        return composed([*kernels[:place], kernel, *kernels[place + 1 :]]).flatten(2)

    # W̃ = L(K) + rest is affine in the kernel K, and the vector-Jacobian product is Lᵀ.
    composite, vjp, *_ = torch.func.vjp(with_kernel, kernels[place])
    rest = with_kernel(torch.zeros_like(kernels[place]))  # of a sum the other terms

    def transposed(kernel: Tensor) -> Tensor:
        gradient: Tensor = vjp(kernel @ second)[0]  # Lᵀ(K Σ)
        return gradient

    def gram(kernel: Tensor) -> Tensor:
        return transposed(with_kernel(kernel) - rest)  # Lᵀ(L(K) Σ)

    residual = transposed(target - composite)  # Lᵀ((W - W̃) Σ)
    return kernels[place] + conjugate_gradients(gram, residual, iterations, ENOUGH)


def conjugate_gradients(
    gram: Callable[[Tensor], Tensor], right: Tensor, iterations: int, tolerance: float = 1e-8
) -> Tensor:
    """Solve gram(x) = right from x = 0, for a positive semidefinite map and a right in its range.

    Every iteration lowers the quadratic that it minimizes.

    Examples
    --------
    >>> scale = torch.tensor([1.0, 2.0, 4.0]).double()
    >>> conjugate_gradients(lambda x: scale * x, torch.ones(3).double(), 5)
    tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
    """
    x, direction, residual = torch.zeros_like(right), right, right
    size = float(right.square().sum())
    enough = size * tolerance**2
    for _ in range(iterations):
        if size <= enough:
            break
        step = gram(direction)
        curvature = float((direction * step).sum())
        if curvature <= 0:
            break
        x = x + direction * (size / curvature)
        residual = residual - step * (size / curvature)
        before, size = size, float(residual.square().sum())
        direction = residual + direction * (size / before)
    return x
