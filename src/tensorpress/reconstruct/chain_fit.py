"""Fitting a chain of kernels to a kernel in the norm that inputs give it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.decompose.precision import working
from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.stages import compose

SWEEPS = 20
ITERATIONS = 30
"""Of conjugate gradients a factor and sweep: the next sweep goes on where they end."""


@dataclass(frozen=True)
class ChainFit:
    """Kernels of a chain, and what the objective was at the start and after every sweep."""

    kernels: list[Tensor]
    losses: list[float]


def fit_chain(
    kernels: Sequence[Tensor],
    target: Tensor,
    second: Tensor,
    *,
    sweeps: int = SWEEPS,
    tolerance: float = 1e-4,
    last_only: bool = False,
) -> ChainFit:
    r"""Minimize the error of a chain's responses over all of its kernels, one after the other.

    .. math:: \sum_g \operatorname{tr} (W_g - \tilde W_g) \Sigma_g (W_g - \tilde W_g)^T

    with :math:`\tilde W` the kernel that the chain stands for and :math:`\Sigma` the second moment
    of the vectors a kernel is multiplied with. That is linear least squares in each kernel while
    the others stay, solved by conjugate gradients from where the kernel is, so that the objective
    never rises.

    Parameters
    ----------
    kernels : sequence of Tensor
        Canonical kernels of the chain, where the search starts.
    target : Tensor
        W, shape (groups, out, in, *kernel).
    second : Tensor
        Σ, shape (groups, n, n) with n = in·kernel…, symmetric, positive semidefinite; singular is
        fine.
    sweeps : int
        At most so many times over all kernels.
    tolerance : float
        Stop when a sweep lowers the objective by less, relatively.
    last_only : bool
        Change no kernel but the last one.

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
    >>> fit = fit_chain(start, torch.tensor([[[3.0, 0.0], [4.0, 5.0]]]), seen)
    >>> abs(fit.losses[-1]) < 1e-9
    True
    """
    groups, n = target.shape[0], target[0, 0].numel()
    if second.shape != (groups, n, n):
        raise InvalidArgumentError(
            f"second moments of a kernel {tuple(target.shape)} have shape {(groups, n, n)}, not "
            f"{tuple(second.shape)}"
        )
    kernels = [working(kernel) for kernel in kernels]
    wanted, norm = working(target).flatten(2), working(second)
    if compose(kernels, groups).shape != target.shape:
        raise InvalidArgumentError(
            f"the chain stands for {tuple(compose(kernels, groups).shape)}, not "
            f"{tuple(target.shape)}"
        )
    losses = [response_error(compose(kernels, groups).flatten(2), wanted, norm)]
    last = len(kernels) - 1
    for _ in range(sweeps):
        for place in [last] if last_only else reversed(range(len(kernels))):
            kernels[place] = _best_kernel(kernels, place, wanted, norm)
        losses.append(response_error(compose(kernels, groups).flatten(2), wanted, norm))
        if losses[-2] - losses[-1] <= tolerance * losses[-2]:
            break
    return ChainFit(kernels, losses)


def response_error(found: Tensor, wanted: Tensor, second: Tensor) -> float:
    """Return the summed squared error of responses, of kernels (groups, out, n)."""
    error = wanted - found
    return float(((error @ second) * error).sum().clamp_min(0))


def _best_kernel(kernels: Sequence[Tensor], place: int, wanted: Tensor, second: Tensor) -> Tensor:
    """Return the kernel at one place of a chain that is best while the others stay."""
    groups = wanted.shape[0]

    def chain_with(kernel: Tensor) -> Tensor:
        own = [*kernels[:place], kernel, *kernels[place + 1 :]]
        return compose(own, groups).flatten(2)

    found, vjp, *_ = torch.func.vjp(chain_with, kernels[place])

    def transposed(kernel: Tensor) -> Tensor:
        gradient: Tensor = vjp(kernel @ second)[0]
        return gradient

    def gram(kernel: Tensor) -> Tensor:
        return transposed(chain_with(kernel))

    residual = transposed(wanted - found)
    return kernels[place] + conjugate_gradients(gram, residual, ITERATIONS)


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
    found, direction, left = torch.zeros_like(right), right, right
    size = float(right.square().sum())
    enough = size * tolerance**2
    for _ in range(iterations):
        if size <= enough:
            break
        step = gram(direction)
        curvature = float((direction * step).sum())
        if curvature <= 0:
            break
        found = found + direction * (size / curvature)
        left = left - step * (size / curvature)
        before, size = size, float(left.square().sum())
        direction = left + direction * (size / before)
    return found
