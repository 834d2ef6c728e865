"""The weight of a Linear or an Embedding as a TT-matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, prod
from typing import ClassVar

from torch import Tensor, nn

from tensorpress.decompose import attainable_tt_ranks, largest_tt_ranks, tt_params
from tensorpress.decompose.spectrum import Spectrum
from tensorpress.decompose.tt_matrix import tt_matrix, tt_matrix_spectra, tt_row_macs, tt_to_matrix
from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.reshape_modes import balanced_modes
from tensorpress.schemes.scheme import Factorized, Scheme
from tensorpress.schemes.tt_layers import TTEmbedding, TTLayer, TTLinear, contraction_macs

USUAL_MODE = 8
"""Modes are chosen to be about this large."""


@dataclass(frozen=True)
class TrainOfMatrix(Scheme):
    """The weight of a Linear or an Embedding as a TT-matrix that is never built.

    Parameters
    ----------
    row_modes, column_modes : tuple of int, optional
        Modes of the weight (rows, columns), equally many. By default they are balanced, and their
        number is about the logarithm to base 8 of the larger side. The row modes of an Embedding
        may multiply to more than its rows, which are then padded with zeros.

    References
    ----------
    Novikov, Podoprikhin, Osokin, Vetrov (2015), "Tensorizing neural networks".
    """

    row_modes: Sizes = ()
    column_modes: Sizes = ()
    option_names: ClassVar[tuple[str, ...]] = ("row_modes", "column_modes")

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse convolutions, and modes that do not fit."""
        if spec.order:
            return "it has spatial modes"
        if spec.scale_grad_by_freq:
            return "scale_grad_by_freq would be lost"
        rows, columns = self.modes(spec)
        height, width = self._shape(spec)
        fits = len(rows) == len(columns) and prod(columns) == width and prod(rows) >= height
        if not fits or min(rows + columns) < 1:
            return f"modes {rows} × {columns} do not fit its weight {height}×{width}"
        if prod(rows) != height and spec.kind == "Linear":
            return f"row modes {rows} do not multiply to its {height} outputs"
        return None

    def modes(self, spec: LayerSpec) -> tuple[Sizes, Sizes]:
        """Return the row and column modes."""
        if self.row_modes or self.column_modes:
            return self.row_modes, self.column_modes
        height, width = self._shape(spec)
        order = max(2, round(log(max(height, width), USUAL_MODE)))
        cover = balanced_modes if spec.kind == "Linear" else covering_modes
        # Pairing large modes with small ones gives cores of similar size.
        return cover(height, order), balanced_modes(width, order)[::-1]

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the shorter sides of the unfoldings."""
        return largest_tt_ranks(self._sizes(spec))

    def attainable(self, spec: LayerSpec, ranks: Sizes) -> Sizes:
        """Lower ranks that the others do not allow."""
        return attainable_tt_ranks(self._sizes(spec), ranks)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectra of the unfoldings."""
        return tuple(tt_matrix_spectra(self._matrix(spec, kernel), *self.modes(spec)))

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the entries of the cores and the bias."""
        return tt_params(self._sizes(spec), ranks) + spec.outputs * spec.bias

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates of the contraction, from its cheaper end."""
        rows, columns = self.modes(spec)
        if spec.kind == "Embedding":
            return prod(sizes) * tt_row_macs(columns, ranks)
        return prod(sizes) * contraction_macs(rows, columns, ranks)[0]

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> TTLayer:
        """Return the uninitialized layer."""
        kind = TTLinear if spec.kind == "Linear" else TTEmbedding
        return kind(spec, *self.modes(spec), ranks, scheme=self.name, like=like)

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Decompose by TT-SVD; the error ignores padding rows."""
        train = tt_matrix(self._matrix(spec, kernel), *self.modes(spec), ranks=ranks)
        if spec.kind == "Linear":
            return Factorized(train.cores, train.relative_error)
        table = kernel[0].mT
        difference = table - tt_to_matrix(train.cores)[: spec.inputs]
        if spec.padding_idx is not None:
            if table[spec.padding_idx].any():
                raise InvalidArgumentError("the vector at padding_idx is not zero")
            difference[spec.padding_idx] = 0
        error = float(difference.norm() / table.norm().clamp_min(1e-300))
        return Factorized(train.cores, error)

    def _shape(self, spec: LayerSpec) -> tuple[int, int]:
        """Return the shape of the matrix to decompose."""
        shape = (spec.inputs, spec.outputs)
        return shape if spec.kind == "Embedding" else shape[::-1]

    def _sizes(self, spec: LayerSpec) -> Sizes:
        rows, columns = self.modes(spec)
        return tuple(m * n for m, n in zip(rows, columns, strict=True))

    def _matrix(self, spec: LayerSpec, kernel: Tensor) -> Tensor:
        """Return the weight (rows, columns), padded with zero rows for an Embedding."""
        matrix = kernel[0] if spec.kind == "Linear" else kernel[0].mT
        extra = prod(self.modes(spec)[0]) - len(matrix)
        return nn.functional.pad(matrix, (0, 0, 0, extra)) if extra else matrix


def covering_modes(size: int, order: int) -> Sizes:
    """Return ``order`` similar modes whose product is at least ``size``, and not much more.

    Examples
    --------
    >>> covering_modes(50257, 4)
    (15, 15, 15, 15)
    """
    modes: list[int] = []
    for count in range(order, 0, -1):
        # The smallest mode that still covers the rest if all remaining modes have its size.
        mode = next(m for m in range(1, size + 1) if m**count >= size)
        modes.append(mode)
        size = -(-size // mode)
    return tuple(modes)
