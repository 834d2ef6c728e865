"""SVD between the spatial modes of a kernel, alone or followed by an SVD of channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor

from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.stages import Stage, axis_kernel, pointwise_kernel
from tensorpress.schemes.svd_scheme import SVDScheme
from tensorpress.schemes.tt_chain import TTChain


@dataclass(frozen=True)
class SpatialSVD(SVDScheme):
    """A convolution along one spatial mode to r channels, then one along the other modes.

    The kernel, as a matrix (in·k₁) × (out·k₂…), is truncated to rank r.

    Parameters
    ----------
    first : {"vertical", "horizontal"}
        Whether the first convolution runs along the first or the last spatial mode.

    References
    ----------
    Tai, Xiao, Zhang, Wang, E (2016), "Convolutional neural networks with low-rank regularization",
    Theorem 1; Jaderberg, Vedaldi, Zisserman (2014).
    """

    first: Literal["vertical", "horizontal"] = "vertical"

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse layers with fewer than two spatial modes, and kernels that are vectors."""
        if spec.order < 2:
            return _too_few_modes(spec)
        if self.largest_ranks(spec) == (1,):
            return "its kernel, unfolded, is a vector: nothing to cut"
        return None

    def matrix_shape(self, spec: LayerSpec) -> tuple[int, int]:
        """Return in·k₁ and out·k₂…."""
        size = spec.kernel[self._axis]
        return spec.in_ * size, spec.out * (prod(spec.kernel) // size)

    def matrix(self, kernel: Tensor) -> Tensor:
        """Return the matrix (groups, in·k₁, out·k₂…)."""
        mode = 3 if self._axis == 0 else kernel.ndim - 1
        moved = kernel.movedim((2, mode), (1, 2))  # (groups, in, k₁, out, k₂…)
        return moved.flatten(3).flatten(1, 2)

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return one spatial mode → the others."""
        (rank,) = ranks
        mode = self._axis % spec.order
        others = tuple(m for m in range(spec.order) if m != mode)
        return (
            Stage(spec.groups, rank, spec.in_, (mode,)),
            Stage(spec.groups, spec.out, rank, others),
        )

    def kernels(self, spec: LayerSpec, left: Tensor, right: Tensor) -> list[Tensor]:
        """Return the kernel along the one mode, and the kernel along the others."""
        rank = left.shape[2]
        first = left.mT.reshape(spec.groups, rank, spec.in_, spec.kernel[self._axis])
        sizes = [k for m, k in enumerate(spec.kernel) if m != self._axis % spec.order]
        second = right.reshape(spec.groups, spec.out, *sizes, rank).movedim(-1, 2)
        return [
            axis_kernel(first, spec, self._axis),
            second.unsqueeze(3 if self._axis == 0 else -1),
        ]

    @property
    def _axis(self) -> int:
        return 0 if self.first == "vertical" else -1


@dataclass(frozen=True)
class SpatialChannelSVD(TTChain):
    """A convolution along the first spatial mode to r₁ channels, one along the others to r₂, 1×1.

    The kernel, as a tensor (in·k₁) × (k₂…) × out, becomes a tensor train by two truncations.

    References
    ----------
    Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for classification
    and detection" ("asymmetric 3d").
    """

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse layers with fewer than two spatial modes, and kernels that are vectors."""
        if spec.order < 2:
            return _too_few_modes(spec)
        if max(self.largest_ranks(spec)) == 1:
            return "its kernel is a vector: nothing to cut"
        return None

    def modes(self, spec: LayerSpec) -> Sizes:
        """Return (in·k₁, k₂…, out)."""
        return (spec.in_ * spec.kernel[0], prod(spec.kernel[1:]), spec.out)

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return the first spatial mode → the others → 1×1."""
        first, second = ranks
        return (
            Stage(spec.groups, first, spec.in_, (0,)),
            Stage(spec.groups, second, first, tuple(range(1, spec.order))),
            Stage(spec.groups, spec.out, second),
        )

    def kernels(self, spec: LayerSpec, cores: Sequence[Tensor]) -> list[Tensor]:
        """Return the kernels along the first mode and along the others, and the 1×1 kernel."""
        first, second, last = cores
        along_first = first.flatten(1, 2).mT.reshape(spec.groups, -1, spec.in_, spec.kernel[0])
        along_others = second.permute(0, 3, 1, 2)
        return [
            axis_kernel(along_first, spec, 0),
            along_others.reshape(*along_others.shape[:3], 1, *spec.kernel[1:]),
            pointwise_kernel(last.flatten(2).mT, spec),
        ]


def _too_few_modes(spec: LayerSpec) -> str:
    return f"it has {spec.order or 'no'} spatial mode, but needs two"
