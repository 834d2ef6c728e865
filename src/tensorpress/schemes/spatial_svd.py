"""SVD between the spatial modes of a kernel, alone and followed by an SVD of channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tensorpress.decompose import attainable_tt_ranks, largest_tt_ranks, tt_svd
from tensorpress.decompose.spectrum import Spectrum, singular_values, spectrum
from tensorpress.decompose.svd import truncated_svd
from tensorpress.schemes.base import Factorized, LayerScheme
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.rank_grid import FINE, discarded_energy
from tensorpress.schemes.stages import Stage, axis_kernel, pointwise_kernel


@dataclass(frozen=True)
class SpatialSVD(LayerScheme):
    """A convolution along one spatial mode to r channels, then one along the other modes.

    The kernel as a matrix (in·k₁) × (k₂…·out), truncated to rank r: the global optimum over all
    such pairs of layers, with the discarded energy as its error.

    Parameters
    ----------
    first : {"vertical", "horizontal"}
        Whether the first convolution runs along the first spatial mode, or along the last.

    References
    ----------
    Tai, Xiao, Zhang, Wang, E (2016), "Convolutional neural networks with low-rank regularization",
    Theorem 1; Jaderberg, Vedaldi, Zisserman (2014).
    """

    first: Literal["vertical", "horizontal"] = "vertical"
    parts: ClassVar[tuple[float, ...]] = FINE

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse layers with fewer than two spatial modes."""
        if spec.order < 2:
            return f"it has {spec.order or 'no'} spatial mode, and two are needed"
        if self.largest_ranks(spec) == (1,):
            return "its kernel, unfolded, is a vector: nothing to cut"
        return None

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the rank of the matrix, at most."""
        one = spec.kernel[self._axis]
        rest = prod(spec.kernel) // one
        return (min(spec.in_ * one, spec.out * rest),)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectrum of the matrix."""
        return (spectrum(self._matrix(kernel)),)

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return the energies that the spectrum has beyond the ranks."""
        return discarded_energy(
            singular_values(self._matrix(kernel)), [rank for (rank,) in candidates]
        )

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return one spatial mode → the others."""
        (rank,) = ranks
        mode = self._axis % spec.order
        others = tuple(m for m in range(spec.order) if m != mode)
        return (
            Stage(spec.groups, rank, spec.in_, (mode,)),
            Stage(spec.groups, spec.out, rank, others),
        )

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Split the singular values evenly between the two layers, as Tai et al. do."""
        found = truncated_svd(
            self._matrix(kernel), ranks[0], spectrum=spectra[0] if spectra else None
        )
        root = found.s.sqrt()[..., None, :]
        size = spec.kernel[self._axis]
        rest = [k for m, k in enumerate(spec.kernel) if m != self._axis % spec.order]
        one = (found.u * root).mT.reshape(spec.groups, ranks[0], spec.in_, size)
        others = (found.v * root).reshape(spec.groups, spec.out, *rest, ranks[0]).movedim(-1, 2)
        return Factorized(
            [axis_kernel(one, spec, self._axis), others.unsqueeze(3 if self._axis == 0 else -1)],
            found.relative_error,
        )

    @property
    def _axis(self) -> int:
        return 0 if self.first == "vertical" else -1

    def _matrix(self, kernel: Tensor) -> Tensor:
        """Return the matrix a group: (groups, in·k₁, out·k₂…)."""
        mode = 3 if self._axis == 0 else kernel.ndim - 1
        moved = kernel.movedim((2, mode), (1, 2))  # (groups, in, k₁, out, k₂…)
        return moved.flatten(3).flatten(1, 2)


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
        discarded_energy = sum(t.relative_error**2 * n for t, n in zip(trains, norms2, strict=True))
        energy = sum(norms2)
        return Factorized(
            [
                axis_kernel(first, spec, 0),
                second.reshape(*second.shape[:3], 1, *spec.kernel[1:]),
                pointwise_kernel(out[..., 0].mT, spec),
            ],
            (discarded_energy / energy) ** 0.5 if energy else 0.0,
        )


def _modes(spec: LayerSpec) -> Sizes:
    return (spec.in_ * spec.kernel[0], prod(spec.kernel[1:]), spec.out)


def _tensor(kernel: Tensor) -> Tensor:
    """Return the tensor a group: (groups, in·k₁, k₂…, out)."""
    return kernel.movedim(1, -1).flatten(3, -2).flatten(1, 2)
