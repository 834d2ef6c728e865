"""Tensor train of a convolution's kernel: 1×1, one convolution a spatial mode, 1×1."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorpress.decompose.spectrum import Spectrum, spectrum
from tensorpress.decompose.tensor_train import (
    attainable_tt_ranks,
    largest_tt_ranks,
    tt_svd,
)
from tensorpress.schemes.base import Factorized, LayerScheme
from tensorpress.schemes.layer import LayerSpec, Sizes
from tensorpress.schemes.stages import Stage, along, flat


@dataclass(frozen=True)
class TrainOfConvolutions(LayerScheme):
    """1×1 to r₁ channels, a convolution along each spatial mode to r₂, r₃, …, 1×1 to all.

    The kernel (in, k₁, …, out) as a tensor train, a TT-core a layer; d spatial modes have d + 1
    ranks. The error is the discarded energy of the successive truncations.

    References
    ----------
    Oseledets (2011), "Tensor-train decomposition", Alg. 1.
    """

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse layers without spatial modes."""
        if spec.order == 0:
            return "it has no spatial modes: its tensor train is that of a matrix"
        if max(self.largest_ranks(spec)) == 1:
            return "its kernel is a vector: nothing to cut"
        return None

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the ranks of the unfoldings, at most."""
        return largest_tt_ranks((spec.in_, *spec.kernel, spec.out))

    def attainable(self, spec: LayerSpec, ranks: Sizes) -> Sizes:
        """Return the ranks that a train with these ranks can have."""
        return attainable_tt_ranks((spec.in_, *spec.kernel, spec.out), ranks)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectra of the d + 1 unfoldings."""
        tensor = kernel.movedim(1, -1)
        return tuple(
            spectrum(tensor.flatten(cut).flatten(1, cut - 1)) for cut in range(2, tensor.ndim)
        )

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return 1×1 → along each mode → 1×1."""
        return (
            Stage(spec.groups, ranks[0], spec.in_),
            *(
                Stage(spec.groups, ranks[mode + 1], ranks[mode], (mode,))
                for mode in range(spec.order)
            ),
            Stage(spec.groups, spec.out, ranks[-1]),
        )

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Decompose every group by TT-SVD at the given ranks."""
        trains = [tt_svd(group.movedim(0, -1), ranks=ranks) for group in kernel]
        norms2 = [float(group.double().square().sum()) for group in kernel]
        cores = [torch.stack(stack) for stack in zip(*(t.cores for t in trains), strict=True)]
        first, *between, last = cores  # (groups, r, n, r')
        kernels = [
            flat(first.flatten(1, 2).mT, spec),
            *(along(core.permute(0, 3, 1, 2), spec, mode) for mode, core in enumerate(between)),
            flat(last.flatten(2).mT, spec),
        ]
        discarded = sum(t.relative_error**2 * n for t, n in zip(trains, norms2, strict=True))
        energy = sum(norms2)
        return Factorized(kernels, (discarded / energy) ** 0.5 if energy else 0.0)
