"""What the benchmark of decompositions decomposes, and what it is compared with."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorly
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.fft import dct
from scipy.optimize import minimize_scalar
from tensorly.decomposition import partial_tucker
from tensorly.tenalg import svd_interface
from torch import Tensor, nn

from tensorpress import load_model

Shape = tuple[int, ...]

EXPONENT = 0.5
"""Singular values of the signal fall as k to minus this."""

SIGNAL = 0.42
"""The signal's rank in a mode, as a fraction of the mode's size."""

MARGIN = 5.0
"""By how much the weakest component's energy exceeds what EVBMF needs to see it."""

SQUARE_ROOT = 2.5129
"""The threshold on τ of EVBMF for square matrices; times √α its common approximation for others."""

KERNELS = (*((n, n, 3, 3) for n in (64, 128, 256, 512, 1024)), (2048, 512, 1, 1))

tensorly.set_backend("pytorch")


def is_matrix(shape: Shape) -> bool:
    """Return whether all that follows the output and the input mode has size 1."""
    return math.prod(shape[2:]) == 1


def trained_like(shape: Shape) -> Tensor:
    """Return a float32 kernel, always the same: power laws in two unfoldings, plus noise.

    Gaussian entries are scaled along the output and the input mode (of a matrix the smaller one) by
    k^-EXPONENT up to k = SIGNAL·L and by 0 beyond, and these modes are rotated, by random signs and
    a cosine transform, which is orthogonal at any size. Gaussian noise is added, of the largest
    variance σ² for which s_k² ≥ MARGIN · 2.5129 √α M σ² for the last k of each L×M unfolding,
    α = L/M: EVBMF keeps the signal's ranks.

    Examples
    --------
    >>> tuple(trained_like((8, 4, 3, 3)).shape)
    (8, 4, 3, 3)
    """
    random = np.random.default_rng(0)
    kernel = random.standard_normal(shape, dtype=np.float32)
    modes = [int(np.argmin(shape[:2]))] if is_matrix(shape) else [0, 1]
    variances = []
    for mode in modes:
        size = shape[mode]
        squares = _power_law(size)  # s_k² / M
        scale = np.sqrt(squares) * random.choice([-1, 1], size)
        along = [-1 if axis == mode else 1 for axis in range(len(shape))]
        kernel = dct(kernel * scale.astype(np.float32).reshape(along), norm="ortho", axis=mode)
        aspect = size**2 / math.prod(shape)
        variances.append(squares[squares > 0][-1] / (MARGIN * SQUARE_ROOT * math.sqrt(aspect)))
    noise = np.float32(math.sqrt(min(variances)))
    return torch.from_numpy(kernel + noise * random.standard_normal(shape, dtype=np.float32))


def _power_law(size: int) -> NDArray[np.float64]:
    """Return the squares of singular values, of mean 1."""
    places = np.arange(1, size + 1)
    falling = np.where(places <= math.ceil(SIGNAL * size), places ** (-2.0 * EXPONENT), 0)
    return falling / falling.mean()


def layer_of(weight: Tensor) -> nn.Module:
    """Return a Linear or a Conv2d with this weight."""
    out, in_, *kernel = weight.shape
    layer = (
        nn.Conv2d(in_, out, kernel, device="meta") if kernel else nn.Linear(in_, out, device="meta")
    )
    layer.bias = None
    layer.weight = nn.Parameter(weight)
    return layer


def torchvision_shapes() -> dict[str, Counter[Shape]]:
    """Return how often each weight shape occurs in the networks of torchvision."""
    names = {"ResNet-18": "resnet18", "ResNet-50": "resnet50", "VGG-16": "vgg16"}
    return {
        title: _shapes(load_model(f"torchvision:{name}", meta=True))
        for title, name in names.items()
    }


def _shapes(network: nn.Module) -> Counter[Shape]:
    return Counter(
        tuple(module.weight.shape)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    )


def trained_kernels(data: Path) -> dict[str, Tensor]:
    """Return the trained weights of ResNet-56 on CIFAR-10, by name."""
    weights = load_file(data / "cifar10_resnet" / "resnet56.safetensors")
    return {name: weight for name, weight in weights.items() if weight.ndim in (2, 4)}


