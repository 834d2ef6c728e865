"""Tucker-2: a core between the input and the output mode."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import ClassVar

import torch
from torch import Tensor

from tensorpress.decompose.spectrum import Spectrum, leading_basis, singular_values, spectrum
from tensorpress.decompose.svd import truncated_svd
from tensorpress.decompose.tucker import hooi
from tensorpress.ranks import round_ranks
from tensorpress.schemes.base import Factorized, LayerScheme
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.rank_grid import FINE, GRID, discarded_energy
from tensorpress.schemes.stages import Stage, pointwise_kernel


@dataclass(frozen=True)
class Tucker2(LayerScheme):
    """1×1 to r_in channels, the core convolution to r_out, 1×1 to all: for a Linear, A·G·Bᵀ.

    Ranks are (r_in, r_out), the order of Kim et al. (R₃, R₄). Fitted by HOOI from the bases of the
    two unfoldings; the error is what the core does not hold of the kernel's energy.

    References
    ----------
    Kim, Park, Yoo, Choi, Yang, Shin (2016), "Compression of deep convolutional neural networks for
    fast and low power mobile applications", sec. 3.1.
    """

    parts: ClassVar[tuple[float, ...]] = FINE

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse kernels with one input and one output channel a group, and look-ups."""
        if spec.kind == "Embedding":
            return "a core between two matrices costs more than channel_svd, which is as exact"
        if spec.in_ == spec.out == 1:
            return "each group has one input and one output channel: there are no modes to cut"
        return None

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the ranks of the two unfoldings, at most."""
        size = prod(spec.kernel)
        return min(spec.in_, spec.out * size), min(spec.out, spec.in_ * size)

    def attainable(self, spec: LayerSpec, ranks: Sizes) -> Sizes:
        """Return ranks of which neither exceeds the other times the core's spatial size."""
        size = prod(spec.kernel)
        return min(ranks[0], ranks[1] * size), min(ranks[1], ranks[0] * size)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectra of the unfoldings along the input and the output mode."""
        if _is_matrix(spec):  # its two unfoldings are each other's transpose
            found = spectrum(kernel.flatten(2).mT)
            return found, found
        return spectrum(kernel.transpose(1, 2).flatten(2)), spectrum(kernel.flatten(2))

    def candidates(self, spec: LayerSpec, round_to: int = 1) -> list[Sizes]:
        """Return pairs of ranks, cheapest first; of a matrix equal ones."""
        if _is_matrix(spec):
            return super().candidates(spec, round_to)
        sides = (
            round_ranks([ceil(part * most) for part in GRID], [most] * len(GRID), round_to)
            for most in self.largest_ranks(spec)
        )
        pairs = [pair for pair in set(product(*sides)) if self.attainable(spec, pair) == pair]
        priced = sorted((self.params(spec, pair), pair) for pair in pairs)
        return [pair for params, pair in priced if params < spec.params]

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return what one full HOSVD has beyond the ranks: HOOI from its bases leaves no more.

        It is the energy of the entries that truncations of its core leave out. HOOI from another
        start may, seldom and by little, end above it.
        """
        if _is_matrix(spec):
            return discarded_energy(
                singular_values(kernel.flatten(2)), [min(r) for r in candidates]
            )
        kept = _energies(kernel, self.spectra(spec, kernel)).cumsum(0).cumsum(1)
        total = float(kept[-1, -1])
        if not total or not candidates:
            return [0.0] * len(candidates)
        into, out = ([rank - 1 for rank in side] for side in zip(*candidates, strict=True))
        return (1 - kept[into, out] / total).clamp_min(0).tolist()

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return 1×1 → core → 1×1."""
        reduced, expanded = ranks
        return (
            Stage(spec.groups, reduced, spec.in_),
            Stage(spec.groups, expanded, reduced, tuple(range(spec.order))),
            Stage(spec.groups, spec.out, expanded),
        )

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Fit core and factors by higher-order orthogonal iteration, all groups at once."""
        if _is_matrix(spec):
            return _of_matrix(spec, kernel.flatten(2), ranks, spectra)
        found = hooi(kernel, ranks, modes=(1, 0), stacked=True, start=spectra or None)
        into, out = found.factors
        return Factorized(
            [pointwise_kernel(into.mT, spec), found.core, pointwise_kernel(out, spec)],
            found.relative_error,
        )


def _is_matrix(spec: LayerSpec) -> bool:
    return prod(spec.kernel) == 1


def _of_matrix(
    spec: LayerSpec, matrix: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
) -> Factorized:
    """Return the SVD as A·G·Bᵀ: what HOOI finds for a matrix (groups, out, in)."""
    found = truncated_svd(matrix.mT, ranks[0], spectrum=spectra[0] if spectra else None)
    parts = (found.u.mT, torch.diag_embed(found.s), found.v)
    return Factorized([pointwise_kernel(part, spec) for part in parts], found.relative_error)


def _energies(kernel: Tensor, spectra: Sequence[Spectrum]) -> Tensor:
    """Return the energy of every pair of an input and an output direction in the HOSVD's core."""
    unfolded = (kernel.transpose(1, 2).flatten(2), kernel.flatten(2))
    into, out = (
        leading_basis(matrix, found.values.shape[-1], found)
        for matrix, found in zip(unfolded, spectra, strict=True)
    )
    reduced = (out.mT @ unfolded[1]).reshape(*out.mT.shape[:2], kernel.shape[2], -1)
    core = into.mT.unsqueeze(1) @ reduced  # (groups, r_out, r_in, k)
    energies: Tensor = core.square().sum((0, 3)).mT
    return energies
