"""Tensor train in layer form: a chain of convolutions, or one contraction for a matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from tensorpress.decompose.spectrum import Spectrum
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.scheme import Factorized, Scheme
from tensorpress.schemes.tt_chain import TrainOfConvolutions
from tensorpress.schemes.tt_matrix import TrainOfMatrix


@dataclass(frozen=True)
class TensorTrain(Scheme):
    """A tensor train for any layer: a `TrainOfConvolutions` or a `TrainOfMatrix`.

    Parameters
    ----------
    row_modes, column_modes : tuple of int, optional
        Modes of a `TrainOfMatrix`.
    """

    row_modes: Sizes = ()
    column_modes: Sizes = ()
    option_names: ClassVar[tuple[str, ...]] = ("row_modes", "column_modes")

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse layers that the scheme for this kind of layer refuses."""
        if spec.order and self.options:
            return "row_modes and column_modes are for matrices, but it has spatial modes"
        return self._scheme(spec).refusal(spec)

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the shorter sides of the unfoldings."""
        return self._scheme(spec).largest_ranks(spec)

    def attainable(self, spec: LayerSpec, ranks: Sizes) -> Sizes:
        """Lower ranks that the others do not allow."""
        return self._scheme(spec).attainable(spec, ranks)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectra of the unfoldings."""
        return self._scheme(spec).spectra(spec, kernel)

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the parameters of the pressed layer, its bias included."""
        return self._scheme(spec).params(spec, ranks)

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates for one example."""
        return self._scheme(spec).macs(spec, ranks, sizes)

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> nn.Module:
        """Return the uninitialized pressed layer."""
        return self._scheme(spec).skeleton(spec, ranks, like=like)

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Decompose by TT-SVD."""
        return self._scheme(spec).factorize(spec, kernel, ranks, spectra)

    def _scheme(self, spec: LayerSpec) -> Scheme:
        if spec.order:
            return TrainOfConvolutions(self.name, self.summary)
        return TrainOfMatrix(self.name, self.summary, self.row_modes, self.column_modes)
