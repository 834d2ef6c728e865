"""Tensor train in layer form: a chain of convolutions, or one contraction for a matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from tensorpress.decompose import (
    attainable_tt_ranks,
    largest_tt_ranks,
    tt_params,
    tt_svd,
)
from tensorpress.decompose.spectrum import Spectrum, spectrum
from tensorpress.decompose.tt_matrix import tt_matrix, tt_matrix_spectra, tt_row_macs
from tensorpress.decompose.tt_matvec import tt_macs
from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.base import Factorized, LayerScheme, Scheme
from tensorpress.schemes.chain_builder import balance_kernels
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.reshape_modes import balanced_modes
from tensorpress.schemes.stages import Stage, axis_kernel, pointwise_kernel
from tensorpress.schemes.tt_layers import TTEmbedding, TTLayer, TTLinear


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
            pointwise_kernel(first.flatten(1, 2).mT, spec),
            *(
                axis_kernel(core.permute(0, 3, 1, 2), spec, mode)
                for mode, core in enumerate(between)
            ),
            pointwise_kernel(last.flatten(2).mT, spec),
        ]
        discarded = sum(t.relative_error**2 * n for t, n in zip(trains, norms2, strict=True))
        energy = sum(norms2)
        return Factorized(kernels, (discarded / energy) ** 0.5 if energy else 0.0)


USUAL_MODE = 8
"""Modes are chosen to be about this large."""


@dataclass(frozen=True)
class TrainOfMatrix(Scheme):
    """The weight of a Linear or an Embedding as a TT-matrix, contracted without building it.

    Parameters
    ----------
    row_modes, column_modes : tuple of int, optional
        Of the weight (rows, columns), equally many; by default about the logarithm to base 8 of
        its larger side, balanced. Those of an Embedding's rows may multiply to more than there are.

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
            return "its gradients are scaled by frequency, which would be lost"
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
        # A large mode beside a small one keeps every core of a similar size.
        return cover(height, order), balanced_modes(width, order)[::-1]

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the ranks of the unfoldings, at most."""
        return largest_tt_ranks(self._sizes(spec))

    def attainable(self, spec: LayerSpec, ranks: Sizes) -> Sizes:
        """Return the ranks that a train with these ranks can have."""
        return attainable_tt_ranks(self._sizes(spec), ranks)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectra of the unfoldings."""
        return tuple(tt_matrix_spectra(self._matrix(spec, kernel), *self.modes(spec)))

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the entries of the cores and the bias."""
        return tt_params(self._sizes(spec), ranks) + spec.outputs * spec.bias

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return those of the contraction, from its cheaper end."""
        rows, columns = self.modes(spec)
        if spec.kind == "Embedding":
            return prod(sizes) * tt_row_macs(columns, ranks)
        return prod(sizes) * min(
            tt_macs(rows, columns, ranks, from_left=side) for side in (True, False)
        )

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> TTLayer:
        """Return the layer uninitialized."""
        kind = TTLinear if spec.kind == "Linear" else TTEmbedding
        return kind(spec, *self.modes(spec), ranks, scheme=self.name, like=like)

    def decompose(
        self,
        layer: nn.Module,
        spec: LayerSpec,
        kernel: Tensor,
        ranks: Sizes,
        spectra: Sequence[Spectrum],
    ) -> TTLayer:
        """Decompose by TT-SVD."""
        found = tt_matrix(self._matrix(spec, kernel), *self.modes(spec), ranks=ranks)
        pressed = self.skeleton(spec, ranks, like=layer.get_parameter("weight").detach())
        values: dict[str, Tensor] = {
            f"cores.{k}": core for k, core in enumerate(balance_kernels(found.cores))
        }
        if spec.bias:
            values["bias"] = layer.get_parameter("bias").detach()
        pressed.load_state_dict(values)
        pressed.relative_error = found.relative_error
        if spec.kind == "Embedding":
            table = kernel[0].mT
            if spec.padding_idx is not None and table[spec.padding_idx].any():
                raise InvalidArgumentError("the vector at padding_idx is not zero")
            difference = table - pressed.dense_weight().detach()  # without what fills up
            pressed.relative_error = float(difference.norm() / table.norm().clamp_min(1e-300))
        return pressed

    def _shape(self, spec: LayerSpec) -> tuple[int, int]:
        """Return the shape of the matrix that is decomposed, however torch holds the weight."""
        shape = (spec.inputs, spec.outputs)
        return shape if spec.kind == "Embedding" else shape[::-1]

    def _sizes(self, spec: LayerSpec) -> Sizes:
        rows, columns = self.modes(spec)
        return tuple(m * n for m, n in zip(rows, columns, strict=True))

    def _matrix(self, spec: LayerSpec, kernel: Tensor) -> Tensor:
        """Return the weight (rows, columns), an Embedding's filled up with zero rows."""
        matrix = kernel[0] if spec.kind == "Linear" else kernel[0].mT
        missing = prod(self.modes(spec)[0]) - len(matrix)
        return matrix if not missing else _padded(matrix, missing)


def _padded(matrix: Tensor, missing: int) -> Tensor:
    return nn.functional.pad(matrix, (0, 0, 0, missing))


def covering_modes(size: int, order: int) -> Sizes:
    """Return ``order`` similar modes whose product is at least ``size``, and not much more.

    Examples
    --------
    >>> covering_modes(50257, 4)
    (15, 15, 15, 15)
    """
    modes: list[int] = []
    for left in range(order, 0, -1):
        # The smallest mode with which the others, of the same size, still cover what is left.
        mode = next(m for m in range(1, size + 1) if m**left >= size)
        modes.append(mode)
        size = -(-size // mode)
    return tuple(modes)


@dataclass(frozen=True)
class TensorTrain(Scheme):
    """A tensor train for any layer: a `TrainOfConvolutions`, or else a `TrainOfMatrix`.

    Parameters
    ----------
    row_modes, column_modes : tuple of int, optional
        Those of a `TrainOfMatrix`.
    """

    row_modes: Sizes = ()
    column_modes: Sizes = ()
    option_names: ClassVar[tuple[str, ...]] = ("row_modes", "column_modes")

    def refusal(self, spec: LayerSpec) -> str | None:
        """Refuse what the form for this kind of layer refuses."""
        if spec.order and self.options:
            return "row and column modes are those of a matrix, and it has spatial modes"
        return self._form(spec).refusal(spec)

    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the ranks of the unfoldings, at most."""
        return self._form(spec).largest_ranks(spec)

    def attainable(self, spec: LayerSpec, ranks: Sizes) -> Sizes:
        """Return the ranks that a train with these ranks can have."""
        return self._form(spec).attainable(spec, ranks)

    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return the spectra of the unfoldings."""
        return self._form(spec).spectra(spec, kernel)

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the parameters of the pressed layer, its bias included."""
        return self._form(spec).params(spec, ranks)

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates for one example."""
        return self._form(spec).macs(spec, ranks, sizes)

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> nn.Module:
        """Return the pressed layer uninitialized."""
        return self._form(spec).skeleton(spec, ranks, like=like)

    def decompose(
        self,
        layer: nn.Module,
        spec: LayerSpec,
        kernel: Tensor,
        ranks: Sizes,
        spectra: Sequence[Spectrum],
    ) -> nn.Module:
        """Return the pressed layer at checked ranks."""
        return self._form(spec).decompose(layer, spec, kernel, ranks, spectra)

    def _form(self, spec: LayerSpec) -> Scheme:
        if spec.order:
            return TrainOfConvolutions(self.name, self.summary)
        return TrainOfMatrix(self.name, self.summary, self.row_modes, self.column_modes)
