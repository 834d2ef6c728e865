"""Alternating least squares for the kernels of a pressed layer, in the norm of its inputs."""

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
"""Conjugate gradient iterations per factor and sweep, and the relative residual at which they stop:
the next sweep continues from there."""

WORK = 5 * 10**11
"""Limit of multiplications with the second moment in a fit, about twenty seconds on one core."""


@dataclass(frozen=True)
class KernelFit:
    """The fitted kernels, and the objective at the start and after every sweep."""

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
    work: float = WORK,
) -> KernelFit:
    r"""Fit the kernels of a layer to a target, one kernel after the other.

    .. math:: \sum_g \operatorname{tr} (W_g - \tilde W_g) \Sigma_g (W_g - \tilde W_g)^T

    Here :math:`\tilde W` is the composed kernel and :math:`\Sigma` the second moment of the input
    vectors. With the other kernels fixed, this is linear least squares in each kernel, solved by
    conjugate gradients from the present kernel, so the objective never rises. The factors of a
    matrix, a kernel on chosen channels, and their sum have a closed form.

    Parameters
    ----------
    kernels : sequence of Tensor
        Canonical kernels to start from.
    target : Tensor
        W, shape (groups, out, in, *kernel).
    second : SecondMoment
        Σ, shape (groups, n, n) with n = in·kernel…, symmetric, positive semidefinite; singular is
        fine.
    composition : Composition, optional
        How the kernels are composed; a chain by default.
    places : sequence of int, optional
        Fit only the kernels at these places.
    sweeps : int
        The largest number of passes over all kernels.
    tolerance : float
        Stop when a sweep lowers the objective by a smaller share.
    work : float
        Approximate limit of multiplications with the second moment.

    Raises
    ------
    InvalidArgumentError
        If the shapes do not fit each other.

    References
    ----------
    The data-informed norm: Kalle, Rudkiewicz et al., arXiv 2511.04494; the fit is our own.

    Examples
    --------
    A matrix of rank 2, fitted by rank 1 where only the first input varies:

    >>> start = [torch.ones(1, 1, 2), torch.ones(1, 2, 1)]
    >>> seen = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    >>> fit = fit_kernels(start, torch.tensor([[[3.0, 0.0], [4.0, 5.0]]]), seen)
    >>> abs(fit.losses[-1]) < 1e-9
    True
    """
    groups, n = target.shape[0], target[0, 0].numel()
    if second.shape != (groups, n, n):
        raise InvalidArgumentError(
            f"second moments for a kernel of shape {tuple(target.shape)} must have shape "
            f"{(groups, n, n)}, not {tuple(second.shape)}"
        )
    kernels = [to_working_precision(kernel) for kernel in kernels]
    composed = composition or Composition(groups)
    composite = composed(kernels)
    if composite.shape != target.shape:
        raise InvalidArgumentError(
            f"the kernels compose to shape {tuple(composite.shape)}, not {tuple(target.shape)}"
        )
    target = to_working_precision(target)
    second = to_working_precision(second) if isinstance(second, Tensor) else second
    losses = [response_error(composite, target, second)]
    closest = composed.closest(kernels, target, second) if places is None else None
    if closest is not None:
        return KernelFit(closest, [*losses, response_error(composed(closest), target, second)])
    order = [*reversed(range(len(kernels)))] if places is None else places
    sweeps, iterations = _affordable(sweeps, len(order), target, second, work)
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
    """Return the summed squared error of the responses of kernels (groups, out, in, *kernel)."""
    error = (target - kernel).flatten(2)  # tr (W - W̃) Σ (W - W̃)ᵀ
    return float(((error @ second) * error).sum().clamp_min(0))


def _affordable(
    sweeps: int, factors: int, target: Tensor, second: SecondMoment, work: float
) -> tuple[int, int]:
    """Return the numbers of sweeps and of iterations per factor within a limit."""
    rows, columns = target.shape[:2].numel(), second.shape[-1]
    if isinstance(second, RowMoment):  # (K Xᵀ) X
        product = 2 * rows * second.rows[0].numel()
    else:
        product = rows * columns * (columns if isinstance(second, Tensor) else 1)
    products = int(work) // product
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
    """Return the best kernel at one place, with the others fixed."""

    def with_kernel(kernel: Tensor) -> Tensor:
        return composed([*kernels[:place], kernel, *kernels[place + 1 :]]).flatten(2)

    # W̃ = L(K) + rest is affine in the kernel K, and the vector-Jacobian product is Lᵀ.
    composite, vjp, *_ = torch.func.vjp(with_kernel, kernels[place])
    rest = with_kernel(torch.zeros_like(kernels[place]))  # the other terms of a sum

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
    """Solve gram(x) = right from x = 0 by conjugate gradients.

    The map must be positive semidefinite with ``right`` in its range. Every iteration lowers the
    quadratic that is minimized.

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
