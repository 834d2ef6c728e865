"""Spatial and channel SVD one after the other: a vertical, a horizontal and a 1×1 convolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tensorpress.decompose.spectrum import Spectrum, spectrum
from tensorpress.decompose.tensor_train import attainable_tt_ranks, largest_tt_ranks, tt_svd
from tensorpress.schemes.base import Factorized, LayerScheme
from tensorpress.schemes.layer import LayerSpec, Sizes
from tensorpress.schemes.stages import Stage, along, flat


@dataclass(frozen=True)
class SpatialChannelSVD(LayerScheme):
    """A convolution along the first spatial mode to r₁ channels, one along the others to r₂, 1×1.

    The kernel as a tensor (in·k₁) × (k₂…) × out in tensor-train form, by two truncations.

    References
    ----------
    Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for classification
    and detection" ("asymmetric 3d").
    """

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse layers with fewer than two spatial modes."""
        if spec.order < 2:
            return f"it has {spec.order or 'no'} spatial mode, and two are needed"
        if max(self.largest_ranks(spec)) == 1:
            return "its kernel is a vector: nothing to cut"
        return None

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the ranks of the two unfoldings, at most."""
        return largest_tt_ranks(_modes(spec))

    def attainable(self, spec: LayerSpec, ranks: Sizes) -> Sizes:
        """Return the ranks that a train with these ranks can have."""
        return attainable_tt_ranks(_modes(spec), ranks)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectra of the two unfoldings."""
        tensor = _tensor(kernel)
        return spectrum(tensor.flatten(2)), spectrum(tensor.flatten(1, 2))

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return the first spatial mode → the others → 1×1."""
        first, second = ranks
        return (
            Stage(spec.groups, first, spec.in_, (0,)),
            Stage(spec.groups, second, first, tuple(range(1, spec.order))),
            Stage(spec.groups, spec.out, second),
        )

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Decompose every group by TT-SVD at the given ranks."""
        trains = [tt_svd(group, ranks=ranks) for group in _tensor(kernel)]
        norms2 = [float(group.double().square().sum()) for group in kernel]
        one, others, out = (
            torch.stack(cores) for cores in zip(*(t.cores for t in trains), strict=True)
        )  # (groups, r, n, r')
        first = one[:, 0].mT.reshape(spec.groups, ranks[0], spec.in_, spec.kernel[0])
        second = others.permute(0, 3, 1, 2)
        discarded = sum(t.relative_error**2 * n for t, n in zip(trains, norms2, strict=True))
        energy = sum(norms2)
        return Factorized(
            [
                along(first, spec, 0),
                second.reshape(*second.shape[:3], 1, *spec.kernel[1:]),
                flat(out[..., 0].mT, spec),
            ],
            (discarded / energy) ** 0.5 if energy else 0.0,
        )


def _modes(spec: LayerSpec) -> Sizes:
    return (spec.in_ * spec.kernel[0], prod(spec.kernel[1:]), spec.out)


def _tensor(kernel: Tensor) -> Tensor:
    """Return the tensor a group: (groups, in·k₁, k₂…, out)."""
    return kernel.movedim(1, -1).flatten(3, -2).flatten(1, 2)
