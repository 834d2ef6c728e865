"""Where CP algorithms start from."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from tensorpress.decompose.algebra import mode_product, unfold
from tensorpress.decompose.cp_problem import balanced
from tensorpress.decompose.cp_products import identity
from tensorpress.decompose.spectrum import leading_basis


def cp_starts(tensor: Tensor, rank: int) -> list[list[Tensor]]:
    """Return factors to start from, always the same ones; no single kind is best on all kernels.

    Parameters
    ----------
    tensor : Tensor
        Shape (n_1, …, n_d), d ≥ 2, float64.
    rank : int
        At most ``max_cp_rank``.

    Returns
    -------
    list of list of Tensor
        For a matrix its singular value decomposition alone; otherwise the slices' singular triplets
        as they are and after rotating the small modes, the leading vectors of all unfoldings, and
        random values.
    """
    if tensor.ndim == 2:
        return [slice_start(tensor, rank)]
    generator = torch.Generator().manual_seed(0)
    random = [
        torch.randn(n, rank, generator=generator, device="cpu").to(tensor) for n in tensor.shape
    ]
    bases = [leading_basis(unfold(tensor, mode), size) for mode, size in enumerate(tensor.shape)]
    leading = [
        torch.cat([b, f[:, b.shape[1] :]], dim=1)[:, :rank]
        for b, f in zip(bases, random, strict=True)
    ]
    return [
        slice_start(tensor, rank),
        slice_start(tensor, rank, bases),
        balanced([factor / factor.norm(dim=0) for factor in leading]),
        balanced([factor / factor.norm(dim=0) for factor in random]),
    ]


def slice_start(tensor: Tensor, rank: int, bases: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Return the largest singular triplets of all slices over the two longest modes.

    A slice is one position in the other modes, whose columns mark it. The terms are orthogonal, so
    the squared error is the discarded energy, and all triplets together, ``max_cp_rank`` many, are
    the tensor itself.

    Parameters
    ----------
    tensor : Tensor
        Shape (n_1, …, n_d), d ≥ 2.
    rank : int
        Number of terms, at most ``max_cp_rank``.
    bases : sequence of Tensor, optional
        An orthogonal matrix a mode to turn the small modes to first: their singular vectors gather
        the energy in few slices.

    Examples
    --------
    >>> factors = slice_start(torch.ones(3, 4, 2) * torch.tensor([2.0, 1.0]), 2)
    >>> [tuple(factor.shape) for factor in factors], factors[2].sign().tolist()
    ([(3, 2), (4, 2), (2, 2)], [[1.0, 0.0], [0.0, 1.0]])
    """
    by_size = sorted(range(tensor.ndim), key=lambda mode: -tensor.shape[mode])
    large, small = sorted(by_size[:2]), sorted(by_size[2:])
    rest = tensor
    if bases is None:
        bases = [identity(size, tensor) for size in tensor.shape]
    else:
        for mode in small:
            rest = mode_product(rest, bases[mode].mT, mode)
    slices = rest.permute(*small, *large).flatten(0, tensor.ndim - 3) if small else tensor[None]
    left, right, energies = _triplets(slices)
    top = energies.flatten().topk(rank).indices
    position, index = top // energies.shape[1], top % energies.shape[1]
    factors = {large[0]: left[position, :, index].mT, large[1]: right[position, :, index].mT}
    places = _unravelled(position, [tensor.shape[mode] for mode in small])
    for mode, place in zip(small, places, strict=True):
        factors[mode] = bases[mode][:, place]
    return balanced([factors[mode] for mode in range(tensor.ndim)])


def _triplets(slices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose matrices S into Σ_k l_k r_kᵀ: one side orthonormal, with the energies |l_k|²|r_k|².

    With V from the Gram matrix, S = (SV)Vᵀ holds to rounding however small a singular value is.
    """
    if slices.shape[1] < slices.shape[2]:
        right, left, energies = _triplets(slices.mT)
        return left, right, energies
    vectors = torch.linalg.eigh(slices.mT @ slices).eigenvectors
    images = slices @ vectors
    return images, vectors, images.square().sum(1)


def _unravelled(position: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Split positions in a tensor of the given sizes into positions in its modes."""
    return [position // prod(sizes[i + 1 :]) % size for i, size in enumerate(sizes)]
