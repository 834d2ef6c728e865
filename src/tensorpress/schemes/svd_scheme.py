"""Base of the schemes that split a kernel in two by the SVD of one matrix."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from tensorpress.decompose.spectrum import Spectrum, singular_values, spectrum
from tensorpress.decompose.svd import truncated_svd
from tensorpress.schemes.layer_scheme import LayerScheme
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.rank_grid import FINE, discarded_energy
from tensorpress.schemes.scheme import Factorized


class SVDScheme(LayerScheme):
    """A chain of two layers from the truncated SVD of the kernel as a matrix.

    The error is the discarded energy, the least of all pairs of such layers.
    """

    parts: ClassVar[tuple[float, ...]] = FINE

    @abstractmethod
    def matrix_shape(self, spec: LayerSpec) -> tuple[int, int]:
        """Return the rows and columns of the `matrix`."""

    @abstractmethod
    def matrix(self, kernel: Tensor) -> Tensor:
        """Return a kernel as the matrix to decompose, (groups, rows, columns)."""

    @abstractmethod
    def kernels(self, spec: LayerSpec, left: Tensor, right: Tensor) -> list[Tensor]:
        """Return factors (groups, rows, r) and (groups, columns, r) as the kernels of the chain."""

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the shorter side of the matrix."""
        return (min(self.matrix_shape(spec)),)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectrum of the matrix."""
        return (spectrum(self.matrix(kernel)),)

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return the discarded energies."""
        return discarded_energy(singular_values(self.matrix(kernel)), [r for (r,) in candidates])

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Truncate the SVD, and split the singular values evenly, (U√S)(V√S)ᵀ."""
        svd = truncated_svd(self.matrix(kernel), *ranks, spectrum=spectra[0] if spectra else None)
        root = svd.s.sqrt()[..., None, :]
        return Factorized(self.kernels(spec, svd.u * root, svd.v * root), svd.relative_error)
