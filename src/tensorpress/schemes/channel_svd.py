"""SVD of a kernel between its channels: channel SVD, which is Tucker-1, and the SVD of a matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

from torch import Tensor

from tensorpress.decompose.spectrum import Spectrum, singular_values, spectrum
from tensorpress.decompose.svd import truncated_svd
from tensorpress.schemes.base import Factorized, LayerScheme
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.rank_grid import FINE, discarded_energy
from tensorpress.schemes.stages import Stage, pointwise_kernel


@dataclass(frozen=True)
class ChannelSVD(LayerScheme):
    """A full kernel with r outputs, then 1×1; or 1×1 to r channels, then a full kernel.

    The unfolding of the kernel along the output mode, out × (in·k…), or along the input mode, is
    truncated to rank r. That is Tucker-1 along this mode: the error is the discarded energy, and no
    other pair of such layers has less. Of a Linear it is the SVD, of an Embedding shorter vectors
    and a Linear.

    Parameters
    ----------
    mode : {"out", "in"}
        Which mode the 1×1 layer expands or reduces.

    References
    ----------
    Zhang, Zou, He, Sun (2016), "Accelerating very deep convolutional networks for classification
    and detection", sec. 3.1, without the responses; Tucker (1966).
    """

    mode: Literal["out", "in"] = "out"
    parts: ClassVar[tuple[float, ...]] = FINE

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse nothing but a kernel whose unfolding is a vector."""
        if min(self._matrix_shape(spec)) == 1:
            return "its kernel, unfolded along that mode, is a vector: nothing to cut"
        return None

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the rank of the unfolding, at most."""
        return (min(self._matrix_shape(spec)),)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectrum of the unfolding."""
        return (spectrum(self._matrix(kernel)),)

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return the energies that the spectrum has beyond the ranks."""
        return discarded_energy(
            singular_values(self._matrix(kernel)), [rank for (rank,) in candidates]
        )

    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return full kernel → 1×1, or 1×1 → full kernel."""
        (rank,), everywhere = ranks, tuple(range(spec.order))
        full_first = self.mode == "out"
        return (
            Stage(spec.groups, rank, spec.in_, everywhere if full_first else ()),
            Stage(spec.groups, spec.out, rank, () if full_first else everywhere),
        )

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Split the singular values evenly between the two layers."""
        found = truncated_svd(
            self._matrix(kernel), ranks[0], spectrum=spectra[0] if spectra else None
        )
        root = found.s.sqrt()[..., None, :]
        side, rest = found.u * root, found.v * root  # (groups, channels, r), (groups, others, r)
        if self.mode == "out":
            full = rest.mT.reshape(spec.groups, ranks[0], spec.in_, *spec.kernel)
            return Factorized([full, pointwise_kernel(side, spec)], found.relative_error)
        full = rest.reshape(spec.groups, spec.out, *spec.kernel, ranks[0]).movedim(-1, 2)
        return Factorized([pointwise_kernel(side.mT, spec), full], found.relative_error)

    def _matrix(self, kernel: Tensor) -> Tensor:
        """Return the unfolding a group: (groups, channels of the mode, all others)."""
        return (kernel if self.mode == "out" else kernel.transpose(1, 2)).flatten(2)

    def _matrix_shape(self, spec: LayerSpec) -> tuple[int, int]:
        channels, others = spec.out, spec.in_
        if self.mode == "in":
            channels, others = others, channels
        return channels, others * prod(spec.kernel)