def tensorly_tucker(weight: Tensor, ranks: Sequence[int]) -> Callable[[], Tensor]:
    """Return tensorly's HOOI at its defaults, as a function; ``ranks`` are (r_in, r_out)."""

    def decompose() -> tuple[Tensor, list[Tensor]]:
        (core, factors), _ = partial_tucker(weight, ranks[::-1], modes=[0, 1], init="svd")
        return core, factors

    return decompose


def tensorly_svd(matrix: Tensor, rank: int) -> Callable[[], tuple[Tensor, ...]]:
    """Return tensorly's truncated SVD, as a function."""
    return lambda: svd_interface(matrix, method="truncated_svd", n_eigenvecs=rank)


def numpy_evbmf(weight: Tensor, *, thin: bool) -> tuple[int, ...]:
    """Return the ranks (in, out) that the analytic EVBMF finds, the way it is commonly run.

    An SVD of each unfolding, of a matrix of one of them; the threshold constant 2.5129 of square
    matrices; the noise variance by bounded scalar minimization. The public ports compute all right
    singular vectors, also those that no singular value belongs to; ``thin`` is kinder.

    References
    ----------
    Nakajima, Sugiyama, Babacan, Tomioka (2013), "Global analytic solution of fully-observed
    variational Bayesian matrix factorization", JMLR 14.
    """
    unfoldings = [weight.flatten(1), weight.transpose(0, 1).flatten(1)]
    if is_matrix(weight.shape):
        del unfoldings[1]
    ranks = [_evbmf_rank(unfolding.numpy(), thin) for unfolding in unfoldings]
    return (ranks[-1], ranks[0])


def _evbmf_rank(matrix: NDArray[np.float32], thin: bool) -> int:
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    small, large = wide.shape
    squares = np.linalg.svd(wide, full_matrices=not thin)[1].astype(np.float64) ** 2
    aspect = small / large
    root = SQUARE_ROOT * math.sqrt(aspect)
    cutoff = (1 + root) * (1 + aspect / root)

    def free_energy(variance: float) -> float:
        x = squares / (large * variance)
        above, below = x[x > cutoff], x[x <= cutoff]
        shifted = above - 1 - aspect
        tau = (shifted + np.sqrt(shifted**2 - 4 * aspect)) / 2
        kept = above - tau + np.log((tau + 1) / above) + aspect * np.log(tau / aspect + 1)
        return float(kept.sum() + (below - np.log(below)).sum())

    most = min(math.ceil(small / (1 + aspect)) - 1, small - 1)
    lowest = max(squares[most] / (large * cutoff), squares[most:].mean() / large)
    found = minimize_scalar(free_energy, bounds=(lowest, squares.mean() / large), method="bounded")
    return int((squares > large * found.x * cutoff).sum())


def floor(weight: Tensor, *, modes: int = 2) -> Callable[[], None]:
    """Return Gram product and ``eigh`` in float64 of each unfolding, of a matrix of one: no more.

    The unfoldings are made, and converted, outside the function.
    """
    unfoldings = [weight.flatten(1), weight.transpose(0, 1).flatten(1)]
    sides = [
        (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT).double().contiguous()
        for matrix in unfoldings[: 1 if is_matrix(weight.shape) else modes]
    ]

    def run() -> None:
        for side in sides:
            torch.linalg.eigh(side @ side.mT)

    return run


def tucker_error(weight: Tensor, found: tuple[Tensor, list[Tensor]]) -> float:
    """Return ‖W − Ŵ‖ / ‖W‖ of a Tucker-2 decomposition, in float64."""
    core, (out, into) = found
    rebuilt = torch.einsum("rs...,or,is->oi...", core.double(), out.double(), into.double())
    return _relative(weight, rebuilt)


def svd_error(weight: Tensor, found: tuple[Tensor, ...]) -> float:
    """Return ‖W − Ŵ‖ / ‖W‖ of a truncated SVD of the weight, flat, in float64."""
    u, s, vt = (part.double() for part in found)
    return _relative(weight, ((u * s) @ vt).reshape(weight.shape))


def _relative(weight: Tensor, rebuilt: Tensor) -> float:
    return float((weight.double() - rebuilt).norm() / weight.double().norm())
