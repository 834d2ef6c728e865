"""SVD between the channels of a kernel (channel SVD or Tucker-1), and of a matrix."""

from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor

from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.stages import Stage, pointwise_kernel
from tensorpress.schemes.svd_scheme import SVDScheme


@dataclass(frozen=True)
class ChannelSVD(SVDScheme):
    """A full kernel with r outputs, then 1×1; or 1×1 to r channels, then a full kernel.

    The unfolding of the kernel along the output mode, out × (in·k…), or along the input mode, is
    truncated to rank r, which is Tucker-1 along this mode. A Linear becomes two Linears (the SVD),
    and an Embedding becomes one of shorter vectors and a Linear.

    Parameters
    ----------
    mode : {"out", "in"}
        The mode that the 1×1 layer expands or reduces.

    References
    ----------
    Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for classification
    and detection", sec. 3.1, without the responses; Tucker (1966).
    """

    mode: Literal["out", "in"] = "out"

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse a kernel whose unfolding is a vector."""
        if self.largest_ranks(spec) == (1,):
            return "its kernel, unfolded along this mode, is a vector: nothing to cut"
        return None

    def matrix_shape(self, spec: LayerSpec) -> tuple[int, int]:
        """Return the channels of the mode, and all other sizes multiplied."""
        rows, others = (spec.out, spec.in_) if self.mode == "out" else (spec.in_, spec.out)
        return rows, others * prod(spec.kernel)

    def matrix(self, kernel: Tensor) -> Tensor:
        """Return the unfolding along the mode."""
        return (kernel if self.mode == "out" else kernel.transpose(1, 2)).flatten(2)

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return full kernel → 1×1, or 1×1 → full kernel."""
        (rank,), modes = ranks, tuple(range(spec.order))
        first, second = (modes, ()) if self.mode == "out" else ((), modes)
        return Stage(spec.groups, rank, spec.in_, first), Stage(spec.groups, spec.out, rank, second)

    def kernels(self, spec: LayerSpec, left: Tensor, right: Tensor) -> list[Tensor]:
        """Return the channels of the mode as the 1×1 kernel, and the rest as the full kernel."""
        if self.mode == "out":
            full = right.mT.reshape(spec.groups, -1, spec.in_, *spec.kernel)
            return [full, pointwise_kernel(left, spec)]
        full = right.reshape(spec.groups, spec.out, *spec.kernel, -1).movedim(-1, 2)
        return [pointwise_kernel(left.mT, spec), full]
