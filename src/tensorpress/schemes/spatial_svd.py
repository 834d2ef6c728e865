"""SVD of a kernel between its spatial modes: a vertical and a horizontal convolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

from torch import Tensor

from tensorpress.decompose.spectrum import Spectrum, singular_values, spectrum
from tensorpress.decompose.svd import truncated_svd
from tensorpress.schemes.base import Factorized, LayerScheme
from tensorpress.schemes.candidates import FINE, discarded
from tensorpress.schemes.layer import LayerSpec, Sizes
from tensorpress.schemes.stages import Stage, along


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
        return discarded(singular_values(self._matrix(kernel)), [rank for (rank,) in candidates])

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
            [along(one, spec, self._axis), others.unsqueeze(3 if self._axis == 0 else -1)],
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
